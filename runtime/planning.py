# SPDX-License-Identifier: Apache-2.0
"""What a run would do, before it does: tasks and why they run, crossings with their labels, budget to be spent and left."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from osmotic.runtime import flow, membrane
from osmotic.runtime.checks import Configs, datasets_of
from osmotic.runtime.graph import Graph, Instance
from osmotic.runtime.ledger import Ledger
from osmotic.runtime.releases import TEXTS, Prepared
from osmotic.runtime.site import Site
from osmotic.schemas.errors import Problem


def describe(
    graph: Graph, configs: Configs, sites: Mapping[str, Site], inferred: flow.Flow, refusals: list[Problem]
) -> dict[str, Any]:
    """The plan as plain values. refusals: everything that any site has against it; then nothing more is looked up."""
    states = {} if refusals else _states(graph, configs, sites)
    return {
        "pipeline": graph.pipeline.name,
        "parties": {role: list(parties) for role, parties in graph.pipeline.parties.items()},
        "tasks": _tasks(graph, states),
        "crossings": _crossings(graph, inferred, sites),
        "budget": [] if refusals else _budget(graph, configs, sites),
        "refusals": [vars(p) for p in refusals],
        "count": {"tasks": len(graph.instances), "cached": sum(s == "cached" for s in states.values())},
    }


def _states(graph: Graph, configs: Configs, sites: Mapping[str, Site]) -> dict[str, str]:
    """Instance -> 'cached' or why it runs. What depends on something that runs, runs (or is found equal then)."""
    for site in sites.values():
        site.take(graph, configs)
    states: dict[str, str] = {}
    for instance in graph.instances.values():
        site = sites[instance.party]
        pending = [e for e in instance.edges() if states.get(e.producer) != "cached"]
        if pending:
            states[instance.id] = f"after {graph.instances[pending[0].producer].node}"
            continue
        for edge in instance.edges():
            if edge.crossing:
                membrane.known(site, instance.id, edge.producer, edge.port)
        refs, _, why = site.lookup(instance.id)
        if refs is not None:
            site.results[instance.id] = refs
        states[instance.id] = why
    return states


def _tasks(graph: Graph, states: Mapping[str, str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    by_node: dict[str, list[str]] = {}
    for instance in graph.instances.values():
        by_node.setdefault(instance.node, []).append(states.get(instance.id, "not checked"))
    for name, node in graph.nodes.items():
        found = by_node.get(name, [])
        reasons = Counter(s for s in found if s != "cached")
        rows.append(
            {
                "task": name,
                "component": node.spec.component,
                "at": node.spec.at,
                "axes": list(node.axes),
                "instances": len(found),
                "cached": found.count("cached"),
                "why": [r for r, _ in reasons.most_common(3)],
            }
        )
    return rows


def _crossings(graph: Graph, inferred: flow.Flow, sites: Mapping[str, Site]) -> list[dict[str, Any]]:
    rows: dict[tuple[str, str, str, str], dict[str, Any]] = {}
    sizes: dict[str, dict[str, int]] = {party: _sizes(site.ledger) for party, site in sites.items()}
    for instance, edge in graph.crossings():
        label = inferred.crossing[(instance.id, edge.producer, edge.port)]
        kind = graph.nodes[graph.instances[edge.producer].node].component.outputs[edge.port].kind.kind
        sender, receiver = graph.role_of[edge.sender], graph.role_of[edge.receiver]
        key = (edge.name, sender, receiver, label.word)
        fresh = {"edge": edge.name, "from": sender, "to": receiver, "kind": kind, "label": label.word, "waive": edge.waive}
        row = rows.setdefault(key, {**fresh, "count": 0, "bytes": 0, "known": 0})
        row["count"] += 1
        size = sizes.get(edge.sender, {}).get(membrane.edge_id(edge, instance.id))
        if size is not None:
            row["bytes"] += size
            row["known"] += 1
    return list(rows.values())


def _sizes(ledger: Ledger) -> dict[str, int]:
    """Bytes of every crossing as it last happened."""
    found = {}
    for (body,) in ledger.query("SELECT body FROM crossings ORDER BY seq"):
        entry = json.loads(body)
        if entry["direction"] == "out":
            found[entry["edge"]] = entry["bytes"]
    return found


def _budget(graph: Graph, configs: Configs, sites: Mapping[str, Site]) -> list[dict[str, Any]]:
    """Per party and data set: what each releasing task asks a document, what is spent and left."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    done: set[tuple[Any, ...]] = set()
    for instance in graph.instances.values():
        config, site = configs.of(instance), sites[instance.party]
        if not isinstance(getattr(config, "mechanism", None), dict):
            continue
        for dataset in datasets_of(graph, configs, instance):
            asked = (instance.party, dataset, instance.node, instance.cell)  # the same in every round
            if asked in done or not site.datasets.has(dataset):
                continue
            done.add(asked)
            prepared = site.asked(dataset, config)
            rows.setdefault((instance.party, dataset, prepared.parameters), _row(instance, dataset, site, prepared))
    return list(rows.values())


def _row(instance: Instance, dataset: str, site: Site, prepared: Prepared) -> dict[str, Any]:
    ones, text = [1] * len(prepared.fields), any(prepared.texts)
    sql = "SELECT MAX(t) FROM (SELECT SUM(epsilon) t FROM releases WHERE dataset=? GROUP BY document)"
    spent = site.ledger.query(sql, (dataset,))[0][0] or 0.0
    sql = "SELECT COUNT(*) FROM releases WHERE dataset=? AND parameters=?"
    again = site.ledger.query(sql, (dataset, prepared.parameters))[0][0]
    return {
        "party": instance.party,
        "dataset": dataset,
        "task": instance.node,
        "epsilon": None if text else prepared.cost(ones),
        "detail": _a_token(prepared) if text else prepared.detail(ones),
        "unit": "document",
        "class": prepared.mechanism_class,
        "cards_missing": prepared.missing,
        "already_released": again,
        "spent": spent,
        "cap": site.cap(dataset),
    }


def _a_token(prepared: Prepared) -> str:
    pairs = zip(prepared.fields, prepared.claims, prepared.texts, strict=True)
    parts = [f"{field}: {claim.epsilon:g}{' a token' if text else ''}" for field, claim, text in pairs]
    return f"{', '.join(parts)}, {TEXTS}"
