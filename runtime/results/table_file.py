# SPDX-License-Identifier: Apache-2.0
"""The table of a run as CSV, a line a row: values of the axes, each metric with its interval, guarantee, epsilon, bytes.

The guarantee and epsilon of a line are those of the row by itself; what the whole run gave away is the sum over all rows, and
stands in the first line of the run's output.
"""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osmotic.runtime.storage.store import disk


def write_table(summary: Mapping[str, Any], path: Path) -> None:
    """Write the table of a run; raises StoreError when the file cannot be written."""
    text = table_csv(summary)
    with disk(path):
        path.write_text(text, encoding="utf-8", newline="")


def table_csv(summary: Mapping[str, Any]) -> str:
    """The table as CSV. `frontier`: yes where no other row is better in privacy, use and bytes together; '': not compared."""
    table, axes = summary["table"], list(summary["table"]["axes"])
    metrics = [column["metric"] for column in table["columns"]]
    points = {point["row"]: point for point in (summary.get("frontier") or {"points": []})["points"]}
    head = [*axes, *(name for metric in metrics for name in (metric, f"{metric} low", f"{metric} high"))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*head, "guarantee", "epsilon spent", "unit", "delta", "bytes", "frontier"])
    for row in table["rows"]:
        cells = [row["cells"][metric].get(key) for metric in metrics for key in ("mean", "low", "high")]
        point = points.get(row["row"], {})
        beaten = {True: "yes", False: "no"}.get(point.get("best"), "")
        last = [row["guarantee"], point.get("epsilon"), point.get("unit"), point.get("delta"), point.get("bytes"), beaten]
        writer.writerow(["" if value is None else value for value in (*_values(row["row"], axes), *cells, *last)])
    return out.getvalue()


def _values(name: str, axes: list[str]) -> list[str]:
    """A row's value of each axis; its whole name first where that cannot be told apart."""
    parts = name.split(", ")
    return parts if len(parts) == len(axes) else [name, *[""] * (len(axes) - 1)]
