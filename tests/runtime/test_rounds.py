# SPDX-License-Identifier: Apache-2.0
"""Runs of rounds as one writes them: models that clients keep for themselves, one that the server sends, some parties a round,
an early stop, scores of every round, by arm and seed.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry, build_registry
from osmotic.runtime import api
from osmotic.runtime.results.verifying import ledgers_of, verify
from osmotic.runtime.screen.plan_text import plan_text
from osmotic.runtime.storage.ledger import Ledger
from osmotic.runtime.storage.store import Store
from osmotic.schemas.errors import OsmoticError, RefusedError

PARTIES = ("north", "south", "east", "west", "middle")
LOADED = {"component": "record_loader", "at": "clients", "config": {"data": "items"}}


def step(component: str, at: str, **more: Any) -> dict[str, Any]:
    """A task."""
    inputs = more.pop("inputs", {})
    return {"component": component, "at": at, "inputs": inputs, **more}


def loop(times: int = 6, until: float | None = None, sample: int | None = 2, **more: Any) -> dict[str, Any]:
    """Every client counts its own rounds; the server averages the counts of a round, and sends the average on."""
    repeat: dict[str, Any] = {
        "times": times,
        "carry": {"own": {"from": "local.model"}, "shared": {"from": "average"}},
        **({"until": {"metric": "judged:value", "at_least": until}} if until else {}),
        **({"sample": {"clients": sample}} if sample else {}),
    }
    tasks = {
        "local": step("train", "clients", inputs={"init": "carry.own"}, **more),
        "average": step("average", "server", inputs={"models": "local"}),
        "judged": step("measure", "server", inputs={"document": "average"}),
        "scored": step("measure", "clients", inputs={"document": "local"}),
        "seen": step("train", "clients", inputs={"init": "carry.shared"}),
    }
    return {"repeat": repeat, "tasks": tasks}


AFTER = {
    "all": step("gather", "server", inputs={"parts": "loop.local"}),
    "own": step("measure", "clients", inputs={"document": "loop.local"}),
    "both": step("join", "clients", inputs={"a": "loop.average", "b": "loop.local"}),
}


@pytest.fixture
def five(shop: Any) -> Any:
    """A shop with five clients."""
    shop.records = {party: [{"id": f"{party}-{i}", "colour": "red", "size": "s"} for i in range(12)] for party in PARTIES}
    return shop


@pytest.fixture
def run(five: Any, pieces: Registry) -> Callable[..., dict[str, Any]]:
    def go(tasks: dict[str, Any], watcher: Any = None, home: str = "home", **document: Any) -> dict[str, Any]:
        document = {"parties": {"server": "hub", "clients": list(PARTIES)}, **document}
        return api.run(five.write(tasks, **document), home=five.folder / home, registry=pieces, watcher=watcher)

    return go


def value(home: Path, identity: str, port: str) -> Any:
    """What a document of a run says; KeyError when the task has not run."""
    folder = home / "parties" / identity.rpartition("@")[2]
    ledger = Ledger(folder)
    try:
        sql = "SELECT t.outputs FROM instances i JOIN tasks t ON t.key = i.key WHERE i.id=?"
        rows = ledger.query(sql, (identity,))
        if not rows:
            raise KeyError(identity)
        ref = json.loads(rows[0][0])[port]
        found: Any = Store(folder / "store").get(ref["kind"], ref["digest"])
        return found.data
    finally:
        ledger.close()


def turns(summary: dict[str, Any], until: int = 99) -> dict[str, list[int]]:
    """Party -> the rounds that it takes part in, up to one."""
    found: dict[str, list[int]] = {}
    for one in summary["rounds"]:
        for party in one["parties"] if one["round"] <= until else ():
            found.setdefault(party, []).append(one["round"])
    return found


def test_everybody_goes_on_from_its_own_last_round(run: Any, five: Any) -> None:
    summary = run({"loop": loop(), **AFTER})
    mine = turns(summary)
    counted = value(five.home, "all@hub", "document")
    assert counted == {party: len(rounds) for party, rounds in mine.items()} and len(set(counted.values())) > 1
    last = value(five.home, "loop.average[round=6]@hub", "model")
    for party, rounds in mine.items():
        assert value(five.home, f"both@{party}", "document") == [last, len(rounds)]
        if rounds[-1] > 1:
            before = value(five.home, f"loop.average[round={rounds[-1] - 1}]@hub", "model")
            assert value(five.home, f"loop.seen[round={rounds[-1]}]@{party}", "model") == before + 1
    assert verify(five.home)["problems"] == []
    assert len([c for c in summary["crossings"] if c["name"] == "loop.average.models"]) == 12  # 6 rounds of 2
    assert "Who took part" in (five.home / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("until", [None, 1.5])
def test_a_run_that_was_cut_off_goes_on_and_ends_the_same(run: Any, five: Any, hashes: Any, until: float | None) -> None:
    class Cutting(api.Quiet):
        left = 17

        def task(self, instance: Any, cached: bool, seconds: float) -> None:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    made = {"loop": loop(until=until), **AFTER}
    whole = run(made, home="whole")
    assert bool(whole["outcome"]["stopped"]) == bool(until)
    with pytest.raises(KeyboardInterrupt):
        run(made, watcher=Cutting())
    rest = run(made)
    assert 0 < rest["outcome"]["ran"] < whole["outcome"]["ran"]
    assert hashes(five.home) == hashes(five.folder / "whole")
    assert run(made)["outcome"]["ran"] == 0 and verify(five.home)["problems"] == []


@pytest.mark.parametrize("isolate", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_early_stop_leaves_out_who_had_not_taken_part(
    five: Any, pieces: Registry, toy_path: None, monkeypatch: pytest.MonkeyPatch, isolate: bool
) -> None:
    """The repeat stops when a round's parties have taken part twice on average; what comes after has those who did."""
    monkeypatch.setenv("OSMOTIC_PLUGINS", "pieces")
    report = {"table": ["own"], "metrics": {"value": "Rounds"}, "compare": False}
    made = {"loop": loop(40, until=1.5), **AFTER, "last": step("measure", "clients", inputs={"document": "own.note"})}
    for seed in range(20):  # one where somebody has not
        document = {"parties": {"server": "hub", "clients": list(PARTIES)}, "seed": seed, "report": report}
        file = five.write(made, **document)
        graph = api.prepare(file, home=five.home, registry=pieces).graph
        counts: dict[str, int] = {}
        for one in graph.sample():
            for party in one["parties"]:
                counts[party] = counts.get(party, 0) + 1
            if sum(counts[party] for party in one["parties"]) / 2 >= 1.5:
                break
        if len(counts) < 5:
            break
    summary = api.run(file, home=five.home, registry=pieces, isolate=isolate)
    assert list(summary["outcome"]["stopped"].values()) == [one["round"]] and len(counts) < 5
    assert value(five.home, "all@hub", "document") == counts
    cell = summary["table"]["rows"][0]["cells"]["value"]
    assert {each["party"]: each["value"] for each in cell["each"]} == counts and summary["table"]["withheld"] == []
    missing = next(party for party in PARTIES if party not in counts)
    for name in ("own", "both", "last"):
        with pytest.raises(KeyError):
            value(five.home, f"{name}@{missing}", "document")
    assert verify(five.home)["problems"] == []
    again = api.run(file, home=five.home, registry=pieces)
    assert again["outcome"]["ran"] == 0 and again["table"]["rows"] == summary["table"]["rows"]


def test_a_stop_holds_where_a_later_round_has_nobody_to_judge_it(five: Any, pieces: Registry) -> None:
    """What was made in the first repeat is judged in the rounds of the second in which its maker takes part."""
    document = {"parties": {"server": "hub", "clients": list(PARTIES)}}
    first = {"repeat": {"times": 1, "sample": {"clients": 1}}, "tasks": {"local": step("train", "clients")}}
    second = {
        "repeat": {"times": 8, "sample": {"clients": 1}, "until": {"metric": "judged:value", "at_least": 1}},
        "tasks": {
            "judged": step("measure", "server", inputs={"document": "one.local"}),
            "local": step("train", "clients"),
        },
    }
    for seed in range(40):  # one in which that is so once, early
        file = five.write({"one": first, "two": second}, **document, seed=seed)
        graph = api.prepare(file, home=five.home, registry=pieces).graph
        turn = [i.round for i in graph.instances.values() if i.node == "two.judged"]
        if turn in ([2], [3]):
            break
    summary = api.run(file, home=five.home, registry=pieces)
    assert list(summary["outcome"]["stopped"].values()) == turn
    ran = [i for i in graph.instances.values() if i.node == "two.local" and i.id in summary["outcome"]["times"]]
    ledgers = {party: Ledger(five.home / "parties" / party) for party in PARTIES}
    found = [i.round for i in ran if ledgers[i.party].query("SELECT 1 FROM instances WHERE id=?", (i.id,))]
    for ledger in ledgers.values():
        ledger.close()
    assert found == list(range(1, turn[0] + 1))


def test_scores_of_every_round_by_arm_and_seed(run: Any, five: Any) -> None:
    """What clients carry starts absent, the server's model is sent on, and both are judged in every round."""
    report = {"table": "loop.scored", "rows": ["arm", "round"], "metrics": {"value": "Score"}}
    arms = {"fast": {"config": {"step": 2}}}
    local = loop(4, sample=3, vary={"arm": arms}, matrix=["arm", "seed"])
    summary = run({"loop": local, **AFTER}, matrix={"arm": ["slow", "fast"], "seed": [1, 2]}, report=report)
    rows = {row["row"]: row["cells"]["value"] for row in summary["table"]["rows"]}
    assert list(rows) == [f"{arm}, {i}" for arm in ("slow", "fast") for i in (1, 2, 3, 4)]
    for i in (1, 2, 3, 4):
        slow, fast = rows[f"slow, {i}"], rows[f"fast, {i}"]
        assert set(slow["seeds"]) == {"1", "2"} and fast["mean"] == pytest.approx(2 * slow["mean"])  # the same parties
        taking = {(r["seed"], party) for r in summary["rounds"] if r["round"] == i for party in r["parties"]}
        assert {(each["seed"], each["party"]) for each in slow["each"]} == taking


def test_an_isolated_site_leaves_out_nothing_that_could_not_have_stopped(five: Any, pieces: Registry) -> None:
    """A coordinator may not say that a party is absent where the plan samples none, or of a task that has run."""
    made = {"loop": loop(3, until=50), **AFTER}
    document = {"parties": {"server": "hub", "clients": list(PARTIES)}}
    for sample, what in ((None, "no repeat before it"), (2, "")):
        made["loop"] = loop(3, until=50, sample=sample)
        ready = api.prepare(five.write(made, **document), home=five.home, registry=pieces)
        site = ready.open()["hub"]
        try:
            site.take(ready.graph, ready.configs)
            late = next(i for i in ready.graph.instances if i.startswith("loop.local[round=3]"))
            if what:
                with pytest.raises(RefusedError, match=what):
                    site.leave_out(late)
            else:
                site.leave_out(late)
                assert late not in {edge.producer for edge in site.instance("all@hub").edges()}
                own = next(i for i in ready.graph.instances if i.startswith("loop.average[round=3]"))
                site.leave_out(own)
                with pytest.raises(RefusedError, match="has no task"):
                    site.run(own)
                site.results[late] = {}
                with pytest.raises(RefusedError, match="cannot be left out"):
                    site.leave_out(late)
            with pytest.raises(RefusedError, match="cannot be left out"):
                site.leave_out("nothing@hub")
        finally:
            ready.close()


# ---- what is charged ----


NOISE = {"epsilon": 1.0, "delta": 1e-3, "rounds": 4}


def votes(times: int) -> dict[str, Any]:
    """Rounds of votes at some of the clients."""
    voted = step("colour_voter", "clients", inputs={"records": "items"}, config={"noise": NOISE})
    seen = step("counts_reader", "server", each="party", inputs={"counts": "voted"})
    repeat = {"times": times, "sample": {"clients": 2}}
    return {"items": LOADED, "rounds": {"repeat": repeat, "tasks": {"voted": voted, "seen": seen}}}


def test_a_party_pays_for_the_rounds_that_it_takes_part_in(five: Any, jobs: Any) -> None:
    """Nothing is cheaper for the choice, which is public; nothing is charged where there was nothing to ask."""
    registry = build_registry(names=(), modules=[jobs.plugin()])
    five.defaults = {"budget": {"*": {"per_document": 1000, "per_record": {"epsilon": 1.01, "delta": 1e-3}}}}
    document = {"parties": {"server": "hub", "clients": list(PARTIES)}}
    path = five.write(votes(6), **document)
    plan = api.plan(path, home=five.home, registry=registry)
    mine = turns(plan)
    assert plan["refusals"] == [] and max(map(len, mine.values())) <= 4
    for row in plan["budget"]:
        count = len(mine[row["party"]])
        assert f"{count} rounds of votes" in row["detail"] if count > 1 else "a round of votes" in row["detail"]
    assert "Who takes part" in plan_text(plan)
    summary = api.run(path, home=five.home, registry=registry)
    found = {p["party"]: p["datasets"][0]["record"]["events"] for p in ledgers_of(five.home) if p["datasets"]}
    assert found == {party: len(rounds) for party, rounds in mine.items()}
    assert verify(five.home)["problems"] == [] and summary["guarantee"]["line"].startswith("Guarantee of this run: gaussian")
    with pytest.raises(OsmoticError, match="all tasks together ask epsilon"):
        api.run(five.write(votes(16), **document), home=five.home, registry=registry)


# ---- what a loop may ask a model elsewhere ----


def test_a_task_that_reads_private_data_may_not_choose_questions_for_a_model_elsewhere(shop: Any, toys: Registry) -> None:
    """Refused in the plan, by the line that names the model: the order of the questions follows what was read."""
    echo = {"echo": {"type": "toy-echo", "at": "server", "config": {}}}
    asked = step("asker", "clients", inputs={"records": "items"}, config={"model": "echo", "field": "colour"})
    refused = api.plan(shop.write({"items": LOADED, "asked": asked}, models=echo), home=shop.home, registry=toys)["refusals"]
    first = next(p for p in refused if "north" in p["what"])
    assert first["what"] == "refused: private data of north (items) would go to hub with calls of the model 'echo'"
    assert first["path"] == "tasks.asked.config.model" and "shop.yaml:" in first["where"]
    assert "which questions are asked depends on all that the task has read" in first["why"]
    assert all(way in first["fix"] for way in ("run at the party", "in the site's policy", "a task of its own"))
    shop.defaults = {"endpoints": ["hub"]}
    path = shop.write({"items": LOADED, "asked": asked}, models=echo)
    assert api.plan(path, home=shop.home, registry=toys)["refusals"] == []
    shop.defaults = {}
    safe = {**LOADED, "component": "dp_sanitizer", "inputs": {"records": "items"}}
    safe["config"] = {"mechanism": {"name": "list-rr", "epsilon": 2, "k": 1}, "fields": ["colour", "size"]}
    path = shop.write({"items": LOADED, "safe": safe, "asked": {**asked, "inputs": {"records": "safe"}}}, models=echo)
    assert api.plan(path, home=shop.home, registry=toys)["refusals"] == []
