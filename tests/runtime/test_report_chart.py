# SPDX-License-Identifier: Apache-2.0
"""Tables over several axes and tasks, and the chart of two of their metrics."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.reporting.dots import scale
from osmotic.runtime.reporting.lines import SHAPES, draw, mark
from osmotic.runtime.results.result_text import result_text
from osmotic.schemas.errors import ConfigError

Tasks = Callable[..., dict[str, Any]]
MATRIX = {"mechanism": ["list-rr", "exponential"], "epsilon": [0.5, 2]}
REPORT = {
    "table": ["bayes", "met"], "rows": ["mechanism", "epsilon"], "compare": False,
    "metrics": {"class": "class", "bayes_success": "success", "epsilon_true": "true epsilon", "records": "records"},
    "chart": {"x": "epsilon_true", "y": "bayes_success", "by": "mechanism"},
}  # fmt: skip
PLACES = {"mechanism": {"name": "${matrix.mechanism}", "epsilon": "${matrix.epsilon}"}, "fields": ["colour"]}
BAYES = {
    "component": "bayes_attacker", "at": "clients", "config": {"data": "items", **PLACES},
    "vary": {"mechanism": {"list-rr": {"config": {"mechanism": {"k": 1}}}, "exponential": {"config": {"fields": ["hue"]}}}},
}  # fmt: skip
MET = {"component": "meter", "at": "server", "each": "party", "matrix": ["mechanism"], "inputs": {"records": "safe"}}


@pytest.fixture
def swept(shop: Any, tasks: Tasks, toys: Registry, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run the sweep: list-rr over colours, exponential over hues on a line."""
    import numpy as np
    from safetensors.numpy import save_file

    angles = np.linspace(0.0, 1.0, 5)
    save_file({"hue": np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)}, shop.folder / "t.safetensors")
    schema = {"fields": {
        "colour": {"domain": ["red", "green", "blue", "white"]}, "size": {"domain": ["s", "m", "l"]},
        "hue": {"domain": ["a", "b", "c", "d", "e"], "table": "t.safetensors#hue"},
    }}  # fmt: skip
    shop.binding = {"schema": schema}
    for rows in shop.records.values():
        for i, row in enumerate(rows):
            row["hue"] = "abcde"[i % 5]

    def go(**changes: Any) -> dict[str, Any]:
        path = shop.write(tasks(bayes=BAYES, met=MET), matrix=MATRIX, report={**REPORT, **changes})
        return api.run(path, home=shop.home, registry=toys)

    return go


def test_rows_are_the_product_of_their_axes(swept: Callable[..., dict[str, Any]]) -> None:
    """`met` does not span epsilon: its value stands in every row of its mechanism."""
    summary = swept()
    table = summary["table"]
    rows = {row["row"]: row["cells"] for row in table["rows"]}
    assert list(rows) == ["list-rr, 0.5", "list-rr, 2", "exponential, 0.5", "exponential, 2"]
    assert (table["axis"], table["axes"], table["comparisons"]) == ("mechanism, epsilon", ["mechanism", "epsilon"], [])
    assert {cells["records"]["mean"] for cells in rows.values()} == {12.0}
    assert {cells["class"]["note"] for cells in rows.values()} == {"certified"}
    assert rows["list-rr, 2"]["epsilon_true"]["mean"] == pytest.approx(2.0)
    assert rows["exponential, 2"]["epsilon_true"]["mean"] < 2.0
    text = result_text(summary)
    assert re.search(r"list-rr, 2 +certified +0\.711 +2\.000 +12\.000", text)
    assert "mechanism, epsilon  class" in text


def test_the_chart_has_the_table_s_values(swept: Callable[..., dict[str, Any]], shop: Any) -> None:
    summary = swept()
    chart = summary["chart"]
    assert [s["name"] for s in chart["series"]] == ["list-rr", "exponential"]
    cells = {row["row"]: row["cells"] for row in summary["table"]["rows"]}
    for point in (p for s in chart["series"] for p in s["points"]):
        assert point["x"] == cells[point["row"]]["epsilon_true"]["mean"]
        assert point["y"] == cells[point["row"]]["bayes_success"]["mean"]
    page = (shop.home / "report.html").read_text(encoding="utf-8")
    assert page.count('class="point') == 4 + 2  # the points, and the keys of two lines
    assert "success (vertical) against true epsilon (horizontal), a line for each mechanism" in page
    assert "<title>list-rr, 2: true epsilon 2.000, success 0.711</title>" in page
    assert "<script" not in page and "http:" not in page.replace("http-equiv", "")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"chart": {"x": "sucess", "y": "records", "by": "epsilon"}}, "the table has no metric 'sucess'"),
        ({"chart": {"x": "records", "y": "records", "by": "arm"}}, "the rows have no axis 'arm'"),
        ({"chart": {"x": "records", "y": "records"}}, "report.chart.by: this key is required"),
        ({"table": ["bayes", "mett"]}, r"report\.table\.1: unknown task 'mett'"),
        ({"rows": ["mechanism", "epsilom"]}, r"report\.rows\.1: unknown axis 'epsilom'"),
        ({"apart": ["list-rr, 3"]}, "has no value 'list-rr, 3'"),
    ],
)
def test_mistakes_are_told_with_their_place(swept: Callable[..., dict[str, Any]], changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        swept(**changes)


def points(**series: list[tuple[float, float]]) -> dict[str, Any]:
    lines = [{"name": n, "points": [{"row": n, "x": x, "y": y} for x, y in p]} for n, p in series.items()]
    return {"title": "t", "by": "b", "x": {"metric": "x", "title": "X"}, "y": {"metric": "y", "title": "Y"}, "series": lines}


def test_points_lie_inside_the_frame_and_keep_their_order() -> None:
    drawn = draw(points(a=[(0, 0.1), (1, 0.9)], b=[(0.5, 0.5)]), scale)
    assert drawn is not None
    places = [tuple(map(float, re.match(r"M([\d.]+) ([\d.]+)", p["d"]).groups())) for p in drawn["lines"][0]["points"]]
    assert places[0][0] < places[1][0] and places[0][1] > places[1][1]
    assert all(drawn["left"] - 5 <= x <= drawn["right"] and drawn["top"] <= y <= drawn["bottom"] for x, y in places)
    assert drawn["lines"][0]["path"].startswith("M") and drawn["lines"][1]["path"] == ""


def test_nothing_to_draw_is_nothing() -> None:
    assert draw(None, scale) is None
    assert draw(points(a=[]), scale) is None
    assert draw(points(a=[(float("nan"), 1.0)]), scale) is None
    assert draw(points(a=[(1.0, 1.0)]), scale) is not None


def test_lines_differ_in_more_than_colour() -> None:
    drawn = draw(points(**{f"s{i}": [(i, i), (i + 1, i)] for i in range(12)}), scale)
    assert drawn is not None
    assert len({(line["key"], line["dash"]) for line in drawn["lines"]}) == 12
    assert len({mark(shape, 10.0, 10.0) for shape in SHAPES}) == len(SHAPES)
