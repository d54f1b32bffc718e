# SPDX-License-Identifier: Apache-2.0
"""`osmotic gc`: take away what the last run of a folder does not need any more. A dry run says what; nothing is lost for good
that cannot be made or asked again.

Taken: artifacts that no finished task of the last run has made or received; records of tasks that are not of it; scratch
folders; answers of models that none of its tasks asks. Where the last run did not end well, scratch folders and answers stay:
it goes on from them. Releases, charges, keys, transcripts and reports are never touched: no table and folder of them is named
here.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from osmotic.runtime.party.answers import answers_key
from osmotic.runtime.results.verifying import parties_of
from osmotic.runtime.run import locked
from osmotic.runtime.screen.watch import TASKS, read_status
from osmotic.runtime.storage.ledger import Ledger
from osmotic.runtime.storage.store import disk
from osmotic.schemas.errors import DataError, Problem


@dataclass
class Found:
    """What is to be taken away at one party."""

    party: str
    objects: list[Path]
    scratch: list[Path]
    tasks: list[str]  # keys
    instances: list[str]
    answers: list[str]  # tasks of the journal
    kept: int  # artifacts
    bytes: int = 0

    def counts(self) -> dict[str, Any]:
        """Numbers only."""
        return {name: len(value) if isinstance(value, list) else value for name, value in asdict(self).items()}


def collect(home: Path, delete: bool = False, keep_all: bool = False) -> list[dict[str, Any]]:
    """What each party of a run folder does not need; `delete`: take it away. Raises StoreError while a run is on.

    keep_all: keep what every task needs that was ever finished here, as it last was: older pipelines are found again too.
    """
    parties = parties_of(home)
    with contextlib.ExitStack() as stack:
        for folder in (home, *(home / "parties" / party for party in parties)):  # a party of FATE locks its own alone
            stack.enter_context(locked(folder))
        status, last = read_status(home), _tasks(home)
        ended = status["state"] == "finished"
        made = []
        for party in parties:
            ledger = Ledger(home / "parties" / party)
            try:
                found = _look(ledger, party, None if keep_all else set(last.get(party, ())), ended)
                if delete:
                    _take(ledger, found)
            finally:
                ledger.close()
            made.append(found.counts())
        return made


def _tasks(home: Path) -> dict[str, list[str]]:
    """Ids of the last run's tasks, by party."""
    try:
        found: dict[str, list[str]] = json.loads((home / TASKS).read_text(encoding="utf-8"))["parties"]
    except (OSError, ValueError, KeyError) as error:
        fix = "run the pipeline again: everything is found finished"
        raise DataError(Problem("it is not known which tasks the last run had", str(home / TASKS), fix=fix)) from error
    return found


def _look(ledger: Ledger, party: str, last: set[str] | None, ended: bool) -> Found:
    rows = ledger.query("SELECT id, key, facts FROM instances")
    alive = [row for row in rows if last is None or row[0] in last]
    keys = {key for _, key, _ in alive}
    digests = {
        ref["digest"]
        for key, outputs in ledger.query("SELECT key, outputs FROM tasks")
        if key in keys
        for ref in json.loads(outputs).values()
    }
    for edge, digest in ledger.query("SELECT edge, digest FROM crossed WHERE direction='in'"):
        if last is None or edge.partition("->")[2] in last:
            digests.add(digest)
    asked = {key for _, _, facts in alive for key in _answers(json.loads(facts))}
    journal = {task for (task,) in ledger.query("SELECT DISTINCT task FROM journal")}
    objects = list(_objects(ledger.folder / "store" / "objects"))
    gone = [path for path in objects if path.name not in digests]
    scratch = [path for path in (ledger.folder / "store" / "scratch").glob("*") if ended or path.name in keys]
    found = Found(
        party, gone, scratch,
        tasks=[key for (key,) in ledger.query("SELECT key FROM tasks") if key not in keys],
        instances=[row[0] for row in rows if last is not None and row[0] not in last],
        answers=sorted(journal - asked) if ended else [],
        kept=len(objects) - len(gone),
    )  # fmt: skip
    found.bytes = sum(_size(path) for path in (*gone, *scratch))
    return found


def _objects(folder: Path) -> Iterator[Path]:
    """Artifacts, and what a killed run left half-written."""
    if folder.is_dir():
        for shelf in sorted(folder.iterdir()):
            yield from sorted(shelf.iterdir())


def _answers(facts: dict[str, Any]) -> Iterator[str]:
    """Under which tasks of the journal the answers of a task's models are kept, at either end of a call."""
    for key, fingerprint in facts.get("models", {}).items():
        name = facts["config"].get(key)
        yield answers_key([name, fingerprint])
        yield answers_key(["port", fingerprint.partition(":")[0], name, fingerprint])


def _take(ledger: Ledger, found: Found) -> None:
    """First from the tables, then from the disk: a kill in between leaves files that the next call takes."""
    with ledger.transaction() as db:
        db.executemany("DELETE FROM tasks WHERE key=?", [(key,) for key in found.tasks])
        db.executemany("DELETE FROM instances WHERE id=?", [(one,) for one in found.instances])
        db.executemany("DELETE FROM journal WHERE task=?", [(task,) for task in found.answers])
    for path in (*found.objects, *found.scratch):
        with disk(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _size(path: Path) -> int:
    return sum((Path(top) / file).lstat().st_size for top, _, files in os.walk(path) for file in files)
