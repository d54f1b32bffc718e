# SPDX-License-Identifier: Apache-2.0
"""The transport over an engine, with an engine of threads: whole runs, losses, new processes, patience."""

import importlib
import json
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.nvflare.server import line as lines
from osmotic.runtime.nvflare.wire import Header, Message, Unreachable
from osmotic.runtime.results.verifying import verify
from osmotic.runtime.run import Runner, accept, ask
from osmotic.runtime.transports import nvflare
from osmotic.schemas.errors import PeerError, RefusedError

Tasks = Callable[..., dict[str, Any]]
Hashes = Callable[[Path], dict[str, str]]
SEEDED = {"seeded": True}
ECHO = {"echo": {"type": "toy-echo", "at": "server"}}
ASKED = {
    "component": "asker",
    "at": "clients",
    "inputs": {"records": "safe"},
    "config": {"model": "echo", "field": "colour"},
}


@pytest.fixture
def post(toys: Registry, toy_path: None) -> Any:
    """The module with the engine of threads."""
    pytest.importorskip("cryptography", reason="the extra 'nvflare' is not installed")
    return importlib.import_module("osmotic_post")


@pytest.fixture
def seeded(shop: Any, tasks: Tasks) -> Path:
    """A pipeline with equal results everywhere, which has model calls too."""
    shop.defaults, shop.binding = SEEDED, {"purpose": "benchmark"}
    file: Path = shop.write(tasks(asked=ASKED), noise_seed=3, models=ECHO)
    return file


def test_a_run_gives_what_a_run_on_one_machine_gives(
    post: Any, shop: Any, seeded: Path, toys: Registry, hashes: Hashes
) -> None:
    api.run(seeded, home=shop.folder / "one", registry=toys)
    found = post.by_post(seeded, shop.folder / "two", toys)
    assert hashes(shop.folder / "one") == hashes(shop.folder / "two") and found["outcome"]["tasks"] == 7
    assert verify(shop.folder / "two")["problems"] == []
    assert not any((shop.folder / "two" / "boxes" / site / "audit.jsonl").exists() for site in ("north", "south"))


def test_new_processes_of_sites_change_nothing(post: Any, shop: Any, seeded: Path, toys: Registry, hashes: Hashes) -> None:
    """Sites get new processes before messages 5, 7, 10, 16, ..., whatever these are: the results are the same."""
    api.run(seeded, home=shop.folder / "one", registry=toys)
    counts = {"north": 0, "south": 0}

    def on(transport: Any, loop: Any) -> None:
        def fault(site: str, header: Header, blob: bytes) -> Message:
            counts[site] += 1
            if counts[site] in (5, 7, 10, 16, 23, 38, 47, 60, 81):
                loop.start(site)
                raise Unreachable(site, "timeout")
            return header, blob

        loop.fault = fault

    post.by_post(seeded, shop.folder / "two", toys, on=on)
    assert min(counts.values()) > 40
    assert hashes(shop.folder / "one") == hashes(shop.folder / "two")
    assert verify(shop.folder / "two")["problems"] == []


def test_messages_that_are_lost_or_damaged_either_way_change_nothing(
    post: Any, shop: Any, seeded: Path, toys: Registry, hashes: Hashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "PAUSES", (0.01,))
    api.run(seeded, home=shop.folder / "one", registry=toys)
    rng, lock = random.Random(5), threading.Lock()

    def chance() -> float:
        with lock:
            return rng.random()

    def on(transport: Any, loop: Any) -> None:
        def fault(site: str, header: Header, blob: bytes) -> Message:
            at = chance()
            if at < 0.1:
                raise Unreachable(site, "timeout")
            if at < 0.2:
                return {**header, "seq": 77}, blob
            return header, b"x" if at < 0.3 else blob

        def damage(site: str, asked: Header, header: Header, blob: bytes) -> Message:
            at = chance()
            if at < 0.1:
                raise Unreachable(site, "timeout")
            return {**header, "tick": 5} if at < 0.2 else header, blob + b"x" if at > 0.9 else blob

        loop.fault, loop.damage = fault, damage

    post.by_post(seeded, shop.folder / "two", toys, on=on)
    assert hashes(shop.folder / "one") == hashes(shop.folder / "two")
    written = [
        (shop.folder / "two" / "boxes" / site / "audit.jsonl").read_text(encoding="utf-8") for site in ("north", "south")
    ]
    said = {json.loads(entry)["what"] for entry in "".join(written).splitlines()}
    assert "altered" in said <= {"altered", "truncated", "oversized"}  # oversized: a body with a message that has none


def test_a_coordinator_that_was_killed_goes_on_with_a_new_session(
    post: Any, shop: Any, seeded: Path, toys: Registry, hashes: Hashes
) -> None:
    """The first one is forgotten while north is at work: the second takes over, and the first one's messages are refused."""
    api.run(seeded, home=shop.folder / "one", registry=toys)
    home = shop.folder / "two"
    ready, first, loop = post.deploy(seeded, home, toys)
    accept(first, ready.graph)
    assert ask(first, "north", {"op": "run", "id": "items@north"})[0]["cached"] is False
    second = post.Nvflare(post.OWN, first.service, ["north", "south"], loop, home, lambda *_: None)
    assert second.greet() == {} and second.facts == {"north": {"party": "north"}, "south": {"party": "south"}}
    accept(second, ready.graph)
    old = next(header for site, header, _ in loop.sent if site == "north" and header["op"] == "start")
    assert loop.boxes["north"].handle(old, b"")[0]["refused"] == "session"
    Runner(ready.graph, second, api.Quiet()).run()
    second.close()
    first.close()
    loop.close()
    first.service.site.ledger.close()
    assert hashes(shop.folder / "one") == hashes(home)


def test_another_coordinator_is_told_to_wait(post: Any, shop: Any, seeded: Path, toys: Registry) -> None:
    ready, first, loop = post.deploy(seeded, shop.folder / "two", toys)
    accept(first, ready.graph)
    other = post.Nvflare(post.OWN, first.service, ["north", "south"], loop, shop.folder / "other", lambda *_: None)
    found = other.greet()
    assert set(found) == {"north", "south"}
    assert "another coordinator is at work there since 20" in str(found["north"])
    with pytest.raises(PeerError, match="another coordinator"):
        other.request("north", {"op": "status"})
    assert ask(first, "north", {"op": "run", "id": "items@north"})
    first.close()
    assert other.greet() == {}
    other.close()
    loop.close()
    first.service.site.ledger.close()


def test_a_site_that_makes_no_progress_is_lost_with_its_reason(
    post: Any, shop: Any, toys: Registry, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvflare, "LOOK", 0.2)
    made = tasks(
        stuck={
            "component": "sleeper",
            "at": "clients",
            "inputs": {"records": "items"},
            "config": {"seconds": 3.0, "log": str(shop.folder / "log")},
        }
    )
    ready, transport, loop = post.deploy(shop.write(made), shop.home, toys, patience=0.5)
    transport.patience_of["south"] = 60.0
    accept(transport, ready.graph)
    for site in ("north", "south"):
        ask(transport, site, {"op": "run", "id": f"items@{site}"})
    begun = time.monotonic()
    with pytest.raises(PeerError, match=r"north was lost: timeout after 0.5 s without progress") as caught:
        ask(transport, "north", {"op": "run", "id": "stuck@north"})
    assert not transport.here("north") and transport.here("south")
    assert caught.value.reason == "timeout after 0.5 s without progress" and 0.4 < time.monotonic() - begun < 2.9
    assert ask(transport, "south", {"op": "run", "id": "stuck@south"})
    until = time.monotonic() + 10
    while not transport.here("north") and time.monotonic() < until:
        time.sleep(0.05)
    assert transport.here("north") and time.monotonic() - begun > 3.0  # it was at work until then
    transport.patience_of["north"] = 60.0
    assert ask(transport, "north", {"op": "run", "id": "safe@north"})  # asked again: once what was late is over
    transport.close()
    loop.close()
    transport.service.site.ledger.close()


def test_a_site_that_is_away_is_waited_for_and_gets_a_new_process(
    post: Any, shop: Any, seeded: Path, toys: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("osmotic.runtime.nvflare.server.renewal.ABSENT", 0.2)
    ready, transport, loop = post.deploy(seeded, shop.home, toys, patience=1.5)
    accept(transport, ready.graph)
    ask(transport, "north", {"op": "run", "id": "items@north"})
    loop.away.add("north")
    threading.Timer(0.6, loop.away.discard, ["north"]).start()
    assert ask(transport, "north", {"op": "run", "id": "safe@north"})
    assert ["north"] in loop.renewed
    loop.away.add("north")
    with pytest.raises(PeerError, match=r"timeout after 1.5 s"):
        transport.request("north", {"op": "status"})
    assert transport.here("south") and transport.here("hub")
    transport.close()
    loop.close()
    transport.service.site.ledger.close()


def test_why_a_site_refused_a_plan_is_told_without_anything_that_a_terminal_obeys() -> None:
    from osmotic.runtime.transports.remote import plain

    said = {"what": "epsilon 6 > cap 4\x1b[2J\n", "why": ["x"], "path": "budget", "more": 1}
    error = {"code": "policy", "exit": 99, "problems": [said, "nothing", {"why": "no what"}, *[{"what": "w" * 9999}] * 40]}
    found = plain(error, words=True)
    assert found["code"] == "policy" and found["exit"] == RefusedError.exit_code
    assert found["problems"][0] == {"what": "epsilon 6 > cap 4\\x1b[2J", "where": "", "path": "budget", "why": "", "fix": ""}
    assert len(found["problems"]) == 18 and all(len(one["what"]) <= 500 for one in found["problems"])
    assert plain(error)["problems"] == [] and plain(None)["code"] == "protocol"


@pytest.mark.slow
@pytest.mark.whole
def test_fifty_sites_in_one_plan(post: Any, shop: Any, toys: Registry, tasks: Tasks) -> None:
    """Every site has a mailbox, a store and a ledger of its own; some are away for a moment."""
    names = [f"site{i:02}" for i in range(50)]
    shop.records = {name: shop.records["north"] for name in names}
    shop.defaults, shop.binding = SEEDED, {"purpose": "benchmark"}
    file = shop.write(tasks(), noise_seed=3, parties={"server": "hub", "clients": names})

    def on(transport: Any, loop: Any) -> None:
        seen = dict.fromkeys(names, 0)

        def fault(site: str, header: Header, blob: bytes) -> Message:
            seen[site] += 1
            if seen[site] == 3 and site.endswith("7"):
                raise Unreachable(site, "timeout")
            return header, blob

        loop.fault = fault

    found = post.by_post(file, shop.folder / "two", toys, on=on)
    assert found["outcome"]["tasks"] == 101 and len(found["crossings"]) == 50
