# SPDX-License-Identifier: Apache-2.0
"""Keys of a ledger: rotated, nothing is lost or spent again; backed up and restored; never an older ledger."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.results.verifying import ledgers_of, verify
from osmotic.runtime.storage import keeping
from osmotic.runtime.storage.keyring import Keyring, Use
from osmotic.runtime.storage.ledger import Ledger
from osmotic.schemas.errors import BudgetError, DataError, StoreError


@pytest.fixture
def ran(shop: Any, tasks: Callable[..., Any], toys: Registry) -> Any:
    """A shop whose pipeline has run."""
    shop.defaults = {"budget": {"*": {"per_document": 5}}}
    shop.pipeline = shop.write(tasks())
    api.run(shop.pipeline, home=shop.home, registry=toys)
    shop.vault = keeping._vault(shop.home / "parties/north")
    return shop


def spent(home: Path) -> list[Any]:
    return [(p["party"], p["charges"], [d["epsilon_largest"] for d in p["datasets"]]) for p in ledgers_of(home)]


def lookups(vault: Path) -> set[str]:
    db = sqlite3.connect(vault / "ledger.sqlite")
    found = {value for row in db.execute("SELECT lookup, document FROM releases") for value in row}
    db.close()
    return found


def test_a_later_key_lies_over_the_hash_and_needs_no_content() -> None:
    ring = Keyring(os.urandom(32))
    grown = ring.grown()
    assert grown.document(b"x") == grown.over(ring.document(b"x"), 1) != ring.document(b"x")
    assert grown.first(b"x") == ring.first(b"x") == ring.document(b"x")
    third = grown.grown()
    assert third.document(b"x") == third.over(ring.document(b"x"), 1) == third.over(grown.document(b"x"), 2)
    assert len({ring.check, grown.check, third.check}) == 3 and Keyring(third.content).check == third.check


def test_a_rotation_rekeys_every_look_up_and_costs_nothing(ran: Any, tasks: Callable[..., Any], toys: Registry) -> None:
    before, hashes = spent(ran.home), lookups(ran.vault)
    made = keeping.rotate(ran.home)
    assert [(one["party"], one["keys"], one["releases"]) for one in made] == [("hub", 2, 0), ("north", 2, 12), ("south", 2, 12)]
    assert not hashes & lookups(ran.vault) and len((ran.vault / "key").read_bytes()) == 64
    assert verify(ran.home)["problems"] == []
    again = api.run(ran.pipeline, home=ran.home, registry=toys)
    assert again["outcome"]["ran"] == 0 and spent(ran.home) == before
    with_more = tasks(more={"component": "counter", "at": "server", "inputs": {"records": "safe"}})
    fresh = api.run(ran.write(with_more), home=ran.folder / "other", registry=toys)  # nothing cached: every release looked up
    assert fresh["outcome"]["ran"] > 4 and spent(ran.home) == before
    keeping.rotate(ran.home, "north")
    assert verify(ran.home)["problems"] == [] and spent(ran.home) == before


def test_caps_hold_over_a_rotation_and_later_charges_are_verified(ran: Any, tasks: Callable[..., Any], toys: Registry) -> None:
    keeping.rotate(ran.home)
    safe = {**tasks()["safe"], "config": {"mechanism": {"name": "list-rr", "epsilon": 1, "k": 1}, "fields": ["colour"]}}
    api.run(ran.write(tasks(safe=safe)), home=ran.home, registry=toys)  # 4 + 1
    assert verify(ran.home)["problems"] == []
    less = {**safe, "config": {"mechanism": {"name": "list-rr", "epsilon": 0.5, "k": 1}, "fields": ["size"]}}
    with pytest.raises(BudgetError):
        api.run(ran.write(tasks(safe=less)), home=ran.home, registry=toys)
    db = sqlite3.connect(ran.vault / "ledger.sqlite")
    db.execute("UPDATE releases SET document='0' WHERE rowid=1")
    db.commit()
    db.close()
    assert any("document" in text for text in verify(ran.home)["problems"])


@pytest.mark.parametrize("committed", [False, True])
def test_a_kill_in_the_middle_leaves_the_old_keys_or_the_new_ones(
    ran: Any, toys: Registry, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    before = spent(ran.home)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    if committed:
        monkeypatch.setattr(Path, "replace", _unless_key(Path.replace, killed))
    else:
        monkeypatch.setattr(keeping, "_rekey", killed)
    with pytest.raises(KeyboardInterrupt):
        keeping.rotate(ran.home, "north")
    monkeypatch.undo()
    assert (ran.vault / "key.next").is_file() and len((ran.vault / "key").read_bytes()) == 32
    assert api.run(ran.pipeline, home=ran.home, registry=toys)["outcome"]["ran"] == 0
    assert spent(ran.home) == before and verify(ran.home)["problems"] == []
    assert len((ran.vault / "key").read_bytes()) == (64 if committed else 32)
    keeping.rotate(ran.home, "north")
    assert verify(ran.home)["problems"] == []


def _unless_key(replace: Any, killed: Any) -> Any:
    return lambda self, target: killed() if self.name == "key.next" else replace(self, target)


def test_it_is_refused_while_the_ledger_is_used(ran: Any, tmp_path: Path) -> None:
    ledger = Ledger(ran.home / "parties/north")
    for change in (lambda: keeping.rotate(ran.home), lambda: keeping.backup(ran.home, tmp_path / "b")):
        with pytest.raises(StoreError, match="a run is using"):
            change()
    ledger.close()
    with Use(ran.vault), Use(ran.vault):
        assert len(lookups(ran.vault)) == 24


def test_lost_keys_and_a_lost_ledger_come_back(ran: Any, toys: Registry, tmp_path: Path) -> None:
    before = spent(ran.home)
    made = keeping.backup(ran.home, tmp_path / "kept")
    assert [one["charges"] for one in made] == [0, 12, 12]
    assert (tmp_path / "kept/north/key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(StoreError, match="a backup already"):
        keeping.backup(ran.home, tmp_path / "kept")
    (ran.vault / "key").unlink()
    with pytest.raises(StoreError, match="keys restore"):
        api.run(ran.pipeline, home=ran.home, registry=toys)
    assert keeping.restore(ran.home, tmp_path / "kept", "north") == [{"party": "north", "restored": "keys"}]
    for file in ran.vault.glob("ledger.sqlite*"):
        file.unlink()
    (restored,) = keeping.restore(ran.home, tmp_path / "kept", "north")
    assert restored["restored"].startswith("all") and spent(ran.home) == before
    assert api.run(ran.pipeline, home=ran.home, registry=toys)["outcome"]["ran"] == 0
    assert verify(ran.home)["problems"] == []


def test_another_key_and_an_older_ledger_are_refused(
    ran: Any, tasks: Callable[..., Any], toys: Registry, tmp_path: Path
) -> None:
    keeping.backup(ran.home, tmp_path / "kept")
    key = (ran.vault / "key").read_bytes()
    (ran.vault / "key").write_bytes(os.urandom(32))
    with pytest.raises(StoreError, match="belongs to another ledger"):
        Ledger(ran.home / "parties/north")
    (ran.vault / "key").write_bytes(key)
    safe = {**tasks()["safe"], "config": {"mechanism": {"name": "list-rr", "epsilon": 1, "k": 1}, "fields": ["colour"]}}
    api.run(ran.write(tasks(safe=safe)), home=ran.home, registry=toys)
    for file in ran.vault.glob("ledger.sqlite*"):
        file.unlink()
    with pytest.raises(StoreError, match="too old"):
        keeping.restore(ran.home, tmp_path / "kept", "north")
    assert keeping.restore(ran.home, tmp_path / "kept", "north", older=True)[0]["party"] == "north"
    keeping.rotate(ran.home, "south")
    with pytest.raises(StoreError, match="does not fit"):
        keeping.restore(ran.home, tmp_path / "kept", "south")
    with pytest.raises(DataError, match="no party 'west'"):
        keeping.rotate(ran.home, "west")


def more(ran: Any, tasks: Callable[..., Any]) -> Path:
    """A pipeline that releases once more."""
    safe = {**tasks()["safe"], "config": {"mechanism": {"name": "list-rr", "epsilon": 1, "k": 1}, "fields": ["colour"]}}
    return Path(ran.write(tasks(safe=safe)))


def test_an_older_ledger_that_was_copied_back_is_not_used(
    ran: Any, tasks: Callable[..., Any], toys: Registry, tmp_path: Path
) -> None:
    shutil.copytree(ran.vault, tmp_path / "old")
    later = more(ran, tasks)
    api.run(later, home=ran.home, registry=toys)
    keeping.backup(ran.home, tmp_path / "kept", "north")
    shutil.rmtree(ran.vault)
    shutil.copytree(tmp_path / "old", ran.vault)
    for again in (lambda: api.run(later, home=ran.home, registry=toys), lambda: api.plan(later, home=ran.home, registry=toys)):
        with pytest.raises(StoreError, match="the ledger is older than this folder"):
            again()
    assert any("no longer has" in text for text in verify(ran.home)["problems"])
    shutil.rmtree(ran.vault)
    with pytest.raises(StoreError, match="the ledger of this run is not there"):
        api.run(later, home=ran.home, registry=toys)
    keeping.restore(ran.home, tmp_path / "kept", "north")
    assert api.run(later, home=ran.home, registry=toys)["outcome"]["ran"] == 0 and verify(ran.home)["problems"] == []


def test_an_older_ledger_put_back_on_purpose_is_used(
    ran: Any, tasks: Callable[..., Any], toys: Registry, tmp_path: Path
) -> None:
    keeping.backup(ran.home, tmp_path / "kept", "north")
    api.run(more(ran, tasks), home=ran.home, registry=toys)
    for file in ran.vault.glob("ledger.sqlite*"):
        file.unlink()
    keeping.restore(ran.home, tmp_path / "kept", "north", older=True)
    found = api.run(ran.write(tasks()), home=ran.home, registry=toys)
    assert found["outcome"]["ran"] == 0 and spent(ran.home)[1] == ("north", 12, [4.0])
    again = api.run(more(ran, tasks), home=ran.home, registry=toys)  # forgotten: drawn and charged again, and it may cross
    assert again["outcome"]["ran"] > 0 and spent(ran.home)[1] == ("north", 24, [5.0])


def test_where_nobody_can_tell_how_old_a_backup_is(ran: Any, tmp_path: Path) -> None:
    keeping.backup(ran.home, tmp_path / "kept", "north")
    for file in ran.vault.glob("ledger.sqlite*"):
        file.unlink()
    for party in ("hub", "south"):
        shutil.rmtree(ran.home / "parties" / party)
    assert keeping._seen(ran.home, "north") is not None  # the folder's own note
    db = sqlite3.connect(ran.home / "parties/north/run.sqlite")
    db.execute("DELETE FROM meta WHERE name='charged'")
    db.commit()
    db.close()
    with pytest.raises(StoreError, match="nobody here can tell"):
        keeping.restore(ran.home, tmp_path / "kept", "north")
    assert keeping.restore(ran.home, tmp_path / "kept", "north", older=True)[0]["restored"].startswith("all")


def test_files_of_a_ledger_are_its_owners_alone(ran: Any, tmp_path: Path) -> None:
    files = [
        *ran.vault.glob("ledger.sqlite*"),
        ran.vault / "key",
        ran.home / "parties/north/run.sqlite",
        ran.home / "status.json",
    ]
    assert {file.stat().st_mode & 0o077 for file in files} == {0}
    (ran.vault / "key").chmod(0o644)  # as a copy may be
    Ledger(ran.home / "parties/north").close()
    assert (ran.vault / "key").stat().st_mode & 0o777 == 0o600
    keeping.backup(ran.home, tmp_path / "kept", "north")
    assert {file.stat().st_mode & 0o077 for file in (tmp_path / "kept").rglob("*")} == {0}


def test_the_command_line(ran: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from osmotic.runtime.cli import application

    app = application()
    app(["keys", "rotate", str(ran.home), "--party", "north"], standalone_mode=False)
    app(["keys", "backup", str(ran.home), str(tmp_path / "kept"), "--json"], standalone_mode=False)
    app(["keys", "restore", str(ran.home), str(tmp_path / "kept"), "--party", "north"], standalone_mode=False)
    app(["gc", str(ran.home)], standalone_mode=False)
    app(["status", str(ran.home)], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "north: 2 keys now, 12 releases re-keyed; make a backup"
    assert [one["keys"] for one in json.loads(lines[1])] == [1, 2, 1]
    assert lines[2] == "north: restored keys" and "nothing was taken away" in lines[6]
    assert "finished, 5/5 tasks" in lines[7]
