# SPDX-License-Identifier: Apache-2.0
"""Sums of which a server sees the sum alone: masks, shares that recover who drops out, noise that every client adds."""
