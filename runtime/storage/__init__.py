# SPDX-License-Identifier: Apache-2.0
"""What lasts: ledger, store, keys, journals; files that survive a kill."""
