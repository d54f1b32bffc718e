# SPDX-License-Identifier: Apache-2.0
"""The result of a run as plain values: guarantee first, table of arms, crossings, graph. Printed, saved and shown from here.

Intervals are paired bootstrap intervals over test records (percentiles of 2,000 resamples, 95%), seeds and parties averaged
within a record; they say nothing about other seeds, and the table says so.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from osmotic.runtime.graph import Graph, Instance
from osmotic.runtime.keys import environment
from osmotic.runtime.membrane import edge_id
from osmotic.runtime.run import Outcome, ask
from osmotic.runtime.transports.base import Transport
from osmotic.schemas.errors import OsmoticError

RESAMPLES = 2000


def summarise(graph: Graph, transport: Transport, outcome: Outcome, parties: Sequence[str] = ()) -> dict[str, Any]:
    """Everything that the whole's table and report show; what a party keeps back is named, not shown.

    parties: whose accounts are asked for; none named: everybody's.
    """
    arms = rows_of(graph)
    accounts = account(graph, transport, _edges(graph, list(graph.instances)), parties)
    by_row = {
        row: account(graph, transport, _edges(graph, graph.ancestors([i.id for i in found])), parties)
        for row, found in arms.items()
    }
    table, scored = _table(graph, transport, arms, by_row)
    samples, sampled = _samples(graph, transport)
    guarantee = {"line": first_line(accounts, by_row), "shown": scored or sampled, "parties": accounts, "rows": by_row}
    return {
        "pipeline": graph.pipeline.name,
        "description": graph.pipeline.description,
        "guarantee": guarantee,
        "table": table,
        "graph": drawing(graph),
        "crossings": [vars(c) for c in sorted(outcome.crossings, key=lambda c: c.edge)],
        "samples": samples,
        "outcome": {
            "tasks": len(graph.instances), "ran": outcome.ran, "cached": outcome.cached, "seconds": outcome.seconds,
            "stopped": outcome.stopped, "times": outcome.times,
        },
        "versions": environment(),
    }  # fmt: skip


def rows_of(graph: Graph) -> dict[str, list[Instance]]:
    """Row -> instances of the table's task, in the axis' order; '' when the pipeline has no table or no such axis."""
    name, axis = graph.pipeline.report.table, graph.pipeline.report.rows
    found: dict[str, list[Instance]] = {str(v): [] for v in graph.pipeline.matrix.get(axis, ())}
    for instance in graph.instances.values():
        if name is not None and instance.node == name:
            found.setdefault(str(dict(instance.cell).get(axis, "all")), []).append(instance)
    return {row: instances for row, instances in found.items() if instances}


def _edges(graph: Graph, ids: "list[str] | set[str]") -> list[str]:
    """Crossings into these instances, and (``ID=>``) their model calls."""
    edges = [edge_id(e, i) for i in sorted(ids) for e in graph.instances[i].edges() if e.crossing]
    return edges + [f"{i}=>" for i in sorted(ids)]


def account(graph: Graph, transport: Transport, edges: list[str], parties: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Each party's guarantee over the crossings, from its own ledger; parties without data of their own are left out."""
    found = []
    for party in parties or graph.role_of:
        _, body = ask(transport, party, {"op": "account", "crossings": edges})
        one = json.loads(body)
        if one["word"] != "nothing crosses" or _has_data(graph, party):
            found.append(one)
    return found


def _has_data(graph: Graph, party: str) -> bool:
    return any(o.label == "source" for i in graph.at(party) for o in graph.nodes[i.node].component.outputs.values())


def words(accounts: list[dict[str, Any]]) -> str:
    """A guarantee in words, the document's epsilon first: '24 a document (6 fields x 4)'."""
    if any(a["word"] == "unprotected" for a in accounts):
        return "unprotected"
    spent = [a for a in accounts if a["word"] != "nothing crosses"]
    if not spent:
        return "nothing crosses"
    most = max(spent, key=lambda a: a["epsilon"])
    void = sorted({v for a in spent for v in a["void"]})
    if any(a["word"] == "heuristic" for a in spent):
        return "heuristic: no guarantee"
    if void:
        return f"void: {', '.join(void)} (would be {most['epsilon']:g} a document)"
    return f"epsilon {most['epsilon']:g} a document ({most['detail']}{_ever(spent, most)}), certified"


def _ever(spent: list[dict[str, Any]], most: dict[str, Any]) -> str:
    """What the documents have cost over all runs, where that is more."""
    ever = max(a.get("ever", 0.0) for a in spent)
    return f"; {ever:g} ever" if ever > most["epsilon"] + 1e-9 else ""


def first_line(accounts: list[dict[str, Any]], rows: dict[str, list[dict[str, Any]]]) -> str:
    """The run's guarantee in one line: over all crossings; edges of what was unprotected are named."""
    text = words(accounts)
    if text == "unprotected":
        waived = sorted({edge for a in accounts for edge in a["waived"]})
        text += f": raw data crossed unprotected under waivers or to trusted endpoints ({', '.join(waived)})"
        kept = [row for row, found in rows.items() if words(found) != "unprotected"]
        text += f". Rows that stay protected: {', '.join(kept)}" if kept else ""
    return f"Guarantee of this run: {text}."


def _table(
    graph: Graph, transport: Transport, arms: dict[str, list[Instance]], by_row: dict[str, Any]
) -> tuple[dict[str, Any], bool]:
    """(the table, whether it shows scores that depend on benchmark data)."""
    shown = False
    spec = graph.pipeline.report
    measured: dict[str, list[dict[str, Any]]] = {}
    withheld: list[str] = []
    for row, instances in arms.items():
        for instance in instances:
            port = next(iter(graph.nodes[instance.node].component.outputs))
            try:
                reply, body = ask(transport, instance.party, {"op": "metrics", "id": instance.id, "port": port})
            except OsmoticError:
                withheld.append(instance.party)
                continue
            shown |= bool(reply.get("benchmark"))
            cell = {a: v for a, v in instance.cell if a != spec.rows}
            measured.setdefault(row, []).append({"party": instance.party, **cell, **json.loads(body)})
    columns = [{"metric": metric, "title": title} for metric, title in spec.metrics.items()]
    rows = [_row(row, found, columns, words(by_row[row]), row in spec.apart) for row, found in measured.items()]
    first = rows[0]["row"] if rows else ""
    table = {
        "axis": spec.rows, "columns": columns, "rows": rows, "withheld": sorted(set(withheld)), "baseline": first,
        "comparisons": list(_comparisons(measured, columns, first)),
    }  # fmt: skip
    return table, shown


def _row(row: str, found: list[dict[str, Any]], columns: list[dict[str, str]], guarantee: str, apart: bool) -> dict[str, Any]:
    cells = {}
    for column in columns:
        metric = column["metric"]
        seeds: dict[str, list[float]] = {}
        for one in found:
            if metric in one["values"]:
                seeds.setdefault(str(one.get("seed", "")), []).append(one["values"][metric])
        per_seed = {seed: sum(v) / len(v) for seed, v in seeds.items()}
        mean = sum(per_seed.values()) / len(per_seed) if per_seed else None
        each = [{"party": o["party"], "seed": o.get("seed"), "value": o["values"].get(metric)} for o in found]
        cells[metric] = {"seeds": per_seed, "mean": mean, "each": each}
    return {"row": row, "guarantee": guarantee, "apart": apart, "cells": cells}


def _comparisons(
    measured: dict[str, list[dict[str, Any]]], columns: list[dict[str, str]], first: str
) -> Iterator[dict[str, Any]]:
    """Each row against the first, paired by test record."""
    for row in measured:
        for column in columns if row != first else ():
            pair = [_per_record(measured[r], column["metric"]) for r in (row, first)]
            if pair[0] and pair[1] and len(pair[0]) == len(pair[1]):
                low, high = _bootstrap([a - b for a, b in zip(*pair, strict=True)])
                mean = (sum(pair[0]) - sum(pair[1])) / len(pair[0])
                yield {"row": row, "against": first, "metric": column["metric"], "difference": mean, "low": low, "high": high}


def _per_record(found: list[dict[str, Any]], metric: str) -> list[float]:
    """Mean outcome of each test record over seeds; parties with other test sets follow one another."""
    parties: dict[str, list[list[float]]] = {}
    for one in found:
        if metric in one["outcomes"]:
            parties.setdefault(one["party"], []).append(one["outcomes"][metric])
    sets = [[sum(v) / len(v) for v in zip(*lists, strict=True)] for _, lists in sorted(parties.items())]
    lengths = {len(s) for s in sets}
    if len(lengths) == 1:  # the same test set at every party, or sets of one size: a record is resampled as a whole
        return [sum(v) / len(v) for v in zip(*sets, strict=True)]
    return [value for one in sets for value in one]


def _bootstrap(differences: list[float]) -> tuple[float, float]:
    import numpy as np

    values = np.asarray(differences)
    picks = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(values[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _samples(graph: Graph, transport: Transport, count: int = 3) -> tuple[list[dict[str, Any]], bool]:
    """(first records of each output to be shown, whether any depends on benchmark data)."""
    found, shown = [], False
    for title, reference in graph.pipeline.report.samples.items():
        node, _, port = reference.rpartition(".")
        for instance in [i for i in graph.instances.values() if i.node == node][:1]:
            try:
                header = {"op": "samples", "id": instance.id, "port": port, "count": count}
                reply, body = ask(transport, instance.party, header)
            except OsmoticError as error:
                found.append({"title": title, "task": instance.id, "withheld": error.problems[0].what, "rows": []})
                continue
            shown |= bool(reply.get("benchmark"))
            found.append({"title": title, "task": instance.id, "withheld": "", "rows": json.loads(body)})
    return found, shown


def drawing(graph: Graph) -> dict[str, Any]:
    """Nodes and edges as written in the pipeline, for the picture."""
    nodes = [
        {"name": n.name, "component": n.spec.component, "at": n.spec.at, "count": 0, "waived": []} for n in graph.nodes.values()
    ]
    counts: dict[str, int] = {}
    edges: dict[tuple[str, str, str], dict[str, Any]] = {}
    for instance in graph.instances.values():
        counts[instance.node] = counts.get(instance.node, 0) + 1
        for edge in instance.edges():
            producer = graph.instances[edge.producer].node
            key = (producer, instance.node, edge.name)
            made = {"from": producer, "to": instance.node, "name": edge.name, "port": edge.port, "crossing": edge.crossing}
            edges.setdefault(key, {**made, "waived": edge.waive is not None})
    return {"nodes": [{**n, "count": counts.get(str(n["name"]), 0)} for n in nodes], "edges": list(edges.values())}
