# SPDX-License-Identifier: Apache-2.0
"""Settings of all tests: properties are drawn the same way each time, and a busy machine fails none of them."""

import os

from hypothesis import settings

os.environ["OSMOTIC_CACHE"] = ""  # nothing that mechanisms compute is kept between tests, unless a test names a folder
os.environ.pop("COLUMNS", None)  # tables are as wide as they need to be, unless a test says otherwise
settings.register_profile("osmotic", deadline=None, derandomize=True, database=None)
settings.load_profile("osmotic")
