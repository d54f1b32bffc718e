# SPDX-License-Identifier: Apache-2.0
"""What a task's outputs depend on: component and code, configuration, inputs, models, seeds, data. Equal facts, equal work."""

from typing import TYPE_CHECKING, Any

from osmotic import __version__
from osmotic.plugins.certificate import code_digest
from osmotic.runtime.party.keys import RULES, code_of, environment
from osmotic.runtime.plan import asking, record_asks
from osmotic.runtime.plan.checks import datasets_of, model_fields
from osmotic.runtime.plan.nodes import Edge, Instance
from osmotic.runtime.privacy.preparing import classes_of
from osmotic.runtime.storage.remembering import ITSELF
from osmotic.schemas.messages import fingerprint

if TYPE_CHECKING:
    from osmotic.runtime.party.site import Site


def facts_of(site: "Site", instance: Instance) -> dict[str, Any] | None:
    """The facts of an instance at a site that has accepted a plan; None while an input is not here."""
    inputs = _inputs(site, instance)
    if inputs is None:
        return None
    graph, configs = site.need()
    node, config = graph.nodes[instance.node], configs.of(instance)
    facts: dict[str, Any] = {
        "component": [node.component.name, node.component.version],
        "code": code_of(node.component.__module__),
        "config": configs.raw(instance),
        "inputs": inputs,
        "models": {k: site.model_key(getattr(config, k)) for k in model_fields(config) if getattr(config, k) is not None},
        "seed": [site.seed_of(instance), site.party],
        "environment": environment(),
        "osmotic": [__version__, RULES],
        "threads": site.policy.threads,
    }
    outs = node.component.outputs.values()
    if any(out.label == "source" for out in outs):
        facts["data"] = [site.datasets.fingerprint(config.data), site.datasets.binding(config.data).label, config.data]
    if graph.pipeline.noise_seed is not None:
        facts["noise"] = graph.pipeline.noise_seed
    keys = type(config).model_fields
    if "fields" in keys or any(out.label == "release" for out in outs):
        facts["ledger"] = site.ledger.whole_hash(ITSELF)  # releases and random ids of another are unknown
    if "mechanism" in keys or "fields" in keys or record_asks.noise_in(config):
        bound = [d for d in datasets_of(graph, configs, instance) if site.datasets.has(d)]
        facts["schemas"] = [site.datasets.fingerprint(d) for d in bound]
        facts["tables"] = [site.datasets.tables(d) for d in bound]
    if isinstance(getattr(config, "mechanism", None), dict):
        facts["mechanism"] = [code_digest(cls) for cls in classes_of(site.registry, config.mechanism)]
        if models := asking.mechanism_models(site, graph, config.mechanism):
            facts["mechanism"].append(models)
    return facts


def _inputs(site: "Site", instance: Instance) -> dict[str, Any] | None:
    """Port -> [name, digest, label] of each artifact there; None while one is not here."""
    inputs: dict[str, Any] = {}
    for port, value in instance.inputs.items():
        edges = (value,) if isinstance(value, Edge) else value
        refs = [site.find(edge) for edge in edges]
        found = [r for r in refs if r is not None]
        if len(found) < len(edges):
            return None
        summed = any(edge.secure for edge in edges)  # one artifact, whoever is in it: its meta says so
        pairs = zip(edges[:1], found[:1], strict=True) if summed else zip(edges, found, strict=True)
        names = [("a sum" if summed else _source_name(edge, instance), ref) for edge, ref in pairs]
        inputs[port] = [[name, ref.digest, fingerprint(ref.label.to_json())] for name, ref in names]
    return inputs


def each_of(edge: Edge) -> str:
    """The party that an ``each: party`` task at the same role ran for."""
    return edge.producer.partition("for=")[2].partition("]")[0]


def _source_name(edge: Edge, instance: Instance) -> str:
    """Which of several gathered artifacts it is; nothing for a single one (so that equal work is shared)."""
    return edge.sender if edge.crossing else each_of(edge)
