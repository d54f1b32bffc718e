# SPDX-License-Identifier: Apache-2.0
"""From a pipeline document to a graph of frozen task instances: references, axes, rounds, parties.

A *node* is a task as written; an *instance* is a node in one cell of its axes, in one round, at one party (and, with
``each: party``, for one sending party). Edges between parties are crossings.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

from osmotic.plugins.host import Registry
from osmotic.runtime.plan.load import Loaded
from osmotic.runtime.plan.nodes import Cell, Edge, Instance, Node, fill, merge, patches, task_id
from osmotic.runtime.plan.quorum import waits
from osmotic.runtime.plan.references import Builder
from osmotic.runtime.plan.sampling import SEED, rounds
from osmotic.runtime.plan.unrolling import unroll
from osmotic.schemas.errors import ConfigError, Problem

__all__ = ["Cell", "Edge", "Graph", "Instance", "Node", "task_id"]


class Graph:
    """The whole plan, unrolled. `instances` in an order in which every producer stands before its consumers.

    Raises ConfigError with every problem, located.
    """

    def __init__(self, loaded: Loaded, registry: Registry) -> None:
        self.loaded = loaded
        self.pipeline = loaded.pipeline
        self.registry = registry
        self.role_of = _roles(loaded)
        self.nodes: dict[str, Node] = Builder(loaded, registry).nodes()
        self.instances: dict[str, Instance] = unroll(loaded, self.nodes)

    def at(self, party: str) -> list[Instance]:
        """Instances of one party, in order."""
        return self._by_party.get(party, [])

    @cached_property
    def _by_party(self) -> dict[str, list[Instance]]:
        table: dict[str, list[Instance]] = {}
        for instance in self.instances.values():
            table.setdefault(instance.party, []).append(instance)
        return table

    @cached_property
    def consumers(self) -> dict[str, list[tuple[Instance, Edge]]]:
        """Producer id -> (consumer, edge) pairs."""
        table: dict[str, list[tuple[Instance, Edge]]] = {}
        for instance in self.instances.values():
            for edge in instance.edges():
                table.setdefault(edge.producer, []).append((instance, edge))
        return table

    @cached_property
    def before(self) -> dict[str, str]:
        """Instance of a later round -> the last one before it, of the same task, cell, party and sender."""
        table: dict[str, str] = {}
        last: dict[tuple[str, Cell, str, str | None], str] = {}
        for one in self.instances.values():
            if one.round is not None:
                like = (one.node, one.cell, one.party, one.each)
                if like in last:
                    table[one.id] = last[like]
                last[like] = one.id
        return table

    @cached_property
    def waits(self) -> dict[str, float]:
        """Party that gathers with a quorum take from -> seconds without progress after which it is given up."""
        return waits(self)

    def sample(self) -> list[dict[str, Any]]:
        """Who takes part in each round of a repeat with `sample`: {repeat, role, seed, round, parties}."""
        seeded = {node.group for node in self.nodes.values() if node.group is not None and SEED in node.axes}
        return list(rounds(self.pipeline, seeded))

    def crossings(self) -> Iterator[tuple[Instance, Edge]]:
        """Every edge that leaves a party."""
        for instance in self.instances.values():
            yield from ((instance, edge) for edge in instance.edges() if edge.crossing)

    def ancestors(self, start: Iterable[str]) -> set[str]:
        """Ids of instances that the given ones depend on, themselves included."""
        todo = list(start)
        seen = set(todo)
        while todo:
            for edge in self.instances[todo.pop()].edges():
                if edge.producer not in seen:
                    seen.add(edge.producer)
                    todo.append(edge.producer)
        return seen

    def config_of(self, node: Node, cell: Cell) -> dict[str, Any]:
        """The configuration of a node in a cell: patches applied, axis values and texts filled in."""
        config = dict(node.spec.config)
        for patch in patches(node.spec, cell):
            config = merge(config, patch.config)
        filled: dict[str, Any] = fill(config, dict(cell), self.pipeline.text)
        return filled


def _roles(loaded: Loaded) -> dict[str, str]:
    roles: dict[str, str] = {}
    for role, parties in loaded.pipeline.parties.items():
        for party in parties:
            if party in roles:
                where = loaded.source.where(("parties", role))
                what = f"the party {party!r} has two roles: {roles[party]!r} and {role!r}"
                fix = "give it one role; a party that does both is written as two"
                raise ConfigError(Problem(what, where, f"parties.{role}", fix=fix))
            roles[party] = role
    return roles
