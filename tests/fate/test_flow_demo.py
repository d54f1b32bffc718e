# SPDX-License-Identifier: Apache-2.0
"""`scripts/fate-flow-demo`: a job of a real FATE-Flow. It takes minutes and a package registry, so it is run when asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fate-flow-demo"


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(os.environ.get("OSMOTIC_FATE_FLOW") != "1", reason="minutes, and a server: OSMOTIC_FATE_FLOW=1 runs it")
def test_a_job_of_fate_flow_ends_well_at_every_party(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--work", tmp_path, "--python", sys.executable]
    small = ["--set", "matrix.seed=[1]", "--set", "matrix.arm=[labels, fedcot]", "--set", "tasks.student.config.steps=5"]
    done = subprocess.run([*command, *small], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("fedcot: success") == 3 and "epsilon" in done.stdout
    assert done.stdout.rstrip().endswith("the server is down")
