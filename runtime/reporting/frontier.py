# SPDX-License-Identifier: Apache-2.0
"""Privacy against use against bytes: one point a row of the table; rows that no other row beats in all three are the frontier.

Epsilon is that of the row's own guarantee, with its unit; rows that no one number of that unit describes (unprotected,
heuristic, void, of another unit, of several) stand in a column of their own beside the scale, never on it. A row beats another
only if each part of its promise is at least as strong as the same part of the other's, delta too. More of the use is better.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from osmotic.runtime.privacy.charging import per, weakest
from osmotic.schemas.pipeline import ReportSpec

WIDE, HIGH, LEFT, TOP, BOTTOM, ASIDE = 720, 400, 62, 20, 56, 132  # of the drawing, in SVG units
PROMISES_NOTHING = ("unprotected", "heuristic", "void")
SMALL, LARGE, NAMED = 4.0, 12.0, 30  # radii for the fewest and most bytes; the most rows that are named in the picture


def measured(
    spec: ReportSpec, table: Mapping[str, Any], by_row: Mapping[str, list[dict[str, Any]]],
    edges: Mapping[str, Sequence[str]], crossings: Sequence[Mapping[str, Any]],
) -> dict[str, Any] | None:  # fmt: skip
    """{metric, title, points: [{row, word, epsilon, unit, delta, value, bytes, best}]}; None without two rows with a value."""
    metric = _metric(spec, table)
    if metric is None:
        return None
    sizes: dict[str, int] = {}
    for one in crossings:
        sizes[one["edge"]] = sizes.get(one["edge"], 0) + int(one.get("sent", one["bytes"]))
        task = one["edge"].partition("=>")[0]
        if task != one["edge"]:
            sizes[f"{task}=>"] = sizes.get(f"{task}=>", 0) + int(one["bytes"])
    points = []
    for row in table["rows"]:
        value = row["cells"][metric["metric"]]["mean"]
        if value is not None and math.isfinite(value):
            size = sum(sizes.get(edge, 0) for edge in dict.fromkeys(edges[row["row"]]))
            points.append({"row": row["row"], **_privacy(by_row[row["row"]]), "value": value, "bytes": size})
    for point in points:
        point["best"] = not any(_beats(other, point) for other in points)
    for point in points:
        del point["bound"]
    return {**metric, "points": points} if len(points) > 1 else None


def _metric(spec: ReportSpec, table: Mapping[str, Any]) -> dict[str, str] | None:
    """What counts as use: the vertical axis of the pipeline's chart, else the first column with numbers."""
    wanted = spec.chart.y if spec.chart else ""
    columns = sorted(table["columns"], key=lambda column: column["metric"] != wanted)
    having = (c for c in columns if any(row["cells"][c["metric"]]["mean"] is not None for row in table["rows"]))
    return next(having, None)


def _privacy(accounts: list[dict[str, Any]]) -> dict[str, Any]:
    """{word, epsilon, unit, delta, bound}: of all parties; epsilon is None where no one number says what is promised.

    bound: unit -> [epsilon, delta], of every part the largest; None where nothing is promised, or an epsilon was not computed.
    """
    spent = [a for a in accounts if a["word"] != "nothing crosses"]
    found: dict[str, Any] = {"word": _word(spent), "epsilon": None, "unit": "", "delta": 0.0, "bound": None}
    parts = [part for a in spent for part in a.get("parts") or [{**a, "class": a["word"]}]]
    if found["word"] in PROMISES_NOTHING or any(part["epsilon"] is None for part in parts):
        return found
    bound: dict[str, list[float]] = {}
    for part in parts:
        unit = ", ".join([part["unit"], *part.get("of", ())])
        before = bound.get(unit, [0.0, 0.0])
        bound[unit] = [max(before[0], float(part["epsilon"])), max(before[1], float(part.get("delta", 0.0)))]
    if len(bound) > 1:
        return {**found, "bound": bound}
    unit, (epsilon, delta) = next(iter(bound.items()), ("", (0.0, 0.0)))
    return {**found, "epsilon": epsilon, "unit": unit, "delta": delta, "bound": bound}


def _word(spent: list[dict[str, Any]]) -> str:
    """The weakest class of all parties, unprotected and void before all."""
    words = {a["word"] for a in spent}
    if "unprotected" in words:
        return "unprotected"
    if any(a["void"] for a in spent):
        return "void"
    return weakest(words) if words else "nothing crosses"


def per_unit(unit: str) -> str:
    """The unit of a point in words, '' for none."""
    name, _, more = unit.partition(", ")
    relation = f" ({more})" if more and name in ("record", "client") else ""
    return f"{per(name)}{relation}" if name else ""


def _beats(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a row is at least as good as another in all three and better in one; unlike promises do not beat each other."""
    better = one["value"] > other["value"] or one["bytes"] < other["bytes"] or not _as_private(other, one)
    return better and one["value"] >= other["value"] and one["bytes"] <= other["bytes"] and _as_private(one, other)


def _as_private(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether what is promised of a row is at least what is promised of another: every part of it, in the same unit."""
    mine, yours = one["bound"], other["bound"]
    if mine is None or yours is None:
        return one["word"] == other["word"] in PROMISES_NOTHING or (
            other["word"] in PROMISES_NOTHING and (mine is not None or other["word"] == "unprotected")
        )
    return all(unit in yours and all(a <= b for a, b in zip(mine[unit], yours[unit], strict=True)) for unit in mine)


# ---- the picture ----


def draw(found: Mapping[str, Any] | None, ticks: Any) -> dict[str, Any] | None:
    """The picture in SVG units, or None when there is nothing to draw. ticks: values -> round numbers around them."""
    if not found:
        return None
    points = found["points"]
    placed = [p for p in points if p["epsilon"] is not None and p["epsilon"] > 0]
    unit = max({p["unit"] for p in placed}, key=lambda u: sum(p["unit"] == u for p in placed), default="")
    on = [p for p in placed if p["unit"] == unit]
    aside = [p for p in points if p not in on and p["epsilon"] != 0]
    none = [p for p in points if p["epsilon"] == 0]
    up = ticks([p["value"] for p in points])
    left, right = LEFT + (70 if none else 0), WIDE - (ASIDE if aside else 20)
    scale = _across([p["epsilon"] for p in on], left, right)
    delta = max((p["delta"] for p in on), default=0.0)
    most = max((p["bytes"] for p in points), default=0) or 1

    def height(value: float) -> float:
        return float(HIGH - BOTTOM - (value - up[0]) / (up[-1] - up[0]) * (HIGH - BOTTOM - TOP))

    def mark(point: Mapping[str, Any], x: float) -> dict[str, Any]:
        y = height(point["value"])
        radius = SMALL + (LARGE - SMALL) * math.sqrt(point["bytes"] / most)
        return {**point, "per": per_unit(point["unit"]), "x": round(x, 1), "y": round(y, 1), "r": round(radius, 1)}

    marks = [mark(p, scale["at"](p["epsilon"])) for p in on]
    across = f"epsilon {per_unit(unit)}{f', delta at most {delta:g}' if delta else ''}, smaller is more private"
    marks += [mark(p, LEFT + 35) for p in none] + [mark(p, right + ASIDE / 2) for p in aside]
    best = _rising([m for m in marks if m["best"] and m["epsilon"] is not None and m["unit"] == unit])
    _name(marks)
    return {
        "title": f"{found['title']} against privacy against bytes", "y": found["title"], "unit": unit, "marks": marks,
        "x": across if unit else "privacy",
        "path": "M" + "L".join(f"{m['x']} {m['y']}" for m in best) if len(best) > 1 else "",
        "across": scale["ticks"], "left": left, "right": right,
        "from": LEFT, "to": WIDE - 12, "top": TOP, "bottom": HIGH - BOTTOM,
        "up": [{"at": round(height(t), 1), "text": f"{t:.6g}"} for t in up],
        "none": bool(none), "aside": bool(aside), "width": WIDE, "height": HIGH, "most": most,
    }  # fmt: skip


def _rising(marks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of points that nothing beats, those that the line goes through: each gives more than all with less epsilon."""
    found: list[dict[str, Any]] = []
    for mark in sorted(marks, key=lambda m: (m["x"], -m["value"])):
        if not found or mark["value"] > found[-1]["value"]:
            found.append(mark)
    return found


def _across(values: list[float], left: float, right: float) -> dict[str, Any]:
    """A logarithmic scale over the epsilons that occur; its ticks are these, as far as they stand apart."""
    low, high = math.log(min(values, default=1.0)), math.log(max(values, default=1.0))
    span = (high - low) or 1.0

    def at(value: float) -> float:
        share = (math.log(value) - low) / span if high > low else 0.5
        return left + 30 + share * (right - left - 60)

    ticks: list[dict[str, Any]] = []
    for value in sorted(set(values)):
        if not ticks or at(value) - ticks[-1]["x"] > 34:
            ticks.append({"x": round(at(value), 1), "text": f"{value:.4g}"})
    return {"at": at, "ticks": ticks}


def _name(marks: list[dict[str, Any]]) -> None:
    """Names beside the points, where they do not run into each other."""
    taken: list[tuple[float, float, float]] = []
    for mark in sorted(marks, key=lambda m: (not m["best"], m["y"])):
        wide = 6.4 * len(mark["row"])
        left = mark["x"] + mark["r"] + 4
        turned = left + wide > WIDE - 4
        start = mark["x"] - mark["r"] - 4 - wide if turned else left
        clash = any(abs(mark["y"] - y) < 13 and start < b and start + wide > a for a, b, y in taken)
        clash = clash or any(
            o is not mark and abs(o["y"] - mark["y"]) < o["r"] + 5 and start - o["r"] < o["x"] < start + wide + o["r"]
            for o in marks
        )
        mark["label"] = None if clash or len(taken) >= NAMED else {"x": round(start if turned else left, 1), "y": mark["y"] + 4}
        if mark["label"]:
            taken.append((start, start + wide, mark["y"]))
