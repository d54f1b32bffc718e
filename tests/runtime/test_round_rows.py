# SPDX-License-Identifier: Apache-2.0
"""A table with a row for each round of a repeat."""

from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.schemas.errors import ConfigError

LOOP = {
    "repeat": {"times": 3, "carry": {"before": {"from": "climbed"}}},
    "tasks": {"climbed": {"component": "climber", "at": "server", "inputs": {"before": "carry.before"}, "matrix": ["arm"]}},
}


def run(shop: Any, toys: Registry, rows: list[str], loop: dict[str, Any] = LOOP) -> dict[str, Any]:
    report = {"table": "loop.climbed", "rows": rows, "metrics": {"score": "Score"}, "compare": False}
    path = shop.write({"loop": loop}, matrix={"arm": ["a", "b"]}, report=report)
    return api.run(path, home=shop.home, registry=toys)


def means(summary: dict[str, Any]) -> dict[str, float]:
    return {row["row"]: row["cells"]["score"]["mean"] for row in summary["table"]["rows"]}


def test_each_round_is_a_row(shop: Any, toys: Registry) -> None:
    assert means(run(shop, toys, ["arm", "round"])) == {f"{arm}, {i}": float(i) for arm in "ab" for i in (1, 2, 3)}


def test_rows_of_rounds_alone_and_of_the_last_one(shop: Any, toys: Registry) -> None:
    assert means(run(shop, toys, ["round"])) == {"1": 1.0, "2": 2.0, "3": 3.0}
    assert means(run(shop, toys, ["arm"])) == {"a": 3.0, "b": 3.0}  # what came of it: the last round's


def test_a_round_is_no_axis_outside_a_repeat(shop: Any, toys: Registry) -> None:
    outside = {"climbed": {"component": "climber", "at": "server"}}
    report = {"table": "climbed", "rows": ["round"], "metrics": {"score": "Score"}}
    with pytest.raises(ConfigError, match="unknown axis 'round'"):
        api.run(shop.write(outside, report=report), home=shop.home, registry=toys)


def test_a_chart_may_have_a_line_for_each_round(shop: Any, toys: Registry) -> None:
    chart = {"x": "score", "y": "score", "by": "round"}
    report = {
        "table": "loop.climbed",
        "rows": ["arm", "round"],
        "metrics": {"score": "Score"},
        "compare": False,
        "chart": chart,
    }
    path = shop.write({"loop": LOOP}, matrix={"arm": ["a", "b"]}, report=report)
    found = api.run(path, home=shop.home, registry=toys)["chart"]["series"]
    assert [(one["name"], len(one["points"])) for one in found] == [("1", 2), ("2", 2), ("3", 2)]


def test_a_metric_that_two_tasks_give_is_told_by_the_task(shop: Any, toys: Registry) -> None:
    tasks = {"first": {"component": "climber", "at": "server"}, "second": {"component": "climber", "at": "server"}}
    tasks["second"]["inputs"] = {"before": "first"}
    metrics = {"score": "first's", "first:score": "the same", "second:score": "second's"}
    report = {"table": ["first", "second"], "metrics": metrics, "compare": False}
    summary = api.run(shop.write(tasks, report=report), home=shop.home, registry=toys)
    assert {name: cell["mean"] for name, cell in summary["table"]["rows"][0]["cells"].items()} == {
        "score": 1.0,
        "first:score": 1.0,
        "second:score": 2.0,
    }
