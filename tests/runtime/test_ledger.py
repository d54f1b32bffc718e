# SPDX-License-Identifier: Apache-2.0
"""The ledger: durable, chained, and clear about what is wrong with it."""

import os
import sqlite3
import stat
from pathlib import Path

import pytest

from osmotic.runtime.storage.journal import TaskJournal
from osmotic.runtime.storage.ledger import GENESIS, Ledger
from osmotic.schemas.errors import StoreError


def chained(folder: Path, rows: int = 3) -> Ledger:
    ledger = Ledger(folder)
    with ledger.transaction() as db:
        for i in range(rows):
            ledger.append(db, "charges", {"n": i})
    return ledger


def test_the_key_is_secret_and_stays(tmp_path: Path) -> None:
    folder = tmp_path / "north"
    first = Ledger(folder)
    first.close()
    again = Ledger(folder)
    assert again.keys.content == first.keys.content and len(first.keys.content) == 32
    again.close()
    assert stat.S_IMODE((folder / "key").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [p.name for p in folder.glob(".key-*")] == []


def test_a_missing_or_damaged_key_is_never_made_anew(tmp_path: Path) -> None:
    Ledger(tmp_path).close()
    key = (tmp_path / "key").read_bytes()
    (tmp_path / "key").unlink()
    with pytest.raises(StoreError, match="key of this ledger is missing"):
        Ledger(tmp_path)
    assert not (tmp_path / "key").exists()
    (tmp_path / "key").write_bytes(key[:5])
    with pytest.raises(StoreError, match="damaged"):
        Ledger(tmp_path)


def test_a_ledger_that_is_gone_is_never_made_anew(tmp_path: Path) -> None:
    Ledger(tmp_path).close()
    (tmp_path / "ledger.sqlite").unlink()
    for passing in (False, True):
        with pytest.raises(StoreError, match="the ledger of this run is not there"):
            Ledger(tmp_path, passing)
    assert not (tmp_path / "ledger.sqlite").exists()


def test_passing_writes_nothing(tmp_path: Path) -> None:
    Ledger(tmp_path / "none", passing=True).close()
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE charges SET body='{\"n\":7}' WHERE seq=2",
        "DELETE FROM charges WHERE seq=2",
        "UPDATE charges SET hash='00' WHERE seq=2",
        "UPDATE charges SET seq=9 WHERE seq=1",
    ],
)
def test_a_changed_history_is_found(tmp_path: Path, sql: str) -> None:
    ledger = chained(tmp_path)
    assert ledger.chain_problems() == []
    ledger.db.execute(sql)
    assert any("charges row" in text for text in ledger.chain_problems())
    ledger.close()


def test_heads_differ_by_history(tmp_path: Path) -> None:
    one, two = chained(tmp_path / "a", 2), chained(tmp_path / "b", 3)
    assert GENESIS != one.head("charges") != two.head("charges")
    assert one.head("crossings") == GENESIS
    one.close()
    two.close()


def test_a_corrupt_database_is_named_and_left_alone(tmp_path: Path) -> None:
    Ledger(tmp_path).close()
    for name in ("ledger.sqlite-wal", "ledger.sqlite-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "ledger.sqlite").write_bytes(b"this is not a database at all, is it?" * 200)
    with pytest.raises(StoreError, match="corrupt"):
        Ledger(tmp_path)
    assert (tmp_path / "ledger.sqlite").read_bytes().startswith(b"this is not")


@pytest.mark.parametrize("version", ["99", "soon"])
def test_a_newer_database_is_refused_unchanged(tmp_path: Path, version: str) -> None:
    (tmp_path / "key").write_bytes(os.urandom(32))
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        db.execute("CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT)")
        db.execute("INSERT INTO meta VALUES ('version', ?)", (version,))
    db.close()
    with pytest.raises(StoreError, match="newer version"):
        Ledger(tmp_path)
    db = sqlite3.connect(tmp_path / "ledger.sqlite")
    assert [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")] == ["meta"]
    db.close()


def test_a_locked_database_says_that_another_run_uses_it(tmp_path: Path) -> None:
    one, two = Ledger(tmp_path), Ledger(tmp_path)
    two.db.execute("PRAGMA busy_timeout=50")
    with one.transaction() as db:
        one.append(db, "charges", {})
        with pytest.raises(StoreError, match="another run"), two.transaction():
            pass
    with two.transaction() as db:  # and it goes on afterwards
        two.append(db, "charges", {})
    assert len(one.query("SELECT * FROM charges")) == 2
    one.close()
    two.close()


def test_a_full_database_rolls_back_says_so_and_goes_on(tmp_path: Path) -> None:
    ledger = chained(tmp_path)
    pages = ledger.query("PRAGMA vault.page_count")[0][0]
    ledger.db.execute(f"PRAGMA vault.max_page_count={pages + 1}")
    with pytest.raises(StoreError, match="disk is full"), ledger.transaction() as db:
        for i in range(200):
            ledger.append(db, "charges", {"n": i, "x": "x" * 4000})
    assert not ledger.db.in_transaction
    assert len(ledger.query("SELECT * FROM charges")) == 3
    ledger.db.execute(f"PRAGMA vault.max_page_count={pages + 1000}")
    with ledger.transaction() as db:
        ledger.append(db, "charges", {"n": 3})
    assert ledger.chain_problems() == []
    ledger.close()


def test_an_interrupted_transaction_leaves_nothing(tmp_path: Path) -> None:
    ledger = chained(tmp_path)
    with pytest.raises(KeyboardInterrupt), ledger.transaction() as db:
        ledger.append(db, "charges", {"n": 9})
        raise KeyboardInterrupt
    assert len(ledger.query("SELECT * FROM charges")) == 3
    ledger.close()


def test_tasks_are_finished_bound_and_forgotten(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    journal = TaskJournal(ledger, "k", "rows")
    journal.put("a", {"x": [1, 2]})
    journal.put_all({"b": 1, "c": 2})
    assert [journal.get(key) for key in "abcd"] == [{"x": [1, 2]}, 1, 2, None]
    ledger.finish("k", {"out": {"kind": "document"}}, 0.5, "task@north", {"seed": 1})
    assert ledger.finished("k") == {"out": {"kind": "document"}}
    assert ledger.bound("task@north") == ("k", {"seed": 1})
    assert journal.get("a") is None
    ledger.forget("k")
    assert ledger.finished("k") is None
    ledger.close()
