# SPDX-License-Identifier: Apache-2.0
"""Prompt tuning: a prompt as tokens, how candidates are scored, searched for and clustered. No components."""
