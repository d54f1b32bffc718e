# SPDX-License-Identifier: Apache-2.0
"""Several tasks in one message: the same results, errors and losses as one by one, in fewer messages."""

import importlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry, build_registry
from osmotic.runtime import api
from osmotic.runtime.coordinator import fragments as coordinator
from osmotic.runtime.party import fragments
from osmotic.runtime.results.verifying import verify
from osmotic.runtime.transports.inprocess import InProcess
from osmotic.schemas.errors import ComponentError, PeerError, ProtocolError

Hashes = Callable[[Path], dict[str, str]]
CLIENTS = ["a", "b", "c"]


class Wire:
    """Runs over a transport in process that takes fragments, and remembers what was asked."""

    def __init__(self, shop: Any, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shop, self.registry, self.patch = shop, registry, monkeypatch
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.rule: Callable[[str, dict[str, Any]], Any] = lambda party, header: None
        shop.records = dict.fromkeys(CLIENTS, shop.records["north"])
        wire, original = self, InProcess.request

        def request(transport: Any, party: str, header: dict[str, Any], blob: bytes = b"") -> Any:
            wire.asked.append((party, header))
            found = wire.rule(party, header)
            if isinstance(found, Exception):
                raise found
            return original(transport, party, header, blob) if found is None else found

        monkeypatch.setattr(InProcess, "request", request)

    def run(self, tasks: dict[str, Any], home: str, together: bool = True, **document: Any) -> dict[str, Any]:
        """The summary of a run; `asked` has what it asked."""
        self.asked = []
        self.patch.setattr(InProcess, "fragments", together, raising=False)
        file = self.shop.write(tasks, parties={"server": "hub", "clients": CLIENTS}, **document)
        return api.run(file, home=self.shop.folder / home, registry=self.registry)

    def ops(self, party: str) -> Counter[str]:
        """How often each operation was asked of a party."""
        return Counter(header["op"] for at, header in self.asked if at == party)


@pytest.fixture
def wire(shop: Any, toys: Registry, monkeypatch: pytest.MonkeyPatch) -> Wire:
    """Three clients and a server."""
    shop.defaults, shop.binding = {"seeded": True}, {"purpose": "benchmark"}
    modules = [importlib.import_module(f"osmotic_{name}") for name in ("toys", "rounds")]
    return Wire(shop, build_registry(names=(), modules=modules), monkeypatch)


def loop(tasks: Any, **more: Any) -> dict[str, Any]:
    """Records, released and counted; rounds of parts; a metric that each party keeps."""
    return tasks(
        rounds={
            "repeat": {"times": 3, "carry": {"total": {"from": "total"}, "own": {"from": "second"}}},
            "tasks": {
                "first": {"component": "part", "at": "clients", "inputs": {"total": "carry.total", "own": "carry.own"}},
                "second": {"component": "part", "at": "clients", "inputs": {"total": "first"}},
                "score": {"component": "score", "at": "clients", "inputs": {"total": "second"}},
                "total": {"component": "total", "at": "server", "inputs": {"parts": "second"}},
            },
        },
        **more,
    )


def test_the_same_artifacts_in_fewer_messages(wire: Wire, shop: Any, tasks: Any, hashes: Hashes) -> None:
    apart = wire.run(loop(tasks), "apart", together=False, noise_seed=3)
    single = wire.ops("a")
    together = wire.run(loop(tasks), "together", noise_seed=3)
    ops = wire.ops("a")
    assert hashes(shop.folder / "apart") == hashes(shop.folder / "together")
    assert apart["guarantee"]["line"] == together["guarantee"]["line"] and together["outcome"]["ran"] == apart["outcome"]["ran"]
    assert apart["crossings"] == together["crossings"] and verify(shop.folder / "together")["problems"] == []
    assert single["run"] == 11 and "fragment" not in single
    assert ops["run"] == ops["push"] == ops["pull"] == 0 and ops["fragment"] == 6  # 11 tasks, 4 crossings
    again = wire.run(loop(tasks), "together", noise_seed=3)
    assert again["outcome"]["ran"] == 0 and sum(c["bytes"] for c in again["crossings"]) == 0
    steps = [step["op"] for at, header in wire.asked if header["op"] == "fragment" for step in header["steps"]]
    assert "known" in steps and "push" not in steps


def test_a_repeat_that_stops_early_stops(wire: Wire, shop: Any, hashes: Hashes) -> None:
    climb = {
        "repeat": {"times": 6, "carry": {"score": {"from": "climb"}}, "until": {"metric": "climb:score", "at_least": 3}},
        "tasks": {"climb": {"component": "climber", "at": "server", "inputs": {"before": "carry.score"}}},
    }
    made = {"loop": climb, "after": {"component": "climber", "at": "server", "inputs": {"before": "loop.climb"}}}
    found = wire.run(made, "together")
    assert found["outcome"]["ran"] == 4 and list(found["outcome"]["stopped"].values()) == [3]
    wire.run(made, "apart", together=False)
    assert hashes(shop.folder / "apart") == hashes(shop.folder / "together")


def test_large_things_travel_by_themselves(wire: Wire, shop: Any, tasks: Any, hashes: Hashes, monkeypatch: Any) -> None:
    monkeypatch.setattr("osmotic.runtime.run.SMALL", 10)
    monkeypatch.setattr(fragments, "ENOUGH", 0)
    wire.run(loop(tasks), "together", noise_seed=3)
    assert wire.ops("hub")["push"] == 12 and wire.ops("a")["pull"] == 4
    wire.run(loop(tasks), "apart", together=False, noise_seed=3)
    assert hashes(shop.folder / "apart") == hashes(shop.folder / "together")


def test_a_task_that_fails_is_named_and_what_was_before_it_is_kept(wire: Wire, tasks: Any) -> None:
    made = loop(tasks, broken={"component": "crasher", "at": "clients", "config": {"how": "raise"}})
    with pytest.raises(ComponentError) as caught:
        wire.run(made, "home")
    assert "broken@a" in "".join([str(caught.value), *caught.value.__notes__])
    found = wire.run(loop(tasks), "home")
    assert found["outcome"]["cached"] >= 1


def test_a_message_that_fails_as_a_whole_is_done_step_by_step(wire: Wire, shop: Any, tasks: Any) -> None:
    """A process that ended at a deadline has answered for the message, not for one of its tasks."""
    error = {"error": {"code": "component", "exit": 6, "problems": []}}, b""
    wire.rule = lambda party, header: error if party == "b" and header["op"] == "fragment" else None
    wire.run(loop(tasks), "home")
    assert wire.ops("b")["run"] == 11 and wire.ops("a")["run"] == 0


def test_a_party_lost_in_the_middle_of_a_message(wire: Wire, shop: Any, tasks: Any) -> None:
    made = loop(tasks)
    made["rounds"]["tasks"]["total"]["inputs"]["parts"] = {"from": "second", "quorum": {"at_least": 2}}
    made["counted"]["inputs"] = {"records": {"from": "safe", "quorum": {"at_least": 2}}}
    lost = {"now": False}

    def rule(party: str, header: dict[str, Any]) -> Any:
        if party == "b" and any(step.get("id") == "rounds.second[round=2]@b" for step in header.get("steps", ())):
            lost["now"] = True
        return PeerError("gone") if lost["now"] and party == "b" else None

    wire.rule = rule
    found = wire.run(made, "home")
    lost_of = {one["task"]: [party["party"] for party in one["lost"]] for one in found["quorums"]}
    assert lost_of == {"counted@hub": [], **{f"rounds.total[round={n}]@hub": ["b"] * (n > 1) for n in (1, 2, 3)}}


@pytest.mark.parametrize(
    ("reply", "blob"),
    [
        ({"steps": "none"}, b""), ({"steps": [1]}, b""), ({"steps": []}, b""), ({}, b""), ({"steps": [{}] * 900}, b""),
        ({"steps": [{"cached": False, "seconds": 0}]}, b"left over"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_refused(reply: Any, blob: bytes) -> None:
    made = coordinator.Fragment("a", [{"op": "run", "id": "x@a"}, {"op": "pull"}], [], ["x@a", "x@a"], {1: (None, None)})  # type: ignore[dict-item]
    with pytest.raises(coordinator.Lost) as caught:
        made.read(reply, blob)
    assert isinstance(caught.value.error, ProtocolError) and caught.value.gone
    with pytest.raises(coordinator.Lost):
        made.read({"steps": [{}, {"bytes": -1, "same": False}]}, b"")


@pytest.mark.parametrize(
    "steps",
    [
        None, [], ["run"], [{"op": "plan"}], [{"op": "fragment", "steps": []}], [{"op": "call"}], [{"op": "sum"}],
        [{"op": "push", "bytes": -1}], [{"op": "push", "bytes": True}], [{"op": "push", "bytes": 5}],
        [{"op": "run", "id": "x", "bytes": 3}], [{"op": "run"}] * 10_001,
    ],
)  # fmt: skip
def test_a_site_does_nothing_of_a_fragment_that_is_none(steps: Any) -> None:
    def never(header: dict[str, Any], blob: bytes) -> Any:
        raise AssertionError("a step was done")

    with pytest.raises(ProtocolError):
        fragments.answer(never, {"op": "fragment", "steps": steps}, b"abc")


def test_bodies_reach_their_steps() -> None:
    got: list[tuple[str, bytes]] = []

    def handle(header: dict[str, Any], blob: bytes) -> Any:
        got.append((header["op"], blob))
        return ({"digest": "d", "same": False}, b"xy") if header["op"] == "pull" else ({}, b"")

    steps = [{"op": "push", "bytes": 2}, {"op": "known"}, {"op": "push", "bytes": 1}, {"op": "pull"}, {"op": "pull"}]
    reply, blob = fragments.answer(handle, {"op": "fragment", "steps": steps}, b"abc")
    assert got == [("push", b"ab"), ("known", b""), ("push", b"c"), ("pull", b""), ("pull", b"")] and blob == b"xyxy"
    assert [one.get("bytes") for one in reply["steps"]] == [None, None, None, 2, 2] and json.dumps(reply)
