# SPDX-License-Identifier: Apache-2.0
"""What a plan says of repeats that stopped, of bytes and tokens nobody has seen yet; how it looks in narrow terminals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.results.comparing import ABSENT, changes, leaves, reason, told
from osmotic.runtime.results.result_text import result_text
from osmotic.runtime.screen.plan_text import plan_text
from osmotic.runtime.screen.tables import grid

Place = Callable[..., Path]
STOPPING = """
osmotic: 1
name: toy
parties: {server: hub, clients: [north]}
tasks:
  loop:
    repeat: {times: 5, carry: {last: {from: sum}}, until: {metric: "score.metrics:value", at_least: 4}}
    tasks:
      sum: {component: train, at: server, inputs: {init: carry.last}, config: {step: 2}}
      score: {component: measure, at: server, inputs: {document: sum}}
  after: {component: join, at: clients, inputs: {a: loop.sum}}
"""


def tasks_of(plan: dict[str, Any]) -> dict[str, tuple[int, int, list[str]]]:
    return {t["task"]: (t["cached"], t["not_needed"], t["why"]) for t in plan["tasks"]}


def test_a_repeat_that_stopped_is_planned_as_it_ran(place: Place, pieces: Registry, tmp_path: Path) -> None:
    path, given = place(STOPPING), {"home": tmp_path / "home", "registry": pieces}
    assert tasks_of(api.plan(path, **given))["loop.score"] == (0, 0, ["after loop.sum"])
    summary = api.run(path, **given)
    assert list(summary["outcome"]["stopped"].values()) == [2]
    plan = api.plan(path, **given)
    assert plan["count"] == {"tasks": 11, "cached": 11}
    assert tasks_of(plan) == {"loop.sum": (5, 3, []), "loop.score": (5, 3, []), "after": (1, 0, [])}
    assert api.run(path, **given)["outcome"]["ran"] == 0
    later = tasks_of(api.plan(path, overrides=("tasks.loop.repeat.until.at_least=7",), **given))
    assert later["loop.sum"][:2] == (2, 0) and "first run" in later["loop.sum"][2] and later["after"][2] == ["after loop.sum"]
    changed = api.plan(path, overrides=("tasks.loop.tasks.sum.config.step=1",), **given)
    assert tasks_of(changed)["loop.sum"][2][0] == "changed config (step)"


def models(shop: Any, tasks: Callable[..., dict[str, Any]], **config: Any) -> Path:
    """A server that asks a model about what two clients released."""
    asker = {"component": "teacher_generator", "at": "server", "each": "party", "inputs": {"prompts": "safe"}}
    made = tasks(asked={**asker, "config": {"model": "echo", "template": "say {{ colour }} now!", **config}})
    path: Path = shop.write(made, models={"echo": {"type": "toy-echo", "at": "server"}})
    return path


@pytest.fixture
def all_plugins(toys: Registry) -> Registry:
    """The toys beside the built-in components."""
    return toys


def test_calls_and_tokens_are_estimated_and_then_beside_what_was_asked(
    shop: Any, tasks: Callable[..., dict[str, Any]], all_plugins: Registry
) -> None:
    path, given = models(shop, tasks, max_new_tokens=7), {"home": shop.home, "registry": all_plugins}
    (row,) = api.plan(path, **given)["calls"]
    assert (row["task"], row["model"], row["at"], row["instances"]) == ("asked", "echo", "server", 2)
    assert (row["calls"], row["new_tokens"]) == (24, 24 * 7)
    records = [r for rows in shop.records.values() for r in rows]
    mean = sum(len(v) for r in records for v in r.values()) / len(records)
    assert row["prompt_tokens"] == pytest.approx(24 * (len("say  now!") + mean) / 4, abs=2)
    summary = api.run(path, **given)
    (ran,) = summary["plan"]["calls"]
    assert ran["calls"] == 24 and ran["actual"]["calls"] <= 24 and ran["actual"]["new_tokens"] > 0
    assert "models asked" in result_text(summary) and f"{ran['actual']['calls']} (about 24)" in result_text(summary)
    assert api.plan(path, **given)["calls"] == []  # nothing would be asked again
    assert api.run(path, **given)["plan"]["calls"] == []


def test_bytes_are_estimated_by_rows_then_by_what_went(shop: Any, tasks: Callable[..., dict[str, Any]], toys: Registry) -> None:
    path, given = shop.write(tasks()), {"home": shop.home, "registry": toys}
    (row,) = api.plan(path, **given)["crossings"]
    assert (row["known"], row["bytes"]) == (0, 0) and 24 * 40 < row["estimate"] < 24 * 120
    summary = api.run(path, **given)
    (row,) = api.plan(path, **given)["crossings"]
    moved = sum(c["bytes"] for c in summary["crossings"])
    assert row["estimate"] == row["bytes"] == moved and row["known"] == 2
    (planned,) = summary["plan"]["crossings"]
    assert 0.3 < planned["bytes"] / moved < 3


def test_the_budget_is_told_before_and_after(shop: Any, tasks: Callable[..., dict[str, Any]], toys: Registry) -> None:
    summary = api.run(shop.write(tasks()), home=shop.home, registry=toys)
    rows = {row["party"]: row for row in summary["plan"]["budget"]}
    assert {p: (r["before"], r["after"], r["cap"], r["left"]) for p, r in rows.items()} == {
        "north": (0.0, 4.0, 1000.0, 996.0), "south": (0.0, 4.0, 1000.0, 996.0),
    }  # fmt: skip
    again = api.run(shop.write(tasks()), home=shop.home, registry=toys)
    assert [(r["before"], r["after"]) for r in again["plan"]["budget"]] == [(4.0, 4.0)] * 2
    assert "spent before" in result_text(again)


@pytest.mark.parametrize("columns", [80, 200])
def test_the_plan_fits_the_terminal(
    shop: Any, tasks: Callable[..., dict[str, Any]], all_plugins: Registry, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = plan_text(api.plan(models(shop, tasks), home=shop.home, registry=all_plugins))
    assert max(map(len, text.splitlines())) <= columns
    assert "teacher_generator" in text and "about 24" in text and "first run" in text


def test_words_stay_whole_while_they_can() -> None:
    rows = [["a_long_name_of_a_task", "several words that may go below each other"]]
    narrow = grid(["task", "why"], rows, 40)
    assert max(map(len, narrow.splitlines())) <= 40 and "a_long_name_of_a_task" in narrow
    assert max(map(len, grid(["task", "why"], rows, 20).splitlines())) <= 20
    assert grid(["task", "why"], rows).splitlines()[2].endswith("each other")


def test_leaves_and_reasons() -> None:
    before = {
        "config": {"a": {"b": 1}, "c": [1]},
        "inputs": {"x": [["", "d", "l"]]},
        "code": "1",
        "environment": {"numpy": "1"},
    }
    now = {
        "config": {"a": {"b": 2}, "c": [1], "d": 0},
        "inputs": {"x": [["", "d", "m"]]},
        "code": "2",
        "environment": {"numpy": "2"},
    }
    assert list(leaves(before["config"], now["config"])) == [("a.b", 1, 2), ("d", ABSENT, 0)]
    found = changes(before, now)
    assert [reason(one) for one in found] == [
        "changed config (a.b, d)", "changed input (x: its label)", "new code", "new environment (numpy)",
    ]  # fmt: skip
    assert found[0]["values"] == {"a.b": ["1", "2"], "d": ["-", "0"]} and changes(now, now) == []
    assert told("x" * 100) == "x" * 57 + "..."
