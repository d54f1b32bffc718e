# SPDX-License-Identifier: Apache-2.0
"""Who was there when gathers with a quorum ran, in words: "aggregated 3 of 5; lost: b (timeout after 120 s), d (refused: ...)".

Rounds in which the same parties were there for the same reasons stand in one line.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from osmotic.runtime.plan.graph import Graph, Instance

LINES = 12  # lines that are shown


def ordered(quorums: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By task as written, then by round."""
    return sorted((dict(one) for one in quorums), key=lambda q: (q["node"], q["round"] or 0, q["task"], q["input"]))


def lines(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows {task, what}: one a gather and run of rounds in which somebody was missing; `what` is the sentence."""
    found: list[dict[str, Any]] = []
    for one in summary.get("quorums", ()):
        if not one["lost"]:
            continue
        what = sentence(one)
        last = found[-1] if found else None
        same = last is not None and (last["node"], last["what"], last["input"]) == (one["node"], what, one["input"])
        if last is not None and same and one["round"] is not None and one["round"] in (last["to"], last["to"] + 1):
            last["to"], last["count"] = one["round"], last["count"] + 1
        else:
            found.append({**one, "what": what, "to": one["round"], "count": 1})
    rows = [{"task": _where(one), "what": one["what"]} for one in found]
    more = len(rows) - LINES
    return rows if more <= 0 else [*rows[:LINES], {"task": "", "what": f"and {more} more like these; all are in run.json"}]


def sentence(one: Mapping[str, Any]) -> str:
    """Who was there for a gather, and who was not."""
    lost = ", ".join(f"{party['party']} ({party['text']})" for party in one["lost"])
    return f"aggregated {len(one['used'])} of {one['of']}" + (f"; lost: {lost}" if lost else "")


def unheard(summary: Mapping[str, Any]) -> str:
    """Parties that could not be asked when the run had ended; '' when all could."""
    lost: Mapping[str, str] = summary.get("lost", {})
    if not lost:
        return ""
    who = ", ".join(f"{party} ({why})" for party, why in sorted(lost.items()))
    return f"Not heard at the end: {who}. Their metrics, accounts and transcripts are not in here."


def unsure(graph: Graph, rows: Mapping[str, Iterable[Instance]], lost: Collection[str]) -> dict[str, list[str]]:
    """Row -> parties that were not heard and may have given something to it."""
    made = {row: graph.ancestors([one.id for one in found]) if lost else () for row, found in rows.items()}
    return {row: sorted({graph.instances[one].party for one in ids} & set(lost)) for row, ids in made.items()}


def _where(one: Mapping[str, Any]) -> str:
    """The task as written, with the rounds, or as it ran where there is only one."""
    if one["count"] == 1:
        return str(one["task"])
    return f"{one['node']}, rounds {one['round']} to {one['to']}"


def text(summary: Mapping[str, Any]) -> Sequence[str]:
    """Paragraphs for the result as text."""
    found = lines(summary)
    told = "\n".join(f"{row['task']}: {row['what']}".removeprefix(": ") for row in found)
    return [part for part in (told, unheard(summary)) if part]
