# SPDX-License-Identifier: Apache-2.0
"""One party at work: its policy, its data, its tasks, its membrane, and what it answers to the coordinator."""
