# SPDX-License-Identifier: Apache-2.0
"""What crossed, as planned and as it happened, and where tasks ran: rows of tables."""

from collections.abc import Mapping
from typing import Any


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


def with_labels(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The graph as drawn: edges say whether what crossed them was `exposed`, raw data that some waiver let out before."""
    bare = {(node_of(c["edge"]), c["name"]) for c in summary["crossings"] if c.get("label") == "exposed"}
    edges = [{**edge, "exposed": (edge["from"], edge["name"]) in bare} for edge in summary["graph"]["edges"]]
    return {**summary["graph"], "edges": edges}


def crossed(
    summary: Mapping[str, Any], roles: Mapping[str, str], numbers: Mapping[tuple[str, str], int]
) -> list[dict[str, Any]]:
    """What crossed, summed by producing output and receiving input; `n` is the number of its mark in the picture.

    `plan`: what was to cross, None where that is not known; `differs`: in what it was otherwise.
    """
    waived = {(e["from"], e["name"]) for e in summary["graph"]["edges"] if e["waived"]}
    planned = {(row["task"], row["name"]): row for row in summary.get("plan", {}).get("crossings", ())}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for one in summary["crossings"]:
        producer, _, rest = one["edge"].partition("->")[0].rpartition("@")
        node, port = node_of(producer), rest.partition(".")[2]
        _add(rows.setdefault((node, one["name"]), _fresh(f"{node}.{port}" if port else node, one["name"])), one)
    for key, row in rows.items():
        row |= {"from": _who(row["from"], roles), "to": _who(row["to"], roles), "waived": key in waived, "n": numbers.get(key)}
        row["plan"] = planned.get(key)
        row["differs"] = _differs(row) if row["plan"] else []
    return sorted(rows.values(), key=lambda r: (r["n"] is None, r["n"] or 0, r["name"]))


def _fresh(what: str, name: str) -> dict[str, Any]:
    counts = {"count": 0, "bytes": 0, "sent": 0, "again": 0}
    return {"what": what, "name": name, **counts, "from": set(), "to": set(), "kinds": set(), "labels": set()}


def _add(row: dict[str, Any], one: Mapping[str, Any]) -> None:
    row["count"] += int(one.get("count", 1))
    row["bytes"] += one["bytes"]
    row["sent"] += one.get("sent", one["bytes"])
    row["again"] += not one["bytes"]
    row["from"].add(one["sender"])
    row["to"].add(one["receiver"])
    row["kinds"] |= {one.get("kind") or "call" if "=>" in one["edge"] else one.get("kind", "")} - {""}
    row["labels"] |= {one.get("label", "")} - {""}


def _differs(row: Mapping[str, Any]) -> list[str]:
    plan, found = row["plan"], []
    if row["labels"] and not row["labels"] <= set(plan["labels"]):
        found.append(f"planned as {', '.join(plan['labels'])}")
    if row["kinds"] and row["kinds"] != {plan["kind"]}:
        found.append(f"planned as {plan['kind']}")
    if row["count"] != plan["count"]:
        found.append(f"planned {plan['count']:,}")
    return found


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
