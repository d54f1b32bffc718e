# SPDX-License-Identifier: Apache-2.0
"""Settings of all tests: properties are drawn the same way each time, and a busy machine fails none of them."""

import os

import pytest
from hypothesis import settings

os.environ["OSMOTIC_CACHE"] = ""  # nothing that mechanisms compute is kept between tests, unless a test names a folder
os.environ.pop("COLUMNS", None)  # tables are as wide as they need to be, unless a test says otherwise
settings.register_profile("osmotic", deadline=None, derandomize=True, database=None)
settings.load_profile("osmotic")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole deployments and the longest kills run where they are asked for: they take as long as a third of all others."""
    if os.environ.get("OSMOTIC_WHOLE"):
        return
    for item in items:
        if item.get_closest_marker("whole"):
            item.add_marker(pytest.mark.skip(reason="long: make test-whole, or OSMOTIC_WHOLE=1"))
