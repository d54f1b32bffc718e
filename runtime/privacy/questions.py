# SPDX-License-Identifier: Apache-2.0
"""What a task asks of its data, in one digest: a noisy answer is found again for the same question, and for no other."""

from collections.abc import Callable

from osmotic.runtime.party.keys import code_of
from osmotic.runtime.plan.checks import Configs, model_fields
from osmotic.runtime.plan.graph import Graph, Instance
from osmotic.runtime.plan.nodes import Edge
from osmotic.schemas.messages import fingerprint


def question_of(
    graph: Graph, configs: Configs, instance: Instance, model_key: Callable[[str], str], seed_of: Callable[[Instance], str]
) -> str:
    """The tasks up to this one, how they are connected, their code, models (by key) and seeds; nothing private."""
    said = []
    for identity in sorted(graph.ancestors([instance.id]) | {instance.id}):
        one = graph.instances[identity]
        component, config = graph.nodes[one.node].component, configs.of(one)
        inputs = {port: [edge] if isinstance(edge, Edge) else edge for port, edge in one.inputs.items()}
        edges = sorted([port, edge.producer, edge.port] for port, several in inputs.items() for edge in several)
        names = sorted({name for key in model_fields(config) if (name := getattr(config, key)) is not None})
        models = [[name, model_key(name)] for name in names]
        said.append([identity, component.name, code_of(component.__module__), configs.raw(one), edges, models, seed_of(one)])
    return fingerprint(said)
