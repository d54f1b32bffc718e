# SPDX-License-Identifier: Apache-2.0
"""The shipped fedpit, with few steps, as its user runs it: who sees what, what the plan refuses, again, and after a kill."""

import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from osmotic.runtime import api

for name in ("cryptography", "dp_accounting", "sklearn", "rouge_score"):
    pytest.importorskip(name, reason=f"fedpit needs {name}: pip install 'osmotic[dp,eval]'")

SHORT = [
    "matrix.seed=[1]",
    "tasks.rounds.repeat.times=1",
    "tasks.generator.config.privacy.steps=2",
    "tasks.generator.config.privacy.batch=20",
    "tasks.written.config.per_label=4",
    "tasks.rounds.tasks.local.config.steps=2",
    "tasks.rounds.tasks.shared.config.steps=2",
    "tasks.rounds.tasks.instructions.config.candidates=4",
    "tasks.rounds.tasks.chosen.config.keep=2",
    "tasks.extraction.config.records=4",
    "tasks.extraction.config.draws=100",
    "tasks.membership.config.draws=100",
]
BOTH = 'matrix.arm=["fedpit", "dp"]'
ALONE = 'matrix.arm=["fedpit"]'
PROTECTED = 'matrix.arm=["dp"]'
CLIENTS = ("inn", "workshop", "bakery")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
LEAK = {
    "component": "task_trainer", "at": "clients", "inputs": {"records": "records"},
    "config": {"model": "base", "mode": "generation", "prompt": "${text.prompt}", "target": "{{ response }}", "steps": 2},
}  # fmt: skip
EXPOSED = {"component": "aggregator", "at": "server", "inputs": {"models": {"from": "leak.weights", "waive": "generated data"}}}
ROUND = "tasks.rounds.tasks"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from osmotic.runtime.cli import main; main()", *arguments]


def osmotic(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=280, env=ENVIRONMENT, check=False)


def short(home: Path, arms: str) -> list[str]:
    return ["fedpit", "--home", str(home), "--quiet", *(part for option in [*SHORT, arms] for part in ("--set", option))]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("fedpit")
    done = osmotic("run", *short(home, BOTH))
    assert done.returncode == 0, done.stderr
    return home


def merged(home: Path, arm: str) -> str:
    """Digest of an arm's shared adapter."""
    with closing(sqlite3.connect(home / "parties" / "hub" / "run.sqlite")) as base:
        found = base.execute("SELECT i.id, t.outputs FROM instances i JOIN tasks t ON t.key = i.key").fetchall()
    (outputs,) = [one for identity, one in found if identity.startswith("rounds.merged[") and f"arm={arm}]" in identity]
    return str(json.loads(outputs)["weights"]["digest"])


def test_no_number_of_a_local_adapter_leaves(finished: Path) -> None:
    """Of both arms: `dp` trains none. What is shared was sent, so the transcript does tell."""
    file = Path(__file__).parents[2] / "benchmarks" / "isolation.py"
    if not file.is_file():
        pytest.skip("the benchmarks are not here")
    spec = importlib.util.spec_from_file_location("isolation_of_fedpit", file)
    assert spec is not None and spec.loader is not None
    isolation: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(isolation)
    assert isolation.violations(finished, ["local"]) == []
    for folder in (finished / "parties" / client for client in CLIENTS):
        shared, (sent, _) = isolation._weights_of(folder, ["shared"]), isolation._crossed(folder)
        assert {digest for _, _, digest in shared} <= sent and len(shared) == 2


def test_the_arm_with_a_guarantee_keeps_it_beside_one_without(finished: Path) -> None:
    rows = {row["row"].partition(",")[0]: row for row in json.loads((finished / "run.json").read_text())["table"]["rows"]}
    assert rows["fedpit"]["guarantee"] == "unprotected"
    assert rows["dp"]["guarantee"].startswith("dp-sgd: epsilon 7.9") and "a record" in rows["dp"]["guarantee"]


def test_the_server_holds_no_text_of_a_client(finished: Path) -> None:
    from osmotic.plugins.handbook import domain

    own = [row for client in CLIENTS for row in domain.splits()[client]]
    held = b"".join(path.read_bytes() for path in (finished / "parties" / "hub").rglob("*") if path.is_file())
    assert not any(row[name].encode() in held for row in own for name in ("id", "instruction", "response"))


@pytest.mark.whole
def test_again_runs_nothing_and_spends_nothing(finished: Path) -> None:
    before = json.loads(osmotic("ledger", str(finished), "--json").stdout)
    outcome = json.loads(osmotic("run", *short(finished, BOTH), "--json").stdout)["outcome"]
    assert (outcome["ran"], outcome["cached"]) == (0, outcome["tasks"])
    assert json.loads(osmotic("ledger", str(finished), "--json").stdout) == before


@pytest.mark.whole
def test_a_killed_run_goes_on_to_the_same_adapter(finished: Path, tmp_path: Path) -> None:
    """SIGKILL as soon as the first client has its local adapter."""
    base, arguments = tmp_path / "parties" / CLIENTS[0] / "run.sqlite", command("run", *short(tmp_path, ALONE))
    process = subprocess.Popen(arguments, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 200
    while time.monotonic() < until and process.poll() is None and not begun(base):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    outcome = json.loads(osmotic("run", *short(tmp_path, ALONE), "--json").stdout)["outcome"]
    assert outcome["cached"] > 0 and outcome["ran"] > 0
    assert merged(tmp_path, "fedpit") == merged(finished, "fedpit")


def begun(base: Path) -> bool:
    """Whether the local adapter of a client is there."""
    if not base.is_file():
        return False
    try:
        with closing(sqlite3.connect(f"file:{base}?mode=ro", uri=True)) as found:
            sql = "SELECT count(*) FROM instances i JOIN tasks t ON t.key = i.key WHERE i.id LIKE 'rounds.local[%'"
            return bool(found.execute(sql).fetchone()[0])
    except sqlite3.OperationalError:  # not made yet, or locked
        return False


def refused(home: Path, *changes: str) -> list[str]:
    """What the plan of the arm with a guarantee refuses."""
    plan = api.plan("fedpit", overrides=(*SHORT, PROTECTED, *changes), home=home)
    return [str(one["what"]) for one in plan["refusals"]]


def test_as_it_is_and_by_the_shared_adapter_nothing_is_refused(tmp_path: Path) -> None:
    by_shared = f'{ROUND}.chosen.inputs={{"synthetic": "protected", "weights": "carry.shared"}}'
    assert refused(tmp_path) == refused(tmp_path, by_shared, f"{ROUND}.shared.vary.arm.dp.inputs.augmented=chosen") == []


@pytest.mark.parametrize(
    "changes",
    [
        (f"{ROUND}.local.vary.arm.dp={{}}", f'{ROUND}.chosen.inputs={{"synthetic": "protected", "weights": "local"}}',
         f"{ROUND}.shared.vary.arm.dp.inputs.augmented=chosen"),
        ("tasks.protected.inputs.against=records",),
        (f"{ROUND}.shared.vary.arm.dp.inputs.records=records",),
        (f"{ROUND}.local.vary.arm.dp={{}}", f'{ROUND}.mixed.vary.arm.dp={{"config": {{"beta": 0}}}}',
         f"{ROUND}.merged.vary.arm.dp.inputs.models=mixed.weights"),
        (f"{ROUND}.local.vary.arm.dp={{}}", f"{ROUND}.merged.vary.arm.dp.inputs.models=local.weights"),
        (f"tasks.leak={json.dumps(LEAK)}", f"{ROUND}.shared.vary.arm.dp.inputs.init=leak.weights"),
    ],
    ids=["selected-by-the-local-adapter", "compared", "trained-on-records", "mixed", "local", "begun-from-a-local-adapter"],
)  # fmt: skip
def test_half_of_the_variant_with_a_guarantee_is_refused(tmp_path: Path, changes: tuple[str, ...]) -> None:
    """Though the sites would grant a waiver for this edge: in this arm, the plan asks for none."""
    found = refused(tmp_path, *changes)
    assert found and all(one.startswith("refused: private data of ") for one in found)
    assert all(any(f"private data of {client} " in one for one in found) for client in CLIENTS)


def test_what_begins_from_an_exposed_adapter_is_exposed(tmp_path: Path) -> None:
    """All who would see it were granted the adapter that it begins from; protected it is not."""
    from osmotic.pipelines import __path__ as folders  # the shipped sites, with one waiver more

    shipped = (Path(next(iter(folders))) / "fedpit.sites.yaml").read_text()
    granted = f"  waivers:\n    - {{edge: exposed.models, observers: [hub, {', '.join(CLIENTS)}]}}\n"
    (tmp_path / "fedpit.sites.yaml").write_text(shipped.replace("  waivers:\n", granted))
    tasks = (f"tasks.leak={json.dumps(LEAK)}", f"tasks.exposed={json.dumps(EXPOSED)}")
    begun_from = f"{ROUND}.shared.vary.arm.dp.inputs.init=exposed.weights"
    overrides, sites = (*SHORT, PROTECTED, *tasks), tmp_path / "fedpit.sites.yaml"
    for more, word in (((), "protected"), ((begun_from,), "exposed")):
        plan = api.plan("fedpit", overrides=(*overrides, *more), sites=sites, home=tmp_path / "home")
        words = [str(one["label"]).lower() for one in plan["crossings"] if one["edge"] == "rounds.merged.models"]
        assert plan["refusals"] == [] and words == [word]
