# SPDX-License-Identifier: Apache-2.0
"""The shipped comparison of decoders, end to end with few steps; and a private record on its way to the teacher."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHORT = [
    "matrix.seed=[1]",
    "tasks.codec.config.steps=12",
    "tasks.codec.config.batch=16",
    "tasks.codec.config.warmup=2",
    "tasks.student.config.steps=3",
    "tasks.student.config.warmup=1",
    "tasks.evaluated.config.modes=[label]",
]
ARMS = ["labels", "identity", "substitution", "exponential", "encoder-decoder", "clean"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
SITES = Path(__file__).resolve().parents[2] / "pipelines" / "fedcot-decoder.sites.yaml"


def osmotic(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from osmotic.runtime.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=ENVIRONMENT, check=False)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """The rows of the table of one short run."""
    home = tmp_path_factory.mktemp("decoder")
    sites = tmp_path_factory.mktemp("sites") / "sites.yaml"
    lines = [
        line.replace("purpose: benchmark}", "purpose: benchmark, rows: [0, 64]}") if "public.jsonl" in line
        else line.replace("rows: [0, 300]", "rows: [0, 60]") for line in SITES.read_text().splitlines()
    ]  # fmt: skip
    sites.write_text("\n".join(lines))
    where = ("--home", str(home), "--sites", str(sites), "--quiet")
    done = osmotic("run", "fedcot-decoder", *where, *(p for s in SHORT for p in ("--set", s)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Guarantee of this run: unprotected")
    return {row["row"]: row for row in json.loads((home / "run.json").read_text())["table"]["rows"]}


def cell(rows, arm, metric):
    return rows[arm]["cells"][metric]["mean"]


def test_every_arm_stands_in_the_table_with_its_guarantee(rows):
    assert list(rows) == ARMS
    assert rows["labels"]["guarantee"] == "nothing crosses" and rows["clean"]["guarantee"] == "unprotected"
    for arm in ARMS[1:-1]:
        assert rows[arm]["guarantee"].startswith("epsilon 24 a document")
    assert all(0 <= cell(rows, arm, "accuracy_label") <= 1 for arm in ARMS)


def test_the_decoder_earns_its_place(rows):
    """200 records: undecoded rationales seldom name the record's own words, substitution and the demonstration do."""
    assert cell(rows, "identity", "fidelity") < 0.5 and cell(rows, "identity", "changed") == 0
    assert cell(rows, "substitution", "fidelity") > 0.97 and cell(rows, "exponential", "fidelity") > 0.9
    assert cell(rows, "clean", "fidelity") > 0.97
    assert cell(rows, "substitution", "changed") > 0.5
    assert cell(rows, "identity", "survival") == pytest.approx(cell(rows, "substitution", "survival"))


def test_a_private_record_may_not_train_the_decoder_through_the_teacher(tmp_path):
    """The encoder-decoder's training records go to the teacher as they are: private ones stop the plan, at that edge."""
    text = SITES.read_text()
    assert text.count("public.jsonl") == 2
    lines = [line.replace("label: public, purpose: benchmark", "purpose: private") if "public.jsonl" in line else line
             for line in text.splitlines()]  # fmt: skip
    (tmp_path / "sites.yaml").write_text("\n".join(lines))
    for verb in ("plan", "run"):
        home = ("--home", str(tmp_path / "home"))
        done = osmotic(verb, "fedcot-decoder", "--sites", str(tmp_path / "sites.yaml"), *home)
        assert done.returncode != 0
        assert "tasks.answers.inputs.prompts: refused: private data of north (public) would cross" in done.stderr + done.stdout
