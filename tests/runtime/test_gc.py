# SPDX-License-Identifier: Apache-2.0
"""`osmotic gc`: what the last run needs stays, releases and ledgers are untouched, and a run that is on is left alone."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.results.verifying import ledgers_of, verify
from osmotic.runtime.run import locked
from osmotic.runtime.storage.collecting import collect
from osmotic.runtime.storage.journal import TaskJournal
from osmotic.runtime.storage.ledger import Ledger
from osmotic.schemas.errors import DataError, StoreError


@pytest.fixture
def twice(shop: Any, tasks: Callable[..., Any], toys: Registry) -> Any:
    """A folder in which two versions of a pipeline ran: the first one's sanitised records are not needed any more."""
    api.run(shop.write(tasks()), home=shop.home, registry=toys)
    other = {**tasks()["safe"], "config": {"mechanism": {"name": "list-rr", "epsilon": 1, "k": 1}, "fields": ["colour"]}}
    shop.pipeline = shop.write(tasks(safe=other))
    api.run(shop.pipeline, home=shop.home, registry=toys)
    return shop


def artifacts(home: Path) -> dict[str, set[str]]:
    return {p.name: {o.name for o in (p / "store/objects").glob("*/*")} for p in (home / "parties").iterdir()}


def books(home: Path) -> list[str]:
    return [hashlib.sha256(repr(party).encode()).hexdigest() for party in ledgers_of(home)]


def test_a_dry_run_takes_nothing_and_the_last_run_is_found_whole_afterwards(twice: Any, toys: Registry) -> None:
    before, spent = artifacts(twice.home), books(twice.home)
    said = {one["party"]: one for one in collect(twice.home)}
    assert artifacts(twice.home) == before
    assert said["north"]["objects"] == 2 and said["north"]["tasks"] == 1 and said["north"]["bytes"] > 0  # released, key
    assert {one["party"]: one for one in collect(twice.home, delete=True)} == said
    after = artifacts(twice.home)
    assert len(before["north"]) - len(after["north"]) == 2 and after["north"] < before["north"]
    assert books(twice.home) == spent and verify(twice.home)["problems"] == []
    again = api.run(twice.pipeline, home=twice.home, registry=toys)
    assert again["outcome"]["ran"] == 0 and books(twice.home) == spent
    assert all(one["objects"] == 0 for one in collect(twice.home))


def test_what_was_taken_is_made_again_and_costs_nothing(twice: Any, tasks: Callable[..., Any], toys: Registry) -> None:
    collect(twice.home, delete=True)
    spent = books(twice.home)
    first = api.run(twice.write(tasks()), home=twice.home, registry=toys)
    assert first["outcome"]["ran"] > 0 and books(twice.home) == spent


def test_all_that_was_ever_finished_may_stay(twice: Any, tasks: Callable[..., Any], toys: Registry) -> None:
    more = {"component": "counter", "at": "server", "inputs": {"records": "safe"}}
    api.run(twice.write(tasks(more=more)), home=twice.home, registry=toys)
    api.run(twice.write(tasks()), home=twice.home, registry=toys)
    last, every = collect(twice.home), collect(twice.home, keep_all=True)
    assert sum(one["instances"] for one in last) == 1 and all(one["instances"] == 0 for one in every)


def test_scratch_and_answers_stay_for_a_run_that_did_not_end(twice: Any) -> None:
    ledger = Ledger(twice.home / "parties/north")
    TaskJournal(ledger, "old", "calls").put("question", "answer")
    ledger.close()
    scratch = twice.home / "parties/north/store/scratch/killed"
    scratch.mkdir()
    status = twice.home / "status.json"
    text = status.read_text()
    status.write_text(text.replace('"finished"', '"stopped"'))
    kept = collect(twice.home, delete=True)[1]
    assert kept["party"] == "north" and (kept["scratch"], kept["answers"]) == (0, 0) and scratch.is_dir()
    status.write_text(text)
    taken = collect(twice.home, delete=True)[1]
    assert (taken["scratch"], taken["answers"]) == (1, 1) and not scratch.exists()


def test_it_is_refused_while_a_run_is_on_and_where_none_was(twice: Any, tmp_path: Path) -> None:
    with locked(twice.home), pytest.raises(StoreError, match="another run"):
        collect(twice.home, delete=True)
    with locked(twice.home / "parties/north"), pytest.raises(StoreError, match="another run"):  # as a party of FATE does
        collect(twice.home, delete=True)
    with pytest.raises(DataError, match="not the folder of a run"):
        collect(tmp_path / "none")
    (twice.home / "tasks.json").unlink()
    with pytest.raises(DataError, match="which tasks the last run had"):
        collect(twice.home, delete=True)
