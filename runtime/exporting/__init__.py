# SPDX-License-Identifier: Apache-2.0
"""Pipelines written down for other systems: for FATE 2.x so far (`osmotic export fate`)."""
