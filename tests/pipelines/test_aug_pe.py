# SPDX-License-Identifier: Apache-2.0
"""The shipped aug-pe pipeline on fewer texts and rounds, as its user runs it: rows by round, what crosses, what it costs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from osmotic import pipelines
from osmotic.plugins.shop import domain
from osmotic.schemas.artifacts import Records
from osmotic.schemas.records import NUMBERED

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
SHIPPED = Path(pipelines.__file__).parent
INNER = "tasks.evolution.tasks"
FEW = [
    "tasks.evolution.repeat.times=2",
    f"{INNER}.candidates.config.per_label=12", f"{INNER}.candidates.config.initial=96", f"{INNER}.chosen.config.per_label=12",
    f"{INNER}.quality.config.resamples=0",
]  # fmt: skip


def osmotic(*arguments: str, timeout: int = 280) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from osmotic.runtime.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT, check=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shipped policies, but for fewer records."""
    folder = tmp_path_factory.mktemp("aug-pe")
    document = yaml.safe_load((SHIPPED / "aug-pe.sites.yaml").read_text())
    for party in domain.CLIENTS:
        for name, most in (("reviews", 1500), ("exam", 200)):
            document["parties"][party]["data"][name]["rows"] = [0, most]
    (folder / "sites.yaml").write_text(yaml.safe_dump(document))
    return folder


def few(home: Path) -> list[str]:
    places = ["--home", str(home / "home"), "--sites", str(home / "sites.yaml")]
    return ["run", "aug-pe", *places, "--quiet", *(part for option in FEW for part in ("--set", option))]


@pytest.fixture(scope="module")
def finished(home: Path) -> dict[str, Any]:
    done = osmotic(*few(home))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((home / "home" / "run.json").read_text())
    return found


def test_the_table_has_a_row_for_each_round_with_its_own_guarantee(finished: dict[str, Any]) -> None:
    rows = {row["row"]: row for row in finished["table"]["rows"]}
    assert list(rows) == ["votes, 1", "votes, 2", "chance, 1", "chance, 2"]
    for row in rows.values():
        assert row["cells"]["frechet"]["mean"] > row["cells"]["frechet_floor"]["mean"] > 0
        assert 0 <= row["cells"]["label_consistency"]["low"] <= row["cells"]["label_consistency"]["high"] <= 1
    assert rows["votes, 2"]["cells"]["frechet"]["mean"] < rows["chance, 2"]["cells"]["frechet"]["mean"]
    assert all(rows[f"chance, {i}"]["guarantee"] == "nothing crosses" for i in (1, 2))
    spent = [float(rows[f"votes, {i}"]["guarantee"].partition("epsilon ")[2].partition(",")[0]) for i in (1, 2)]
    assert 0 < spent[0] < spent[1] < 4  # the noise is for four rounds, of which there were two


def test_votes_choose_what_the_clients_sell(finished: dict[str, Any], home: Path) -> None:
    """Six products, of which the clients sell two: a third of what chance chooses, most of what votes do (36 texts a time)."""
    assert {sample["title"] for sample in finished["samples"]} == {"chosen reviews", "candidates"}
    own: list[float] = []
    for table in tables(home / "home" / "parties" / "hub"):
        if "text" in table.columns and len(table) == 36:
            own.append(sum(domain.product_of(row["text"]) in domain.CLIENTS for row in table) / 36)
    assert max(own) > 0.55 > 0.45 > min(own)


def tables(folder: Path) -> list[Records]:
    found = [Records.from_files({"records.parquet": path.read_bytes()}) for path in folder.rglob("records.parquet")]
    assert found
    return found


def test_only_counts_leave_the_clients(finished: dict[str, Any], home: Path) -> None:
    """At the server are texts under running numbers and counts of votes, and nothing else; no record's id."""
    for table in tables(home / "home" / "parties" / "hub"):
        assert set(table.columns) in ({"id", "label", "text"}, {"value", "count"})
        assert all(NUMBERED.fullmatch(row["id"]) for row in table if "id" in row)
    crossed = {crossing["name"]: crossing for crossing in finished["crossings"]}
    leaving = {name for name, crossing in crossed.items() if crossing["sender"] != "hub"}
    assert leaving == {"evolution.chosen.votes"}


def test_running_it_again_costs_nothing(finished: dict[str, Any], home: Path) -> None:
    before = finished["guarantee"]["line"]
    done = osmotic(*few(home))
    assert done.returncode == 0, done.stderr
    again = json.loads((home / "home" / "run.json").read_text())
    assert again["outcome"]["ran"] == 0 and again["guarantee"]["line"] == before


def test_the_whole_plan_is_valid() -> None:
    done = osmotic("plan", "aug-pe", "--home", "/nonexistent/osmotic", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["refusals"] == []
