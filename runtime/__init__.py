# SPDX-License-Identifier: Apache-2.0
"""Loads, plans and runs pipelines: membrane, store, ledger, transports, report, command line."""
