# SPDX-License-Identifier: Apache-2.0
"""With the real pyfate: guest, host and arbiter as processes of FATE's own `component execute`, each with an osmotic worker.

Skipped, with a reason, where no environment with pyfate is (`scripts/fate-env` makes one).
"""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fate_real import NAMES, Task, workers_of

from osmotic.plugins.host import build_registry
from osmotic.runtime import api
from osmotic.runtime.plan.load import shipped
from osmotic.runtime.results.verifying import verify
from osmotic.runtime.storage.ledger import Ledger

SHORT = {  # as a job gives them: a mapping
    "noise_seed": 5,
    "matrix": {"seed": [1], "arm": ["fedcot", "averaged"]},
    "tasks.student.vary": {"arm": {"fedcot": {}, "averaged": {"skip": True}}},
    "tasks.student.config.steps": 3,
    "tasks.federated.repeat.times": 2,
    "tasks.federated.tasks.local.config.steps": 2,
    **{f"tasks.{task}.config.max_new_tokens": 8 for task in ("rationales", "clean_rationales")},
    "tasks.evaluated.config.max_new_tokens_rationale": 6,
}
OVERRIDES = tuple(f"{path}={json.dumps(value)}" for path, value in SHORT.items())
ARBITER, GUEST, HOST = NAMES


@pytest.fixture
def sites(tmp_path: Path) -> Path:
    """The shipped sites file, with six records a party, and seeds allowed."""
    document = yaml.safe_load(shipped()["fedcot"].with_name("fedcot.sites.yaml").read_text())
    document["defaults"]["seeded"] = True
    for party in ("north", "south"):
        for name, binding in document["parties"][party]["data"].items():
            binding["rows"] = [0, 4 if name == "exam" else 6]
    (tmp_path / "fedcot.sites.yaml").write_text(json.dumps(document), encoding="utf-8")
    return tmp_path / "fedcot.sites.yaml"


@pytest.fixture
def task(tmp_path: Path, fate_python: str, sites: Path) -> Iterator[Task]:
    made = Task(
        tmp_path / "job", fate_python, "osmotic_pipeline", {"pipeline": "fedcot", "overrides": SHORT}, sites=sites,
        outputs={"report": "json_model"},
    )  # fmt: skip
    yield made
    made.close()


def digests(home: Path, party: str) -> dict[str, str]:
    """Of everything that a party's tasks gave, by ``TASK.port``."""
    ledger = Ledger(home / "parties" / party)
    rows = list(ledger.query("SELECT i.id, t.outputs FROM instances i JOIN tasks t ON t.key = i.key"))
    ledger.close()
    return {f"{task}.{port}": ref["digest"] for task, outputs in rows for port, ref in json.loads(outputs).items()}


def crossed(home: Path, party: str) -> list[tuple[str, str, str]]:
    """What a party's transcript says of other parties, without what went into its own report."""
    ledger = Ledger(home / "parties" / party)
    rows = [json.loads(body) for (body,) in ledger.query("SELECT body FROM crossings")]
    ledger.close()
    return sorted((row["edge"], row["direction"], row["digest"]) for row in rows if row["to"] != "report")


def found(home: Path) -> dict[str, Any]:
    return {party["party"]: party for party in verify(home)["parties"]}


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_fedcot_in_fate_gives_what_it_gives_here(task: Task, tmp_path: Path) -> None:
    task.start()
    ended = task.wait(200)
    assert ended == dict.fromkeys(NAMES, 0), "\n".join(task.log(name)[-1500:] for name in ended)
    api.run("fedcot", overrides=OVERRIDES, sites=task.sites, home=tmp_path / "local", registry=build_registry(names=()))
    local = found(tmp_path / "local")
    for name, party in NAMES.items():
        home = task.home(name) / "fedcot"
        ours, theirs = digests(home, party), digests(tmp_path / "local", party)
        assert ours == theirs and len(ours) > 3, f"{name}: {set(ours.items()) ^ set(theirs.items())}"
        assert verify(home)["problems"] == []
        shutil.copytree(home / "parties", tmp_path / "joint" / "parties", dirs_exist_ok=True)
        assert crossed(home, party) == crossed(tmp_path / "local", party)
        assert found(home)[party]["charges"] == local[party]["charges"]
        assert task.status(name)["code"] == 0
        assert json.loads((task.folder / name.partition(":")[0] / "report").read_text(encoding="utf-8"))
    joint = verify(tmp_path / "joint")
    assert joint["problems"] == [] and joint["notes"] == [], "both ends of every crossing"
    alone = verify(task.home(ARBITER) / "fedcot")["notes"]
    assert {note.partition(" crossings lie elsewhere, at ")[2] for note in alone} == {
        f"{party}, and were not compared" for party in ("north", "south")
    }
    assert [local[party]["charges"] for party in NAMES.values()] == [0, 6, 6]


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_killed_party_ends_the_others_in_time(task: Task) -> None:
    """Two jobs at once, since most of the time nothing happens: one loses its host early, the other its arbiter."""
    other = Task(task.folder.with_name("other"), task.python, task.component, task.parameters, sites=task.sites)
    jobs = ((task, HOST, "works for"), (other, ARBITER, "plan accepted by all parties"))
    begun, workers = {}, {}
    try:
        for job, _, _ in jobs:
            job.start()
        for job, victim, line in jobs:
            job.appeared(ARBITER, line, 120)
            time.sleep(random.Random(line).uniform(0, 1.5))
            workers[victim] = workers_of(job.processes[victim].pid)
            job.processes[victim].send_signal(signal.SIGKILL)
            begun[victim] = time.monotonic()
        for job, victim, _ in jobs:
            ended = job.wait(30 - (time.monotonic() - begun[victim]), victim)
            assert set(ended.values()) == {1}, f"{victim} was killed; {ended} after {time.monotonic() - begun[victim]:.1f} s"
            for name in ended:
                said = job.status(name)
                assert said["code"] == -1 and f"{victim} has not been heard of for 20 s" in said["exceptions"], said
            gone = [not Path(f"/proc/{pid}").exists() for pid in workers[victim]]
            assert gone and all(gone), "a worker goes with its FATE process"
    finally:
        other.close()


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_task_that_is_told_to_stop_ends_the_others_at_once(task: Task) -> None:
    task.start()
    task.appeared(ARBITER, "plan accepted by all parties", 120)
    worker = workers_of(task.processes[GUEST].pid)
    task.processes[GUEST].terminate()
    assert task.wait(15) == dict.fromkeys(NAMES, 1)
    assert f"the task of {GUEST} was told to stop" in task.status(GUEST)["exceptions"]
    assert f"{GUEST} failed (code: interrupted)" in task.status(HOST)["exceptions"]
    assert worker and not any(Path(f"/proc/{pid}").exists() for pid in worker)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_worker_that_is_killed_ends_the_task_everywhere(task: Task) -> None:
    task.start()
    task.appeared(ARBITER, "plan accepted by all parties", 120)
    os.kill(workers_of(task.processes[HOST].pid)[0], signal.SIGKILL)
    assert task.wait(30) == dict.fromkeys(NAMES, 1)
    assert f"the osmotic worker of {HOST} ended in the middle: killed by signal 9" in task.status(HOST)["exceptions"]
    for name in (ARBITER, GUEST):
        assert f"{HOST}: its osmotic worker ended unexpectedly" in task.status(name)["exceptions"]


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_wrong_parameter_is_told_with_its_place(task: Task) -> None:
    task.parameters = {**task.parameters, "overrides": ["tasks.sanitized.config.mechanism.epsilo=4"]}
    task.start()
    assert task.wait(120) == dict.fromkeys(NAMES, 1)
    for name in NAMES:
        said = task.status(name)["exceptions"]
        assert "tasks.sanitized.config.mechanism" in said and "epsilo" in said and "parameters.overrides" in said, said[-1500:]


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_party_without_a_worker_says_how_to_get_one(task: Task, tmp_path: Path) -> None:
    task.worker_python = {HOST: str(tmp_path / "nowhere" / "python")}
    task.start()
    assert task.wait(120) == dict.fromkeys(NAMES, 1)
    said = task.status(HOST)["exceptions"]
    assert "is no program that can be started" in said and "pip install osmotic" in said and "OSMOTIC_FATE_PYTHON" in said
    assert f"{HOST} could not start its osmotic worker" in task.status(GUEST)["exceptions"]
