# SPDX-License-Identifier: Apache-2.0
"""Gathers that can do without some of their senders: how many must be there, and what follows when a party is lost.

What is lost with a party are instances: its own, and those that were to run elsewhere for it (`each: party`). They may be
lost as long as everybody else takes what they give by a gather with a quorum, and enough of its senders are left. The
coordinator and every site compute this from their own plan.
"""

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from osmotic.runtime.plan.nodes import Edge, Instance
from osmotic.schemas.errors import Problem
from osmotic.schemas.pipeline import Quorum

if TYPE_CHECKING:
    from osmotic.runtime.plan.graph import Graph

TIMEOUT, REFUSED, FAILED = "timeout", "refused", "failed"
WHYS = (TIMEOUT, REFUSED, FAILED)  # the classes of reasons that are told to others
NAMED = 5  # parties that are named in a message


def needed(spec: Quorum | None, count: int) -> int:
    """How many of so many senders must be there: all of them without a quorum."""
    if spec is None:
        return count
    at_least = spec.at_least
    return at_least if isinstance(at_least, int) else max(1, math.ceil(at_least * count - 1e-9))


def needed_at(graph: "Graph", instance: Instance, port: str) -> int:
    """How many senders of an input must be there; of `instance` as the plan has it, whatever is absent."""
    edges = edges_of(graph.instances[instance.id], port)
    return needed(edges[0].quorum if edges else None, len(edges))


def edges_of(instance: Instance, port: str) -> tuple[Edge, ...]:
    """The edges of one input; none where it is not connected."""
    value = instance.inputs.get(port, ())
    return (value,) if isinstance(value, Edge) else value


def owner(instance: Instance) -> str:
    """Whose part in the plan an instance is: the party that an ``each: party`` task runs for, else where it runs."""
    return instance.each or instance.party


@dataclass(frozen=True)
class Gather:
    """An input with a quorum: who sends, how many must be there."""

    consumer: Instance
    port: str
    edges: tuple[Edge, ...]

    @property
    def quorum(self) -> Quorum:
        """What the pipeline says of it."""
        return self.edges[0].quorum or Quorum(at_least=len(self.edges))

    @property
    def needed(self) -> int:
        """How many senders must be there."""
        return needed(self.quorum, len(self.edges))

    def left(self, gone: Collection[str]) -> tuple[Edge, ...]:
        """The edges that are there when these instances are not."""
        return tuple(edge for edge in self.edges if edge.producer not in gone)


def gathers(instance: Instance) -> Iterator[Gather]:
    """The inputs of an instance that have a quorum."""
    for port, value in instance.inputs.items():
        if not isinstance(value, Edge) and value and value[0].quorum is not None:
            yield Gather(instance, port, value)


def waits(graph: "Graph") -> dict[str, float]:
    """Party that gathers with a quorum take from -> seconds without progress after which it is given up: the fewest of them."""
    found: dict[str, float] = {}
    for instance in graph.instances.values():
        for gather in gathers(instance):
            for edge in gather.edges:
                party = owner(graph.instances[edge.producer])
                found[party] = min(gather.quorum.within, found.get(party, gather.quorum.within))
    return found


@dataclass
class Reach:
    """What follows when some instances never come to be.

    gone: those and all that fall with them, in order. gathers: with a quorum, that go on without them. short: too few are left
    for these. hard: who needs something of them, and has no quorum.
    """

    gone: dict[str, None] = field(default_factory=dict)
    gathers: list[Gather] = field(default_factory=list)
    short: list[Gather] = field(default_factory=list)
    hard: list[tuple[Instance, Edge]] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        """Whether everybody else can go on."""
        return not self.short and not self.hard


def reach(graph: "Graph", start: Iterable[str], absent: Collection[str] = (), settled: Collection[str] = ()) -> Reach:
    """What follows when these never come to be, beside those that are absent; settled ones need nothing any more."""
    found = Reach(dict.fromkeys(start))
    seen: dict[tuple[str, str], Gather] = {}
    todo = list(found.gone)
    for identity in todo:  # grows while it is read
        who = owner(graph.instances[identity])
        for consumer, edge in graph.consumers.get(identity, ()):
            if consumer.id in found.gone or consumer.id in absent or consumer.id in settled:
                continue
            if edge.quorum is not None:
                seen.setdefault((consumer.id, edge.input), Gather(consumer, edge.input, edges_of(consumer, edge.input)))
            elif owner(consumer) != who:
                found.hard.append((consumer, edge))
            elif not graph.nodes[consumer.node].ports[edge.input].optional or _bare(consumer, {*found.gone, *absent}):
                found.gone[consumer.id] = None
                todo.append(consumer.id)
    gone = {*found.gone, *absent}
    for gather in seen.values():
        if gather.consumer.id not in gone:
            found.gathers.append(gather)
            if len(gather.left(gone)) < gather.needed:
                found.short.append(gather)
    return found


def _bare(instance: Instance, gone: Collection[str]) -> bool:
    """Whether nothing is left of all that an instance takes."""
    return all(edge.producer in gone for edge in instance.edges())


def before(graph: "Graph", identity: str, settled: Collection[str]) -> set[str]:
    """Unsettled instances that one cannot do without, itself among them: not past a gather that has a quorum."""
    todo, seen = [identity], {identity} - set(settled)
    while todo:
        for edge in graph.instances[todo.pop()].edges():
            if edge.quorum is None and edge.producer not in settled and edge.producer not in seen:
                seen.add(edge.producer)
                todo.append(edge.producer)
    return seen


def shortage(graph: "Graph", gather: Gather, gone: Collection[str], lost: dict[str, str]) -> Problem:
    """Too few are left for a gather. lost: party -> why, in words."""
    left = gather.left(gone)
    there = [owner(graph.instances[edge.producer]) for edge in left]
    away = [owner(graph.instances[edge.producer]) for edge in gather.edges if edge not in left]
    node = graph.nodes[gather.consumer.node]
    path = (*node.path, "inputs", gather.port)
    what = f"{gather.consumer.id} needs {gather.needed} of {len(gather.edges)} parties; there are {len(there)}"
    who = f"there: {several(there) or 'nobody'}"
    why = f"{who}; lost: {several([f'{party} ({lost[party]})' if party in lost else party for party in away])}"
    fix = "run the same command again when they are back: what was finished is kept"
    return Problem(what, graph.loaded.source.where(path), ".".join(map(str, path)), why, fix)


def several(names: Collection[str]) -> str:
    """Names in a list that does not grow too long."""
    shown = list(names)[:NAMED]
    return ", ".join(shown) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
