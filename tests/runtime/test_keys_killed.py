# SPDX-License-Identifier: Apache-2.0
"""Rotation, backup and restoring are killed before every line of them: whatever is left, the next command goes on from it, and
nothing is lost, charged or released again."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.results.verifying import verify
from osmotic.runtime.storage import durable, keeping, keyring
from osmotic.runtime.storage.ledger import Ledger
from osmotic.schemas.errors import StoreError

WATCHED = {module.__file__ for module in (keeping, keyring, durable)}
PARTY = "north"


def kills(work: Callable[[], Any], folder: Path, copies: Path) -> Iterator[Path]:
    """Do the work; the folder as a kill before each of its lines would leave it, those that are alike once, at its place.

    What a process has written is in the files, whatever becomes of it: so a copy at the line is what a kill leaves.
    """
    seen: list[Any] = []

    def trace(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line" and (now := files(folder)) not in seen:
            if now:
                shutil.copytree(folder, copies / str(len(seen)))
            seen.append(now)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    assert len(seen) > 5
    for place in sorted(copies.iterdir(), key=lambda path: int(path.name)):
        shutil.rmtree(folder)
        shutil.copytree(place, folder)
        yield place


def files(folder: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and when they were written."""
    paths = sorted(path for path in folder.rglob("*") if not path.name.startswith(".new-")) if folder.is_dir() else []
    return [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.is_file()]


@pytest.fixture
def ran(shop: Any, tasks: Callable[..., Any], toys: Registry) -> Any:
    """A shop that has run, with a count of its records too, and what it was before anything was killed."""
    counted = {"component": "label_counter", "at": "clients", "inputs": {"records": "items"}}
    counted |= {"config": {"field": "colour", "mechanism": {"name": "laplace", "epsilon": 1}}}
    shop.defaults = {"budget": {"*": {"per_document": 5, "per_record": {"epsilon": 1, "delta": 0}}}}
    shop.pipeline = shop.write(tasks(counts=counted))
    api.run(shop.pipeline, home=shop.home, registry=toys)
    shop.vault = keeping._vault(shop.home / "parties" / PARTY)
    shop.wanted = state(shop)
    return shop


def state(shop: Any) -> list[Any]:
    """What is found under the keys: releases of the very documents, events, and how much was charged."""
    ledger = Ledger(shop.home / "parties" / PARTY)
    documents = {ledger.secret_hash(["document", "items", row["id"]]) for row in shop.records[PARTY]}
    rows = ledger.query("SELECT id, payload, document, epsilon FROM releases ORDER BY id")
    found = [(identity, payload, epsilon) for identity, payload, document, epsilon in rows if document in documents]
    events = ledger.query("SELECT lookup, payload FROM events")
    chain = ledger.query("SELECT body FROM charges ORDER BY seq")
    ledger.close()
    return [found, events, chain]


def whole(shop: Any) -> None:
    assert state(shop) == shop.wanted and len(shop.wanted[0]) == 12 and len(shop.wanted[1]) == 1


def test_a_rotation_killed_anywhere(ran: Any, tmp_path: Path, toys: Registry) -> None:
    sizes = set()
    for _ in kills(lambda: keeping.rotate(ran.home, PARTY), ran.vault, tmp_path / "killed"):
        sizes.add(((ran.vault / "key").stat().st_size, (ran.vault / "key.next").exists()))
        whole(ran)
        keeping.rotate(ran.home, PARTY)
        whole(ran)
        assert verify(ran.home)["problems"] == []
    assert sizes >= {(32, False), (32, True), (64, False)}
    assert api.run(ran.pipeline, home=ran.folder / "other", registry=toys)["outcome"]["ran"] > 4
    assert state(ran) == ran.wanted


def test_a_rotation_after_one_that_was_killed_at_its_end_does_not_lose_its_keys(ran: Any, tmp_path: Path) -> None:
    old = (ran.vault / "key").read_bytes()
    keeping.rotate(ran.home, PARTY)
    (ran.vault / "key").replace(ran.vault / "key.next")
    (ran.vault / "key").write_bytes(old)
    for _ in kills(lambda: keeping._rotate(ran.vault), ran.vault, tmp_path / "killed"):
        whole(ran)  # without the opening that puts the keys in their place before


def test_a_backup_killed_anywhere_is_whole_or_not_there(ran: Any, tmp_path: Path) -> None:
    kept, made = tmp_path / "kept", 0
    for _ in kills(lambda: keeping.backup(ran.home, kept, PARTY), kept, tmp_path / "killed"):
        if (kept / PARTY).exists():
            made += 1
            assert keeping._hashes(kept / PARTY / "ledger.sqlite") and (kept / PARTY / "key").stat().st_size == 32
        else:
            assert keeping.backup(ran.home, kept, PARTY)[0]["charges"] == 13
    whole(ran)
    assert made == 1


def test_restoring_killed_anywhere_is_refused_by_runs_until_it_is_done(ran: Any, tmp_path: Path, toys: Registry) -> None:
    source, fresh, refused = tmp_path / "kept", tmp_path / "fresh", 0
    keeping.backup(ran.home, source, PARTY)
    (ran.vault / "ledger.sqlite").write_bytes(b"no database, but something")
    for _ in kills(lambda: keeping.restore(ran.home, source, PARTY), ran.vault, tmp_path / "killed"):
        try:  # a folder that knows nothing of this ledger makes no new one either
            Ledger(fresh, vault=ran.vault).close()
        except StoreError:
            refused += 1
            keeping.restore(ran.home, source, PARTY)
        whole(ran)
        shutil.rmtree(fresh)
    assert refused > 4 and not (ran.vault / "restoring").exists()
    assert api.run(ran.pipeline, home=ran.home, registry=toys)["outcome"]["ran"] == 0
