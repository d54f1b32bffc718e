# SPDX-License-Identifier: Apache-2.0
"""A party's durable memory in two SQLite files: the vault, and what belongs to the runs of one folder.

The vault (``ledger.sqlite``: releases, charges, random ids, cards) holds for every run over the same data, so it may lie
elsewhere; the run's own file (``run.sqlite``) has crossings, finished tasks and journals. Releases and charges are kept for
good; charges and crossings are append-only, each row hash-chained to the one before. WAL mode with ``synchronous=FULL``: what
was committed survives a kill and a power cut; journal entries of answers, and short tasks that had none, survive a kill at
once, and a power cut may take those since the last sync, of which there is one every quarter of a second while they keep
coming. No transaction writes to both files. Files of an older format are brought up to date in place, in one transaction;
newer ones are left untouched.
"""

import contextlib
import hashlib
import json
import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from osmotic.runtime.storage.durable import own_file
from osmotic.runtime.storage.keyring import SIZE, Keyring, Use, alone, known_keys, read_keys
from osmotic.runtime.storage.migrating import migrate
from osmotic.runtime.storage.remembering import check_whole, note_charged
from osmotic.runtime.storage.store import disk
from osmotic.runtime.storage.tables import RUN_TABLES, VAULT_TABLES
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import Problem, StoreError
from osmotic.schemas.labels import Label

VERSION = 2
GENESIS = "0" * 64
SYNC_EVERY = 0.25  # seconds between disk syncs of a journal


class Ledger:
    """Opens (and makes) ``folder/run.sqlite`` and, beside each other in the vault, ``ledger.sqlite`` and the secret ``key``.

    vault: a folder; None: where the run's own file says that it lies, else `folder`. passing: make nothing on disk (plans);
    what is there is read. Raises StoreError.
    """

    def __init__(self, folder: Path, passing: bool = False, vault: Path | None = None) -> None:
        self.folder = folder
        self._use: Use | None = None
        self._synced = -math.inf
        self._hurry = self._hurries = False  # whether the next transaction need not wait; whether the file is set so
        self.run_path = folder / "run.sqlite"
        try:
            self._open(passing, vault)
        except sqlite3.Error as error:
            self._drop()
            raise _problem(self.path if hasattr(self, "path") else self.run_path, error) from error
        except StoreError:
            self._drop()
            raise

    def _open(self, passing: bool, vault: Path | None) -> None:
        if not passing:
            with disk(self.folder):
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            own_file(self.run_path)
        place = ":memory:" if passing and not self.run_path.is_file() else str(self.run_path)
        self.db = sqlite3.connect(place, timeout=30, isolation_level=None, check_same_thread=False)
        self.vault = self._find(vault)
        self.path = self.vault / "ledger.sqlite"
        there = self.path.is_file()
        check_whole(self.vault, there)
        if passing and not there:
            self.keys = Keyring(os.urandom(SIZE))
        else:
            with disk(self.vault):
                self.vault.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._use = None if passing else Use(self.vault)
            self.keys = read_keys(self.vault / "key", may_make=not there)
            if not passing:
                own_file(self.path)
        self.db.execute("ATTACH ? AS vault", (":memory:" if passing and not there else str(self.path),))
        with alone(None if passing and not there else self.vault / "key"):
            for name in ("main", "vault"):
                self.db.execute(f"PRAGMA {name}.journal_mode=WAL")
                self.db.execute(f"PRAGMA {name}.synchronous=FULL")
            self._check_version("vault", VAULT_TABLES, self.path)
            self._check_version("main", RUN_TABLES, self.run_path)
            row = self.db.execute("SELECT value FROM vault.meta WHERE name='key'").fetchone()
            self.keys = known_keys(self.vault / "key", self.keys, row[0] if row else None, mend=not passing)
            if row is None and not passing:
                self.db.execute("INSERT OR IGNORE INTO vault.meta VALUES ('key', ?)", (self.keys.check,))
        if not passing:
            self.remember("vault", "" if self.vault == self.folder else str(self.vault.resolve()))

    def _find(self, vault: Path | None) -> Path:
        """The folder of the vault. Raises StoreError when it is the one of the last run and its ledger is gone."""
        made = self.db.execute("SELECT 1 FROM sqlite_master WHERE name='meta'").fetchone()
        row = self.db.execute("SELECT value FROM meta WHERE name='vault'").fetchone() if made else None
        last = None if row is None else Path(row[0]) if row[0] else self.folder
        found = vault or last or self.folder
        if last is not None and found.resolve() == last.resolve() and not (found / "ledger.sqlite").is_file():
            fix = "put it back where it was: it says what was released and spent"
            raise StoreError(Problem("the ledger of this run is not there", str(found), fix=fix))
        return found

    def close(self) -> None:
        """Close the database."""
        self.db.close()
        if self._use is not None:
            self._use.end()

    def _drop(self) -> None:
        """Let go of a database that cannot be used."""
        if hasattr(self, "db"):
            self.close()

    def _check_version(self, name: str, tables: str, path: Path) -> None:
        """Make the tables of a new file; a newer file is left untouched. A file of this version is only read."""
        made = self.db.execute(f"SELECT 1 FROM {name}.sqlite_master WHERE name='meta'").fetchone()
        row = self.db.execute(f"SELECT value FROM {name}.meta WHERE name='version'").fetchone() if made else None
        if row is None:
            self.db.executescript(tables)
            self.db.execute(f"INSERT OR IGNORE INTO {name}.meta VALUES ('version', ?)", (str(VERSION),))
        elif not row[0].isdecimal() or int(row[0]) > VERSION:
            fix = "install the osmotic version that wrote it, or a newer one"
            raise StoreError(Problem(f"the ledger was written by a newer version (format {row[0]})", str(path), fix=fix))
        elif int(row[0]) < VERSION:
            migrate(self.db, name, tables)
            self.db.execute(f"UPDATE {name}.meta SET value=? WHERE name='version'", (str(VERSION),))
            self.db.execute("COMMIT")

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything read inside belongs to one moment, though another run may be writing."""
        self.db.execute("BEGIN")
        try:
            yield
        finally:
            self.db.execute("ROLLBACK")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One write transaction: all or nothing, durable when it returns. Nobody else writes to either file meanwhile."""
        try:
            if self._hurries != self._hurry:
                self._hurries = self._hurry
                self.db.execute(f"PRAGMA main.synchronous={'NORMAL' if self._hurry else 'FULL'}")
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
                self.db.execute("COMMIT")
            except BaseException:
                if self.db.in_transaction:  # a full disk has rolled it back already
                    self.db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise _problem(self.path, error) from error

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for several reading statements; what the file has against them becomes a StoreError."""
        try:
            yield self.db
        except sqlite3.Error as error:
            raise _problem(self.path, error) from error

    @contextlib.contextmanager
    def hurried(self, wait: bool = False) -> Iterator[None]:
        """Transactions inside survive a kill. Only the first one SYNC_EVERY seconds after the last sync waits for the disk: a
        power cut may take what came since. For answers that could be had again and for short tasks that could be done again,
        never for releases, charges or crossings. wait: this one waits in any case.
        """
        moment = time.monotonic()
        if wait or moment - self._synced >= SYNC_EVERY:
            yield
            self._synced = moment
            return
        self._hurry = True
        try:
            yield
        finally:
            self._hurry = False

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a reading statement."""
        try:
            return self.db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise _problem(self.path, error) from error

    def secret_hash(self, value: Any) -> str:
        """HMAC-SHA-256 of a JSON value under this party's secret keys: look-up keys that tell nothing to others."""
        return self.keyed_hash(canonical(value))

    def keyed_hash(self, content: bytes) -> str:
        """`secret_hash` of the value whose canonical JSON this is."""
        return self.keys.document(content)

    def whole_hash(self, value: Any) -> str:
        """The same for what is asked of a data set as a whole: under the first key, which a rotation leaves as it is."""
        return self.keys.first(canonical(value))

    # ---- chains ----

    def append(self, db: sqlite3.Connection, table: str, *bodies: dict[str, Any] | str) -> None:
        """Append rows to a hash chain (inside a transaction). bodies: JSON values, or their canonical text."""
        row = db.execute(f"SELECT hash FROM {_chain(table)} ORDER BY seq DESC LIMIT 1").fetchone()
        previous, rows = row[0] if row else GENESIS, []
        for text in (body if isinstance(body, str) else canonical(body).decode() for body in bodies):
            rows.append((text, previous, link(previous, text)))
            previous = rows[-1][2]
        db.executemany(f"INSERT INTO {table} (body, previous, hash) VALUES (?,?,?)", rows)

    def cross(
        self,
        *,
        edge: str,
        name: str,
        sender: str,
        receiver: str,
        direction: str,
        kind: str,
        digest: str,
        size: int,
        label: Label,
        more: dict[str, Any] | None = None,
    ) -> None:
        """Write one crossing to the transcript: durable before the bytes leave (or right after they came). more: beside it."""
        entries = label.to_json()
        body = {
            "time": now(), "edge": edge, "name": name, "from": sender, "to": receiver, "direction": direction, "kind": kind,
            "digest": digest, "bytes": size, "label": entries, "word": label.word, **(more or {}),
        }  # fmt: skip
        values = (edge, digest, direction, canonical(entries).decode())
        with self.transaction() as db:
            note_charged(self, db)
            self.append(db, "crossings", body)
            db.execute("INSERT OR REPLACE INTO crossed VALUES (?,?,?,?)", values)

    def head(self, table: str) -> str:
        """Hash of the last row of a chain."""
        rows = self.query(f"SELECT hash FROM {table} ORDER BY seq DESC LIMIT 1")
        return rows[0][0] if rows else GENESIS

    def heads(self) -> dict[str, str]:
        """Head of each chain: what other parties keep, so that history cannot be rewritten alone."""
        return {table: self.head(table) for table in ("charges", "crossings")}

    def keep_heads(self, party: str, heads: dict[str, str]) -> None:
        """Keep another party's heads (one row for each new one)."""
        known = self.query("SELECT chain, head FROM heads WHERE party=?", (party,))
        new = [(party, chain, head, now()) for chain, head in heads.items() if (chain, head) not in known and head != GENESIS]
        if new:
            with self.transaction() as db:
                db.executemany("INSERT INTO heads VALUES (?,?,?,?)", new)

    def kept_heads(self) -> list[tuple[str, str, str]]:
        """(party, chain, head) of other parties, as kept here."""
        return [(p, c, h) for p, c, h in self.query("SELECT party, chain, head FROM heads")]

    def has_head(self, chain: str, head: str) -> bool:
        """Whether a chain holds a row with that hash."""
        return any(head == hash_ for (hash_,) in self.query(f"SELECT hash FROM {_chain(chain)}"))

    def remember(self, name: str, value: str) -> None:
        """Keep a note about this folder (what `osmotic ledger` needs to know later)."""
        if self.recall(name) != value:
            with self.transaction() as db:
                db.execute("INSERT OR REPLACE INTO main.meta VALUES (?,?)", (name, value))

    def recall(self, name: str) -> str | None:
        """A note, or None."""
        rows = self.query("SELECT value FROM main.meta WHERE name=?", (name,))
        return str(rows[0][0]) if rows else None

    def recall_vault(self, name: str) -> str | None:
        """A note of the vault, or None."""
        rows = self.query("SELECT value FROM vault.meta WHERE name=?", (name,))
        return str(rows[0][0]) if rows else None

    def chain_problems(self) -> list[str]:
        """Rows whose hash does not follow from the one before: somebody changed history."""
        problems = []
        for table in ("charges", "crossings"):
            previous = GENESIS
            for seq, body, before, hash_ in self.query(f"SELECT seq, body, previous, hash FROM {table} ORDER BY seq"):
                if before != previous or link(previous, body) != hash_:
                    problems.append(f"{table} row {seq}: the chain is broken here")
                    break
                previous = hash_
        return problems

    # ---- tasks ----

    def finished(self, key: str) -> dict[str, Any] | None:
        """Outputs of a finished task: port -> {kind, digest, label}."""
        rows = self.query("SELECT outputs FROM tasks WHERE key=?", (key,))
        return json.loads(rows[0][0]) if rows else None

    def finish(
        self, key: str, outputs: dict[str, Any], seconds: float, instance: str, facts: dict[str, Any] | str,
        sync: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Remember a finished task and the instance that it was, and forget its journal. facts: or their canonical JSON.

        sync: brings the outputs to the disk. Tasks that had a journal, or took SYNC_EVERY seconds, are on the disk when this
        returns, their outputs first. Others survive a kill at once; a power cut may take the latest of them, or their outputs,
        which is seen by the digests: they are done again.
        """
        journal = bool(self.query("SELECT 1 FROM journal WHERE task=? LIMIT 1", (key,)))
        if wait := journal or seconds >= SYNC_EVERY:
            sync()
        with self.hurried(wait), self.transaction() as db:
            db.execute("INSERT OR REPLACE INTO tasks VALUES (?,?,?)", (key, canonical(outputs).decode(), seconds))
            text = facts if isinstance(facts, str) else canonical(facts).decode()
            db.execute("INSERT OR REPLACE INTO instances VALUES (?,?,?)", (instance, key, text))
            if journal:
                db.execute("DELETE FROM journal WHERE task=?", (key,))

    def forget(self, key: str) -> None:
        """Forget a finished task (its artifacts are damaged): it runs again."""
        with self.transaction() as db:
            db.execute("DELETE FROM tasks WHERE key=?", (key,))

    def bind(self, instance: str, key: str, facts: dict[str, Any]) -> None:
        """Remember which finished task an instance of the plan stands for, and what its key was made of."""
        with self.transaction() as db:
            db.execute("INSERT OR REPLACE INTO instances VALUES (?,?,?)", (instance, key, canonical(facts).decode()))

    def bound_key(self, instance: str) -> str | None:
        """Key of the finished task that an instance stood for in its last run."""
        rows = self.query("SELECT key FROM instances WHERE id=?", (instance,))
        return str(rows[0][0]) if rows else None

    def bound(self, instance: str) -> tuple[str, dict[str, Any]] | None:
        """(key, facts) of an instance, as of its last run."""
        rows = self.query("SELECT key, facts FROM instances WHERE id=?", (instance,))
        return (rows[0][0], json.loads(rows[0][1])) if rows else None


def _chain(name: str) -> str:
    """The table of a chain; refuses any other name."""
    if name not in ("charges", "crossings"):
        raise StoreError(Problem(f"there is no chain {name!r}"))
    return name


def link(previous: str, body: str) -> str:
    """The hash of a chain's row."""
    return hashlib.sha256(f"{previous}\n{body}".encode()).hexdigest()


def now() -> str:
    """UTC time, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _problem(path: Path, error: sqlite3.Error) -> StoreError:
    text = str(error)
    if "locked" in text or "busy" in text:
        return StoreError(Problem("the ledger is in use by another run", str(path), fix="wait for it to end"))
    if "full" in text or "disk I/O" in text:
        fix = "free some space and run again: nothing was released or lost"
        return StoreError(Problem("the disk is full or failing", str(path), why=text, fix=fix))
    if "malformed" in text or "not a database" in text or "unable to open" in text:
        fix = "restore it from a backup; releases are never made anew silently"
        return StoreError(Problem("the ledger is corrupt", str(path), why=text, fix=fix))
    return StoreError(Problem(f"the ledger cannot be used: {text}", str(path)))
