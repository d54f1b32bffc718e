# SPDX-License-Identifier: Apache-2.0
"""Nodes x cells x rounds x parties -> instances, in dependency order.

Between tasks at one role an artifact stays at its party. From a role with one party to another role it is sent to every
party; from a role with several it is gathered, or taken one by one with ``each: party``. What an ``each: party`` task gives
goes back to the party it was made for.
"""

import itertools
import math
from dataclasses import dataclass

from osmotic.runtime.load import Loaded
from osmotic.runtime.nodes import Cell, Edge, Instance, Node, Reference, patches, task_id
from osmotic.runtime.references import producers
from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.pipeline import InputSpec
from osmotic.schemas.source import Key

LIMIT = 1_000_000  # task runs in one plan


@dataclass(frozen=True)
class Feed:
    """Where an input comes from in one cell and round: the producer's instances, but for their party."""

    producer: Node
    port: str
    cell: Cell
    round: int | None
    waive: str | None


def unroll(loaded: Loaded, nodes: dict[str, Node]) -> dict[str, Instance]:
    """All instances by id, producers before consumers. Raises ConfigError, located."""
    return _Unroller(loaded, nodes).unroll()


class _Unroller:
    def __init__(self, loaded: Loaded, nodes: dict[str, Node]) -> None:
        self.source, self.pipeline, self.nodes = loaded.source, loaded.pipeline, nodes
        self.instances: dict[str, Instance] = {}
        self.skipped: set[tuple[str, Cell]] = set()
        self.keys: dict[str, set[str]] = {name: set() for name in nodes}  # parties that an 'each: party' node ran for

    def unroll(self) -> dict[str, Instance]:
        for node in self.nodes.values():
            times = node.repeat.times if node.repeat else 1
            if times * math.prod(len(self.pipeline.matrix[axis]) for axis in node.axes) > LIMIT:
                raise ConfigError(self._too_many(node))
        for block in self._blocks():
            repeat = block[0].repeat
            for round_ in range(1, repeat.times + 1) if repeat else (None,):
                for node in block:
                    self._node(node, round_)
        empty = [n for n in self.nodes.values() if all((n.name, c) in self.skipped for c in self._cells(n))]
        if empty:
            why = "a task is skipped where 'skip' says so, and where an input that it needs is skipped or taken away"
            raise ConfigError(*(self._problem(n, "every cell of this task is skipped", why=why) for n in empty))
        return self.instances

    def _blocks(self) -> list[list[Node]]:
        """Top-level tasks and whole repeats, in dependency order."""
        block_of = {name: node.group or name for name, node in self.nodes.items()}
        needs: dict[str, set[str]] = {block: set() for block in block_of.values()}
        for name, node in self.nodes.items():
            needs[block_of[name]] |= {block_of[p] for p in producers(node)} - {block_of[name]}
        order: list[str] = []
        while len(order) < len(needs):
            ready = [b for b in needs if b not in order and needs[b] <= set(order)]
            if not ready:
                stuck = sorted(set(needs) - set(order))
                node = next(n for n in self.nodes.values() if n.group in stuck)
                what = f"a repeat and the tasks around it need each other: {', '.join(stuck)}"
                raise ConfigError(self._problem(node, what, fix="put those tasks into the repeat"))
            order += ready
        return [self._inner_order([n for n in self.nodes.values() if (n.group or n.name) == block]) for block in order]

    def _inner_order(self, block: list[Node]) -> list[Node]:
        """Tasks of one round in dependency order; there is one, since cycles were refused."""
        names = {n.name for n in block}
        order: dict[str, Node] = {}
        while len(order) < len(block):
            for node in block:
                needs = {r.node for r in node.references.values() if not r.carried} & names
                if node.name not in order and needs <= order.keys():
                    order[node.name] = node
        return list(order.values())

    def _cells(self, node: Node) -> list[Cell]:
        values = [[(a, v) for v in self.pipeline.matrix[a]] for a in node.axes]
        return [tuple(cell) for cell in itertools.product(*values)]

    def _node(self, node: Node, round_: int | None) -> None:
        for cell in self._cells(node):
            skip = any(p.skip for p in patches(node.spec, cell))
            feeds = None if skip else self._feeds(node, cell, round_)
            if feeds is None:
                self.skipped.add((node.name, cell))
                continue
            for party in self.pipeline.parties[node.spec.at]:
                for each in self._each(node, feeds) if node.spec.each else (None,):
                    self._instance(node, cell, round_, party, each, feeds)

    def _feeds(self, node: Node, cell: Cell, round_: int | None) -> dict[str, Feed] | None:
        """port -> where it comes from; None when one that is needed is skipped."""
        wanted: dict[str, InputSpec | None] = dict(node.spec.inputs)
        for patch in patches(node.spec, cell):
            wanted.update(patch.inputs)
        found: dict[str, Feed] = {}
        for port, given in wanted.items():
            feed = self._feed(node, node.references[(port, given.source)], given, cell, round_) if given else None
            if feed is not None:
                found[port] = feed
        missing = [p for p, about in node.ports.items() if p not in found and not about.optional]
        return None if missing else found

    def _feed(self, node: Node, reference: Reference, given: InputSpec, cell: Cell, round_: int | None) -> Feed | None:
        at_round = round_
        if reference.carried:
            if round_ == 1 and reference.start is None:
                return None
            reference = reference.start if round_ == 1 and reference.start else reference
            at_round = (round_ or 1) - 1
        producer = self.nodes[reference.node]
        if producer.group is None or producer.group != node.group:
            at_round = producer.repeat.times if producer.repeat else None
        theirs = tuple((a, v) for a, v in cell if a in producer.axes)
        if (producer.name, theirs) in self.skipped:
            return None
        return Feed(producer, reference.port, theirs, at_round, given.waive)

    def _each(self, node: Node, feeds: dict[str, Feed]) -> list[str]:
        """The parties that an ``each: party`` task runs for: the senders of its inputs, or what those ran for."""
        several: list[set[str]] = []
        single: list[set[str]] = []
        for feed in feeds.values():
            parties = set(self.pipeline.parties[feed.producer.spec.at])
            if feed.producer.spec.each:
                several.append(self.keys[feed.producer.name])
            elif feed.producer.spec.at != node.spec.at:
                (several if len(parties) > 1 else single).append(parties)
        found = several or single[:1]
        if not found:
            raise ConfigError(self._problem(node, "'each: party' needs an input that comes from several parties"))
        keys = set.intersection(*found)
        if not keys:
            raise ConfigError(self._problem(node, "the inputs of this 'each: party' come from no party in common"))
        return sorted(keys)

    def _instance(
        self, node: Node, cell: Cell, round_: int | None, party: str, each: str | None, feeds: dict[str, Feed]
    ) -> None:
        bound: dict[str, Edge | tuple[Edge, ...]] = {}
        for port, feed in feeds.items():
            name = f"{node.name}.{port}"
            ids = [
                (s, task_id(feed.producer.name, feed.cell, feed.round, k, s)) for s, k in self._senders(node, feed, party, each)
            ]
            edges = [Edge(i, feed.port, sender, party, name, feed.waive) for sender, i in ids if i in self.instances]
            if edges or not node.ports[port].optional:
                bound[port] = self._fit(node, port, feed, party, tuple(edges))
        if len(self.instances) >= LIMIT:
            raise ConfigError(self._too_many(node))
        identity = task_id(node.name, cell, round_, each, party)
        self.instances[identity] = Instance(identity, node.name, party, cell, round_, each, bound)
        if each is not None:
            self.keys[node.name].add(each)

    def _senders(self, node: Node, feed: Feed, party: str, each: str | None) -> list[tuple[str, str | None]]:
        """(sending party, the party it ran for) of every instance that feeds one instance."""
        at, keyed = feed.producer.spec.at, feed.producer.spec.each is not None
        parties = self.pipeline.parties[at]
        if at == node.spec.at:
            if not keyed:
                return [(party, None)]
            return [(party, each)] if each else [(party, key) for key in sorted(self.keys[feed.producer.name])]
        if keyed:  # scatter: each party gets its own part
            return [(parties[0], each or party)]
        if each is not None and each in parties:
            return [(each, None)]
        return [(sender, None) for sender in sorted(parties)]

    def _fit(self, node: Node, port: str, feed: Feed, party: str, edges: tuple[Edge, ...]) -> Edge | tuple[Edge, ...]:
        gathered = node.ports[port].gathered
        if edges and gathered:
            return edges
        if len(edges) == 1:
            return edges[0]
        if not edges:
            what = f"{feed.producer.name}.{feed.port} has no part for {party}: it ran once for each of other parties"
            raise ConfigError(self._problem(node, what, port))
        what = f"the input {port!r} takes one artifact, but {len(edges)} parties send one"
        raise ConfigError(self._problem(node, what, port, fix="'each: party' runs the task once per sender"))

    def _too_many(self, node: Node) -> Problem:
        fix = "use fewer axis values, rounds or parties"
        return self._problem(node, f"the plan has more than {LIMIT:,} task runs", fix=fix)

    def _problem(self, node: Node, what: str, port: str = "", why: str = "", fix: str = "") -> Problem:
        path: Key = (*node.path, "inputs", port) if port else node.path
        return Problem(what, self.source.where(path), ".".join(map(str, path)), why, fix)
