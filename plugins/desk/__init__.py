# SPDX-License-Identifier: Apache-2.0
"""The desk: a small generated world of messages to a help desk, its data and its models, for the shipped FedDTPT pipeline."""
