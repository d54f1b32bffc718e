# SPDX-License-Identifier: Apache-2.0
"""The chart of two metrics: one point a row of the table, one line through the points of each value of an axis.

`chart_of` picks the values out of the table as it is printed, so that both always agree; `draw` lays them out in SVG units. A
line is told from another by the shape of its points and its dashes too, never by its colour alone.
"""

import math
from collections.abc import Mapping
from typing import Any

from osmotic.runtime.plan.nodes import word
from osmotic.schemas.pipeline import Pipeline

WIDE, HIGH = 640, 400  # of the whole drawing, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 14, 48  # around the plot
STYLES = 8  # colours of the style sheet; shapes and dashes go round at other speeds
SHAPES = ("circle", "square", "triangle", "diamond", "down", "cross")
DASHES = ("", "6 3", "2 3", "9 3 2 3")
SIZE = 4.5


def chart_of(pipeline: Pipeline, table: Mapping[str, Any]) -> dict[str, Any] | None:
    """{title, x, y, by, series}: what the chart of a pipeline shows; None without one. Rows that lack a value are left out."""
    chart = pipeline.report.chart
    if chart is None:
        return None
    titles = {c["metric"]: c["title"] for c in table["columns"]}
    names = [word(v) for v in pipeline.matrix.get(chart.by, ())]
    place = table["axes"].index(chart.by) if chart.by in table["axes"] else None
    series: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for row in table["rows"]:
        name = row["row"].split(", ")[place] if place is not None else ""
        x, y = (row["cells"][metric]["mean"] for metric in (chart.x, chart.y))
        if x is not None and y is not None:
            series.setdefault(name, []).append({"row": row["row"], "x": x, "y": y})
    x_title, y_title = titles.get(chart.x, chart.x), titles.get(chart.y, chart.y)
    return {
        "title": chart.title or f"{y_title} against {x_title}", "by": chart.by,
        "x": {"metric": chart.x, "title": x_title}, "y": {"metric": chart.y, "title": y_title},
        "series": [{"name": n, "points": sorted(p, key=lambda o: (o["x"], o["y"]))} for n, p in series.items() if p],
    }  # fmt: skip


def draw(chart: Mapping[str, Any] | None, ticks: Any) -> dict[str, Any] | None:
    """A chart in SVG units, or None when there is nothing to draw. ticks: values -> round numbers around them."""
    points = [p for s in chart["series"] for p in s["points"]] if chart else []
    points = [p for p in points if math.isfinite(p["x"]) and math.isfinite(p["y"])]
    if chart is None or not points:
        return None
    across, up = ticks([p["x"] for p in points]), ticks([p["y"] for p in points])

    def at(point: Mapping[str, float]) -> tuple[float, float]:
        x = LEFT + (point["x"] - across[0]) / (across[-1] - across[0]) * (WIDE - LEFT - RIGHT)
        y = HIGH - BOTTOM - (point["y"] - up[0]) / (up[-1] - up[0]) * (HIGH - BOTTOM - TOP)
        return round(x, 1), round(y, 1)

    lines = [_line(i, s, [(p, *at(p)) for p in s["points"] if p in points]) for i, s in enumerate(chart["series"])]
    return {
        "title": chart["title"], "x": chart["x"]["title"], "y": chart["y"]["title"], "by": chart["by"], "lines": lines,
        "width": WIDE, "height": HIGH, "left": LEFT, "right": WIDE - RIGHT, "top": TOP, "bottom": HIGH - BOTTOM,
        "across": [{"at": at({"x": t, "y": up[0]})[0], "text": f"{t:.6g}"} for t in across],
        "up": [{"at": at({"x": across[0], "y": t})[1], "text": f"{t:.6g}"} for t in up],
    }  # fmt: skip


def _line(i: int, series: Mapping[str, Any], placed: list[tuple[Mapping[str, Any], float, float]]) -> dict[str, Any]:
    """One line: its path, its points, and the key that the legend shows."""
    shape = SHAPES[i % len(SHAPES)]
    path = "M" + "L".join(f"{x} {y}" for _, x, y in placed) if len(placed) > 1 else ""
    return {
        "name": series["name"], "style": i % STYLES, "dash": DASHES[i % len(DASHES)], "path": path,
        "key": mark(shape, 15.0, 6.0),
        "points": [{"d": mark(shape, x, y), "row": p["row"], "x": p["x"], "y": p["y"]} for p, x, y in placed],
    }  # fmt: skip


def mark(shape: str, x: float, y: float) -> str:
    """The outline of a point of a shape around (x, y), as the data of an SVG path."""
    r = SIZE
    if shape == "circle":
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z"
    corners = {
        "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "triangle": ((0, -1.2), (1.15, 0.9), (-1.15, 0.9)),
        "down": ((0, 1.2), (1.15, -0.9), (-1.15, -0.9)),
        "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
        "cross": ((-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4), (0.4, 1.2), (-0.4, 1.2),
                  (-0.4, 0.4), (-1.2, 0.4), (-1.2, -0.4), (-0.4, -0.4)),
    }[shape]  # fmt: skip
    return "M" + "L".join(f"{x + dx * r:.1f} {y + dy * r:.1f}" for dx, dy in corners) + "Z"
