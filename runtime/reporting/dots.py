# SPDX-License-Identifier: Apache-2.0
"""The chart of one metric: a row of the table each, with its seeds, its mean and the interval of the mean; and round ticks."""

import math
from collections.abc import Mapping
from typing import Any

CHART, LABEL, BAND, MOST = 460, 150, 26, 60  # widths of a chart and of its labels, height of a row, rows that are drawn


def chart(table: Mapping[str, Any], column: Mapping[str, str]) -> dict[str, Any]:
    """Dots of the seeds, the mean and its interval of every row, on one scale; `rows` are empty when nothing was measured."""
    picked = [(row, row["cells"].get(column["metric"])) for row in table["rows"]]
    known = [(row, cell) for row, cell in picked if cell and _finite(cell["mean"])][:MOST]
    known.sort(key=lambda pair: pair[0]["apart"])
    joint = sum(not row["apart"] for row, _ in known)  # the rule stands above this row
    ends = [v for _, cell in known for v in (cell.get("low"), cell.get("high")) if _finite(v)]
    values = [v for _, cell in known for v in [*cell["seeds"].values(), cell["mean"]] if _finite(v)] + ends
    ticks = scale(values)
    span = ticks[-1] - ticks[0] if ticks else 1.0

    def place(value: float) -> float:
        return round(LABEL + 14 + (value - ticks[0]) / span * (CHART - LABEL - 34), 1)

    return {
        "title": column["title"], "width": CHART, "height": 8 + BAND * len(known) + 26, "label": LABEL,
        "ticks": [{"x": place(t), "text": f"{t:.6g}"} for t in ticks],
        "rows": [
            {
                "row": row["row"], "rule": i == joint > 0, "first": row["row"] == table["baseline"], "y": 8 + BAND * (i + 0.5),
                "mean": place(cell["mean"]), "value": cell["mean"], "low": cell.get("low"), "high": cell.get("high"),
                "span": [place(cell[end]) for end in ("low", "high") if _finite(cell.get(end))],
                "dots": [{"x": place(v), "seed": seed, "value": v} for seed, v in cell["seeds"].items() if _finite(v)],
            }
            for i, (row, cell) in enumerate(known)
        ],
    }  # fmt: skip


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def scale(values: list[float]) -> list[float]:
    """Round ticks around the values: steps of 1, 2 or 5 times a power of ten; empty without values."""
    if not values:
        return []
    low, high = min(values), max(values)
    rough = max(high - low, abs(high) * 0.02, 1e-9) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]
