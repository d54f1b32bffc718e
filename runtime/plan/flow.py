# SPDX-License-Identifier: Apache-2.0
"""The membrane at plan time: infer every label, check every crossing against the policies of the parties concerned.

Each site runs this on its own copy of the plan with its own policy; a local plan runs it once with all of them. A party
whose policy is not known is taken to have private data and to have granted what the plan asks: it checks for itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from osmotic.plugins.contract import config_type
from osmotic.runtime.party import endpoints
from osmotic.runtime.party.ports import CHOICE, MEND
from osmotic.runtime.plan import demands
from osmotic.runtime.plan.graph import Edge, Graph, Instance
from osmotic.schemas.addresses import Address
from osmotic.schemas.errors import Problem
from osmotic.schemas.labels import PUBLIC, Label, Provenance, raw, released
from osmotic.schemas.policy import SitePolicy, Waiver

MADE = "whatever it says, it depends on all that went into it"
WAYS = "ways to mend it: put dp_sanitizer before it; keep the task at the same role; or 'waive: REASON' (benchmark data only)"


@dataclass
class Flow:
    """Labels by (instance id, port) and by crossing, and what is refused."""

    labels: dict[tuple[str, str], Label] = field(default_factory=dict)
    crossing: dict[tuple[str, str, str], Label] = field(default_factory=dict)  # (consumer, producer, port) -> as it crosses
    refusals: list[Problem] = field(default_factory=list)
    calls: list[endpoints.Call] = field(default_factory=list)  # of models behind endpoints


def granted(policy: SitePolicy, edge: str, waive: str | None, datasets: list[str], receiver: str) -> tuple[Waiver | None, str]:
    """The waiver that lets an edge carry raw data to a party, or None and the reason. Waivers work on benchmark data only."""
    if waive is None:
        return None, "the plan asks for no waiver"
    private = [d for d in datasets if d not in policy.data or policy.data[d].purpose != "benchmark"]
    if private:
        return None, f"a waiver works on benchmark data only; {', '.join(private)!r} is private"
    waivers = [waiver for waiver in policy.waivers if waiver.edge in (edge, "*")]
    for waiver in waivers:
        if receiver in waiver.observers:
            return waiver, ""
    if waivers:
        return None, f"the site's waiver for the edge {edge!r} lets {', '.join(waivers[0].observers)} see it, not {receiver}"
    return None, f"the site's policy has no waiver for the edge {edge!r}"


def infer(graph: Graph, policies: Mapping[str, SitePolicy]) -> Flow:
    """Infer labels in dependency order and collect refusals, one an edge and reason, with its place in the file."""
    flow = Flow()
    refused: dict[tuple[str, str], list[str]] = {}
    known: dict[Any, tuple[Label, str]] = {}  # many edges carry equal labels
    found = {name: endpoints.address_of(graph.registry, graph, name) for name in graph.pipeline.models}
    addresses = {name: address for name, address in found.items() if address is not None}
    everybody = (*graph.role_of, *dict.fromkeys(address.origin for address in addresses.values()))
    for instance in graph.instances.values():
        arrived: list[Label] = []
        for edge in instance.edges():
            label = flow.labels[(edge.producer, edge.port)]
            if edge.crossing:
                if edge.secure is not None and edge.secure.noisy:
                    label = minted(label, edge.sender, f"plan:{edge.producer}")
                kind = (label, edge.name, edge.sender, edge.receiver, edge.waive)
                label, why = known[kind] if kind in known else known.setdefault(kind, cross(everybody, edge, label, policies))
                flow.crossing[(instance.id, edge.producer, edge.port)] = label
                if why:
                    text = f"{edge.name}\n{why}\n{MADE if kind[0].of('raw') else ''}"
                    refused.setdefault((instance.node, text), []).append(f"{edge.sender} -> {edge.receiver}")
            arrived.append(label)
        _outputs(graph, instance, Label.join(arrived), policies, flow)
        if graph.pipeline.models:
            _calls(graph, addresses, instance, Label.join(arrived), policies, flow, refused)
    for (node, text), pairs in refused.items():
        flow.refusals.append(_refusal(graph, node, text, pairs))
    flow.refusals += demands.refusals(graph, flow.labels, policies)
    return flow


def cross(
    everybody: tuple[str, ...], edge: Edge, label: Label, policies: Mapping[str, SitePolicy]
) -> tuple[Label, str]:  # fmt: skip
    """The label after the crossing, and why it is refused ('' when it is not).

    everybody: all parties and the origins of all endpoints. What was refused, or its owner alone can judge, goes on as if these
    might see it: one mistake is not told again at every later edge, and at run time the label says who may.
    """
    if label.word in ("public", "protected"):
        return label, ""
    for owner in sorted({e.owner for e in label.of("raw")}):
        if owner != edge.sender:
            return label.exposed(owner, edge.name, everybody), f"raw data of {owner} at {edge.sender}"
        names = [e.ref for e in raw_entries(label, owner)]
        # an owner whose policy is not known here checks for itself: its data may be public
        observers, why = _grant(edge, names, policies[owner]) if owner in policies else (everybody, "")
        if why:
            what = f"private data of {owner} ({', '.join(names)}) would cross: {why}"
            return label.exposed(owner, edge.name, everybody), what
        label = label.exposed(owner, edge.name, observers)
    return label, _unseen(edge, label)


def _grant(edge: Edge, datasets: list[str], policy: SitePolicy) -> tuple[tuple[str, ...], str]:
    """(who may see it, why it is refused) by the owner's policy."""
    waiver, why = granted(policy, edge.name, edge.waive, datasets, edge.receiver)
    return (waiver.observers, "") if waiver else ((), why)


def _unseen(edge: Edge, label: Label) -> str:
    """Exposed entries may reach only the parties that their owner allowed, by name (the owner itself always).

    Never by role: which role a party has is what the plan says.
    """
    for entry in label.of("exposed"):
        if edge.receiver not in (entry.owner, *entry.observers):
            more = len(entry.observers) - 3
            seen = ", ".join(entry.observers[:3]) + (f" and {more} more" if more > 0 else "")
            return f"data of {entry.owner}, exposed by {entry.ref}, may be seen by {seen} only, not by {edge.receiver}"
    return ""


def _calls(
    graph: Graph, addresses: Mapping[str, Address], instance: Instance, joined: Label, policies: Mapping[str, SitePolicy],
    flow: Flow, refused: dict[tuple[str, str], list[str]],
) -> None:  # fmt: skip
    """Calls of models elsewhere are crossings too; behind an endpoint, from the party that has the model to its origin."""
    seen = joined
    if any(out.label == "source" for out in graph.nodes[instance.node].component.outputs.values()):
        seen |= source_label(instance.party, _dataset(graph, instance), policies)
    for call, key, why in endpoints.planned(graph, addresses, instance, seen, policies):
        flow.calls.append(call)
        if why:
            text = f"config.{key}\n{why}\n{CHOICE if call.label.of('raw') else ''}"
            refused.setdefault((instance.node, text), []).append(f"{call.sender} -> {call.address.origin}")
    for key, server, why in endpoints.untrusted(graph, instance, seen, policies):
        refused.setdefault((instance.node, f"config.{key}\n{why}\n{CHOICE}"), []).append(f"{instance.party} -> {server}")


def _outputs(graph: Graph, instance: Instance, joined: Label, policies: Mapping[str, SitePolicy], flow: Flow) -> None:
    node = graph.nodes[instance.node]
    for port, out in node.component.outputs.items():
        label = joined
        if out.label == "source":
            label = joined | source_label(instance.party, _dataset(graph, instance), policies)
        elif out.label == "release":
            label = minted(joined, instance.party, f"plan:{instance.id}")
        flow.labels[(instance.id, port)] = label


def _dataset(graph: Graph, instance: Instance) -> str:
    """The data set that a source names in its configuration, or by its default."""
    node = graph.nodes[instance.node]
    default = config_type(node.component).model_fields.get("data")
    return str(graph.config_of(node, instance.cell).get("data", default.default if default else ""))


def source_label(party: str, dataset: str, policies: Mapping[str, SitePolicy]) -> Label:
    """The label of a bound data set; of an unknown site: private."""
    if party not in policies:
        return raw(party, dataset)
    binding = policies[party].data.get(dataset)
    return PUBLIC if binding is not None and binding.label == "public" else raw(party, dataset)


def minted(label: Label, owner: str, ref: str) -> Label:
    """A label after a release by the owner of its raw entries; without any, as it is."""
    if not raw_entries(label, owner):
        return label
    kept = {e for e in label.entries if e.source != "raw" or e.owner != owner}
    return Label(frozenset(kept)) | released(owner, ref)


def _refusal(graph: Graph, node: str, text: str, pairs: list[str]) -> Problem:
    name, why, since = text.split("\n", 2)
    where_from, _, port = name.rpartition(".")
    path = (*graph.nodes[node].path, "config" if where_from == "config" else "inputs", port)
    shown = ", ".join(pairs[:3]) + (f" and {len(pairs) - 3} more" if len(pairs) > 3 else "")
    where = graph.loaded.source.where(path)
    about = f"crossing {shown}; {since}" if since else f"crossing {shown}"
    trust = "what a server may see stands under 'remote'" if "://" in pairs[0] else "trusted is who stands under 'endpoints'"
    fix = f"ways to mend it: {MEND}; {trust}" if where_from == "config" else WAYS
    return Problem(f"refused: {why}", where, ".".join(map(str, path)), why=about, fix=fix)


def raw_entries(label: Label, owner: str) -> list[Provenance]:
    """An owner's raw entries in a label."""
    return [e for e in label.of("raw") if e.owner == owner]
