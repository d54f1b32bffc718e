# SPDX-License-Identifier: Apache-2.0
"""What `plan` says before and after a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.party import keys
from osmotic.runtime.screen.plan_text import plan_text
from osmotic.schemas.errors import ConfigError, DataError, RefusedError

Place = Callable[..., Path]
SITES = """
defaults:
  data: {numbers: {path: numbers.jsonl, schema: schema.yaml, purpose: benchmark}}
  budget: {numbers: {per_document: 4}}
  waivers: [{edge: '*', observers: [hub, north, south]}]
parties: {hub: {}, north: {}, south: {}}
"""
PIPELINE = """
osmotic: 1
name: toy
parties: {server: hub, clients: [north, south]}
tasks:
  records: {component: load, at: clients}
  safe:
    component: mask
    at: clients
    inputs: {records: records}
    config: {mechanism: {name: list-rr, epsilon: 1, k: 1}, fields: [colour, size]}
  counted: {component: count, at: clients, inputs: {records: safe}}
  all: {component: gather, at: server, inputs: {parts: counted}}
  local: {component: train, at: clients, inputs: {records: records}, config: {step: 2}}
  average: {component: average, at: server, inputs: {models: {from: local, waive: averaging plain counts}}}
"""


def reasons(plan: dict[str, Any]) -> dict[str, list[str]]:
    return {t["task"]: t["why"] for t in plan["tasks"]}


@pytest.fixture
def toy(place: Place, pieces: Registry, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Plan (or, with run=True, run) the pipeline above."""
    path = place(PIPELINE, SITES)

    def do(*overrides: str, run: bool = False, **more: Any) -> dict[str, Any]:
        work = api.run if run else api.plan
        return work(path, overrides=overrides, home=tmp_path / "home", registry=pieces, **more)

    return do


def test_before_a_run_everything_is_new_and_nothing_is_written(toy: Callable[..., Any], tmp_path: Path) -> None:
    plan = toy()
    assert not (tmp_path / "home").exists()
    assert plan["count"] == {"tasks": 10, "cached": 0} and plan["refusals"] == []
    assert reasons(plan) == {
        "records": ["first run"], "safe": ["after records"], "counted": ["after safe"], "all": ["after counted"],
        "local": ["after records"], "average": ["after local"],
    }  # fmt: skip
    crossings = {c["edge"]: c for c in plan["crossings"]}
    assert (crossings["all.parts"]["label"], crossings["average.models"]["label"]) == ("protected", "exposed")
    assert crossings["average.models"]["waive"] == "averaging plain counts"
    assert [(c["count"], c["known"]) for c in crossings.values()] == [(2, 0), (2, 0)]
    assert [(b["party"], b["epsilon"], b["spent"], b["cap"], b["already_released"]) for b in plan["budget"]] == [
        ("north", 2.0, 0.0, 4.0, 0), ("south", 2.0, 0.0, 4.0, 0),
    ]  # fmt: skip


def test_after_a_run_all_is_cached_bytes_are_known_and_the_budget_is_spent(toy: Callable[..., Any]) -> None:
    summary = toy(run=True)
    plan = toy()
    assert plan["count"] == {"tasks": 10, "cached": 10} and all(why == [] for why in reasons(plan).values())
    moved = sum(c["bytes"] for c in summary["crossings"])
    assert moved > 0 and sum(c["bytes"] for c in plan["crossings"]) == moved
    assert all(c["known"] == c["count"] for c in plan["crossings"])
    assert [(b["spent"], b["already_released"]) for b in plan["budget"]] == [(2.0, 6), (2.0, 6)]


def test_a_changed_configuration_is_named_where_it_changed(toy: Callable[..., Any]) -> None:
    toy(run=True)
    plan = toy("tasks.local.config.step=3")
    assert reasons(plan)["local"] == ["changed config (step)"] and reasons(plan)["average"] == ["after local"]
    assert plan["count"]["cached"] == 10 - 3


def test_changed_data_and_inputs_are_named(toy: Callable[..., Any], tmp_path: Path) -> None:
    toy(run=True)
    with (tmp_path / "numbers.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "new", "colour": "red", "size": "l"}\n')
    assert reasons(toy())["records"] == ["changed data"]
    toy(run=True)
    assert toy()["count"]["cached"] == 10


def test_a_changed_input_is_named(place: Place, pieces: Registry, tmp_path: Path) -> None:
    head = "osmotic: 1\nname: toy\nparties: {server: hub}\ntasks:\n"
    text = f"{head}  a: {{component: make, at: server, config: {{value: 1, size: 7}}}}\n"
    path = place(f"{text}  b: {{component: join, at: server, inputs: {{a: a}}}}\n")
    api.run(path, home=tmp_path / "home", registry=pieces)
    api.run(path, overrides=("tasks.a.config.value=2",), home=tmp_path / "home", registry=pieces)
    path = place(f"{text}  b: {{component: join, at: server, inputs: {{a: a.other}}}}\n")
    assert reasons(api.plan(path, home=tmp_path / "home", registry=pieces)) == {"a": [], "b": ["changed input (a)"]}


def test_new_code_is_named(toy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    toy(run=True)
    monkeypatch.setattr("osmotic.runtime.party.facts.code_of", lambda module: f"{keys.code_of(module)}, changed")
    assert reasons(toy())["records"] == ["new code"]


def test_refusals_are_all_listed_with_places(toy: Callable[..., Any]) -> None:
    plan = toy("tasks.average.inputs.models=local", "tasks.safe.config.mechanism.epsilon=9")
    assert plan["count"]["cached"] == 0 and {tuple(t["why"]) for t in plan["tasks"]} == {("not checked",)}
    said = [f"{p['where']} {p['path']} {p['what']}" for p in plan["refusals"]]
    assert sum("tasks.average.inputs.models refused: private data" in s for s in said) == 2
    assert sum("toy.yaml:11:14 tasks.safe.config.mechanism" in s and "is over the cap" in s for s in said) == 2


def test_a_run_raises_what_the_plan_lists(toy: Callable[..., Any]) -> None:
    with pytest.raises(RefusedError, match="private data of north"):
        toy("tasks.average.inputs.models=local", run=True)


def test_a_missing_data_file_is_said_at_plan_time(toy: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "numbers.jsonl").unlink()
    with pytest.raises(DataError, match=r"numbers\.jsonl"):
        toy()


def test_binds_replace_a_path_that_a_policy_knows(toy: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text('{"id": "x", "colour": "red", "size": "s"}\n')
    toy(run=True)
    assert reasons(toy(binds=(f"numbers={tmp_path}/other.jsonl",)))["records"] == ["changed data"]
    for bind, what in (("nombers=x", "did you mean 'numbers'|known: numbers"), ("numbers", "write it as NAME=FILE")):
        with pytest.raises(ConfigError, match=what):
            toy(binds=(bind,))


def test_without_a_sites_file_no_party_has_data(place: Place, pieces: Registry, tmp_path: Path) -> None:
    plan = api.plan(place(PIPELINE), home=tmp_path / "home", registry=pieces)
    said = [p["what"] for p in plan["refusals"]]
    assert "north binds no data set called 'numbers'" in said


def test_a_large_plan_is_complete(place: Place, pieces: Registry, tmp_path: Path) -> None:
    everybody = ", ".join(f"party-{i:02d}" for i in range(100))
    path = place(
        """
osmotic: 1
name: big
parties: {server: hub, clients: 100}
tasks:
  records: {component: load, at: clients}
  fed:
    repeat: {times: 50, carry: {global: {from: average}}}
    tasks:
      local: {component: train, at: clients, inputs: {records: records, init: carry.global}}
      average: {component: average, at: server, inputs: {models: {from: local, waive: averaging plain counts}}}
""",
        SITES.replace("parties: {hub: {}, north: {}, south: {}}", "parties:").replace("north, south", everybody)
        + "".join(f"  party-{i:02d}: {{}}\n" for i in range(100)),
    )
    plan = api.plan(path, home=tmp_path / "home", registry=pieces)
    assert plan["count"]["tasks"] == 100 + 50 * 101 and plan["refusals"] == []
    assert {c["edge"]: (c["count"], c["label"]) for c in plan["crossings"]} == {
        "fed.average.models": (5000, "exposed"), "fed.local.init": (4900, "exposed"),
    }  # fmt: skip


def test_the_budget_shows_what_looks_the_same_once_and_says_of_what_it_is() -> None:
    common = {"party": "north", "dataset": "d", "task": "votes", "detail": "of all rounds", "already_released": 0, "spent": 0.0}
    votes = {**common, "epsilon": 4.0, "unit": "record", "class": "gaussian", "cap": 8.0}
    release = {**votes, "task": "safe", "unit": "document", "class": "certified"}
    plan = {
        "pipeline": "p", "count": {"tasks": 0, "cached": 0}, "tasks": [], "rounds": [], "crossings": [], "refusals": [],
        "memory": {"models": []}, "budget": [votes, votes, votes, release],
    }  # fmt: skip
    said = plan_text(plan)
    assert "Budget, a record or a document" in said
    assert said.count("votes x 3") == 1 and said.count("votes") == 1 and "safe " in said and "safe x" not in said
