# SPDX-License-Identifier: Apache-2.0
"""Lets others see a run: it writes ``status.json`` into its folder as it goes, and anybody may read it beside the run.

Counts, names of tasks and seconds only, as the console has them. The file is replaced as a whole, so a reader never sees a
half. What was spent is read from the ledgers, read-only. ``tasks.json`` has the tasks of the last run, by party, for
`osmotic gc`.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from osmotic.runtime.plan.graph import Graph, Instance
from osmotic.runtime.run import Watcher
from osmotic.runtime.screen.pace import Pace
from osmotic.runtime.storage.durable import own_file
from osmotic.runtime.storage.store import disk
from osmotic.schemas.errors import DataError, OsmoticError, Problem, StoreError

STATUS, TASKS = "status.json", "tasks.json"
EVERY = 0.5  # seconds between two writings


class Watched:
    """A watcher that passes everything on, and keeps the status file of a run."""

    def __init__(self, inner: Watcher, graph: Graph, home: Path) -> None:
        self.inner, self.home, self._wrote = inner, home, 0.0
        self._paces: dict[tuple[str, str], Pace] = {}
        self.now: dict[str, dict[str, dict[str, Any]]] = {party: {} for party in graph.role_of}
        self.status: dict[str, Any] = {
            "pipeline": graph.pipeline.name, "pid": os.getpid(), "process": _born(os.getpid()), "state": "running",
            "started": time.time(), "total": len(graph.instances), "done": 0, "cached": 0, "error": "", "lost": {},
            "parties": {
                party: {"role": role, "total": len(graph.at(party)), "done": 0} for party, role in graph.role_of.items()
            },
        }  # fmt: skip
        tasks = {party: sorted(instance.id for instance in graph.at(party)) for party in graph.role_of}
        _replace(home / TASKS, json.dumps({"parties": tasks}))
        self._write(force=True)

    def started(self, total: int) -> None:
        """The plan was accepted everywhere."""
        self.inner.started(total)

    def begun(self, instance: Instance) -> None:
        """A party is looking at a task."""
        self.now[instance.party][instance.id] = {"since": time.time()}
        self.status["lost"].pop(instance.party, None)
        self._write()

    def task(self, instance: Instance, cached: bool, seconds: float) -> None:
        """An instance is finished."""
        self.status["done"] += 1
        self.status["cached"] += cached
        self.status["parties"][instance.party]["done"] += 1
        self.now[instance.party].pop(instance.id, None)
        self._paces.pop((instance.party, instance.id), None)
        self._write()
        self.inner.task(instance, cached, seconds)

    def lost(self, party: str, why: str) -> None:
        """A party that the run goes on without, or that is back (no why)."""
        self.status["lost"] = {name: text for name, text in (self.status["lost"] | {party: why}).items() if text}
        self._write(force=True)
        getattr(self.inner, "lost", lambda party, why: None)(party, why)

    def progress(self, party: str, task: str, done: int, total: int, note: str) -> None:
        """Inside a task."""
        pace = self._paces.setdefault((party, task), Pace())
        pace.add(time.monotonic(), done, total, note)
        entry = self.now[party].setdefault(task, {"since": time.time()})
        entry |= {"done": done, "total": total, "note": note, "pace": pace.text(note)}
        self._write()
        self.inner.progress(party, task, done, total, note)

    def ended(self, state: str, error: str = "") -> None:
        """The run is over: `finished`, `failed` or `stopped`."""
        self.status |= {"state": state, "error": error}
        self.now = {party: {} for party in self.now}
        self._write(force=True)

    def _write(self, force: bool = False) -> None:
        if not force and time.monotonic() - self._wrote < EVERY:
            return
        self._wrote = time.monotonic()
        now = {party: dict(tasks) for party, tasks in list(self.now.items())}
        with contextlib.suppress(OSError, StoreError, RuntimeError):  # a full disk is the run's to tell
            _replace(self.home / STATUS, json.dumps({**self.status, "now": now, "updated": time.time()}))


@contextlib.contextmanager
def watched(inner: Watcher, graph: Graph, home: Path) -> Iterator[Watched]:
    """A run inside is seen by `osmotic status`, to its end, however it ends."""
    with disk(home):
        watcher = Watched(inner, graph, home)
    try:
        yield watcher
    except OsmoticError as error:
        watcher.ended("failed", str(error.code))
        raise
    except BaseException:
        watcher.ended("stopped")
        raise
    watcher.ended("finished")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    own_file(temporary)  # how many records a task has is nobody else's business
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _born(pid: int) -> str:
    """When a process began, as the system counts; empty where it does not say: a number may be given to another one later."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def alive(status: dict[str, Any]) -> bool:
    """Whether the process of a run is still there."""
    pid = int(status["pid"])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not status["process"] or _born(pid) == status["process"]


def read_status(home: Path) -> dict[str, Any]:
    """What a run says of itself, as it is or was; `state` is ``killed`` where it said no end and is gone. Raises DataError."""
    file = home / STATUS
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        fix = "give the folder named with --home, e.g. osmotic-runs/fedcot"
        raise DataError(Problem("no run has begun here", str(home), fix=fix)) from error
    except (OSError, ValueError) as error:
        raise DataError(Problem("the status cannot be read", str(file), why=str(error)[:200], fix="try again")) from error
    if found["state"] == "running" and not alive(found):
        found["state"] = "killed"
    return found
