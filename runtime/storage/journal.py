# SPDX-License-Identifier: Apache-2.0
"""What a task remembers through a kill: answers that were paid for, row by row, in the file of its party's ledger."""

import json
from collections.abc import Mapping
from typing import Any

from osmotic.runtime.storage.ledger import Ledger
from osmotic.schemas.artifacts import canonical


class TaskJournal:
    """The journal of one task, in the ledger's file."""

    def __init__(self, ledger: Ledger, task: str, name: str) -> None:
        self.ledger, self.task, self.name = ledger, task, name

    def get(self, key: str) -> Any | None:
        """What was put under the key, or None."""
        sql = "SELECT value FROM journal WHERE task=? AND name=? AND key=?"
        rows = self.ledger.query(sql, (self.task, self.name, key))
        return json.loads(rows[0][0]) if rows else None

    def put(self, key: str, value: Any) -> None:
        """Store so that a kill loses nothing; what a power cut may lose says `Ledger.hurried`."""
        self.put_many({key: value})

    def put_many(self, values: Mapping[str, Any]) -> None:
        """Store several like one, all or none."""
        with self.ledger.hurried():
            self.put_all(values)

    def put_all(self, values: Mapping[str, Any]) -> None:
        """Store several, durably, all or none."""
        with self.ledger.transaction() as db:
            rows = [(self.task, self.name, key, canonical(value).decode()) for key, value in values.items()]
            db.executemany("INSERT OR REPLACE INTO journal VALUES (?,?,?,?)", rows)
