# SPDX-License-Identifier: Apache-2.0
"""Bit for bit: seeded runs, replays from stored releases, both transports, and runs that were killed, on a reduced fedcot."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from osmotic.plugins.host import build_registry
from osmotic.runtime import api
from osmotic.runtime.plan.load import shipped
from osmotic.runtime.results.verifying import verify

Hashes = Callable[[Path], dict[str, str]]
SETS = (
    "matrix.seed=[1]",
    "matrix.arm=[fedcot, averaged]",
    "tasks.student.config.steps=3",
    "tasks.student.vary={arm: {fedcot: {}, averaged: {skip: true}}}",
    "tasks.federated.repeat.times=2",
    "tasks.federated.tasks.local.config.steps=2",
    "tasks.rationales.config.max_new_tokens=12",
    "tasks.clean_rationales.config.max_new_tokens=12",
    "tasks.evaluated.config.max_new_tokens_rationale=6",
)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """fedcot beside a sites file that takes twelve records a party and allows seeds."""
    shutil.copy(shipped()["fedcot"], tmp_path / "fedcot.yaml")
    sites = yaml.safe_load(shipped()["fedcot"].with_name("fedcot.sites.yaml").read_text())
    sites["defaults"]["seeded"] = True
    for party in ("north", "south"):
        for name, binding in sites["parties"][party]["data"].items():
            binding["rows"] = [0, 8 if name == "exam" else 12]
    (tmp_path / "fedcot.sites.yaml").write_text(json.dumps(sites, indent=1))
    return tmp_path / "fedcot.yaml"


def run(pipeline: Path, home: str, *more: str, isolate: bool = False) -> dict[str, Any]:
    return api.run(
        pipeline, overrides=(*SETS, *more), home=pipeline.parent / home, isolate=isolate, registry=build_registry(names=())
    )


def charges(home: Path) -> list[int]:
    found = verify(home)
    assert found["problems"] == []
    return [party["charges"] for party in found["parties"]]


@pytest.mark.slow
def test_two_seeded_runs_in_fresh_homes_are_equal(small: Path, hashes: Hashes) -> None:
    one, two = run(small, "one", "noise_seed=5"), run(small, "two", "noise_seed=5")
    first = hashes(small.parent / "one")
    assert first == hashes(small.parent / "two") and len(first) > 20
    assert one["table"] == two["table"]
    assert charges(small.parent / "one") == charges(small.parent / "two") == [0, 12, 12]
    assert one["guarantee"]["rows"]["fedcot"][0]["void"] == ["seeded"]


@pytest.mark.slow
def test_an_unseeded_run_is_replayed_from_its_releases(small: Path, hashes: Hashes) -> None:
    first = run(small, "one")
    home = small.parent / "one"
    before, spent = hashes(home), charges(home)
    assert spent == [0, 12, 12]
    for party in ("hub", "north", "south"):
        shutil.rmtree(home / "parties" / party / "store")
    replayed = run(small, "one")
    assert first["outcome"]["ran"] >= replayed["outcome"]["ran"] > 25  # tasks that gave equal content are restored by one
    assert hashes(home) == before and charges(home) == spent
    run(small, "two")
    assert hashes(small.parent / "two")["sanitized@north.sanitized"] != before["sanitized@north.sanitized"]


def test_running_again_writes_nothing_and_is_quick(small: Path) -> None:
    run(small, "one")
    home = small.parent / "one"
    sizes = {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in home.rglob("store/**/*")}
    heads = [party["heads"] for party in verify(home)["parties"]]
    start = time.perf_counter()
    again = run(small, "one")
    seconds = time.perf_counter() - start
    assert again["outcome"]["ran"] == 0 and again["outcome"]["cached"] == again["outcome"]["tasks"]
    assert {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in home.rglob("store/**/*")} == sizes
    assert [party["heads"] for party in verify(home)["parties"]] == heads
    assert seconds < 5


@pytest.mark.slow
def test_in_process_and_isolated_runs_are_equal(small: Path, hashes: Hashes) -> None:
    run(small, "one", "noise_seed=5")
    run(small, "two", "noise_seed=5", isolate=True)
    assert hashes(small.parent / "one") == hashes(small.parent / "two")
    mixed = run(small, "one", "noise_seed=5", isolate=True)
    assert mixed["outcome"]["ran"] == 0  # what one transport made, the other finds
    assert charges(small.parent / "two") == [0, 12, 12]


def test_a_damaged_artifact_is_made_anew_and_equal(small: Path, hashes: Hashes) -> None:
    run(small, "one")
    home = small.parent / "one"
    before = hashes(home)
    rng = random.Random(3)
    files = sorted(p for p in (home / "parties").glob("*/store/objects/*/*/*") if p.is_file())
    for file in rng.sample(files, 6):
        file.write_bytes(file.read_bytes()[:-1])
    again = run(small, "one")
    assert again["outcome"]["ran"] >= 1 and hashes(home) == before and charges(home) == [0, 12, 12]


@pytest.mark.slow
@pytest.mark.parametrize(
    "isolate", [pytest.param(False, id="in process"), pytest.param(True, id="isolated", marks=pytest.mark.whole)]
)
def test_a_run_killed_at_random_moments_ends_equal(small: Path, hashes: Hashes, isolate: bool) -> None:
    """kill -9 after 2 to 6 seconds, again and again; then it ends, with the hashes of a run that nobody killed."""
    run(small, "calm", "noise_seed=5")
    command = [sys.executable, "-c", "from osmotic.runtime.cli import main; main()", "run", str(small), "--quiet"]
    command += ["--home", str(small.parent / "killed"), *(["--isolate"] if isolate else [])]
    for option in (*SETS, "noise_seed=5"):
        command += ["--set", option]
    environment = {**os.environ, "OSMOTIC_PLUGINS": "", "OMP_NUM_THREADS": "1"}
    rng, killed = random.Random(11), 0
    for wait in (rng.uniform(2.0, 6.0) for _ in range(4)):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            process.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert killed >= 1 and "duplicate" not in done.stderr
    assert hashes(small.parent / "killed") == hashes(small.parent / "calm")
    assert charges(small.parent / "killed") == [0, 12, 12]
