# SPDX-License-Identifier: Apache-2.0
"""The shipped comparison of budget divisions, end to end, with the cheaper of the model's weights; and in fedcot, one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from osmotic.runtime.storage.ledger import Ledger

READER = "{name: adaptive-exponential, epsilon: 24, k: 8, weights: model, model: reader, template: '${text.note}'"
SHORT = [
    "matrix.arm=[shuffled, adaptive, declared, again]",
    f"tasks.sanitized.vary.arm.adaptive.config.mechanism={READER}}}",
    f"tasks.sanitized.vary.arm.shuffled.config.mechanism={READER}, shuffled: true}}",
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def osmotic(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from osmotic.runtime.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=ENVIRONMENT, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("adaptive")
    done = osmotic("run", "fedcot-adaptive", "--home", str(home), "--quiet", *(p for s in SHORT for p in ("--set", s)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Guarantee of this run: epsilon 120 a document")
    return home


def test_every_arm_pays_what_it_spends_and_the_control_twice(finished: Path) -> None:
    rows = {row["row"]: row for row in json.loads((finished / "run.json").read_text())["table"]["rows"]}
    assert list(rows) == ["shuffled", "adaptive", "declared", "again"]
    spent = {row: rows[row]["guarantee"].split(" a document")[0] for row in rows}
    assert spent == {"shuffled": "epsilon 48", "adaptive": "epsilon 24", "declared": "epsilon 24", "again": "epsilon 24"}
    assert all("certified" in rows[row]["guarantee"] for row in rows)


def test_declared_weights_keep_more_rationales_than_random_positions(finished: Path) -> None:
    """At 200 records a true gain of .2 is shown by the paired interval with probability above .95."""
    table = json.loads((finished / "run.json").read_text())["table"]
    (gain,) = (c for c in table["comparisons"] if c["row"] == "declared")
    assert gain["against"] == "shuffled" and gain["low"] > 0


def test_asking_again_releases_what_the_bits_chose_and_counts_every_record(finished: Path) -> None:
    """A bit of each document, a second release of exactly the yes ones; the survivors are a share of all 200 records."""
    for party in ("north", "south"):
        ledger = Ledger(finished / "parties" / party)
        found = ledger.query("SELECT payload FROM releases WHERE task LIKE '%asked[arm=again]%'")
        ((again,),) = ledger.query("SELECT COUNT(*) FROM releases WHERE task LIKE '%sanitized_again[arm=again]%'")
        ledger.close()
        assert len(found) == 100 and again == sum(json.loads(payload)["bit"] == "yes" for (payload,) in found) > 0
    table = json.loads((finished / "run.json").read_text())["table"]
    (cell,) = (row["cells"]["survival"] for row in table["rows"] if row["row"] == "again")
    assert 0 < cell["mean"] < 1 and all(one["value"] * 100 == pytest.approx(round(one["value"] * 100)) for one in cell["each"])


def test_another_order_compares_with_the_even_split_and_spends_nothing_twice(finished: Path) -> None:
    """--set matrix.arm in the same home: the plan finds every arm but the new one finished."""
    order = "matrix.arm=[uniform, again, declared]"
    done = osmotic("plan", "fedcot-adaptive", "--home", str(finished), "--set", order, "--json")
    assert done.returncode == 0, done.stderr
    rows = [row for row in json.loads(done.stdout)["budget"] if row["party"] == "north"]
    asked = {row["task"]: row for row in rows if row["task"] != "sanitized"}
    assert (asked["asked"]["epsilon"], asked["sanitized_again"]["epsilon"]) == (1, 11.5)
    assert "of the documents whose released bit is yes" in asked["sanitized_again"]["detail"]
    assert sorted(row["epsilon"] for row in rows if row["task"] == "sanitized") == [11.5, 24, 24]


def test_one_line_selects_it_in_fedcot() -> None:
    line = "tasks.sanitized.config.mechanism={name: adaptive-exponential, epsilon: 24, weights: {sign: 4, exposure: 4}}"
    done = osmotic("plan", "fedcot", "--set", line)
    assert done.returncode == 0, done.stderr
    assert "adaptive-exponential, at most epsilon 24 a document" in done.stdout


def test_a_model_elsewhere_is_refused() -> None:
    line = "tasks.sanitized.config.mechanism={name: adaptive-exponential, epsilon: 24, weights: model, model: teacher}"
    done = osmotic("plan", "fedcot", "--set", line)
    assert done.returncode != 0 and "may not ask the model 'teacher'" in done.stderr
