# SPDX-License-Identifier: Apache-2.0
"""The bridge is a package of its own: its sources are put on the path here. Without the source tree nothing is tested."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "plugins" / "fate" / "src"
if SOURCES.is_dir():
    sys.path[:0] = [str(SOURCES), str(Path(__file__).parent)]
else:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def fate_python() -> str:
    """The interpreter of an environment with the real pyfate; skips where there is none."""
    named = os.environ.get("OSMOTIC_FATE_ENV", "")
    if not named:
        done = subprocess.run([ROOT / "scripts" / "fate-env", "--where"], capture_output=True, text=True, check=False)
        named = done.stdout.strip()
    if not named:
        pytest.skip("no environment with pyfate: scripts/fate-env makes one (Python 3.11), OSMOTIC_FATE_ENV names another")
    done = subprocess.run([named, "-c", "import fate, pkg_resources"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"{named} has no pyfate: {done.stderr[-300:]}")
    return named
