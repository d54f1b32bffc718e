# SPDX-License-Identifier: Apache-2.0
"""A power cut takes what was not brought to the disk: tasks are done again; releases, charges, crossings and answers stay."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.results.verifying import ledgers_of, verify
from osmotic.runtime.storage import store
from osmotic.runtime.storage.journal import TaskJournal
from osmotic.runtime.storage.ledger import Ledger

RUN = "run.sqlite"


class Cut(api.Quiet):
    """Keeps what is on the disk for sure: the write-ahead log up to the last commit that waited, artifacts that were synced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.logs: dict[Path, bytes] = {}
        self.synced: set[Path] = set()
        hurried, sync = Ledger.transaction, store.sync

        def transaction(ledger: Ledger) -> Any:
            return self.noting(ledger, hurried(ledger))

        def noted(path: Path) -> None:
            sync(path)
            self.synced.add(path)

        monkeypatch.setattr(Ledger, "transaction", transaction)
        monkeypatch.setattr(store, "sync", noted)

    def noting(self, ledger: Ledger, inner: Any) -> Any:
        """The transaction, after which the log is noted unless it did not wait."""
        cut = self

        class Noting:
            def __enter__(self) -> Any:
                return inner.__enter__()

            def __exit__(self, *error: Any) -> Any:
                done = inner.__exit__(*error)
                if ledger.query("PRAGMA main.synchronous") == [(2,)]:
                    file = ledger.run_path.with_name(f"{RUN}-wal")
                    cut.logs[file] = file.read_bytes()
                return done

        return Noting()

    def happen(self, home: Path, copy: Path) -> None:
        """A copy of the folder as a power cut leaves it at worst."""
        shutil.copytree(home, copy)
        for file, content in self.logs.items():
            (copy / file.relative_to(home)).write_bytes(content)
        for file in home.glob("parties/*/store/objects/*/*/*"):
            if file not in self.synced:
                (copy / file.relative_to(home)).write_bytes(b"")


def journals(home: Path) -> list[Any]:
    ledger = Ledger(home / "parties/north")
    found = TaskJournal(ledger, "task", "calls").get("question")
    ledger.close()
    return [found]


def in_another_process(work: Callable[[], None]) -> None:
    """No file is closed at its end: the logs stay as they are."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - the child must not go on with the tests
            print(repr(error), file=sys.stderr)
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_power_cut_costs_work_and_nothing_else(
    shop: Any, tasks: Callable[..., Any], toys: Registry, hashes: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    more = {"component": "counter", "at": "server", "inputs": {"records": "safe"}}
    pipeline, dark = shop.write(tasks(more=more)), tmp_path / "dark"
    monkeypatch.setattr("osmotic.runtime.storage.ledger.SYNC_EVERY", 1e9)  # no short task waits

    def work() -> None:
        with monkeypatch.context() as patch:
            cut = Cut(patch)
            ledger = Ledger(shop.home / "parties/north")
            TaskJournal(ledger, "task", "calls").put("question", "answer")  # the first waits
            patch.setattr(Ledger, "close", lambda self: None)
            api.run(pipeline, home=shop.home, registry=toys)
            cut.happen(shop.home, dark)

    in_another_process(work)
    assert any(file.stat().st_size == 0 for file in dark.glob("parties/*/store/objects/*/*/*"))
    wanted = api.run(pipeline, home=shop.home, registry=toys)
    before, made = ledgers_of(shop.home), hashes(shop.home)
    shutil.rmtree(shop.home)
    dark.rename(shop.home)
    assert journals(shop.home) == ["answer"]
    found = api.run(pipeline, home=shop.home, registry=toys)
    assert found["outcome"]["ran"] >= 4 and hashes(shop.home) == made
    assert found["guarantee"] == wanted["guarantee"] and verify(shop.home)["problems"] == []
    assert [p["charges"] for p in ledgers_of(shop.home)] == [p["charges"] for p in before] == [0, 12, 12]
    assert api.run(pipeline, home=shop.home, registry=toys)["outcome"]["ran"] == 0
