# SPDX-License-Identifier: Apache-2.0
"""Gathers that can do without some of their senders: who is lost, why, what goes on, what is told and kept of it."""

import json
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.results.result_text import result_text
from osmotic.runtime.results.verifying import verify
from osmotic.runtime.screen.plan_text import plan_text
from osmotic.runtime.transports.inprocess import InProcess
from osmotic.schemas.errors import ConfigError, PeerError, RefusedError

sys.path.insert(0, str(Path(__file__).parent / "toy_plugin"))
from osmotic_losing import CLIENTS, ROUND, TOTAL, Net, crash, gone, loop, lose, transcript

sys.path.pop(0)


def test_without_a_quorum_a_lost_party_ends_the_run(net: Net) -> None:
    net.rules = [lose("b", ROUND.format(2, "b"))]
    with pytest.raises(PeerError, match="it is away"):
        net.run(loop())


def test_the_run_goes_on_without_a_lost_party_and_names_it_everywhere(net: Net, shop: Any) -> None:
    def away(at: str, header: dict[str, Any]) -> Any:
        begun = any(party == "b" and said.get("id") == ROUND.format(2, "b") for party, said in net.seen)
        return gone() if at == "b" and begun else None

    net.rules = [away]
    found = net.run(loop({"at_least": 3}))
    assert [net.who(TOTAL.format(n)) for n in (1, 2, 3)] == [CLIENTS, ["a", "c", "d", "e"], ["a", "c", "d", "e"]]
    assert [(len(q["used"]), q["of"], [x["party"] for x in q["lost"]]) for q in found["quorums"]] == [
        (5, 5, []), (4, 5, ["b"]), (4, 5, ["b"]),
    ]  # fmt: skip
    text = result_text(found)
    assert "rounds.total, rounds 2 to 3: aggregated 4 of 5; lost: b (timeout after 120 s without progress)" in text
    assert "Not heard at the end: b (timeout after 120 s without progress)." in text
    assert found["guarantee"]["line"].endswith("; b: not heard.") and found["guarantee"]["missing"] == ["b"]
    page = (shop.home / "report.html").read_text(encoding="utf-8")
    assert "aggregated 4 of 5; lost: b (timeout after 120 s without progress)" in page and "Not heard at the end: b" in page
    assert "aggregated 4 of 5; lost: b (timeout)" in (shop.home / "parties" / "hub" / "report.html").read_text(encoding="utf-8")
    entries = transcript(shop.home, "hub")
    assert [(e["used"], e["lost"], e["at_least"]) for e in entries] == [
        (CLIENTS, {}, 3), (["a", "c", "d", "e"], {"b": "timeout"}, 3), (["a", "c", "d", "e"], {"b": "timeout"}, 3),
    ]  # fmt: skip
    assert verify(shop.home)["problems"] == []
    assert json.loads((shop.home / "quorum.json").read_text(encoding="utf-8"))["ended"] is True


def test_a_failed_task_is_lost_for_its_round_and_takes_part_in_the_next(net: Net, shop: Any) -> None:
    net.rules = [crash("c", ROUND.format(2, "c"))]
    found = net.run(loop({"at_least": 0.8}))
    assert [net.who(TOTAL.format(n)) for n in (1, 2, 3)] == [CLIENTS, ["a", "b", "d", "e"], CLIENTS]
    assert "aggregated 4 of 5; lost: c (failed: component)" in result_text(found) and found["lost"] == {}
    assert found["guarantee"]["missing"] == [] and verify(shop.home)["problems"] == []


def test_a_party_that_is_back_takes_part_again_and_what_came_too_late_is_not_used(net: Net) -> None:
    """It made its part of the second round, and could not hand it over."""
    state = {"away": False}

    def rule(at: str, header: dict[str, Any]) -> Any:
        if at == "b" and header["op"] == "pull" and header["producer"] == ROUND.format(2, "b"):
            state["away"] = True
        if at == "hub" and header["op"] == "run" and header["id"] == TOTAL.format(2):
            state["away"] = False
        return gone("left") if at == "b" and state["away"] else None

    net.rules, net.back = [rule], lambda party: not state["away"]
    found = net.run(loop({"at_least": 3}))
    assert [net.who(TOTAL.format(n)) for n in (1, 2, 3)] == [CLIENTS, ["a", "c", "d", "e"], CLIENTS]
    told = [header for party, header in net.seen if party == "b" and header["op"] == "absent"]
    assert told == [{"op": "absent", "id": ROUND.format(2, "b"), "party": "b", "why": "timeout"}]
    assert found["lost"] == {} and "lost: b (left)" in result_text(found)


def test_too_few_end_the_run_with_one_error_that_names_the_gather_and_everybody(net: Net, shop: Any) -> None:
    net.rules = [lose("b", ROUND.format(1, "b")), crash("d", ROUND.format(1, "d")), lose("e", ROUND.format(1, "e"))]
    with pytest.raises(PeerError) as caught:
        net.run(loop({"at_least": 3, "within": "2 min"}, times=1))
    text = str(caught.value)
    assert "rounds.total[round=1]@hub needs 3 of 5 parties; there are 2" in text
    assert "there: a, c; lost: b (timeout after 120 s without progress), d (failed: component), e (timeout" in text
    assert "tasks.rounds.tasks.total.inputs.parts" in text and "shop.yaml:" in text and caught.value.exit_code == 7


def test_a_party_that_refuses_the_plan_is_lost_for_all_of_it(net: Net, shop: Any) -> None:
    shop.defaults = {"components": ["part", "total", "score"]}
    original = shop.write

    def write(tasks: dict[str, Any], **document: Any) -> Path:
        file: Path = original(tasks, **document)
        sites = json.loads((shop.folder / "shop.sites.yaml").read_text(encoding="utf-8"))
        sites["parties"]["d"]["components"] = ["total"]
        (shop.folder / "shop.sites.yaml").write_text(json.dumps(sites), encoding="utf-8")
        return file

    shop.write = write
    found = net.run(loop({"at_least": 4}))
    assert net.who(TOTAL.format(3)) == ["a", "b", "c", "e"]
    assert "lost: d (refused: " in result_text(found) and list(found["lost"]) == ["d"]
    assert {party for party, header in net.seen if party == "d"} == set()
    with pytest.raises(RefusedError) as caught:
        net.run(loop({"at_least": 5}))
    assert "part" in str(caught.value) and "needs 5 of 5 parties; there are 4" in str(caught.value)


def test_a_killed_run_keeps_its_decisions_and_a_finished_one_starts_afresh(net: Net, shop: Any) -> None:
    def stop(at: str, header: dict[str, Any]) -> Any:
        if header["op"] == "run" and header["id"] == TOTAL.format(2):
            raise KeyboardInterrupt
        return None

    net.rules, net.back = [lose("b", ROUND.format(1, "b")), stop], lambda party: True
    with pytest.raises(KeyboardInterrupt):
        net.run(loop({"at_least": 3}))
    kept = json.loads((shop.home / "quorum.json").read_text(encoding="utf-8"))
    assert kept["ended"] is False and [one["ids"] for one in kept["losses"]] == [[ROUND.format(1, "b")]]
    net.rules, net.seen = [], []
    found = net.run(loop({"at_least": 3}))
    assert [net.who(TOTAL.format(n)) for n in (1, 2, 3)] == [["a", "c", "d", "e"], CLIENTS, CLIENTS]
    assert not [h for p, h in net.seen if h["op"] == "run" and h["id"] == ROUND.format(1, "b")]
    assert found["quorums"][0]["lost"][0]["text"] == "timeout after 120 s without progress"
    found = net.run(loop({"at_least": 3}))
    assert [net.who(TOTAL.format(n)) for n in (1, 2, 3)] == [CLIENTS] * 3 and verify(shop.home)["problems"] == []
    assert [q["lost"] for q in found["quorums"]] == [[], [], []]


def test_a_failed_run_keeps_only_what_a_gather_has_made_use_of(net: Net, shop: Any) -> None:
    net.rules = [lose(p, ROUND.format(1, p)) for p in "bcd"]
    with pytest.raises(PeerError, match="needs 3 of 5"):
        net.run(loop({"at_least": 3}))
    assert not (shop.home / "quorum.json").exists()
    net.rules = []
    net.run(loop({"at_least": 3}))
    assert net.who(TOTAL.format(1)) == CLIENTS


def test_what_a_lost_party_was_to_do_for_itself_falls_with_it(net: Net) -> None:
    """An evaluation at the party that nobody else needs; what it carries for itself: its later rounds lack it."""
    made = loop({"at_least": 3})
    made["rounds"]["repeat"]["carry"]["own"] = {"from": "part"}
    made["rounds"]["tasks"]["part"]["inputs"]["own"] = "carry.own"
    made["own"] = {"component": "score", "at": "clients", "inputs": {"total": "rounds.part"}}
    net.rules, net.back = [lambda at, h: gone() if at == "b" and h["op"] != "held" else None], lambda party: False
    found = net.run(made)
    assert net.who(TOTAL.format(3)) == ["a", "c", "d", "e"] and list(found["lost"]) == ["b"]


def test_a_party_that_others_need_otherwise_cannot_be_lost(net: Net) -> None:
    made = loop({"at_least": 3}, times=1)
    made["all"] = {"component": "total", "at": "server", "inputs": {"parts": "rounds.part"}}
    net.rules = [lose("b", ROUND.format(1, "b"))]
    with pytest.raises(PeerError, match=r"all@hub needs what b was to give\n.*lost: b \(timeout after") as caught:
        net.run(made)
    assert "tasks.all.inputs.parts" in str(caught.value)
    net.rules = [lose("hub", TOTAL.format(1))]
    with pytest.raises(PeerError, match="it is away"):
        net.run(loop({"at_least": 1}, times=1))


def test_tasks_that_the_server_runs_for_one_party_are_lost_with_it(net: Net, shop: Any) -> None:
    made = loop(times=1)
    made["seen"] = {"component": "part", "at": "server", "each": "party", "inputs": {"total": "rounds.part"}}
    made["told"] = {"component": "part", "at": "clients", "inputs": {"total": "seen"}}
    made["sum"] = {"component": "total", "at": "server", "inputs": {"parts": {"from": "seen", "quorum": {"at_least": 2}}}}
    made["rounds"]["tasks"]["total"]["inputs"]["parts"] = {"from": "part", "quorum": {"at_least": 2}}
    net.rules = [lose("b", ROUND.format(1, "b")), crash("hub", "seen[for=c]@hub")]
    found = net.run(made)
    assert net.who("sum@hub") == ["a", "d", "e"] and net.who(TOTAL.format(1)) == ["a", "c", "d", "e"]
    assert {q["task"]: [x["text"] for x in q["lost"]] for q in found["quorums"]} == {
        "sum@hub": ["timeout after 120 s without progress", "failed: component"],
        TOTAL.format(1): ["timeout after 120 s without progress"],
    }
    assert net.stored("c", "told@c", "out") is None and net.stored("d", "told@d", "out") == 3


def test_a_site_takes_an_absence_only_where_its_own_plan_allows_it(net: Net, shop: Any) -> None:
    net.run(loop({"at_least": 3}, times=1))
    file = shop.folder / "shop.yaml"
    ready = api.prepare(file, home=shop.home, registry=net.registry)
    with api.transport_of(ready, False, api.Quiet()) as transport:

        def tell(at: str, identity: str, party: str, why: str = "timeout") -> str:
            reply, _ = transport.request(at, {"op": "absent", "id": identity, "party": party, "why": why})
            return str(reply.get("error", {}).get("problems", [{"what": "", "why": ""}])[0])

        assert "no gather with a quorum" in tell("hub", TOTAL.format(1), "hub")
        assert "no reason" in tell("hub", ROUND.format(1, "a"), "a", "because")
        assert "no party" in tell("hub", ROUND.format(1, "a"), "west")
        for party in "aba":
            header = {"op": "absent", "id": ROUND.format(1, party), "party": party, "why": "failed"}
            assert "error" not in transport.request("hub", header)[0]
        assert "needs 3 of 5 parties; there are 2" in tell("hub", ROUND.format(1, "c"), "c")
        without = transport.request("hub", {"op": "absent", "id": ROUND.format(1, "c")})[0]
        assert without["error"]["code"] == "policy"


@pytest.mark.parametrize(
    ("quorum", "said"),
    [
        ({"at_least": 0}, "at least 1 party"), ({"at_least": 1.5}, "a share of the parties"),
        ({"at_least": True}, "a share of them"), ({"at_least": 6}, "needs 6 parties, but 5 send one"),
        ({"at_least": 3, "within": "soon"}, "2 min"),
        ({"at_least": 3, "within": 0}, "more than 0"), ({"atleast": 3}, "atleast"), ({}, "at_least"),
    ],
)  # fmt: skip
def test_mistakes_are_located(net: Net, quorum: Any, said: str) -> None:
    made = loop(times=1)
    made["rounds"]["tasks"]["total"]["inputs"]["parts"] = {"from": "part", "quorum": quorum}
    with pytest.raises(ConfigError) as caught:
        net.run(made)
    assert said in str(caught.value) and "shop.yaml:" in str(caught.value) and "inputs.parts" in str(caught.value)


def test_the_plan_says_how_many_are_enough(net: Net, shop: Any) -> None:
    file = shop.write(loop({"at_least": 0.5, "within": "1 h"}), parties={"server": "hub", "clients": CLIENTS})
    found = api.plan(file, home=shop.home, registry=net.registry)
    assert [row.get("enough") for row in found["crossings"]] == ["3 of 5 are enough", None]
    assert "(3 of 5 are enough)" in plan_text(found)
    assert api.prepare(file, registry=net.registry).graph.waits == dict.fromkeys(CLIENTS, 3600.0)


def test_a_quorum_is_for_gathers(net: Net) -> None:
    made = loop(times=1)
    made["scored"]["inputs"] = {"total": {"from": "rounds.total", "quorum": {"at_least": 1}}}
    with pytest.raises(ConfigError, match="a quorum is for a gather") as caught:
        net.run(made)
    assert "tasks.scored.inputs.total.quorum" in str(caught.value)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_gets_lost_and_comes_back_the_run_ends_well(net: Net, shop: Any, seed: int, monkeypatch: Any) -> None:
    """Parties in threads that are away for a while at random, one by one or in messages of several tasks; two always stay."""
    draw, alone = random.Random(seed), threading.Lock()
    away: dict[str, float] = {}

    def rule(at: str, header: dict[str, Any]) -> Any:
        if at in "cde" and header["op"] not in ("held", "settle", "heads", "account", "transcript", "called"):
            if at not in away and draw.random() < 0.12:
                away[at] = time.monotonic() + draw.choice([0.05, 0.3, 60])
            return gone() if at in away else None
        return None

    def back(party: str) -> bool:
        if away.get(party, 0) < time.monotonic():
            away.pop(party, None)
        return party not in away

    original = InProcess.request

    def request(transport: Any, party: str, header: dict[str, Any], blob: bytes = b"") -> Any:
        with alone:
            return original(transport, party, header, blob)

    monkeypatch.setattr(InProcess, "request", request)
    monkeypatch.setattr(InProcess, "parallel", True)
    monkeypatch.setattr(InProcess, "fragments", seed % 2 == 0, raising=False)
    net.rules, net.back = [rule], back
    found = net.run(loop({"at_least": 2}, times=4))
    assert verify(shop.home)["problems"] == [] and len(found["quorums"]) == 4
    for one in found["quorums"]:
        assert net.who(one["task"]) == one["used"] and {"a", "b"} <= set(one["used"])
        assert sorted([*one["used"], *(party["party"] for party in one["lost"])]) == CLIENTS


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_process_is_lost_and_the_next_run_has_it_again(
    shop: Any, rounds: Registry, toy_path: None, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    monkeypatch.setenv("OSMOTIC_PLUGINS", "toys,rounds")
    marks = shop.folder / "marks"
    marks.mkdir()
    clients = CLIENTS[:2]
    shop.records = dict.fromkeys(clients, shop.records["north"])
    made = loop({"at_least": 1}, times=2, config={"marks": str(marks)})
    file = shop.write(made, parties={"server": "hub", "clients": clients})
    (marks / "b.kill").write_text("2", encoding="utf-8")  # in the second round, when the total is 2
    found = api.run(file, home=shop.home, isolate=True, jobs=jobs, registry=rounds)
    assert [[party["party"] for party in one["lost"]] for one in found["quorums"]] == [[], ["b"]]
    assert "lost: b (its process ended: killed by signal 9)" in result_text(found)
    assert verify(shop.home)["problems"] == []
    (marks / "b.kill").unlink()
    again = api.run(file, home=shop.home, registry=rounds)
    assert [one["lost"] for one in again["quorums"]] == [[], []] and again["outcome"]["cached"] == 4
