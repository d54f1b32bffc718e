# SPDX-License-Identifier: Apache-2.0
"""Watching a run from outside: pace, the status file while a run is on and after each kind of end, what was spent."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.screen.pace import Pace, duration, number
from osmotic.runtime.screen.status_text import latest, status_of, status_text
from osmotic.runtime.screen.watch import STATUS, TASKS, read_status
from osmotic.schemas.errors import DataError, OsmoticError


def test_pace_is_of_the_last_half_minute_and_of_what_is_counted() -> None:
    pace = Pace()
    assert pace.text() == "" and pace.left is None
    for second in range(0, 61):
        pace.add(float(second), 10 + 2 * second, 250, f"rows, {100 * second} tokens")
    assert pace.rate == pytest.approx(2) and pace.tokens == pytest.approx(100)
    assert pace.text("rows, 6000 tokens") == "2 rows/s, 100 tokens/s, 60 s left"
    for second in range(61, 121):
        pace.add(float(second), 130 + (second - 60), 250, "")
    assert pace.rate == pytest.approx(1) and pace.text("loss 0.1") == "1 steps/s, 60 s left"
    pace.add(130.0, 0, 9, "")
    assert pace.text() == ""
    assert [duration(99), duration(3700), duration(7260)] == ["99 s", "62 min", "121 min"] or duration(7260) == "2 h 1 min"
    assert [number(0.01234), number(12.34), number(1234.0)] == ["0.0123", "12.3", "1,234"]


def test_a_finished_run_says_so_and_what_was_spent(shop: Any, tasks: Callable[..., Any], toys: Registry) -> None:
    file = shop.write(tasks())
    api.run(file, home=shop.home, registry=toys)
    found = status_of(shop.home)
    assert (found["state"], found["done"], found["total"], found["cached"]) == ("finished", 5, 5, 0)
    assert found["parties"]["north"] == {"role": "clients", "total": 2, "done": 2}
    assert found["spent"]["north"] == [
        {"dataset": "items", "epsilon": 4.0, "documents": 12, "cap": 1000.0, "events": 0, "other": False}
    ]
    assert found["spent"]["hub"] == []
    text = status_text(found)
    assert "finished, 5/5 tasks" in text and "epsilon 4 of 1000 a document of items" in text
    assert latest(shop.folder) == shop.home
    assert json.loads((shop.home / TASKS).read_text())["parties"]["hub"] == ["counted@hub"]
    api.run(file, home=shop.home, registry=toys)
    assert read_status(shop.home)["cached"] == 5


def test_what_was_paid_in_other_units_is_not_passed_over(shop: Any, tasks: Callable[..., Any], toys: Registry) -> None:
    api.run(shop.write(tasks()), home=shop.home, registry=toys)
    db = sqlite3.connect(shop.folder / "shop.sites.state/north/ledger.sqlite")
    db.execute("UPDATE releases SET epsilon=0, other='{\"nominal\":4.0}'")
    db.commit()
    db.close()
    text = status_text(status_of(shop.home))
    assert "epsilon 0 of 1000 a document of items, more in other units (osmotic ledger)" in text


class Onlooker(api.Quiet):
    """Looks at the run's folder while the run is on."""

    def __init__(self, home: Path) -> None:
        self.home, self.seen = home, []

    def task(self, instance: Any, cached: bool, seconds: float) -> None:
        """Look."""
        self.seen.append(status_of(self.home)["state"])


def test_it_is_read_beside_the_run_and_tells_a_failure_by_its_code(
    shop: Any, tasks: Callable[..., Any], toys: Registry
) -> None:
    looking = Onlooker(shop.home)
    api.run(shop.write(tasks()), home=shop.home, registry=toys, watcher=looking)
    assert looking.seen == ["running"] * 5
    liar = {"component": "liar", "at": "clients", "inputs": {"records": "items"}}
    failing = {"component": "counter", "at": "server", "inputs": {"records": "false"}}
    with pytest.raises(OsmoticError):
        api.run(shop.write(tasks(false=liar, more=failing)), home=shop.home, registry=toys)
    found = read_status(shop.home)
    assert found["state"] == "failed" and found["error"] and found["done"] < found["total"]


def test_a_killed_run_is_seen_as_killed_and_a_folder_without_one_is_told(tmp_path: Path) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    said = {
        "pipeline": "p", "pid": int(gone.stdout), "process": "1", "state": "running", "started": 0.0, "updated": 1.0,
        "total": 2, "done": 1, "cached": 0, "error": "", "now": {"a": {}},
        "parties": {"a": {"role": "r", "total": 2, "done": 1}},
    }  # fmt: skip
    (tmp_path / STATUS).write_text(json.dumps(said))
    assert read_status(tmp_path)["state"] == "killed"
    assert "run the same command again" in status_text(status_of(tmp_path))
    (tmp_path / STATUS).write_text(json.dumps({**said, "pid": os.getpid(), "process": "0"}))  # the number was given again
    assert read_status(tmp_path)["state"] == "killed"
    with pytest.raises(DataError, match="no run has begun"):
        read_status(tmp_path / "other")
    with pytest.raises(DataError, match="no run has begun"):
        latest(tmp_path / "none")
