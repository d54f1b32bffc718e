# SPDX-License-Identifier: Apache-2.0
"""The shipped privacy pipeline on a reduced matrix, as its user runs it: table, chart, a ceiling that fails the run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
FEW = ["matrix.mechanism=[list-rr, custext, santext, rantext]", "matrix.epsilon=[2, 8]"]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def osmotic(*arguments: str, timeout: int = 280) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from osmotic.runtime.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT, check=False)


def few(home: Path, *more: str) -> list[str]:
    return ["run", "privacy", "--home", str(home), "--quiet", *(part for option in (*FEW, *more) for part in ("--set", option))]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("privacy")
    done = osmotic(*few(home))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^list-rr, 8 +certified +8\.000 +0\.125 ", done.stdout, re.MULTILINE)
    return home


@pytest.fixture(scope="module")
def cells(finished: Path) -> dict[str, dict[str, Any]]:
    table = json.loads((finished / "run.json").read_text())["table"]
    return {row["row"]: {**row["cells"], "guarantee": row["guarantee"]} for row in table["rows"]}


def test_every_mechanism_and_epsilon_has_a_row(cells: dict[str, dict[str, Any]]) -> None:
    assert list(cells) == [f"{m}, {e}" for m in ("list-rr", "custext", "santext", "rantext") for e in (2, 8)]
    for row in cells.values():
        for metric in ("bayes_success", "inversion", "kept", "survival"):
            assert 0 <= row[metric]["mean"] <= 1
        assert row["class"]["note"]


def test_nothing_uncertified_is_printed_as_a_guarantee(cells: dict[str, dict[str, Any]]) -> None:
    for name, row in cells.items():
        certified = row["class"]["note"] == "certified"
        assert certified == name.startswith("list-rr") == row["guarantee"].endswith("certified"), name
        assert certified or row["class"]["note"].startswith(("partition", "metric", "heuristic"))
    assert cells["rantext, 2"]["guarantee"] == "heuristic: no guarantee"
    assert cells["rantext, 8"]["epsilon_true"]["note"].endswith("(estimated)")


def test_more_epsilon_gives_more_away_and_keeps_more(cells: dict[str, dict[str, Any]]) -> None:
    low, high = cells["list-rr, 2"], cells["list-rr, 8"]
    assert low["bayes_success"]["mean"] < high["bayes_success"]["mean"] <= 1 / 8  # lists of 8: never more
    assert low["kept"]["mean"] < high["kept"]["mean"] and low["survival"]["mean"] < high["survival"]["mean"]


def test_the_chart_is_drawn_and_opens_in_a_browser(finished: Path, tmp_path: Path) -> None:
    page = finished / "report.html"
    assert page.read_text().count('class="point') == 8 + 4
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command = [str(BROWSER), *flags, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "CONSOLE" not in done.stderr
    assert "<desc" in done.stdout and "a line for each mechanism" in done.stdout


def test_a_ceiling_fails_the_finished_run(finished: Path) -> None:
    done = osmotic(*few(finished, "tasks.bayes.require.bayes_success.max=0.2"))
    assert done.returncode == 4
    assert "demanded is at most 0.2" in done.stderr and "tasks.bayes.require.bayes_success.max" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.whole
def test_the_whole_sweep_is_valid() -> None:
    done = osmotic("plan", "privacy", "--home", "/nonexistent/osmotic", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["refusals"] == []
