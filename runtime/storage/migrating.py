# SPDX-License-Identifier: Apache-2.0
"""Bring the tables of an older ledger up to date, in place: one transaction, so that a kill leaves the old file or the new one.

Format 2: releases say their class, what they cost in units other than epsilon, how many symbols were sampled and for which
task; record-level events have a table. What format 1 called epsilon of a mechanism that was not certified is its nominal
number. Charges are a hash chain and stay as they were written.
"""

import json
import sqlite3

NOT_CERTIFIED = "SELECT lookup FROM vault.members m JOIN vault.release_sets s ON s.ref = m.ref WHERE s.class <> 'certified'"
TO_2 = (
    "ALTER TABLE vault.releases ADD COLUMN class TEXT NOT NULL DEFAULT 'certified'",
    "ALTER TABLE vault.releases ADD COLUMN other TEXT NOT NULL DEFAULT '{}'",
    "ALTER TABLE vault.releases ADD COLUMN symbols TEXT NOT NULL DEFAULT '[]'",
    "ALTER TABLE vault.releases ADD COLUMN task TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE vault.release_sets ADD COLUMN other TEXT NOT NULL DEFAULT '{}'",
    "UPDATE vault.releases SET other=nominal(epsilon), epsilon=0,"
    " class=(SELECT s.class FROM vault.members m JOIN vault.release_sets s ON s.ref = m.ref WHERE m.lookup = releases.lookup)"
    f" WHERE lookup IN ({NOT_CERTIFIED})",
    "UPDATE vault.release_sets SET other=nominal(epsilon), epsilon=0 WHERE class <> 'certified'",
)


def migrate(db: sqlite3.Connection, name: str, tables: str) -> None:
    """Change the attached file `name` from format 1 to 2 inside a transaction that the caller commits."""
    db.create_function("nominal", 1, _nominal, deterministic=True)
    db.execute("BEGIN IMMEDIATE")
    try:
        if name == "vault":
            for statement in TO_2:
                db.execute(statement)
        for statement in filter(str.strip, tables.split(";")):  # executescript would commit
            db.execute(statement)
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _nominal(epsilon: float) -> str:
    """A nominal cost as the column `other` has it: with every digit, where SQLite's own JSON would keep 15."""
    return json.dumps({"nominal": epsilon}, separators=(",", ":"))
