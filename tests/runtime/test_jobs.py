# SPDX-License-Identifier: Apache-2.0
"""Several processes a party: the same results, nothing done, released, charged or paid for twice, whatever is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.results.verifying import ledgers_of, verify
from osmotic.runtime.storage.ledger import Ledger
from osmotic.runtime.storage.turns import Turns
from osmotic.schemas.errors import ComponentError, ConfigError

Hashes = Callable[[Path], dict[str, str]]
SEEDS, ARMS = 3, 2


def sweep(
    shop: Any, tasks: Callable[..., dict[str, Any]], log: str, seeds: int = SEEDS, seconds: float = 0.0
) -> Path:  # fmt: skip
    """Two tasks that release the same, one that asks a model elsewhere for every seed, one that takes its time, a repeat."""
    asker = {"component": "asker", "inputs": {"records": "safe"}, "config": {"model": "echo", "field": "colour"}}
    made = tasks(
        again={**tasks()["safe"], "config": {**tasks()["safe"]["config"]}, "matrix": ["arm"]},
        asked={**asker, "at": "clients", "matrix": ["seed"]},
        here={**asker, "at": "server", "each": "party"},
        slow={
            "component": "sleeper", "at": "clients", "inputs": {"records": "safe"}, "matrix": ["arm", "seed"],
            "config": {"seconds": seconds, "log": log},
        },
        loop={
            "repeat": {
                "times": 5, "carry": {"last": {"from": "climb"}}, "until": {"metric": "climb.metrics:score", "at_least": 3},
            },
            "tasks": {"climb": {"component": "climber", "at": "server", "inputs": {"before": "carry.last"}}},
        },
    )  # fmt: skip
    shop.binding = {"purpose": "benchmark"}
    shop.defaults = {
        "seeded": True,
        "budget": {"*": {"per_document": 4}},
    }  # two fields at epsilon 2: one release, and no second one
    return Path(
        shop.write(
            made, noise_seed=5, matrix={"arm": ["a", "b"], "seed": list(range(seeds))},
            models={"echo": {"type": "toy-echo", "at": "server"}},
        )
    )  # fmt: skip


def begun(log: Path) -> dict[str, list[float]]:
    """Party -> when its tasks that take their time began, in order."""
    found: dict[str, list[float]] = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        found.setdefault(line.split()[0], []).append(float(line.split()[1]))
    return {party: sorted(times) for party, times in found.items()}


def charges(home: Path) -> dict[str, Any]:
    """Party -> what it spent, without the order in time."""
    return {party["party"]: [party["charges"], party["datasets"]] for party in ledgers_of(home)}


def calls(home: Path, party: str) -> int:
    """How many calls of models with a payload a party's transcript has."""
    ledger = Ledger(home / "parties" / party)
    bodies = [json.loads(body) for (body,) in ledger.query("SELECT body FROM crossings")]
    ledger.close()
    return sum(body["kind"] == "call" and body["bytes"] > 0 for body in bodies)


@pytest.mark.slow
@pytest.mark.usefixtures("toy_path")
def test_several_processes_give_the_same_once_and_at_the_same_time(
    shop: Any, tasks: Callable[..., dict[str, Any]], toys: Registry, tmp_path: Path, hashes: Hashes
) -> None:
    logs, seeds = {}, 2
    for jobs in (1, 2):
        if jobs == 2:  # tasks of one party then wait for each other: one after the other they would never end
            (tmp_path / "log.together").touch()
        home, file = tmp_path / f"jobs-{jobs}", sweep(shop, tasks, str(tmp_path / "log"), seeds)
        summary = api.run(file, home=home, jobs=jobs, registry=toys)
        logs[jobs] = begun(tmp_path / "log")
        (tmp_path / "log").unlink()
        assert verify(home)["problems"] == [] and list(summary["outcome"]["stopped"].values()) == [3]
    one, two = tmp_path / "jobs-1", tmp_path / "jobs-2"
    assert hashes(one) == hashes(two) and len(hashes(one)) > 2 * seeds * ARMS
    assert charges(one) == charges(two) and charges(one)["north"][0] == 12  # a charge a record, not one a task
    assert [calls(two, p) for p in ("north", "south", "hub")] == [calls(one, p) for p in ("north", "south", "hub")]
    assert calls(two, "north") == 2  # generate and log_likelihood, once for all seeds
    for party in ("north", "south"):
        assert len(logs[1][party]) == len(logs[2][party]) == seeds  # arms that are equal are one task

    again = api.run(file, home=two, registry=toys)
    assert again["outcome"]["ran"] == 0 and not (tmp_path / "log").exists() and verify(two)["problems"] == []


@pytest.mark.slow
@pytest.mark.usefixtures("toy_path")
@pytest.mark.whole
def test_a_run_killed_at_a_random_moment_goes_on_and_ends_the_same(
    shop: Any, tasks: Callable[..., dict[str, Any]], toys: Registry, tmp_path: Path, hashes: Hashes
) -> None:
    log, file = tmp_path / "log", sweep(shop, tasks, str(tmp_path / "log"), seconds=0.5)
    script = "import sys; from osmotic.runtime.cli import main; sys.argv = ['osmotic', *sys.argv[1:]]; main()"
    command = [sys.executable, "-c", script, "run", str(file), "--jobs", "2", "--quiet", "--home", str(shop.home)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + 60
        while sum(map(len, begun(log).values())) < 1 and time.monotonic() < end:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    before = sum(map(len, begun(log).values()))
    assert 1 <= before < 2 * SEEDS
    time.sleep(0.5)  # the parties' processes see that they are alone
    found = api.run(file, home=shop.home, jobs=2, registry=toys)
    assert found["outcome"]["cached"] > 0 and verify(shop.home)["problems"] == []
    started = sum(map(len, begun(log).values()))
    assert started <= 2 * SEEDS + 4  # at most what was under way (2 parties x 2) began again
    assert charges(shop.home)["north"][0] == 12
    whole = tmp_path / "whole"
    api.run(file, home=whole, registry=toys)
    assert hashes(whole) == hashes(shop.home)


@pytest.mark.slow
@pytest.mark.usefixtures("toy_path")
def test_a_failure_ends_the_run_with_its_reason(shop: Any, tasks: Callable[..., dict[str, Any]], toys: Registry) -> None:
    made = tasks(bad={"component": "crasher", "at": "clients", "config": {"how": "raise"}})
    with pytest.raises(ComponentError, match="PRIVATE-DETAIL"):
        api.run(shop.write(made), home=shop.home, jobs=2, registry=toys)
    found = api.run(shop.write(tasks()), home=shop.home, registry=toys)
    assert found["outcome"]["tasks"] == 5 and verify(shop.home)["problems"] == []


@pytest.mark.parametrize("jobs", [0, -1, 65, True])
def test_a_number_of_processes_that_cannot_be_is_refused(
    shop: Any, tasks: Callable[..., dict[str, Any]], toys: Registry, jobs: int
) -> None:
    with pytest.raises(ConfigError, match="from 1 to 64"):
        api.run(shop.write(tasks()), home=shop.home, jobs=jobs, registry=toys)


def test_turns_are_taken_and_those_of_the_dead_end(tmp_path: Path) -> None:
    key, other = "ab" * 32, "cd" * 32
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom osmotic.runtime.storage.turns import Turns\n"
        "with Turns(Path(sys.argv[1])).of(sys.argv[2]):\n    print('mine', flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "turns"), key]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    turns, moment = Turns(tmp_path / "turns"), time.monotonic()
    try:
        assert process.stdout is not None and process.stdout.readline() == b"mine\n"
        moment = time.monotonic()
        with turns.of(other):
            pass
        free = time.monotonic() - moment
        os.kill(process.pid, 0)
        killer = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(0.5); os.kill({process.pid}, 9)"])
        with turns.of(key):
            waited = time.monotonic() - moment
        killer.wait()
    finally:
        process.kill()
        process.communicate()
        turns.close()
    assert free < 0.4 < waited < 30
