# SPDX-License-Identifier: Apache-2.0
"""What the parties of a run folder have spent so far, read from their ledgers beside a run: nothing is locked or written."""

import json
import sqlite3
from pathlib import Path
from typing import Any

LARGEST = (
    "SELECT dataset, MAX(spent), COUNT(*), MAX(more) FROM (SELECT dataset, SUM(epsilon) AS spent, MAX(other<>'{}') AS more"
    " FROM releases GROUP BY dataset, document) GROUP BY dataset"
)


def spent_of(home: Path, party: str) -> list[dict[str, Any]]:
    """For each data set: epsilon of the document that paid most, its cap, documents, record-level events, and whether
    anything was paid in other units; [] when unknown.

    A ledger that does not open, or is just being made, is left out: this is a look, not a check.
    """
    folder = home / "parties" / party
    try:
        said = dict(_rows(folder / "run.sqlite", "SELECT name, value FROM meta"))
        database = (Path(said["vault"]) if said.get("vault") else folder) / "ledger.sqlite"
        released = _rows(database, LARGEST)
        events = dict(_rows(database, "SELECT dataset, COUNT(*) FROM events GROUP BY dataset"))
        caps = json.loads(said.get("caps", "{}"))
    except (OSError, ValueError, sqlite3.Error):
        return []
    found: dict[str, dict[str, Any]] = {
        name: {
            "dataset": name,
            "epsilon": epsilon,
            "documents": documents,
            "cap": _cap(caps, name),
            "events": 0,
            "other": bool(other),
        }
        for name, epsilon, documents, other in released
    }
    for name, count in events.items():
        empty = {"dataset": name, "epsilon": 0.0, "documents": 0, "cap": _cap(caps, name), "other": False}
        found[name] = {**found.get(name, empty), "events": count}
    return [found[name] for name in sorted(found)]


def _cap(caps: dict[str, Any], dataset: str) -> float | None:
    budget = caps.get(dataset, caps.get("*", {}))
    return budget.get("per_document") if isinstance(budget, dict) else budget


def _rows(file: Path, sql: str) -> list[tuple[Any, ...]]:
    if not file.is_file():
        raise FileNotFoundError(str(file))
    db = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=2)
    try:
        return db.execute(sql).fetchall()
    finally:
        db.close()
