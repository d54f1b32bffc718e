# SPDX-License-Identifier: Apache-2.0
"""The result of a run as plain values: guarantee first, table of arms, crossings, graph. Printed, saved and shown from here.

Intervals (95%) are over test records and seeds, paired, with parties as strata (`osmotic.runtime.results.intervals`). Where
there is one seed they say nothing about others, and the table says so.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from osmotic.runtime.party.keys import environment
from osmotic.runtime.party.membrane import edge_id
from osmotic.runtime.plan.graph import Graph, Instance
from osmotic.runtime.plan.nodes import metrics_port, word
from osmotic.runtime.privacy.accounts import weakest_first
from osmotic.runtime.privacy.charging import each_once, weakest
from osmotic.runtime.reporting import frontier, gather
from osmotic.runtime.reporting.lines import chart_of
from osmotic.runtime.results import survivors
from osmotic.runtime.results.intervals import Interval, difference, interval, wilson, within
from osmotic.runtime.run import Outcome, ask
from osmotic.runtime.transports.base import Transport
from osmotic.schemas.errors import OsmoticError
from osmotic.schemas.pipeline import Scalar


def summarise(
    graph: Graph, transport: Transport, outcome: Outcome, parties: Sequence[str] = (), plan: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Everything that the whole's table and report show; what a party keeps back is named, not shown.

    parties: whose accounts are asked for; none named: everybody's. plan: what was to cross (`gather.planned`).
    """
    heard = [party for party in parties or graph.role_of if party not in outcome.lost]
    parties = heard if outcome.lost else parties
    arms = {
        row: [i for i in found if i.id not in outcome.absent and i.party not in outcome.lost]
        for row, found in rows_of(graph).items()
    }
    accounts = account(graph, transport, _edges(graph, list(graph.instances)), parties)
    edges = {row: _edges(graph, graph.ancestors([i.id for i in found])) for row, found in arms.items()}
    by_row = {row: account(graph, transport, found, parties) for row, found in edges.items()}
    missing = sorted(outcome.lost)
    unsure = survivors.unsure(graph, arms, missing)
    table, scored = _table(graph, transport, arms, {row: heard_words(found, unsure[row]) for row, found in by_row.items()})
    samples, sampled = _samples(graph, transport, outcome, parties)
    crossings = _with_labels(outcome, gather.transcripts(graph, transport, parties)) + _calls(graph, transport, parties)
    sure = {row: found for row, found in by_row.items() if not unsure[row]}
    guarantee = {
        "line": first_line(accounts, sure, missing), "shown": scored or sampled, "parties": accounts, "rows": by_row,
        "missing": missing,
    }  # fmt: skip
    return {
        "pipeline": graph.pipeline.name,
        "description": graph.pipeline.description,
        "guarantee": guarantee,
        "table": table,
        "chart": chart_of(graph.pipeline, table),
        "graph": drawing(graph),
        "frontier": frontier.measured(graph.pipeline.report, table, by_row, edges, crossings),
        "crossings": crossings,
        "quorums": survivors.ordered(outcome.quorums),
        "sums": outcome.sums,
        "lost": outcome.lost,
        "plan": {"crossings": list(plan)},
        "source": gather.source(graph),
        **gather.told(graph, transport, outcome.absent, parties),
        "samples": samples,
        "rounds": graph.sample(),
        "outcome": {
            "tasks": len(graph.instances), "ran": outcome.ran, "cached": outcome.cached, "seconds": outcome.seconds,
            "stopped": outcome.stopped, "times": outcome.times,
        },
        "versions": environment(),
    }  # fmt: skip


def _with_labels(outcome: Outcome, sent: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Crossings as they happened; ``kind``, ``label`` and ``sent`` (bytes when it last went) as the sender wrote it down."""
    found = []
    for one in sorted(outcome.crossings, key=lambda crossed: crossed.edge):
        kind, label, size = sent.get(one.edge, ("", "", one.bytes))
        found.append({**vars(one), "kind": kind, "label": label, "sent": size})
    return found


def rows_of(graph: Graph) -> dict[str, list[Instance]]:
    """Row -> instances of the table's tasks, in the axes' order; 'all' when no such task spans an axis of the rows.

    A task that spans only some of the axes stands in every row that agrees with it, where another task fills that row. Of a
    task in a repeat, each party's last round counts, where the rounds are no rows of their own.
    """
    report, matrix = graph.pipeline.report, graph.pipeline.matrix
    found = [i for i in graph.instances.values() if i.node in report.table]
    if "round" not in report.rows:
        earlier = set(graph.before.values())
        found = [i for i in found if i.id not in earlier]
    axes = [a for a in report.rows if any(a in place_of(i) for i in found)]
    if not axes:
        return {"all": found} if found else {}
    widest = max(sum(a in place_of(i) for a in axes) for i in found)
    values_of = {**matrix, "round": sorted({i.round for i in found if i.round is not None})}
    rows: dict[str, list[Instance]] = {}
    for values in product(*(values_of[a] for a in axes)):
        here = dict(zip(axes, values, strict=True))
        fitting = [i for i in found if all(here.get(a, v) == v for a, v in place_of(i).items())]
        if any(sum(a in place_of(i) for a in axes) == widest for i in fitting):
            rows[row_name(values)] = fitting
    return rows


def place_of(instance: Instance) -> dict[str, Scalar]:
    """The axes that a task run spans, and its value of each; inside a repeat also its round."""
    place = dict(instance.cell)
    return place if instance.round is None else {**place, "round": instance.round}


def row_name(values: Iterable[Scalar]) -> str:
    """The values of a row's axes as one name."""
    return ", ".join(word(v) for v in values)


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


def _calls(graph: Graph, transport: Transport, parties: Sequence[str]) -> list[dict[str, Any]]:
    """Calls of models elsewhere, of each task together (`count`): crossings like any other, but for their number."""
    found: list[dict[str, Any]] = []
    for party in (parties or graph.role_of) if graph.pipeline.models else ():
        _, body = ask(transport, party, {"op": "called"})
        found += json.loads(body)
    return sorted(found, key=lambda call: str(call["edge"]))


def _has_data(graph: Graph, party: str) -> bool:
    return any(o.label == "source" for i in graph.at(party) for o in graph.nodes[i.node].component.outputs.values())


def words(accounts: list[dict[str, Any]]) -> str:
    """A guarantee in words, the weakest part first, then every other: '24 a document (6 fields x 4)'."""
    if any(a["word"] == "unprotected" for a in accounts):
        return "unprotected"
    spent = [a for a in accounts if a["word"] != "nothing crosses"]
    if not spent:
        return "nothing crosses"
    void = sorted({v for a in spent for v in a["void"]})
    word = weakest(a["word"] for a in spent)
    most = max((a for a in spent if a["word"] == word), key=_size)
    if word == "heuristic":
        return "heuristic: no guarantee"
    if void:
        size = "epsilon not computed" if most["epsilon"] is None else f"{most['epsilon']:g}"
        return f"void: {', '.join(void)} (would be {size} a {most.get('unit', 'document')})"
    if word == "certified" and most.get("unit", "document") == "document":
        return f"epsilon {most['epsilon']:g} a document ({most['detail']}{_ever(spent, most)}), certified"
    first, *also = each_once(part["text"] for part in _largest_parts(spent))
    both = max((a["together"] for a in spent if a.get("together")), key=_size, default=None)
    also += [both["text"]] if both is not None else []
    beside = f"; beside it {', '.join(also)}" if also else ""
    return f"{word}{', ' if word == 'metric' else ': '}{first} ({most['detail']}{_ever(spent, most)}){beside}"


def _size(found: dict[str, Any]) -> float:
    """The epsilon of an account or part; one that was not computed may be any."""
    return math.inf if found["epsilon"] is None else float(found["epsilon"])


def _largest_parts(spent: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The parts of all accounts, the weakest class and the largest epsilon first; of one unit, the largest."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for part in sorted((part for a in spent for part in a["parts"]), key=weakest_first):
        found.setdefault((part["class"], part["unit"], part["delta"]), part)
    return list(found.values())


def _ever(spent: list[dict[str, Any]], most: dict[str, Any]) -> str:
    """What the documents have cost over all runs, where that is more."""
    evers = [a.get("ever", 0.0) for a in spent if a["word"] == most["word"]]
    if None in evers or most["epsilon"] is None:
        return ""
    return f"; {max(evers):g} ever" if max(evers) > most["epsilon"] + 1e-9 else ""


def first_line(accounts: list[dict[str, Any]], rows: dict[str, list[dict[str, Any]]], missing: Sequence[str] = ()) -> str:
    """The run's guarantee in one line: over all crossings; edges of what was unprotected are named, and whose ledger could
    not be asked. rows: those of which everybody was asked."""
    text = words(accounts)
    if text == "unprotected":
        waived = sorted({edge for a in accounts for edge in a["waived"]})
        ways = "under waivers or to trusted endpoints" + (" or was handed over" if "handed: " in "".join(waived) else "")
        text += f": raw data crossed unprotected {ways} ({', '.join(waived)})"
        kept = [row for row, found in rows.items() if words(found) != "unprotected"]
        between = "; " if any(", " in one for one in kept) else ", "  # a row of several axes has commas in its name
        text += f". Rows that stay protected: {between.join(kept)}" if kept else ""
    return f"Guarantee of this run: {heard_words(accounts, missing, text)}."


def heard_words(accounts: list[dict[str, Any]], missing: Sequence[str], text: str = "") -> str:
    """A guarantee in words (`text`, default: `words`), and whose ledger is not in it: what theirs cost, nobody here knows."""
    text = text or words(accounts)
    if not missing:
        return text
    return f"{'not known' if text == 'nothing crosses' else text}; {', '.join(missing)}: not heard"


def _table(
    graph: Graph, transport: Transport, arms: dict[str, list[Instance]], guarantees: Mapping[str, str]
) -> tuple[dict[str, Any], bool]:
    """(the table, whether it shows scores that depend on benchmark data). guarantees: row -> in words."""
    spec = graph.pipeline.report
    answers, withheld, shown = _measured(graph, transport, [i for found in arms.values() for i in found])
    measured: dict[str, list[dict[str, Any]]] = {}
    owners = _owners(graph, answers)
    for row, instances in arms.items():
        for instance in instances:
            if instance.id in answers:
                cell = {a: v for a, v in instance.cell if a not in spec.rows}
                found = _named(instance.node, answers[instance.id], owners)
                measured.setdefault(row, []).append({"party": instance.party, **cell, **found})
    columns = [{"metric": metric, "title": title} for metric, title in spec.metrics.items()]
    rows = [_row(row, found, columns, guarantees[row], row in spec.apart) for row, found in measured.items()]
    first = rows[0]["row"] if rows else ""
    axes = [a for a in spec.rows if any(a in place_of(i) for found in arms.values() for i in found)] or list(spec.rows[:1])
    table = {
        "axis": ", ".join(axes), "axes": axes, "columns": columns, "rows": rows, "withheld": sorted(withheld),
        "baseline": first, "comparisons": list(_comparisons(measured, columns, first)) if spec.compare else [],
    }  # fmt: skip
    return table, shown


def _owners(graph: Graph, answers: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """metric -> the first task of the table that gives it: whose it is where it is written without a task."""
    table = graph.pipeline.report.table
    found = sorted(answers, key=lambda i: table.index(graph.instances[i].node))
    return {metric: graph.instances[i].node for i in reversed(found) for metric in answers[i]["values"]}


def _named(node: str, answer: dict[str, Any], owners: Mapping[str, str]) -> dict[str, Any]:
    """An answer's numbers under ``metric``, where that is this task's, and under ``task:metric``."""
    made = dict(answer)
    for part in ("values", "outcomes", "notes"):
        given = answer.get(part, {})
        own = {metric: value for metric, value in given.items() if owners.get(metric, node) == node}
        made[part] = own | {f"{node}:{metric}": value for metric, value in given.items()}
    return made


def _measured(
    graph: Graph, transport: Transport, instances: list[Instance]
) -> tuple[dict[str, dict[str, Any]], set[str], bool]:
    """(metrics by instance, parties that keep theirs back, whether any depend on benchmark data); each is asked for once."""
    answers: dict[str, dict[str, Any]] = {}
    withheld: set[str] = set()
    shown = False
    for instance in {i.id: i for i in instances}.values():
        port = metrics_port(graph.nodes[instance.node]) or next(iter(graph.nodes[instance.node].component.outputs))
        try:
            reply, body = ask(transport, instance.party, {"op": "metrics", "id": instance.id, "port": port})
        except OsmoticError:
            withheld.add(instance.party)
            continue
        shown |= bool(reply.get("benchmark"))
        answers[instance.id] = json.loads(body)
    return answers, withheld, shown


def _row(row: str, found: list[dict[str, Any]], columns: list[dict[str, str]], guarantee: str, apart: bool) -> dict[str, Any]:
    cells = {}
    for column in columns:
        metric = column["metric"]
        having = [one for one in found if metric in one["values"]]
        seeds: dict[str, list[float]] = {}
        for one in having:
            seeds.setdefault(str(one.get("seed", "")), []).append(one["values"][metric])
        per_seed = {seed: sum(v) / len(v) for seed, v in seeds.items()}
        mean = sum(per_seed.values()) / len(per_seed) if per_seed else None
        each = [{"party": o["party"], "seed": o.get("seed"), "value": o["values"].get(metric)} for o in having or found]
        notes = sorted({one["notes"][metric] for one in found if metric in one.get("notes", {})})
        plain = {"seeds": per_seed, "mean": mean, "each": each, "note": "; ".join(notes)}
        cells[metric] = {**plain, **_bounds(found, metric, mean)}
    return {"row": row, "guarantee": guarantee, "apart": apart, "cells": cells}


def _comparisons(
    measured: dict[str, list[dict[str, Any]]], columns: list[dict[str, str]], first: str
) -> Iterator[dict[str, Any]]:
    """Each row against the first, paired by seed, party and test record."""
    for row in measured:
        for column in columns if row != first else ():
            metric = column["metric"]
            found = difference(_outcomes(measured[row], metric), _outcomes(measured[first], metric))
            if found is not None:
                pair = {"row": row, "against": first, "metric": metric, "difference": found.mean}
                yield {**pair, "low": found.low, "high": found.high, "seeds": found.seeds}


def _outcomes(found: list[dict[str, Any]], metric: str) -> dict[str, dict[str, list[float]]]:
    """seed -> party and the other axes' values -> one outcome a test record."""
    outcomes: dict[str, dict[str, list[float]]] = {}
    for one in found:
        if metric in one["outcomes"]:
            stratum = json.dumps([v for k, v in one.items() if k not in ("seed", "values", "outcomes", "notes")])
            here = outcomes.setdefault(str(one.get("seed", "")), {})
            here[f"{stratum} {sum(name.startswith(stratum) for name in here)}"] = one["outcomes"][metric]
    return outcomes


def _bounds(found: list[dict[str, Any]], metric: str, mean: float | None) -> dict[str, float]:
    """The interval of a row's mean; none where the mean is not that of its outcomes. Of rights and wrongs it stays in 0..1."""
    outcomes = _outcomes(found, metric)
    made: Interval | None = interval(outcomes)
    if made is None or mean is None or abs(made.mean - mean) > 1e-9:
        return {}
    each = [values for strata in outcomes.values() for values in strata.values()]
    low, high = min(map(min, each)), max(map(max, each))
    if low == high and low in (0, 1):  # all right or all wrong: resampling sees no spread, which there may well be
        records = max(map(len, each))
        made = Interval(mean, *wilson(round(mean * records), records), made.seeds)
    made = within(made, 0, 1) if low >= 0 and high <= 1 else made
    return {"low": made.low, "high": made.high}


def _samples(
    graph: Graph, transport: Transport, outcome: Outcome, parties: Sequence[str]
) -> tuple[list[dict[str, Any]], bool]:  # fmt: skip
    """(first records of each output to be shown, whether any depends on benchmark data); these parties' own ones first."""
    found, shown = [], False
    for title, sample in graph.pipeline.report.samples.items():
        node, _, port = sample.source.rpartition(".")
        wanted = [i for i in graph.instances.values() if i.node == node and sample.where.items() <= place_of(i).items()]
        wanted.sort(key=lambda i: not ({i.party, i.each} & set(parties)))
        for instance in [i for i in wanted if i.id not in outcome.absent and i.party not in outcome.lost][:1]:
            try:
                header = {"op": "samples", "id": instance.id, "port": port, "count": sample.rows}
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
