# SPDX-License-Identifier: Apache-2.0
"""The report: one HTML file that needs nothing but itself. All numbers come from the summary; here they are only laid out.

The page's own Content-Security-Policy forbids every load and every script; its one style sheet is allowed by its hash, so
text from records can bring neither markup (everything is escaped) nor style.
"""

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

from osmotic.runtime.report_chart import draw
from osmotic.runtime.report_graph import lay_out
from osmotic.runtime.tables import number_of

LONGEST = 1200  # characters of one field of a sample
CHART, LABEL, BAND = 460, 150, 26  # widths of a chart and of its labels, height of a row, in SVG units


def render(summary: Mapping[str, Any], *, title: str | None = None) -> str:
    """The report of a run as HTML: `summary` is what `runtime.summary.summarise` returns.

    An optional key ``ledger`` holds the parties' `accounts.summary`. `title` replaces the pipeline's name in the heading.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    folder = files("osmotic.runtime")
    css = folder.joinpath("report.css").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=number, signed=signed, size=size, time=time, text=text, cut=cut, tone=tone_of)
    template = environment.from_string(folder.joinpath("report.html").read_text("utf-8"))
    roles = roles_of(summary)
    graph = lay_out(summary["graph"], parties_of(roles))
    lines = draw(summary.get("chart"), scale)
    page = template.render(
        s=summary,
        title=title or summary["pipeline"],
        css=Markup(css),
        style_hash=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
        tone=run_tone(summary["guarantee"]["parties"]),
        graph=graph,
        lines=lines,
        charts=[] if lines else [chart(summary["table"], column) for column in summary["table"]["columns"]],
        several_seeds=any(len(c["seeds"]) > 1 for row in summary["table"]["rows"] for c in row["cells"].values()),
        differences={(c["row"], c["metric"]): c for c in summary["table"]["comparisons"]},
        crossed=crossed(summary, roles, graph.numbers),
        crossings=number_of(summary["crossings"]),
        samples=[{**s, "columns": list(dict.fromkeys(k for row in s["rows"] for k in row))} for s in summary["samples"]],
        times=times(summary["outcome"]["times"]),
    )
    return page.lstrip().encode("utf-8", "replace").decode("utf-8")  # a lone surrogate could not be written to a file


# ---- words and numbers ----


def number(value: Any) -> str:
    """A metric: three decimals, thousands grouped; a dash when there is none."""
    if value is None:
        return "\u2013"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.3f}"


def signed(value: float) -> str:
    """A difference with its sign, the minus as long as the plus."""
    return f"{value:+.3f}".replace("-", "\u2212")


def size(count: float) -> str:
    """Bytes in a unit that reads well (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def time(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{seconds / 60:.1f} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def text(value: Any) -> str:
    """A field of a record: text as it is, anything else as JSON; very long ones are cut, and say so."""
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]} … ({len(shown) - LONGEST:,} more characters)"


def cut(value: str, most: int) -> str:
    """A label that fits its box; the whole of it is in the tooltip."""
    return value if len(value) <= most else value[: most - 1] + "…"


def tone_of(words: str) -> str:
    """The class of a guarantee in words: bad, warn or good."""
    if words.startswith("unprotected"):
        return "bad"
    return "warn" if words.startswith(("heuristic", "void")) else "good"


def run_tone(accounts: Iterable[Mapping[str, Any]]) -> str:
    """The run's: that of the weakest party."""
    tones = {tone_of("void" if a["void"] and a["word"] != "unprotected" else a["word"]) for a in accounts}
    return next((tone for tone in ("bad", "warn") if tone in tones), "good")


# ---- tables ----


def node_of(instance: str) -> str:
    """The task as written of an instance: ``student[arm=x]@hub`` -> ``student``."""
    return instance.partition("[")[0].partition("@")[0]


def roles_of(summary: Mapping[str, Any]) -> dict[str, str]:
    """Party -> role, from where the tasks ran."""
    at = {node["name"]: node["at"] for node in summary["graph"]["nodes"]}
    found = {instance.rpartition("@")[2]: at.get(node_of(instance), "") for instance in summary["outcome"]["times"]}
    return {party: role for party, role in found.items() if role}


def parties_of(roles: Mapping[str, str]) -> dict[str, list[str]]:
    """Role -> its parties, sorted."""
    found: dict[str, list[str]] = {}
    for party, role in sorted(roles.items()):
        found.setdefault(role, []).append(party)
    return found


def crossed(
    summary: Mapping[str, Any], roles: Mapping[str, str], numbers: Mapping[tuple[str, str], int]
) -> list[dict[str, Any]]:
    """What crossed, summed by producing output and receiving input; `n` is the number of its mark in the picture."""
    waived = {(e["from"], e["name"]) for e in summary["graph"]["edges"] if e["waived"]}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for one in summary["crossings"]:
        producer, _, rest = one["edge"].partition("->")[0].rpartition("@")
        node, port = node_of(producer), rest.partition(".")[2]
        new = {"what": f"{node}.{port}" if port else node, "count": 0, "bytes": 0, "again": 0, "from": set(), "to": set()}
        row = rows.setdefault((node, one["name"]), {**new, "name": one["name"]})
        row["count"] += int(one.get("count", 1))
        row["bytes"] += one["bytes"]
        row["again"] += not one["bytes"]
        row["from"].add(one["sender"])
        row["to"].add(one["receiver"])
    for key, row in rows.items():
        row |= {"from": _who(row["from"], roles), "to": _who(row["to"], roles), "waived": key in waived, "n": numbers.get(key)}
    return sorted(rows.values(), key=lambda r: (r["n"] is None, r["n"] or 0, r["name"]))


def _who(parties: set[str], roles: Mapping[str, str]) -> str:
    role = "/".join(sorted({roles.get(p, "") for p in parties} - {""}))
    named = ", ".join(sorted(parties)) if len(parties) <= 4 else f"{len(parties)} parties"
    return f"{role} ({named})" if role and role != named else named


def times(by_instance: Mapping[str, float]) -> list[dict[str, Any]]:
    """Task as written -> how often, how long in all, the longest; `share` of the slowest task's total is the bar."""
    found: dict[str, list[float]] = {}
    for instance, seconds in by_instance.items():
        found.setdefault(node_of(instance), []).append(seconds)
    most = max((sum(v) for v in found.values()), default=0.0) or 1.0
    return [{"task": n, "count": len(v), "total": sum(v), "longest": max(v), "share": sum(v) / most} for n, v in found.items()]


# ---- the chart of one metric ----


def chart(table: Mapping[str, Any], column: Mapping[str, str]) -> dict[str, Any]:
    """Dots of the seeds and the mean of every row, on one scale; `rows` are empty when nothing was measured."""
    picked = [(row, row["cells"].get(column["metric"])) for row in table["rows"]]
    known = [(row, cell) for row, cell in picked if cell and _finite(cell["mean"])]
    known.sort(key=lambda pair: pair[0]["apart"])
    joint = sum(not row["apart"] for row, _ in known)  # the rule stands above this row
    values = [v for _, cell in known for v in [*cell["seeds"].values(), cell["mean"]] if _finite(v)]
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
                "mean": place(cell["mean"]), "value": cell["mean"],
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
