# SPDX-License-Identifier: Apache-2.0
"""The result of a run as text: guarantee first, table, differences; then the plan's tables with what really happened."""

from collections.abc import Mapping
from typing import Any

from osmotic.runtime.reporting.frontier import per_unit
from osmotic.runtime.results import survivors
from osmotic.runtime.screen.tables import grid, number_of, size, width
from osmotic.runtime.secure.telling import summed

SHOWN = "Scores and samples of benchmark data are shown here."


def result_text(summary: dict[str, Any]) -> str:
    """The result as text: guarantee, table, differences, crossings, where the report is."""
    parts = [summary["guarantee"]["line"]]
    if summary["guarantee"].get("shown"):
        parts.append(SHOWN)
    table = summary["table"]
    if table["rows"]:
        parts += [_arms(table), _differences(table)]
    if table["withheld"]:
        parts.append(f"Kept back (private data): metrics of {', '.join(table['withheld'])}; see each party's own folder.")
    parts += [*survivors.text(summary), summed(summary)]
    if summary["crossings"]:
        parts.append(_crossed(summary))
    parts += [_asked(summary.get("plan", {})), _budget(summary.get("plan", {}))]
    parts.append(_frontier(summary.get("frontier")))
    moved = sum(c["bytes"] for c in summary["crossings"])
    outcome = summary["outcome"]
    done = f"{outcome['tasks']} tasks: {outcome['ran']} ran, {outcome['cached']} found finished"
    crossed = f"{number_of(summary['crossings'])} crossings, {size(moved)} moved; {outcome['seconds']:.1f} s"
    parts.append(f"{done}; {crossed}. Report: {summary['home']}/report.html")
    return "\n\n".join(p for p in parts if p)


def _crossed(summary: dict[str, Any]) -> str:
    """What crossed, one line an edge as written, beside what the plan expected."""
    waived = {e["name"] for e in summary["graph"]["edges"] if e["waived"]}
    expected = {row["name"]: row for row in summary.get("plan", {}).get("crossings", [])}
    found: dict[str, list[dict[str, Any]]] = {}
    for crossing in summary["crossings"]:
        found.setdefault(crossing["name"], []).append(crossing)
    rows = [
        [name, _who(cs, "sender") + " -> " + _who(cs, "receiver"), ", ".join(sorted({c.get("label", "") for c in cs} - {""})),
         next((c["kind"] for c in cs if c.get("kind")), "call"), str(number_of(cs)), _expected(expected.get(name)),
         size(sum(c["bytes"] for c in cs)), "WAIVED" if name in waived else ""]
        for name, cs in found.items()
    ]  # fmt: skip
    return grid(["what crossed", "direction", "label", "kind", "times", "planned", "bytes (new)", ""], rows, width())


def _expected(row: Mapping[str, Any] | None) -> str:
    """What the plan knew of an edge: bytes of the last time."""
    if row is None or row["bytes"] is None:
        return "not known"
    return size(row["bytes"]) if row["known"] == row["count"] else f"about {size(row['bytes'])}"


def _asked(plan: Mapping[str, Any]) -> str:
    """Models that tasks asked: estimates, and what the tasks that say it really asked."""
    rows = []
    for one in plan.get("calls", ()):
        actual = one["actual"] or {}
        told = [f"{actual[key]:,}" if key in actual else "-" for key in ("calls", "prompt_tokens", "new_tokens")]
        about = ["not known" if one[key] is None else f"{one[key]:,}" for key in ("calls", "prompt_tokens", "new_tokens")]
        pairs = [f"{now} (about {then})" for now, then in zip(told, about, strict=True)]
        rows.append([one["task"], one["model"], one["at"], str(one["instances"]), *pairs])
    head = ["models asked", "model", "at", "runs", "calls (planned)", "tokens read (planned)", "written (planned, at most)"]
    return grid(head, rows, width()) if rows else ""


def _budget(plan: Mapping[str, Any]) -> str:
    """What was spent of each data set, before and after."""
    rows = [
        [b["party"], b["dataset"], b["unit"], *(_number(b[key]) for key in ("before", "after", "left")),
         "NO CAP" if b["cap"] is None else f"{b['cap']:g}"]
        for b in plan.get("budget", ())
    ]  # fmt: skip
    return grid(["budget of", "data set", "unit", "spent before", "now", "left", "cap"], rows, width()) if rows else ""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _frontier(found: Mapping[str, Any] | None) -> str:
    """Rows that no other one beats in privacy, use and bytes together."""
    best = [p for p in found["points"] if p["best"] and p["epsilon"] is not None] if found else []
    if not found or len(best) == len(found["points"]):
        return ""
    rows = [[p["row"], f"{p['epsilon']:g} {per_unit(p['unit'])}".strip(), f"{p['value']:.3f}", size(p["bytes"])] for p in best]
    return grid(["not beaten", "epsilon", found["title"], "bytes"], rows, width())


def _who(crossings: list[dict[str, Any]], end: str) -> str:
    names = sorted({c[end] for c in crossings})
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} parties"


def _arms(table: dict[str, Any]) -> str:
    several = any(len(cell["seeds"]) > 1 for r in table["rows"] for cell in r["cells"].values())
    bounds = any("low" in cell for r in table["rows"] for cell in r["cells"].values())
    shown = (" (each seed) mean" if several else "") + (" [95%]" if bounds else "")
    head = [table["axis"], *[c["title"] + shown for c in table["columns"]], "what crossed"]
    metrics = [c["metric"] for c in table["columns"]]
    cells = {r["row"]: [r["row"], *[_cell(r["cells"][m]) for m in metrics], r["guarantee"]] for r in table["rows"]}
    rows, apart = ([cells[r["row"]] for r in table["rows"] if r["apart"] is aside] for aside in (False, True))
    text = grid(head, rows + apart)
    if not apart:
        return text
    lines = text.split("\n")
    split = len(lines) - len(apart)
    return "\n".join([*lines[:split], "apart: weights trained on raw records are averaged", *lines[split:]])


def _cell(cell: dict[str, Any]) -> str:
    if cell["mean"] is None:
        return cell.get("note") or "-"
    bounds = f" [{cell['low']:.3f}, {cell['high']:.3f}]" if "low" in cell else ""
    if len(cell["seeds"]) == 1:
        return f"{cell['mean']:.3f}{bounds}"
    return " ".join(f"{v:.3f}" for v in cell["seeds"].values()) + f"  {cell['mean']:.3f}{bounds}"


def _differences(table: dict[str, Any]) -> str:
    titles = {c["metric"]: c["title"] for c in table["columns"]}
    rows = [
        [f"{c['row']} - {c['against']}", titles[c["metric"]], f"{c['difference']:+.3f}", f"[{c['low']:+.3f}, {c['high']:+.3f}]"]
        for c in table["comparisons"]
    ]
    if not rows:
        return ""
    seeds = {c.get("seeds", 1) for c in table["comparisons"]}
    over = "one seed, nothing is said about others" if seeds == {1} else f"and {_span(seeds)} seeds"
    note = f"Paired by test record and seed, 95%: bootstrap over records, {over}"
    return f"{note}\n{grid(['difference', 'answering', 'mean', 'interval'], rows)}"


def _span(counts: set[int]) -> str:
    """A number, or the smallest and the largest."""
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
