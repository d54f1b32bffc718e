# SPDX-License-Identifier: Apache-2.0
"""Settings of all tests: properties are drawn the same way each time, and a busy machine fails none of them."""

from hypothesis import settings

settings.register_profile("osmotic", deadline=None, derandomize=True, database=None)
settings.load_profile("osmotic")
