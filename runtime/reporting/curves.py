# SPDX-License-Identifier: Apache-2.0
"""Learning curves: one chart a task, one line an arm, the mean over parties and seeds; logarithmic over decades."""

import math
from collections.abc import Mapping
from typing import Any

from osmotic.runtime.reporting.lines import DASHES, STYLES

WIDE, HIGH, LEFT, RIGHT, TOP, BOTTOM = 460, 240, 52, 12, 12, 40  # in SVG units
DECADES = 30.0  # from this ratio of the largest to the smallest value on, the scale is logarithmic


def draw(curve: Mapping[str, Any], ticks: Any) -> dict[str, Any]:
    """A chart in SVG units; `lines` is empty where there is nothing to draw. ticks: values -> round numbers around them."""
    values = [v for line in curve["lines"] for v in line["values"] if math.isfinite(v)]
    steps = [step for line in curve["lines"] for step in line["steps"]]
    head = {"title": f"{curve['task']}: {curve['metric']}", "width": WIDE, "height": HIGH}
    if not values or len(set(steps)) < 2:
        return {**head, "lines": []}
    log = min(values) > 0 and max(values) / min(values) >= DECADES
    up = _decades(min(values), max(values)) if log else ticks(values)
    last = max(steps)

    def y_of(value: float) -> float:
        low, high, at = map(math.log10, (up[0], up[-1], value)) if log else (float(up[0]), float(up[-1]), value)
        return round(HIGH - BOTTOM - (at - low) / (high - low) * (HIGH - BOTTOM - TOP), 1)

    def x_of(step: float) -> float:
        return float(round(LEFT + step / last * (WIDE - LEFT - RIGHT), 1))

    lines = []
    for i, line in enumerate(curve["lines"]):
        known = [(s, v) for s, v in zip(line["steps"], line["values"], strict=True) if math.isfinite(v)]
        path = "M" + "L".join(f"{x_of(s)} {y_of(v)}" for s, v in known)
        end = known[-1][1] if known else math.nan
        lines.append({**line, "path": path, "style": i % STYLES, "dash": DASHES[i % len(DASHES)], "end": end})
    across = [t for t in ticks([0.0, float(last)]) if t <= last]
    return {
        **head, "log": log, "lines": lines, "left": LEFT, "right": WIDE - RIGHT, "top": TOP, "bottom": HIGH - BOTTOM,
        "across": [{"at": x_of(t), "text": f"{t:.6g}"} for t in across],
        "up": [{"at": y_of(t), "text": f"{t:.6g}"} for t in up],
    }  # fmt: skip


def _decades(low: float, high: float) -> list[float]:
    return [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
