# SPDX-License-Identifier: Apache-2.0
"""The handbook: a small generated world of instructions, its data and its models, for the shipped FedPIT pipeline."""
