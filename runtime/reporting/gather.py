# SPDX-License-Identifier: Apache-2.0
"""What a report shows beyond the table: the plan beside what happened, learning curves, costs, reasons, books of each party.

The whole asks every party over the transport; each party shows only what its own policy lets be shown (benchmark and public
data). Nothing is computed from records here.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from osmotic.runtime.party.membrane import edge_id
from osmotic.runtime.party.site import Site
from osmotic.runtime.plan.checks import Configs
from osmotic.runtime.plan.estimating import Shape, shapes, size_of
from osmotic.runtime.plan.flow import Flow
from osmotic.runtime.plan.graph import Graph, Instance
from osmotic.runtime.plan.nodes import word
from osmotic.runtime.privacy.accounts import summary
from osmotic.runtime.run import ask
from osmotic.runtime.transports.base import Transport
from osmotic.schemas.errors import OsmoticError
from osmotic.schemas.guarantees import Card
from osmotic.schemas.labels import Label

LOCK = "plugins.lock.json"
ASKED, POINTS, LINES = 600, 60, 12  # documents that are asked for, points of a curve that are kept, lines of one task


# ---- what a party says of itself ----


def transcript(site: Site, graph: Graph, direction: str = "out") -> dict[str, list[Any]]:
    """edge -> [kind, label in a word, bytes] of the plan's crossings, as they last happened at this party."""
    edges = {edge_id(edge, consumer.id) for consumer, edge in graph.crossings()}
    found: dict[str, list[Any]] = {}
    for (body,) in site.ledger.query("SELECT body FROM crossings ORDER BY seq"):
        entry = json.loads(body)
        if entry["direction"] == direction and entry["edge"] in edges:
            found[entry["edge"]] = [entry["kind"], Label.from_json(entry["label"]).word, entry["bytes"]]
    return found


def books(site: Site) -> dict[str, Any]:
    """What the report says of a party's ledger: `accounts.summary`, its privacy cards, how long its transcript is."""
    count = site.ledger.query("SELECT COUNT(*) FROM crossings")[0][0]
    return {**summary(site), "cards": cards(site), "transcript": {"crossings": count, "head": site.ledger.head("crossings")}}


def installed(home: Path) -> list[dict[str, str]]:
    """Rows {kind, name, version, hash} of the lock file of a run; [] where there is none that can be read."""
    try:
        lock = json.loads((home / LOCK).read_text(encoding="utf-8"))
        found = [("osmotic", "osmotic", lock["osmotic"]), *(("plugin", n, one) for n, one in lock["plugins"].items())]
        rows = [{"kind": kind, "name": name, "version": one["version"], "hash": one["code"]} for kind, name, one in found]
        for _, name, one in found:
            rows += [{"kind": "mechanism", "name": n, "version": name, "hash": code} for n, code in one["mechanisms"].items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return rows


def cards(site: Site) -> list[dict[str, Any]]:
    """The privacy cards that a party holds, fields of the same mechanism and parameters together."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for (body,) in site.ledger.query("SELECT body FROM cards ORDER BY key"):
        card = Card.stored(body)
        if card is None:
            continue
        row = found.setdefault((card.mechanism, card.parameters, str(card.declared), card.code), _card(card))
        row["spaces"].append({"name": card.space, "symbols": card.symbols})
        row["epsilon_true"] = _larger(row["epsilon_true"], card.epsilon_true)
        row["bayes_success"] = max(row["bayes_success"], card.bayes_success)
        row["self_retention"] = max(row["self_retention"], card.self_retention)
        row["holds"] = row["holds"] and card.holds
        row["why"] = row["why"] or card.why
        row["cleartext"] = sorted({*row["cleartext"], *card.cleartext})
    return sorted(found.values(), key=lambda row: (row["mechanism"], row["declared"]["epsilon"], row["parameters"]))


def _card(card: Card) -> dict[str, Any]:
    declared = card.declared
    return {
        "mechanism": card.mechanism, "parameters": card.parameters, "code": card.code, "spaces": [], "cleartext": [],
        "declared": {
            "class": declared.mechanism_class, "epsilon": _finite(declared.epsilon), "unit": declared.unit,
            "delta": declared.delta, "void": list(declared.void),
        },
        "epsilon_true": 0.0, "estimated": card.estimated, "holds": True, "why": "", "bayes_success": 0.0, "self_retention": 0.0,
        "made": card.made,
    }  # fmt: skip


def _finite(value: float) -> float | None:
    return value if abs(value) != float("inf") else None


def _larger(before: float | None, value: float) -> float | None:
    """The larger of two, None for what is not finite."""
    return None if before is None or _finite(value) is None else max(before, value)


# ---- the plan beside what happened ----


def planned(
    graph: Graph, inferred: Flow, sizes: Mapping[str, int], shapes: Mapping[str, Shape], parties: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Rows {task, name, kind, labels, count, bytes, known}: what would cross, by producing task and receiving input.

    bytes: as `osmotic plan` says: those of the last time (sizes: edge -> bytes; `known`: of how many), else the estimate of all
    of a row's shapes, else None. parties: only what these send, whose policies are here.
    """
    senders = set(parties)
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for consumer, edge in graph.crossings():
        if senders and edge.sender not in senders:
            continue
        node = graph.instances[edge.producer].node
        kind = graph.nodes[node].component.outputs[edge.port].kind.kind
        fresh: dict[str, Any] = {
            "task": node,
            "name": edge.name,
            "kind": kind,
            "labels": set(),
            "count": 0,
            "known": 0,
            "bytes": 0,
        }
        row = rows.setdefault((node, edge.name), fresh)
        row["labels"].add(inferred.crossing[(consumer.id, edge.producer, edge.port)].word)
        row["count"] += 1
        last = sizes.get(edge_id(edge, consumer.id))
        row["known"] += last is not None
        expected = last if last is not None else size_of(kind, shapes.get(edge.producer))
        row["bytes"] = None if row["bytes"] is None or expected is None else row["bytes"] + expected
    return [{**row, "labels": sorted(row["labels"])} for row in rows.values()]


def plan_of(
    graph: Graph, configs: Configs, inferred: Flow, sites: Mapping[str, Site], parties: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """`planned`, with what these sites know of earlier crossings and of their own data."""
    sizes = {edge: size for site in sites.values() for edge, (_, _, size) in transcript(site, graph).items()}
    return planned(graph, inferred, sizes, guessed(graph, configs, sites), parties)


def guessed(graph: Graph, configs: Configs, sites: Mapping[str, Site]) -> dict[str, Shape]:
    """`estimating.shapes`; empty where data cannot be read: the run itself says what is wrong with them."""
    try:
        return shapes(graph, configs, sites)
    except (OsmoticError, OSError):
        return {}


def transcripts(graph: Graph, transport: Transport, parties: Iterable[str] = ()) -> dict[str, list[Any]]:
    """edge -> [kind, label, bytes], as every party (or these) sent it last."""
    found: dict[str, list[Any]] = {}
    for party in list(parties) or graph.role_of:
        _, body = ask(transport, party, {"op": "transcript"})
        found |= json.loads(body)
    return found


def source(graph: Graph) -> dict[str, Any]:
    """Which document was run: its name, SHA-256 and what was changed of it."""
    loaded = graph.loaded
    digest = hashlib.sha256(loaded.text.encode()).hexdigest()
    return {"name": loaded.name, "sha256": digest, "overrides": list(loaded.overrides)}


# ---- documents of tasks ----


def told(graph: Graph, transport: Transport, absent: set[str], parties: Iterable[str] = ()) -> dict[str, Any]:
    """{curves, costs, reasons} from the documents of tasks, as far as their parties show them."""
    documents = list(_documents(graph, transport, absent, set(parties)))
    return {"curves": _curves(graph, documents), "costs": _costs(documents), "reasons": _reasons(documents)}


def _documents(graph: Graph, transport: Transport, absent: set[str], parties: set[str]) -> Iterable[tuple[Instance, Any]]:
    asked, refused = 0, set()
    for instance in graph.instances.values():
        ports = [p for p in ("curve", "report") if p in (out := graph.nodes[instance.node].component.outputs)]
        ports = [p for p in ports if out[p].kind.kind == "document"]
        if not ports or instance.id in absent or (parties and instance.party not in parties):
            continue
        place = (instance.node, instance.party)
        if place in refused or asked >= ASKED:
            continue
        asked += 1
        try:
            _, body = ask(transport, instance.party, {"op": "document", "id": instance.id, "port": ports[0]})
        except OsmoticError:
            refused.add(place)
            continue
        yield instance, json.loads(body)


def _curves(graph: Graph, documents: list[tuple[Instance, Any]]) -> list[dict[str, Any]]:
    """A chart a task: {task, metric, lines: [{name, steps, values}]}: means over parties and seeds, rounds in a row."""
    found: dict[str, dict[str, dict[str, list[tuple[int, list[Any], list[Any]]]]]] = {}
    for instance, data in documents:
        if not (isinstance(data, dict) and isinstance(data.get("step"), list) and isinstance(data.get("loss"), list)):
            continue
        axes = {axis: value for axis, value in instance.cell if axis != "seed"}
        name = ", ".join(word(value) for value in axes.values()) or "loss"
        whose = f"{instance.party} {dict(instance.cell)}"
        lines = found.setdefault(instance.node, {}).setdefault(name, {})
        lines.setdefault(whose, []).append((instance.round or 0, data["step"], data["loss"]))
    return [
        {"task": task, "metric": "loss", "lines": [_line(name, runs) for name, runs in list(by.items())[:LINES]]}
        for task, by in found.items()
    ]


def _line(name: str, runs: Mapping[str, list[tuple[int, list[Any], list[Any]]]]) -> dict[str, Any]:
    """The mean of several curves, step by step, thinned; one that is shorter counts as far as it goes."""
    sums: dict[int, list[float]] = {}
    for rounds in runs.values():
        start = 0
        for _, steps, losses in sorted(rounds, key=lambda one: one[0]):
            for step, loss in zip(steps, losses, strict=True):
                if isinstance(loss, int | float):
                    sums.setdefault(start + int(step), []).append(float(loss))
            start += int(steps[-1]) if steps else 0
    steps = sorted(sums)
    stride = max(1, -(-len(steps) // POINTS))
    kept = [s for i, s in enumerate(steps) if i % stride == 0 or i == len(steps) - 1]
    values = [round(sum(sums[s]) / len(sums[s]), 6) for s in kept]
    return {"name": name, "of": len(runs), "steps": kept, "values": values}


def _costs(documents: list[tuple[Instance, Any]]) -> list[dict[str, Any]]:
    """What was asked of models, a row a task: prompts, tokens read and written, money where an endpoint says so."""
    rows: dict[str, dict[str, Any]] = {}
    for instance, data in documents:
        if not (isinstance(data, dict) and "tokens" in data):
            continue
        row = rows.setdefault(
            instance.node, {"task": instance.node, "prompts": 0, "prompt_tokens": 0, "tokens": 0, "cost": None}
        )
        for name in ("prompts", "prompt_tokens", "tokens"):
            row[name] += _number(data.get(name))
        if data.get("cost") is not None:
            row["cost"] = (row["cost"] or 0.0) + _number(data["cost"])
    return list(rows.values())


def _reasons(documents: list[tuple[Instance, Any]]) -> list[dict[str, Any]]:
    """What was kept and rejected and why, a row a task and party."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for instance, data in documents:
        if not (isinstance(data, dict) and isinstance(data.get("rejected"), dict)):
            continue
        fresh = {"task": instance.node, "party": instance.party, "kept": 0, "rejected": {}}
        row = rows.setdefault((instance.node, instance.party), fresh)
        row["kept"] += _number(data.get("kept"))
        for reason, count in data["rejected"].items():
            row["rejected"][reason] = row["rejected"].get(reason, 0) + _number(count)
    return list(rows.values())


def _number(value: Any) -> Any:
    return value if isinstance(value, int | float) else 0
