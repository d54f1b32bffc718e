# SPDX-License-Identifier: Apache-2.0
"""Quorums against parties that cheat, kills at bad moments, damaged files; what is seen while a run goes on."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.coordinator.losses import Losses
from osmotic.runtime.results.result_text import result_text
from osmotic.runtime.results.summary import first_line
from osmotic.runtime.results.verifying import verify
from osmotic.runtime.run import Runner
from osmotic.runtime.screen.console import Console
from osmotic.runtime.screen.status_text import status_of, status_text
from osmotic.runtime.transports.inprocess import InProcess
from osmotic.schemas.errors import ConfigError, OsmoticError, PeerError

sys.path.insert(0, str(Path(__file__).parent / "toy_plugin"))
from osmotic_losing import CLIENTS, ROUND, TOTAL, Net, crash, gone, loop, lose

sys.path.pop(0)
WITHOUT_B = ["a", "c", "d", "e"]


@pytest.mark.parametrize("together", [False, True])
def test_who_sends_what_is_no_envelope_is_lost_and_does_not_end_the_run(net: Net, monkeypatch: Any, together: bool) -> None:
    def junk(at: str, header: dict[str, Any]) -> Any:
        mine = at == "b" and header["op"] == "pull" and header["producer"] == ROUND.format(2, "b")
        return {"same": False, "digest": ""} if mine else None

    def apart(at: str, header: dict[str, Any]) -> Any:
        return {"error": {"code": "component", "exit": 6, "problems": []}} if (at, header["op"]) == ("b", "fragment") else None

    monkeypatch.setattr(InProcess, "fragments", together, raising=False)
    net.rules = [junk, apart]
    found = net.run(loop({"at_least": 3}))
    assert [net.who(TOTAL.format(n)) for n in (1, 2, 3)] == [CLIENTS, WITHOUT_B, CLIENTS]
    assert "aggregated 4 of 5; lost: b (failed: protocol)" in result_text(found) and found["lost"] == {}
    net.rules = [junk, apart]
    with pytest.raises(OsmoticError) as caught:
        net.run(loop(), home="needed")
    assert caught.value.code == "protocol"


@pytest.mark.parametrize("at", ["settle", "account"])
def test_a_run_that_was_killed_while_its_result_was_written_goes_on_with_its_decisions(net: Net, shop: Any, at: str) -> None:
    """Everything had run: with everybody again it would all run, and be charged, once more."""

    def stop(party: str, header: dict[str, Any]) -> Any:
        if header["op"] == at:
            raise KeyboardInterrupt
        return None

    net.rules = [crash("b", ROUND.format(1, "b")), stop]
    with pytest.raises(KeyboardInterrupt):
        net.run(loop({"at_least": 3}))
    assert json.loads((shop.home / "quorum.json").read_text(encoding="utf-8"))["ended"] is False
    net.rules = []
    found = net.run(loop({"at_least": 3}))
    assert net.who(TOTAL.format(1)) == WITHOUT_B and found["outcome"]["ran"] == 0
    assert verify(shop.home)["problems"] == []
    assert json.loads((shop.home / "quorum.json").read_text(encoding="utf-8"))["ended"] is True


def test_a_damaged_file_of_decisions_is_no_decision(net: Net, shop: Any) -> None:
    net.rules = [crash("b", ROUND.format(1, "b"))]
    net.run(loop({"at_least": 3}, times=1))
    file = shop.home / "quorum.json"
    kept = json.loads(file.read_text(encoding="utf-8"))
    ready = api.prepare(shop.folder / "shop.yaml", home=shop.home, registry=net.registry)
    one = {"party": "a", "why": "timeout", "text": ""}
    for losses in (None, 3, [3], [{}], [{**one, "ids": 3}], [{**one, "ids": [[]]}], [{**one, "why": [], "ids": []}]):
        file.write_text(json.dumps({**kept, "ended": False, "losses": losses}), encoding="utf-8")
        assert Losses(ready.graph, set(), shop.home).resume() == []
    file.write_text(json.dumps({**kept, "ended": False}), encoding="utf-8")
    assert [loss.party for loss in Losses(ready.graph, set(), shop.home).resume()] == ["b"]


def test_a_run_of_which_nobody_was_heard_does_not_say_that_nothing_crosses(net: Net) -> None:
    done: list[str] = []

    def end(at: str, header: dict[str, Any]) -> Any:
        done.append(header["op"]) if header.get("id") == TOTAL.format(1) and header["op"] == "run" else None
        return gone("left") if at != "hub" and done else None

    net.rules = [end]
    found = net.run(loop({"at_least": 1}, times=1))
    assert found["guarantee"]["line"] == "Guarantee of this run: not known; a, b, c, d, e: not heard."
    assert [row["guarantee"] for row in found["table"]["rows"]] == ["not known; a, b, c, d, e: not heard"]
    assert "not known" in result_text(found) and "nothing crosses" not in result_text(found)
    assert first_line([], {}) == "Guarantee of this run: nothing crosses."


@pytest.mark.parametrize("at", ["account", "settle"])
def test_who_goes_while_the_result_is_written_is_not_heard(net: Net, shop: Any, at: str) -> None:
    done: list[str] = []

    def end(party: str, header: dict[str, Any]) -> Any:
        done.append(at) if header["op"] == at else None
        return gone("left") if party == "b" and done else None

    net.rules = [end]
    found = net.run(loop({"at_least": 3}, times=1))
    assert found["lost"] == {"b": "left"} and found["guarantee"]["line"].endswith("b: not heard.")
    assert net.who(TOTAL.format(1)) == CLIENTS and json.loads((shop.home / "run.json").read_text())["lost"] == {"b": "left"}
    done.clear()
    with pytest.raises(PeerError, match="it is away"):
        net.run(loop(), home="needed")


def test_who_is_lost_is_seen_while_the_run_goes_on(net: Net, shop: Any) -> None:
    state = {"away": False}
    seen: list[str] = []

    def rule(at: str, header: dict[str, Any]) -> Any:
        if header.get("id") == ROUND.format(2, "b") and header["op"] == "run" and at == "b":
            state["away"] = True
        if header.get("id") == TOTAL.format(2) and header["op"] == "run":
            seen.append(status_text(status_of(shop.home)))
            state["away"] = False
        return gone() if at == "b" and state["away"] else None

    net.rules, net.back = [rule, crash("c", ROUND.format(2, "c"))], lambda party: not state["away"]
    stream = io.StringIO()
    net.run(loop({"at_least": 3}), watcher=Console(stream))
    lines = [line.partition("s ")[2] for line in stream.getvalue().splitlines()]
    told = [line for line in lines if line.startswith(("lost", "back"))]
    assert told == ["lost: b (timeout after 120 s without progress)", "lost: c (failed: component)", "back: b"]
    assert lines.index(told[0]) < next(i for i, line in enumerate(lines) if TOTAL.format(2) in line)
    assert "lost: timeout after 120 s without progress" in seen[0] and "lost: failed: component" in seen[0]
    assert "lost:" not in status_text(status_of(shop.home))


def test_what_was_used_and_then_lost_is_still_as_private_as_it_was(shop: Any, toys: Registry, tasks: Any) -> None:
    """Or a coordinator that says so after its use could have a feedback bit depend on other records."""
    made = tasks()
    made["counted"]["inputs"] = {"records": {"from": "safe", "quorum": {"at_least": 1}}}
    ready = api.prepare(shop.write(made), home=shop.home, registry=toys)
    try:
        site = ready.open()["north"]
        site.take(ready.graph, ready.configs)
        edge = next(iter(ready.graph.instances["safe@north"].edges()))
        site.run("items@north")
        site.leave_out("items@north", "north", "failed")
        assert site._is_raw(edge) and site.find(edge) is None
        site.take(ready.graph, ready.configs)
        site.leave_out("items@north", "north", "failed")
        assert not site._is_raw(edge)
    finally:
        ready.close()


def test_what_is_lost_while_it_runs_counts_once(net: Net, shop: Any) -> None:
    file = shop.write(loop({"at_least": 3}, times=1), parties={"server": "hub", "clients": CLIENTS})
    ready = api.prepare(file, home=shop.home, registry=net.registry)
    with api.transport_of(ready, False, api.Quiet()) as transport:
        runner = Runner(ready.graph, transport, api.Quiet())
        one = ready.graph.instances[ROUND.format(1, "b")]
        runner._left_out([one.id])
        left = runner.left
        runner._finish(one, False, 1.0, [], [])
        assert runner.left == left and runner.deliveries == {}


def test_a_quorum_of_what_was_carried_and_of_those_who_were_drawn(net: Net) -> None:
    made = loop(times=2)
    made["first"] = {"component": "part", "at": "clients", "inputs": {}}
    made["rounds"]["repeat"]["carry"]["parts"] = {"from": "part", "start": "first"}
    made["rounds"]["tasks"]["total"]["inputs"]["parts"] = {"from": "carry.parts", "quorum": {"at_least": 3}}
    net.rules = [lose("b", "first@b"), crash("d", ROUND.format(1, "d"))]
    net.run(made)
    assert net.who(TOTAL.format(1)) == WITHOUT_B
    net.rules = [crash("b", "first@b"), crash("d", ROUND.format(1, "d"))]
    net.run(made, home="back")
    assert [net.who(TOTAL.format(n), "back") for n in (1, 2)] == [WITHOUT_B, ["a", "b", "c", "e"]]


def test_a_share_of_those_who_were_drawn_is_rounded_up(net: Net) -> None:
    made = loop({"at_least": 0.5}, times=2)
    made["rounds"]["repeat"]["sample"] = {"clients": 3}
    net.rules = [lambda at, header: gone() if at in "bcd" and header["op"] == "run" else None]
    try:
        found = net.run(made)
    except PeerError as error:
        assert "needs 2 of 3 parties" in str(error)
    else:
        assert all(one["at_least"] == 2 and one["of"] == 3 and len(one["used"]) >= 2 for one in found["quorums"])


def test_a_quorum_that_its_secure_sum_would_refuse_is_a_mistake_of_the_plan(shop: Any, toys: Registry) -> None:
    from osmotic_hand import PARTIES, pipeline

    shop.records = dict.fromkeys(PARTIES, shop.records["north"])
    made = pipeline({"range": 0.5, "at_least": 4}, waive="a test of exact sums", quorum={"at_least": 3})
    with pytest.raises(ConfigError, match="3 of 5 are enough for the quorum of 'total', not for its secure sum") as caught:
        api.plan(shop.write(made, parties={"server": "hub", "clients": PARTIES}), home=shop.home, registry=toys)
    assert "at_least: 4" in str(caught.value) and "inputs.total" in str(caught.value)
