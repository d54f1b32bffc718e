# SPDX-License-Identifier: Apache-2.0
"""The shop: a small generated world of product reviews, its data and its models, for the shipped FDKT pipeline."""
