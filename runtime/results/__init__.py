# SPDX-License-Identifier: Apache-2.0
"""What came out of a run: summary, intervals, differences, checks afterwards."""
