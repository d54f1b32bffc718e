# SPDX-License-Identifier: Apache-2.0
"""Templates of `osmotic new`, and what writes them."""
