# SPDX-License-Identifier: Apache-2.0
"""What `osmotic verify` and `osmotic ledger` find out afterwards, from the folders of the parties alone."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.ledger import GENESIS, Ledger
from osmotic.runtime.verifying import ledgers_of, verify
from osmotic.schemas.errors import DataError

LOADED = {"component": "record_loader", "at": "clients", "config": {"data": "items"}}
MECHANISM = {"name": "list-rr", "epsilon": 2, "k": 1}
SAFE = {
    "component": "dp_sanitizer",
    "at": "clients",
    "inputs": {"records": "items"},
    "config": {"mechanism": MECHANISM, "fields": ["colour", "size"]},
}


@pytest.fixture
def home(shop: Any, toys: Registry) -> Path:
    """The folder of a finished run: two clients, one release each."""
    shop.defaults = {"budget": {"items": {"per_document": 10}}}
    counted = {"component": "counter", "at": "server", "inputs": {"records": "safe"}}
    pipeline = shop.write({"items": LOADED, "safe": SAFE, "counted": counted})
    api.run(pipeline, home=shop.home, registry=toys)
    found: Path = shop.home
    return found


def test_every_party_keeps_the_heads_of_the_others(home: Path) -> None:
    hub = Ledger(home / "parties" / "hub")
    kept = {(party, chain) for party, chain, _ in hub.kept_heads()}
    hub.close()
    assert kept == {(party, chain) for party in ("north", "south") for chain in ("charges", "crossings")}
    assert verify(home)["problems"] == []


def test_a_chain_cut_off_with_its_releases_is_found_by_the_others(home: Path) -> None:
    db = sqlite3.connect(home / "parties" / "north" / "ledger.sqlite")
    db.execute("DELETE FROM charges")
    db.execute("DELETE FROM releases")
    db.commit()
    db.close()
    problems = verify(home)["problems"]
    assert {p.split(" keeps")[0] for p in problems if "north no longer has" in p} == {"hub", "south"}


def test_heads_of_nothing_are_not_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.keep_heads("north", {"charges": GENESIS, "crossings": "a" * 64})
    ledger.keep_heads("north", {"charges": GENESIS, "crossings": "a" * 64})
    assert ledger.kept_heads() == [("north", "crossings", "a" * 64)]
    ledger.close()


def test_the_ledger_shows_the_cap_of_the_last_run(home: Path) -> None:
    north = next(entry for entry in ledgers_of(home) if entry["party"] == "north")
    (found,) = north["datasets"]
    assert (found["cap"], found["epsilon_largest"], found["left"]) == (10, 4, 6)


def test_a_folder_that_is_not_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not the folder of a run"):
        verify(tmp_path)
