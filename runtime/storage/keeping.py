# SPDX-License-Identifier: Apache-2.0
"""Backup, restoring and rotation of a party's keys, with the ledger that they belong to. Refused while a run uses it."""

import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from osmotic.runtime.results.verifying import parties_of
from osmotic.runtime.storage.durable import own_file, own_folder, settle, write_whole
from osmotic.runtime.storage.keyring import FOLDERS, IDENTITY, RESTORING, Keyring, Use, read_keys
from osmotic.runtime.storage.ledger import Ledger, now
from osmotic.runtime.storage.remembering import FORGOTTEN, head_of
from osmotic.runtime.storage.store import disk, sync
from osmotic.schemas.errors import DataError, Problem, StoreError
from osmotic.schemas.labels import Label, Provenance


def vaults(home: Path, party: str | None) -> Iterator[tuple[str, Path]]:
    """(party, folder of its ledger) of those of a run folder, or of one. Raises DataError for one that did not run there."""
    known = parties_of(home)
    if party is not None and party not in known:
        raise DataError(Problem(f"no party {party!r} ran here", str(home), fix=f"one of: {', '.join(known)}"))
    for name in [party] if party else known:
        yield name, _vault(home / "parties" / name)


def backup(home: Path, target: Path, party: str | None = None) -> list[dict[str, Any]]:
    """Copy ledger, keys and what lies beside them to ``target/PARTY``, each checked and whole; nothing there is overwritten."""
    made = []
    for name, vault in vaults(home, party):
        place, half = target / name, target / f".{name}.new"
        if place.exists():
            raise StoreError(Problem("there is a backup already", str(place), fix="name another folder"))
        with Use(vault, whole=True), disk(place):
            own_folder(target)
            shutil.rmtree(half, ignore_errors=True)
            own_folder(half)
            _copy_database(vault / "ledger.sqlite", half / "ledger.sqlite")
            ring = _ring(vault, half / "ledger.sqlite")
            write_whole(half / "key", ring.content)
            for folder in FOLDERS:
                _copy_folder(vault / folder, half / folder)
            _copy_identity(vault, half)
            half.rename(place)  # a kill before this leaves nothing that could be put back
            settle(target, target)
        charges, head = _head(place / "ledger.sqlite")
        made.append({"party": name, "folder": str(place), "keys": len(ring.keys), "charges": charges, "head": head})
    return made


def restore(home: Path, source: Path, party: str | None = None, older: bool = False) -> list[dict[str, Any]]:
    """Put back a backup: the keys alone where the ledger is there and whole, else everything.

    A ledger that knows more than the backup is never replaced, and one that is gone only by one that has all charges that this
    folder, or another party of it, has seen (`older`: by any): what was spent since would be forgotten, and be spent again.
    Raises StoreError.
    """
    made = []
    for name, vault in vaults(home, party):
        place = source / name
        if not (place / "ledger.sqlite").is_file():
            if party is not None:
                raise DataError(
                    Problem(f"there is no backup of {name!r}", str(source), fix="the folder given to 'keys backup'")
                )
            continue
        own_folder(vault)
        with Use(vault, whole=True):
            made.append({"party": name, "restored": _restore(home, name, vault, place, older)})
    return made


def _copy_identity(vault: Path, to: Path) -> None:
    """The key that signs in secure sums, where there is one. Never their sessions: an older state of one may not be used."""
    source, target = vault / IDENTITY, to / IDENTITY
    if source.is_file() and not target.exists():
        own_folder(target.parent)
        write_whole(target, source.read_bytes())


def _restore(home: Path, party: str, vault: Path, place: Path, older: bool) -> str:
    _copy_identity(place, vault)
    ring, again = _ring(place, place / "ledger.sqlite"), (vault / RESTORING).exists()
    if not again and _readable(vault / "ledger.sqlite"):
        check = _meta(vault / "ledger.sqlite", "key")
        if check not in (None, ring.check):
            why = "its keys are not those of the ledger that is here: of another one, or of before a rotation"
            raise StoreError(Problem(f"the backup of {party} does not fit", str(place), why=why))
        write_whole(vault / "key", ring.content)
        return "keys"
    _, head = _head(place / "ledger.sqlite")
    if not older:
        _check_age(home, party, place)
    write_whole(vault / RESTORING, b"")  # from here on no run uses the vault, until all is there
    for file in ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"):
        if (vault / file).exists():
            aside = vault / f"{file}.damaged"
            (vault / file).unlink() if again and aside.exists() else (vault / file).replace(aside)
    for folder in FOLDERS:
        if not (vault / folder).exists():
            _copy_folder(place / folder, vault / folder)
    _copy_database(place / "ledger.sqlite", vault / "ledger.sqlite", _forgetting if older else None)
    write_whole(vault / "key", ring.content)
    _forget_tasks(home, party, vault)
    with disk(vault):
        (vault / RESTORING).unlink()
    settle(vault, vault)
    return f"all, up to charge {head[:12]}"


def _check_age(home: Path, party: str, place: Path) -> None:
    """Raise StoreError for a backup that lacks a charge which somebody of the folder has seen, or where nobody could have."""
    seen, fix = _seen(home, party), "restore a later backup; or --older, and lower the caps by what was spent since"
    if seen is None:
        what, why = f"nobody here can tell how old the backup of {party} is", "no party of this folder has noted its charges"
        raise StoreError(Problem(what, str(place), why=why, fix=fix))
    if seen - _hashes(place / "ledger.sqlite"):
        why = "this folder or another party has seen more of this ledger: what was spent since the backup would be forgotten"
        raise StoreError(Problem(f"the backup of {party} is too old", str(place), why=why, fix=fix))


def rotate(home: Path, party: str | None = None) -> list[dict[str, Any]]:
    """Put a fresh key over the others: every look-up of a document is re-keyed in one transaction, nothing is lost or spent."""
    with contextlib.ExitStack() as stack:
        found = list(vaults(home, party))
        for name, vault in found:
            _ring(vault, vault / "ledger.sqlite")
            Ledger(home / "parties" / name).close()  # of an older format, or of a rotation that was killed: in order now
            stack.enter_context(Use(vault, whole=True))
        return [{"party": name, **_rotate(vault)} for name, vault in found]


def _rotate(vault: Path) -> dict[str, Any]:
    ring = _ring(vault, vault / "ledger.sqlite")
    if ring.content != read_keys(vault / "key", may_make=False).content:
        write_whole(vault / "key", ring.content)  # of a rotation killed at its end, before its file is written over
    grown = ring.grown()
    write_whole(vault / "key.next", grown.content)  # a kill from here on leaves the old keys, or the new ones, whole
    with disk(vault):
        db = sqlite3.connect(vault / "ledger.sqlite", timeout=30, isolation_level=None)
    try:
        db.execute("PRAGMA synchronous=FULL")
        db.create_function("over", 1, lambda text: grown.over(text, len(ring.keys)), deterministic=True)
        db.execute("BEGIN IMMEDIATE")
        changed = _rekey(db)
        db.execute("INSERT OR REPLACE INTO meta VALUES ('key', ?)", (grown.check,))
        db.execute("COMMIT")
    except sqlite3.Error as error:
        raise StoreError(Problem("the ledger could not be re-keyed; it is as it was", str(vault), why=str(error))) from error
    finally:
        db.close()  # what was not committed is undone
    with disk(vault):
        (vault / "key.next").replace(vault / "key")
    settle(vault, vault)
    return {"keys": len(grown.keys), "releases": changed}


def _rekey(db: sqlite3.Connection) -> int:
    """Put the newest key over every hash of a document, or of its release; note after which charge. How many releases."""
    db.execute("UPDATE members SET lookup = over(lookup) WHERE lookup IN (SELECT lookup FROM releases)")
    changed = db.execute("UPDATE releases SET lookup = over(lookup), document = over(document)").rowcount
    db.execute("UPDATE blinds SET lookup = over(lookup)")
    last = db.execute("SELECT COALESCE(MAX(seq), 0) FROM charges").fetchone()[0]
    row = db.execute("SELECT value FROM meta WHERE name='rotations'").fetchone()
    rotations = [*(json.loads(row[0]) if row else []), last]
    db.execute("INSERT OR REPLACE INTO meta VALUES ('rotations', ?)", (json.dumps(rotations),))
    return changed


def _vault(folder: Path) -> Path:
    """Where a party's ledger lies, as the file of its runs says."""
    said = _meta(folder / "run.sqlite", "vault")
    return Path(said) if said else folder


def _ring(vault: Path, database: Path) -> Keyring:
    """The keys of a ledger, which are its own. Raises StoreError."""
    ring, check = read_keys(vault / "key", may_make=False), _meta(database, "key")
    if check is None or ring.check == check:
        return ring
    if (vault / "key.next").is_file() and (found := read_keys(vault / "key.next", may_make=False)).check == check:
        return found
    raise StoreError(Problem("the secret key belongs to another ledger", str(vault / "key"), fix="osmotic keys restore"))


def _open(file: Path) -> sqlite3.Connection:
    """A database to read; raises StoreError when there is none."""
    if not file.is_file():
        raise StoreError(Problem("the ledger is not there", str(file), fix="osmotic keys restore, if there is a backup"))
    return sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=30)


def _rows(file: Path, sql: str, *values: str) -> list[tuple[Any, ...]]:
    db = _open(file)
    try:
        return db.execute(sql, values).fetchall()
    except sqlite3.Error as error:
        raise StoreError(Problem("the ledger cannot be read", str(file), why=str(error), fix="osmotic keys restore")) from error
    finally:
        db.close()


def _meta(file: Path, name: str) -> str | None:
    rows = _rows(file, "SELECT value FROM meta WHERE name=?", name)
    return str(rows[0][0]) if rows else None


def _head(file: Path) -> tuple[int, str]:
    """(charges, hash of the last one)"""
    rows = _rows(file, "SELECT COUNT(*), COALESCE((SELECT hash FROM charges ORDER BY seq DESC LIMIT 1), '') FROM charges")
    return int(rows[0][0]), str(rows[0][1])


def _hashes(file: Path) -> set[str]:
    return {row[0] for row in _rows(file, "SELECT hash FROM charges")}


def _readable(file: Path) -> bool:
    try:
        return file.is_file() and _rows(file, "PRAGMA quick_check") == [("ok",)] and _head(file)[0] >= 0
    except StoreError:
        return False


def _seen(home: Path, party: str) -> set[str] | None:
    """Charges of a party that its own folder, or another party's, has noted; None where nobody has noted anything of it."""
    own = _meta(home / "parties" / party / "run.sqlite", "charged")
    found, asked = ({head_of(own)} if own else set()), own is not None
    for other in parties_of(home):
        if other != party:
            heads = _rows(home / "parties" / other / "run.sqlite", "SELECT chain, head FROM heads WHERE party=?", party)
            found |= {head for chain, head in heads if chain == "charges"}
            asked = asked or bool(heads)
    return found if asked else None


def _forget_tasks(home: Path, party: str, vault: Path) -> None:
    """Tasks whose releases the ledger has forgotten are done again: the membrane would refuse what they made."""
    known = {row[0] for row in _rows(vault / "ledger.sqlite", "SELECT ref FROM release_sets")}
    run = home / "parties" / party / "run.sqlite"
    gone = [
        (key,)
        for key, outputs in _rows(run, "SELECT key, outputs FROM tasks")
        if any(e.owner == party and e.ref not in known for e in _released(outputs))
    ]
    db = sqlite3.connect(run, timeout=30)
    try:
        db.executemany("DELETE FROM tasks WHERE key=?", gone)
        db.commit()
    except sqlite3.Error as error:
        raise StoreError(Problem("the record of the runs cannot be changed", str(run), why=str(error))) from error
    finally:
        db.close()


def _released(outputs: str) -> Iterator[Provenance]:
    """The releases in the labels of a task's outputs."""
    for value in json.loads(outputs).values():
        yield from Label.from_json(value["label"]).of("release")


def _forgetting(db: sqlite3.Connection) -> None:
    """Note that an older ledger was put back now: the folders that have seen more of it may use it."""
    db.execute("INSERT OR REPLACE INTO meta VALUES (?,?)", (FORGOTTEN, now()))
    db.commit()


def _copy_folder(source: Path, target: Path) -> None:
    """A whole copy of a folder, on the disk before it has its name; nothing where there is none."""
    if not source.is_dir():
        return
    half = target.with_name(f".{target.name}.new")
    with disk(target):
        shutil.rmtree(half, ignore_errors=True)
        shutil.copytree(source, half)
        for top, _, files in os.walk(half):
            for path in (*(Path(top) / name for name in files), Path(top)):
                sync(path)
        half.rename(target)
    settle(target.parent, target.parent)


def _copy_database(source: Path, target: Path, change: Callable[[sqlite3.Connection], None] | None = None) -> None:
    """A whole copy, by SQLite's own means, looked over, and changed before it has its name. Raises StoreError."""
    origin = _open(source)
    temporary = target.with_name(f".{target.name}.new")
    temporary.unlink(missing_ok=True)
    own_file(temporary)
    copy = sqlite3.connect(temporary)
    try:
        origin.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")  # no file beside it that could be left behind
        if change is not None:
            change(copy)
        if copy.execute("PRAGMA integrity_check").fetchone() != ("ok",):
            raise StoreError(Problem("the ledger is corrupt: it was not copied", str(source)))
    except sqlite3.Error as error:
        raise StoreError(Problem("the ledger cannot be copied", str(source), why=str(error))) from error
    finally:
        copy.close()
        origin.close()
    with disk(target):
        sync(temporary)
        temporary.replace(target)
    settle(target.parent, target.parent)
