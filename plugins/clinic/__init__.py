# SPDX-License-Identifier: Apache-2.0
"""The embedded default: a generated clinic-routing domain with two tiny language models."""
