# SPDX-License-Identifier: Apache-2.0
"""A folder of runs remembers how far its ledger had come, whatever becomes of the ledger's own files.

Before anything crosses, the run's own file notes the last charge. A ledger that was put back, and is older than that, has
forgotten what was spent: what was released since would be drawn, charged and sent anew. No run goes on with it. What was
charged after the last crossing was seen by nobody, so that a ledger without it may be used.
"""

import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING

from osmotic.runtime.storage.keyring import FOLDERS, IDENTITY, RESTORING
from osmotic.schemas.errors import Problem, StoreError

if TYPE_CHECKING:
    from osmotic.runtime.storage.ledger import Ledger

ITSELF = "the ledger itself"  # hashed under the first key: tells ledgers apart, and stays through rotations
FORGOTTEN = "forgotten"  # a note of a vault: until when it may lack charges, since its owner put an older one back
SHOWN = 16  # digits of that hash


def which(ledger: "Ledger") -> str:
    """What tells a ledger from others."""
    return ledger.whole_hash(ITSELF)[:SHOWN]


def note_charged(ledger: "Ledger", db: sqlite3.Connection) -> None:
    """Note the last charge in the run's own file (inside a transaction)."""
    row = db.execute("SELECT seq, hash FROM charges ORDER BY seq DESC LIMIT 1").fetchone()
    noted = db.execute("SELECT value FROM main.meta WHERE name='charged'").fetchone()
    if row is not None and head_of(noted[0] if noted else None) != row[1]:
        note = f"{which(ledger)} {row[0]} {row[1]} {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}"
        db.execute("INSERT OR REPLACE INTO main.meta VALUES ('charged', ?)", (note,))


def head_of(note: str | None) -> str:
    """The hash of the last charge that is noted; empty where none is."""
    return note.split(" ")[2] if note else ""


def check_charged(ledger: "Ledger") -> None:
    """Raise StoreError when the vault has forgotten a charge that was made before something of this folder crossed."""
    note = ledger.recall("charged")
    if note is None:
        return
    known, seq, head, moment = note.split(" ")
    if known != which(ledger) or moment <= (ledger.recall_vault(FORGOTTEN) or ""):
        return
    if ledger.query("SELECT hash FROM charges WHERE seq=?", (int(seq),)) != [(head,)]:
        why = f"charge {seq} is not in it: what was released since would be drawn anew, and its cost forgotten"
        fix = "put back the newest one; if there is none: osmotic keys restore --older, and lower the caps by what was spent"
        raise StoreError(Problem("the ledger is older than this folder", str(ledger.path), why=why, fix=fix))


def check_whole(vault: Path, there: bool) -> None:
    """Raise StoreError for a vault that is being put back, or whose ledger is gone while other things of it are there."""
    left = [name for name in (*FOLDERS, "ledger.sqlite-wal", "ledger.sqlite.damaged") if not there and (vault / name).exists()]
    left += [str(IDENTITY.parent)] if not there and any((vault / IDENTITY.parent).glob("*.session")) else []
    if left or (vault / RESTORING).exists():
        what = "the ledger of this folder is gone" if left else "putting back this ledger was not finished"
        why = f"{left[0]} is there: what was released and spent would be forgotten" if left else ""
        raise StoreError(Problem(what, str(vault), why=why, fix="osmotic keys restore"))
