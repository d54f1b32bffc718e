# SPDX-License-Identifier: Apache-2.0
"""Private evolution: its prompts, and which candidates survive the votes. No components."""
