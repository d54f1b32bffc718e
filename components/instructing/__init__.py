# SPDX-License-Identifier: Apache-2.0
"""Private instructions: prompts of demonstrations, what is refused, how near two texts are. No components."""
