# SPDX-License-Identifier: Apache-2.0
"""Shipped pipelines and their site files."""
