# SPDX-License-Identifier: Apache-2.0
"""What a run would do, before it does: tasks and why they run, crossings with their labels, budget to be spent and left."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from osmotic.plugins.accounting import CLASSES
from osmotic.runtime.party import membrane
from osmotic.runtime.party.service import Service
from osmotic.runtime.party.site import Site
from osmotic.runtime.plan import estimating, flow, memory, quorum, record_asks, secure_asks
from osmotic.runtime.plan.absence import lacks
from osmotic.runtime.plan.asking import asked_by, is_feedback, is_release
from osmotic.runtime.plan.checks import Configs
from osmotic.runtime.plan.graph import Graph, Instance
from osmotic.runtime.plan.stopping import Stops
from osmotic.runtime.plan.totals import chosen, rounds_of
from osmotic.runtime.privacy.accounts import largest_of_kind
from osmotic.runtime.privacy.charging import EPSILON, budget_of, cap_of, class_of_unit
from osmotic.runtime.privacy.composition import RecordEvents
from osmotic.runtime.privacy.preparing import TEXTS, Prepared, seconds_missing
from osmotic.runtime.storage.ledger import Ledger
from osmotic.schemas.errors import Problem

STOPPED = "not needed: its repeat stopped before"
FINISHED = ("cached", STOPPED)
NONE = {"count": 0, "bytes": 0, "known": 0}


def describe(
    graph: Graph, configs: Configs, sites: Mapping[str, Site], inferred: flow.Flow, refusals: list[Problem]
) -> dict[str, Any]:
    """The plan as plain values. refusals: everything that any site has against it; then nothing more is looked up."""
    states = {} if refusals else states_of(graph, configs, sites)
    shapes = {} if refusals else estimating.shapes(graph, configs, sites)
    return {
        "pipeline": graph.pipeline.name,
        "parties": {role: list(parties) for role, parties in graph.pipeline.parties.items()},
        "tasks": _tasks(graph, states),
        "rounds": graph.sample(),
        "crossings": crossings(graph, inferred, sites, shapes),
        "calls": estimating.calls(graph, configs, shapes, states, FINISHED),
        "budget": [] if refusals else _budget(graph, configs, sites),
        "memory": memory.estimate(graph, configs, sites),
        "refusals": [vars(p) for p in refusals],
        "count": {"tasks": len(graph.instances), "cached": sum(s in FINISHED for s in states.values())},
    }


def states_of(graph: Graph, configs: Configs, sites: Mapping[str, Site]) -> dict[str, str]:
    """Instance -> 'cached', that its repeat stopped before, or why it runs. What depends on something that runs, runs (or is
    found equal then).
    """
    for site in sites.values():
        site.take(graph, configs)
    states: dict[str, str] = {}
    stops, absent = Stops(graph), set[str]()
    for instance in graph.instances.values():
        needs = dict.fromkeys([*(edge.producer for edge in instance.edges()), *sorted(stops.needs(instance))])
        pending = [one for one in needs if states.get(one) not in FINISHED]
        stopped = stops.stopped(instance)
        earlier = graph.before.get(instance.id, "") if stopped else ""
        if (stopped and (not earlier or earlier in absent)) or lacks(graph, instance, absent):
            absent.add(instance.id)
            for party in {instance.party, *(consumer.party for consumer, _ in graph.consumers.get(instance.id, ()))}:
                sites[party].leave_out(instance.id)
            states[instance.id] = STOPPED
        elif pending:
            states[instance.id] = f"after {graph.instances[pending[0]].node}"
        elif stopped:
            sites[instance.party].alias(instance.id, earlier)
            states[instance.id] = STOPPED
        else:
            states[instance.id] = _state(sites[instance.party], instance, stops)
    return states


def _state(site: Site, instance: Instance, stops: Stops) -> str:
    """Whether an instance is finished for inputs that are all there, or why not; a repeat that it ends is noted."""
    for edge in site.instance(instance.id).edges():
        if edge.crossing:
            membrane.known(site, instance.id, edge.producer, edge.port)
    refs, _, why = site.lookup(instance.id)
    if refs is None:
        return why
    site.results[instance.id] = refs
    if (port := stops.port(instance)) is not None:
        reply, _ = Service(site, local=True).handle({"op": "until", "id": instance.id, "port": port}, b"")
        if reply.get("stop"):
            stops.at[instance.id] = instance.round or 1
    return "cached"


def _tasks(graph: Graph, states: Mapping[str, str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    by_node: dict[str, list[str]] = {}
    for instance in graph.instances.values():
        by_node.setdefault(instance.node, []).append(states.get(instance.id, "not checked"))
    for name, node in graph.nodes.items():
        found = by_node.get(name, [])
        reasons = Counter(s for s in found if s not in FINISHED)
        rows.append(
            {
                "task": name,
                "component": node.spec.component,
                "at": node.spec.at,
                "axes": list(node.axes),
                "instances": len(found),
                "cached": sum(s in FINISHED for s in found),
                "not_needed": found.count(STOPPED),
                "why": sorted((r for r, _ in reasons.most_common()), key=lambda r: r.startswith("after "))[:3],
            }
        )
    return rows


def crossings(
    graph: Graph, inferred: flow.Flow, sites: Mapping[str, Site], shapes: Mapping[str, estimating.Shape]
) -> list[dict[str, Any]]:
    """One row an edge, direction and label. bytes: of the `known` ones, as they last crossed; estimate: of all, None where
    nothing can be said.
    """
    rows: dict[tuple[str, str, str, str], dict[str, Any]] = {}
    sizes: dict[str, dict[str, int]] = {party: _sizes(site.ledger) for party, site in sites.items()}
    for instance, edge in graph.crossings():
        label = inferred.crossing[(instance.id, edge.producer, edge.port)]
        kind = graph.nodes[graph.instances[edge.producer].node].component.outputs[edge.port].kind.kind
        sender, receiver = graph.role_of[edge.sender], graph.role_of[edge.receiver]
        key = (edge.name, sender, receiver, label.word)
        fresh = {"edge": edge.name, "from": sender, "to": receiver, "kind": kind, "label": label.word, "waive": edge.waive}
        if edge.quorum is not None:
            several = quorum.edges_of(instance, edge.input)
            fresh["enough"] = f"{quorum.needed(edge.quorum, len(several))} of {len(several)} are enough"
        if edge.secure is not None:
            fresh["sum"] = secure_asks.seen(instance, edge)
        row = rows.setdefault(key, {**fresh, **NONE, "_guessed": []})
        size = sizes.get(edge.sender, {}).get(membrane.edge_id(edge, instance.id))
        _count(row, size, estimating.size_of(kind, shapes.get(edge.producer)))
    for call in inferred.calls:
        name, sender, origin = f"model {call.model}", graph.role_of[call.sender], call.address.origin
        fresh = {"edge": name, "from": sender, "to": origin, "kind": "call", "label": call.label.word, "waive": None}
        row = rows.setdefault((name, sender, origin, call.label.word), {**fresh, **NONE, "_guessed": []})
        _count(row, sizes.get(call.sender, {}).get(f"{call.task}=>{call.model}.generate"), None)
    return [_estimated(row) for row in rows.values()]


def _count(row: dict[str, Any], size: int | None, guess: int | None) -> None:
    """Add one crossing: its size when it last happened, else what it may be."""
    row["count"] += 1
    if size is None:
        row["_guessed"].append(guess)
    else:
        row["bytes"] += size
        row["known"] += 1


def _estimated(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the bytes of all its crossings: those that never happened are like the others, else as their rows say."""
    guessed: list[int | None] = row.pop("_guessed")
    like = row["bytes"] / row["known"] if row["known"] else None
    sizes = [like if like is not None else guess for guess in guessed]
    total = None if None in sizes else row["bytes"] + round(sum(size for size in sizes if size is not None))
    return {**row, "estimate": total}


def _sizes(ledger: Ledger) -> dict[str, int]:
    """Bytes of every crossing as it last happened."""
    found = {}
    for (body,) in ledger.query("SELECT body FROM crossings ORDER BY seq"):
        entry = json.loads(body)
        if entry["direction"] == "out":
            found[entry["edge"]] = entry["bytes"]
    return found


def _budget(graph: Graph, configs: Configs, sites: Mapping[str, Site]) -> list[dict[str, Any]]:
    """Per party and data set: what each releasing task asks, what is spent and left."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    known = {party: record_asks.asks(site, graph, configs) for party, site in sites.items()}
    for instance, config, dataset in asked_by(graph, configs, list(graph.instances.values())):
        site = sites[instance.party]
        if not site.datasets.has(dataset):
            continue
        if (noise := record_asks.noise_in(config)) is not None:
            several = known[instance.party].get(dataset, [])
            like = [ask for ask in several if (ask.instance.node, ask.instance.cell) == (instance.node, instance.cell)]
            row = record_asks.row(site, dataset, several, noise[1], record_asks.distinct(like))
            key: tuple[str, ...] = (instance.party, dataset, instance.node, str(instance.cell))
        elif not is_release(config):
            rounds = rounds_of(graph, instance)
            row = _bit(site, dataset, config, rounds) if is_feedback(config) else _counts(site, dataset, config)
            key = (instance.party, dataset, instance.node, str(instance.cell))
        else:
            prepared, attempt = site.asked(dataset, config, graph), getattr(config, "attempt", 1)
            row = _release(site, dataset, prepared, attempt, instance)
            key = (instance.party, dataset, prepared.parameters, str(attempt))
        rows.setdefault(key, {"party": instance.party, "dataset": dataset, "task": instance.node, **row})
    return [*rows.values(), *secure_asks.rows(sites, graph, configs)]


def _release(site: Site, dataset: str, prepared: Prepared, attempt: int, instance: Instance) -> dict[str, Any]:
    ones, text = [1] * len(prepared.fields), any(prepared.texts) and prepared.document is None
    unit = next((unit for unit in prepared.units if class_of_unit(unit) == prepared.mechanism_class), prepared.units[0])
    detail = _a_token(prepared) if text else prepared.detail(ones)
    if attempt > 1:
        which = "of the documents whose released bit is yes" if chosen(instance) else "every document"
        detail += f", attempt {attempt}, {which}"
    return {
        "epsilon": None if text else prepared.cost(ones), "detail": detail,
        "unit": "document", "class": prepared.mechanism_class, "cards_missing": prepared.missing,
        "seconds": seconds_missing(prepared), "already_released": _again(site, dataset, prepared, attempt, instance),
        **_spent(site, dataset, unit),
    }  # fmt: skip


def _again(site: Site, dataset: str, prepared: Prepared, attempt: int, instance: Instance) -> int:
    """Documents released before under these parameters, as often as the attempt says or by this task: at most so many are free.

    Which attempt a stored release was is in its look-up key alone, and finding that would read every record.
    """
    sql = (
        "SELECT COUNT(*) FROM (SELECT document FROM releases WHERE dataset=? AND parameters=? GROUP BY document"
        " HAVING COUNT(*) >= ? OR (? > 1 AND SUM(task LIKE ?)))"
    )
    values = (dataset, prepared.parameters, attempt, attempt, f"%: {instance.id}")
    return int(site.ledger.query(sql, values)[0][0])


def _bit(site: Site, dataset: str, config: Any, rounds: int) -> dict[str, Any]:
    """A feedback bit a document and round: every round is another question."""
    times = f", {rounds} rounds x {config.epsilon:g}" if rounds > 1 else ""
    return {
        "epsilon": rounds * float(config.epsilon), "detail": f"a feedback bit, every document{times}", "unit": "document",
        "class": "certified", "cards_missing": [], "seconds": 0.0, "already_released": 0, **_spent(site, dataset, EPSILON),
    }  # fmt: skip


def _counts(site: Site, dataset: str, config: Any) -> dict[str, Any]:
    """Noisy counts over the whole data set."""
    noise, events = config.mechanism, RecordEvents(site.ledger, site.policy)
    total, budget = events.total(dataset, events.events(dataset)), budget_of(site.policy, dataset)
    cap = budget.per_record.epsilon if budget and budget.per_record else None
    delta = f", delta {noise.delta:g}" if noise.delta else ""
    return {
        "epsilon": noise.epsilon, "detail": f"counts, {noise.name}{delta}, a record", "unit": "record",
        "class": CLASSES[noise.name], "cards_missing": [], "seconds": 0.0, "already_released": 0,
        "spent": 0.0 if total is None else total["epsilon"], "cap": cap,
    }  # fmt: skip


def _spent(site: Site, dataset: str, unit: str) -> dict[str, Any]:
    """The largest sum that a document has cost in all units of a unit's kind, and the cap of that."""
    return {"spent": largest_of_kind(site, dataset, unit), "cap": cap_of(site.policy, dataset, unit)}


def _a_token(prepared: Prepared) -> str:
    pairs = zip(prepared.fields, prepared.claims, prepared.texts, strict=True)
    parts = [f"{field}: {claim.epsilon:g}{' a token' if text else ''}" for field, claim, text in pairs]
    return f"{', '.join(parts)}, {TEXTS}"
