# SPDX-License-Identifier: Apache-2.0
"""One schedule of benchmarks/faults.py over a pipeline without models: a site, then server and coordinator are killed.

The deployment is real: osmotic's own commands, TLS, a process tree a party. Where it may be had every party is in a network
namespace, and a site is cut off as well.
"""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("nvflare") is None, reason="the extra nvflare is not installed"),
    pytest.mark.skipif(not (FOLDER / "faults.py").is_file(), reason="no benchmarks folder here"),
]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("faults", FOLDER / "faults.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults"] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        for name in ("faults", "faults_parts"):
            sys.modules.pop(name, None)


@pytest.fixture
def deployment(faults: Any, tmp_path: Path) -> Iterator[Any]:
    """Kits and sites; every process is ended afterwards."""
    net = faults.Net(f"t{tmp_path.name[-3:].strip('-_')}{abs(hash(str(tmp_path))) % 10_000}").open()
    made = faults.Deployment(tmp_path / "d", net)
    try:
        made.make("short")
        yield made
    finally:
        made.stop()
        net.close()


@pytest.mark.whole
def test_a_run_whose_parties_are_killed_ends_as_if_nothing_had_happened(faults: Any, deployment: Any) -> None:
    baseline = {"digests": {"seeded": faults.local(deployment)}}
    baseline["ledgers"] = {"short": faults.ledgers(deployment.folder / "again-ledgers")}
    count = len(baseline["digests"]["seeded"])
    assert count > 36
    events = [faults.Event(0.3, "site", "a", 2.0), faults.Event(0.6, "hub", "hub", 1.0)]
    if deployment.net.real:
        events.append(faults.Event(0.45, "cut", "b", 5.0))
    outcome = faults.play(deployment, "short", events, baseline)
    said = (deployment.folder / "coordinator.log").read_text(encoding="utf-8")[-4000:]
    assert outcome.problems == [], f"{outcome}\n{said}"
    assert (outcome.result, outcome.hashes, outcome.charges, outcome.by_hand) == ("done", f"{count} of {count}", "yes", 0), said


def test_schedules_are_drawn_by_their_number_alone(faults: Any) -> None:
    for number in ("1", "2", "q1"):
        assert faults.drawn(number, 0) == faults.drawn(number, 0) != faults.drawn(number, 1)
    kinds = {event.kind for n in range(1, 21) for event in faults.drawn(str(n), 0)}
    assert kinds == set(faults.KINDS)
    assert "cut" not in {event.kind for n in range(1, 21) for event in faults.drawn(str(n), 0, real=False)}
    assert [event.lasts for event in faults.drawn("q1", 0)][:1] == [0.0]
