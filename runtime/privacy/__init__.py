# SPDX-License-Identifier: Apache-2.0
"""What a release is, what it costs, what a run guarantees: mechanisms at work, charges, composition, accounts."""
