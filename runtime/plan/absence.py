# SPDX-License-Identifier: Apache-2.0
"""Instances that never come to be: a repeat that samples parties stopped before some of them took part, or a party was lost.

Only then is it known, so it is no part of the plan: the coordinator tells the parties concerned. A task that can do without
what is absent runs without it, any other is absent too. A site takes it only where its own plan allows it: a repeat that
stops early, or gathers whose quorums are still kept.
"""

from collections.abc import Collection
from dataclasses import replace

from osmotic.runtime.plan.graph import Edge, Graph, Instance
from osmotic.runtime.plan.quorum import needed, owner, reach, shortage
from osmotic.schemas.errors import Problem, RefusedError


def lacks(graph: Graph, instance: Instance, absent: Collection[str]) -> bool:
    """Whether an instance needs an input of which everything is absent, or too much for its quorum."""
    ports = graph.nodes[instance.node].ports
    for port, value in instance.inputs.items() if absent else ():
        edges = (value,) if isinstance(value, Edge) else value
        there = sum(edge.producer not in absent for edge in edges)
        quorum = edges[0].quorum if edges else None
        fewest = needed(quorum, len(edges)) if quorum else 0 if ports[port].optional else 1
        if there < fewest:
            return True
    return False


def without(graph: Graph, instance: Instance, absent: Collection[str]) -> Instance:
    """An instance without the inputs that are absent, where it can do without them."""
    ports, inputs = graph.nodes[instance.node].ports, dict(instance.inputs)
    for port, value in instance.inputs.items():
        several = (value,) if isinstance(value, Edge) else value
        left = tuple(edge for edge in several if edge.producer not in absent)
        if not left and ports[port].optional:
            del inputs[port]
        elif left and not isinstance(value, Edge):
            inputs[port] = left
    return replace(instance, inputs=inputs)


def check(graph: Graph, identity: str, done: Collection[str]) -> None:
    """Raise RefusedError unless an instance may be absent: it has not run, and a repeat up to it samples and stops early."""
    if identity not in graph.instances or identity in done:
        raise RefusedError(Problem(f"{identity} cannot be left out"))
    repeats = [graph.nodes[graph.instances[one].node].repeat for one in graph.ancestors([identity])]
    if not any(repeat and repeat.sample and repeat.until for repeat in repeats):
        raise RefusedError(Problem(f"{identity} cannot be left out", why="no repeat before it could have stopped early"))


def check_lost(graph: Graph, identity: str, absent: Collection[str], done: Collection[str]) -> None:
    """Raise RefusedError unless an instance may be lost: gathers that take something of its party have quorums, everybody
    else who takes something from it does so by one of them, and enough senders are left.

    absent, done: instances that this site knows of.
    """
    instance = graph.instances.get(identity)
    if instance is None or owner(instance) not in graph.waits:
        raise RefusedError(Problem(f"{identity} cannot be left out", why="no gather with a quorum takes what it is for"))
    found = reach(graph, [identity], absent, done)
    if found.short:
        raise RefusedError(shortage(graph, found.short[0], {*found.gone, *absent}, {}))
    if found.hard:
        consumer, edge = found.hard[0]
        raise RefusedError(Problem(f"{identity} cannot be left out", why=f"{consumer.id} needs it for {edge.input!r}"))
