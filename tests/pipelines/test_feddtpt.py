# SPDX-License-Identifier: Apache-2.0
"""The shipped feddtpt, made short, as its user runs it: arms and their guarantees, what crosses, a kill and going on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

for name in ("cryptography", "dp_accounting", "sklearn"):
    pytest.importorskip(name, reason=f"feddtpt needs {name}: pip install 'osmotic[dp,eval]'")

SHORT = [
    "matrix.seed=[1]",
    "tasks.tuning.repeat.times=2",
    "tasks.tuning.tasks.tuned.config.queries=150",
    "tasks.tuning.tasks.tuned.config.iterations=6",
    "tasks.tuning.tasks.tuned.config.batch=16",
    "tasks.learning.repeat.times=1",
    "tasks.learning.tasks.sampled.config.queries=120",
    "tasks.learning.tasks.sampled.config.samples=3",
    "tasks.learning.tasks.sampled.config.batch=16",
    "tasks.voting.repeat.times=2",
    "tasks.voting.tasks.proposed.config.count=3",
    "tasks.voting.tasks.votes.config.noise.rounds=2",
]
CLIENTS = ("north", "south", "east", "west")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from osmotic.runtime.cli import main; main()", *arguments]


def osmotic(*arguments: str, timeout: int = 280) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT, check=False)


def short(home: Path, *more: str) -> list[str]:
    options = [part for option in (*SHORT, *more) for part in ("--set", option)]
    return ["feddtpt", "--home", str(home), *options]


def rows_of(home: Path) -> dict[str, dict[str, Any]]:
    return {row["row"]: row for row in json.loads((home / "run.json").read_text())["table"]["rows"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("feddtpt")
    done = osmotic("run", *short(home), "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Guarantee of this run: unprotected")  # by the arms that are waived
    return home


def documents(home: Path, party: str) -> list[Any]:
    return [json.loads(path.read_text()) for path in (home / "parties" / party / "store").rglob("*.json")]


def test_the_voted_prompt_alone_has_a_guarantee(finished: Path) -> None:
    rows = rows_of(finished)
    assert list(rows) == ["manual", "random", "no-feedback", "feddtpt", "bdpl", "voted"]
    assert rows["manual"]["guarantee"] == "nothing crosses"
    assert rows["voted"]["guarantee"].startswith("gaussian: epsilon 3.9") and "a record" in rows["voted"]["guarantee"]
    assert {rows[arm]["guarantee"] for arm in ("random", "no-feedback", "feddtpt", "bdpl")} == {"unprotected"}
    assert rows["manual"]["cells"]["evaluated:accuracy_label"]["mean"] == pytest.approx(0.53)


def test_what_the_server_got_of_a_client_is_numbers_and_no_text(finished: Path) -> None:
    uploads = [found for found in documents(finished, "hub") if isinstance(found, dict) and "ids" in found]
    assert uploads
    for upload in uploads:
        assert set(upload) == {"ids", "skeleton"}
        assert all(type(number) is int for number in upload["ids"])
    files = [path for path in (finished / "parties" / "hub").rglob("*") if path.is_file()]
    held = b"".join(path.read_bytes() for path in files if "store" in path.parts)
    own = [row["text"] for client in CLIENTS for row in messages(client)]
    assert not [text for text in own if text.encode() in held]


def messages(client: str) -> list[dict[str, str]]:
    from osmotic.plugins.desk import domain

    return domain.splits()[client]


def test_again_runs_nothing_and_spends_nothing(finished: Path) -> None:
    before = json.loads(osmotic("ledger", str(finished), "--json").stdout)
    outcome = json.loads(osmotic("run", *short(finished), "--quiet", "--json").stdout)["outcome"]
    assert (outcome["ran"], outcome["cached"]) == (0, outcome["tasks"])
    assert json.loads(osmotic("ledger", str(finished), "--json").stdout) == before
    assert osmotic("verify", str(finished)).returncode == 0


@pytest.mark.whole
def test_a_killed_run_goes_on_to_the_same_prompt(finished: Path, tmp_path: Path) -> None:
    only = 'matrix.arm=["manual","feddtpt"]'
    deadline, said = time.monotonic() + 200, b""
    with subprocess.Popen(
        command("run", *short(tmp_path, only)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ENVIRONMENT
    ) as process:
        while b"tuned[round=1,seed=1,arm=feddtpt]@east" not in said:
            line = process.stdout.readline() if process.stdout else b""
            assert line and time.monotonic() < deadline, said.decode()
            said += line
        process.send_signal(signal.SIGKILL)
    done = osmotic("run", *short(tmp_path, only), "--quiet")
    assert done.returncode == 0, done.stderr
    got, wanted = (rows_of(home)["feddtpt"]["cells"] for home in (tmp_path, finished))
    assert {metric: cell["mean"] for metric, cell in got.items()} == {metric: cell["mean"] for metric, cell in wanted.items()}
    assert osmotic("verify", str(tmp_path)).returncode == 0


def test_without_the_waiver_the_upload_is_refused(tmp_path: Path) -> None:
    done = osmotic("plan", *short(tmp_path, "tasks.tuning.tasks.merged.inputs.uploads=tuned.upload"))
    assert done.returncode == 4
    assert "tasks.tuning.tasks.merged.inputs.uploads" in done.stderr and "asks for no waiver" in done.stderr


def test_a_prompt_without_its_placeholder_is_refused_in_the_plan(tmp_path: Path) -> None:
    done = osmotic("plan", *short(tmp_path, "text.manual=please name the matter"))
    assert done.returncode == 2
    assert "prompt" in done.stderr and "{{" in done.stderr
