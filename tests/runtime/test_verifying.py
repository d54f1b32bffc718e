# SPDX-License-Identifier: Apache-2.0
"""What `osmotic verify` and `osmotic ledger` find out afterwards, from the folders of the parties alone."""

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.results.verifying import ELSEWHERE, ledgers_of, verify
from osmotic.runtime.storage.ledger import GENESIS, Ledger
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
    db = sqlite3.connect(home.parent / "shop.sites.state" / "north" / "ledger.sqlite")
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


# (file, what somebody changes, what is said)
CHANGES = [
    ("vault", "UPDATE release_sets SET void='seeded'", "does not follow from its charges: void"),
    ("vault", "UPDATE release_sets SET class='heuristic'", "does not follow from its charges: class"),
    ("vault", "UPDATE release_sets SET documents=11", "does not follow from its charges: documents"),
    ("vault", "UPDATE release_sets SET epsilon=1", "does not follow from its charges: epsilon"),
    ("vault", "UPDATE release_sets SET digest='00'", "does not follow from its charges: digest"),
    ("vault", "DELETE FROM release_sets", "is missing, its releases are there"),
    ("vault", "DELETE FROM members WHERE lookup=(SELECT MIN(lookup) FROM members)", "its charges: documents"),
    ("vault", "UPDATE releases SET dataset='other'", "is not what was charged: dataset"),
    ("vault", "UPDATE releases SET document='other'", "is not what was charged: document"),
    ("vault", "UPDATE releases SET parameters='other'", "is not what was charged: parameters"),
    ("vault", "UPDATE releases SET payload='{'", "is not what was charged: payload"),
    ("run", "UPDATE crossed SET label='[]'", "is noted to have crossed"),
    ("run", "DELETE FROM crossed", "is noted to have crossed"),
]


@pytest.mark.parametrize(("file", "sql", "said"), CHANGES, ids=[f"{f}: {s[:45]}" for f, s, _ in CHANGES])
def test_whatever_is_changed_is_found(home: Path, file: str, sql: str, said: str) -> None:
    vault, run = home.parent / "shop.sites.state" / "north" / "ledger.sqlite", home / "parties" / "north" / "run.sqlite"
    db = sqlite3.connect(vault if file == "vault" else run)
    db.execute(sql)
    db.commit()
    db.close()
    problems = verify(home)["problems"]
    assert problems and all(p.startswith("north: ") for p in problems) and any(said in p for p in problems), problems


def test_a_folder_that_was_removed_hides_nothing(home: Path) -> None:
    shutil.rmtree(home / "parties" / "north")
    problems = verify(home)["problems"]
    assert any(p.startswith("hub: the transcript has") and "from north, which has no folder here" in p for p in problems)


def test_parties_of_other_machines_are_counted_and_not_compared(home: Path) -> None:
    shutil.rmtree(home / "parties" / "north")
    hub = Ledger(home / "parties" / "hub")
    hub.remember(ELSEWHERE, '["north"]')
    hub.close()
    found = verify(home)
    assert found["problems"] == [] and len(found["notes"]) == 1
    assert found["notes"][0].startswith("hub: the other ends of ") and "at north, and were not compared" in found["notes"][0]
