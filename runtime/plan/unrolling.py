# SPDX-License-Identifier: Apache-2.0
"""Nodes x cells x rounds x parties -> instances, in dependency order.

Between tasks at one role an artifact stays at its party. From a role with one party to another role it is sent to every
party; from a role with several it is gathered, or taken one by one with ``each: party``. What an ``each: party`` task gives
goes back to the party it was made for.

In a round of a repeat with `sample`, only the parties that take part have tasks, send or are sent anything. What is carried,
and what is taken after the repeat, is of the last round in which its sender took part.
"""

import itertools
import math
from dataclasses import dataclass

from osmotic.runtime.plan.load import Loaded
from osmotic.runtime.plan.nodes import Cell, Edge, Instance, Node, Reference, all_patches, patches, task_id
from osmotic.runtime.plan.quorum import needed
from osmotic.runtime.plan.references import narrowed, producers
from osmotic.runtime.plan.sampling import SEED, taking_part
from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.pipeline import InputSpec, Quorum, Scalar
from osmotic.schemas.secure import SecureSum
from osmotic.schemas.source import Key

LIMIT = 1_000_000  # task runs in one plan


@dataclass(frozen=True)
class Feed:
    """Where an input comes from in one cell and round: the producer's instances, but for their party.

    latest: a sender that did not take part in that round gives what it gave last before; start: what stands for one that never
    did.
    """

    producer: Node
    port: str
    cell: Cell
    round: int | None
    waive: str | None
    latest: bool = False
    start: "Feed | None" = None
    secure: SecureSum | None = None
    quorum: Quorum | None = None

    @property
    def sources(self) -> "list[Feed]":
        """Itself, and what stands for it."""
        return [self, self.start] if self.start else [self]


def unroll(loaded: Loaded, nodes: dict[str, Node]) -> dict[str, Instance]:
    """All instances by id, producers before consumers. Raises ConfigError, located."""
    return _Unroller(loaded, nodes).unroll()


class _Unroller:
    def __init__(self, loaded: Loaded, nodes: dict[str, Node]) -> None:
        self.source, self.pipeline, self.nodes = loaded.source, loaded.pipeline, nodes
        self.instances: dict[str, Instance] = {}
        self.skipped: set[tuple[str, Cell]] = set()
        self.keys: dict[str, set[str]] = {name: set() for name in nodes}  # parties that an 'each: party' node ran for
        self.role_of = {party: role for role, parties in self.pipeline.parties.items() for party in parties}
        self.rounds: dict[tuple[str, Cell, str, str | None], list[int]] = {}  # in which an instance of a repeat was made
        self.chosen: dict[tuple[str, str, int, Scalar], frozenset[str] | None] = {}
        self.lacking = {n.name for n in nodes.values() if n.repeat and n.repeat.sample}  # not at every party, in every round

    def unroll(self) -> dict[str, Instance]:
        skips = any(patch.skip for node in self.nodes.values() for _, patch in all_patches(node.spec))
        for node in self.nodes.values():
            times = node.repeat.times if node.repeat else 1
            everywhere = not (skips or node.spec.each or (node.repeat and node.repeat.sample))
            parties = len(self.pipeline.parties[node.spec.at]) if everywhere else 1
            if times * parties * math.prod(len(self.pipeline.matrix[axis]) for axis in node.axes) > LIMIT:
                raise ConfigError(self._too_many(node))
        for block in self._blocks():
            repeat = block[0].repeat
            for round_ in range(1, repeat.times + 1) if repeat else (None,):
                for node in block:
                    self._node(node, round_)
        skipped = [n for n in self.nodes.values() if all((n.name, c) in self.skipped for c in self._cells(n))]
        empty = [n for n in skipped if not any(narrowed(self.source, axis) for axis in n.axes)]  # but for what --set left out
        if empty:
            why = "a task is skipped where 'skip' says so, and where an input that it needs is skipped or taken away"
            raise ConfigError(*(self._problem(n, "every cell of this task is skipped", why=why) for n in empty))
        made = {instance.node for instance in self.instances.values()}
        bare = [n for n in self.nodes.values() if n.name not in made and n not in skipped]
        if bare:
            why = "what it needs comes from a repeat with 'sample', and no party that it runs for takes part in a round"
            raise ConfigError(*(self._problem(n, "this task runs nowhere", why=why, fix="let more take part") for n in bare))
        return self.instances

    def _blocks(self) -> list[list[Node]]:
        """Top-level tasks and whole repeats, in dependency order."""
        block_of = {name: node.group or name for name, node in self.nodes.items()}
        needs: dict[str, set[str]] = {block: set() for block in block_of.values()}
        for name, node in self.nodes.items():
            needs[block_of[name]] |= {block_of[p] for p in producers(node)} - {block_of[name]}
        order: dict[str, set[str]] = {}
        waiting = dict(needs)
        while waiting:
            ready = [block for block, wanted in waiting.items() if wanted <= order.keys()]
            if not ready:
                stuck = sorted(waiting)
                node = next(n for n in self.nodes.values() if n.group in stuck)
                what = f"a repeat and the tasks around it need each other: {', '.join(stuck)}"
                raise ConfigError(self._problem(node, what, fix="put those tasks into the repeat"))
            for block in ready:
                order[block] = waiting.pop(block)
        members: dict[str, list[Node]] = {}
        for node in self.nodes.values():
            members.setdefault(node.group or node.name, []).append(node)
        return [self._inner_order(members[block]) for block in order]

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
                if not self._takes_part(node, cell, round_, party):
                    continue
                for each in self._each(node, cell, round_, feeds) if node.spec.each else (None,):
                    self._instance(node, cell, round_, party, each, feeds)

    def _takes_part(self, node: Node, cell: Cell, round_: int | None, party: str) -> bool:
        """Whether a party takes part in what a node does in a round."""
        if round_ is None or node.group is None or node.repeat is None or not node.repeat.sample:
            return True
        key = (node.group, self.role_of[party], round_, dict(cell).get(SEED, ""))
        if key not in self.chosen:
            self.chosen[key] = taking_part(self.pipeline, *key)
        found = self.chosen[key]
        return found is None or party in found

    def _feeds(self, node: Node, cell: Cell, round_: int | None) -> dict[str, Feed] | None:
        """port -> where it comes from; None when one that is needed is skipped, or all there are."""
        wanted: dict[str, InputSpec | None] = dict(node.spec.inputs)
        for patch in patches(node.spec, cell):
            wanted.update(patch.inputs)
        found: dict[str, Feed] = {}
        for port, given in wanted.items():
            feed = self._feed(node, node.references[(port, given.source)], given, cell, round_) if given else None
            if feed is not None:
                found[port] = feed
        missing = [p for p, about in node.ports.items() if p not in found and not about.optional]
        given_up = not found and any(wanted.values()) and not any(
            node.references[(port, given.source)].carried for port, given in wanted.items() if given
        )  # fmt: skip
        return None if missing or given_up else found

    def _feed(self, node: Node, reference: Reference, given: InputSpec, cell: Cell, round_: int | None) -> Feed | None:
        start, at_round, latest = None, round_, False
        if reference.carried:
            start = self._feed(node, reference.start, given, cell, round_) if reference.start else None
            if round_ == 1:
                return start
            at_round, latest = (round_ or 1) - 1, True
        producer = self.nodes[reference.node]
        if producer.group is None or producer.group != node.group:
            at_round, latest = producer.repeat.times if producer.repeat else None, True
        theirs = tuple((a, v) for a, v in cell if a in producer.axes)
        if (producer.name, theirs) in self.skipped:
            return start  # nothing takes the place of what was there before
        return Feed(producer, reference.port, theirs, at_round, given.waive, latest, start, given.secure_sum, given.quorum)

    def _each(self, node: Node, cell: Cell, round_: int | None, feeds: dict[str, Feed]) -> list[str]:
        """Those taking part that an ``each: party`` task runs for: the senders of its inputs, or what those ran for."""
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
        if not keys and not any(self._lacks(feed) for feed in feeds.values()):
            raise ConfigError(self._problem(node, "the inputs of this 'each: party' come from no party in common"))
        return sorted(key for key in keys if self._takes_part(node, cell, round_, key))

    def _lacks(self, feed: Feed) -> bool:
        """Whether there may be nothing at a sender, since it never took part."""
        return any(one.producer.name in self.lacking for one in feed.sources)

    def _instance(
        self, node: Node, cell: Cell, round_: int | None, party: str, each: str | None, feeds: dict[str, Feed]
    ) -> None:
        bound: dict[str, Edge | tuple[Edge, ...]] = {}
        for port, feed in feeds.items():
            edges = self._edges(node, cell, round_, port, feed, party, each)
            if not edges and not node.ports[port].optional and self._lacks(feed):
                self.lacking.add(node.name)  # what it needs is not there: neither is the task
                return
            if edges or not node.ports[port].optional:
                bound[port] = self._fit(node, port, feed, party, edges)
        if len(self.instances) >= LIMIT:
            raise ConfigError(self._too_many(node))
        self._summed_once(node, bound)
        identity = task_id(node.name, cell, round_, each, party)
        self.instances[identity] = Instance(identity, node.name, party, cell, round_, each, bound)
        if round_ is not None:
            self.rounds.setdefault((node.name, cell, party, each), []).append(round_)
        if each is not None:
            self.keys[node.name].add(each)

    def _edges(
        self, node: Node, cell: Cell, round_: int | None, port: str, feed: Feed, party: str, each: str | None
    ) -> tuple[Edge, ...]:
        """What comes in at a port: of each sender that takes part the last there is, else what stands for it at the start."""
        found: dict[tuple[str, str], Edge] = {}
        for source in feed.sources:
            other = source.producer.spec
            if found and (other.at, other.each) != (feed.producer.spec.at, feed.producer.spec.each):
                continue  # a start from elsewhere stands for all or for none
            for sender, key in self._senders(node, source, party, each):
                place = (sender, key or "")
                if place in found or not self._takes_part(node, cell, round_, key or sender):
                    continue
                if identity := self._made(source, sender, key):
                    name = f"{node.name}.{port}"
                    found[place] = Edge(identity, source.port, sender, party, name, source.waive, source.secure, source.quorum)
        return tuple(found[place] for place in sorted(found))

    def _made(self, feed: Feed, sender: str, key: str | None) -> str | None:
        """The instance that a sender's artifact comes from; None where there is none."""
        round_ = feed.round
        if feed.latest and feed.round is not None:
            made = self.rounds.get((feed.producer.name, feed.cell, sender, key), ())
            round_ = next((one for one in reversed(made) if one <= feed.round), None) if made else None
            if round_ is None:
                return None
        identity = task_id(feed.producer.name, feed.cell, round_, key, sender)
        return identity if identity in self.instances else None

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
        if edges and feed.quorum and len(edges) < needed(feed.quorum, len(edges)):
            what = f"the input {port!r} needs {feed.quorum.at_least} parties, but {len(edges)} send one here"
            raise ConfigError(self._problem(node, what, port, fix="a lower at_least, or more parties"))
        if edges and feed.secure:
            return self._summed(node, port, feed.secure, feed.quorum, edges)
        if edges and gathered:
            return edges
        if len(edges) == 1:
            return edges[0]
        if not edges:
            what = f"{feed.producer.name}.{feed.port} has no part for {party}: it ran once for each of other parties"
            raise ConfigError(self._problem(node, what, port))
        what = f"the input {port!r} takes one artifact, but {len(edges)} parties send one"
        raise ConfigError(self._problem(node, what, port, fix="'each: party' runs the task once per sender"))

    def _summed(
        self, node: Node, port: str, secure: SecureSum, quorum: Quorum | None, edges: tuple[Edge, ...]
    ) -> tuple[Edge, ...]:  # fmt: skip
        if len(edges) < secure.at_least:
            what = f"the input {port!r} is a secure sum of {secure.at_least} parties or more, but {len(edges)} send one"
            raise ConfigError(self._problem(node, what, port, fix="a lower at_least, or more parties"))
        fewest = secure.fewest(len(edges))
        if fewest > len(edges) or fewest - secure.colluding < 2:
            what = f"{secure.colluding} of {len(edges)} parties in league with the server: no sum of the others would hide them"
            raise ConfigError(self._problem(node, what, port, fix=f"colluding: {max(len(edges) - 2, 0)} at most"))
        if quorum is not None and needed(quorum, len(edges)) < fewest:
            what = f"{needed(quorum, len(edges))} of {len(edges)} are enough for the quorum of {port!r}, not for its secure sum"
            fix = f"quorum: {{at_least: {fewest}}} or more: each client refuses a sum of fewer"
            raise ConfigError(self._problem(node, what, port, fix=fix))
        return edges

    def _summed_once(self, node: Node, bound: dict[str, Edge | tuple[Edge, ...]]) -> None:
        """What goes into a sum must not come in by itself, or in another sum: nothing would be hidden."""
        edges = {port: (value,) if isinstance(value, Edge) else value for port, value in bound.items()}
        for port, several in edges.items():
            made = {(edge.producer, edge.port) for edge in several if edge.secure}
            others = {(e.producer, e.port) for name, found in edges.items() if name != port for e in found} if made else set()
            if made & others:
                raise ConfigError(self._problem(node, f"what {port!r} is the sum of comes in by another input too", port))

    def _too_many(self, node: Node) -> Problem:
        fix = "use fewer axis values, rounds or parties"
        return self._problem(node, f"the plan has more than {LIMIT:,} task runs", fix=fix)

    def _problem(self, node: Node, what: str, port: str = "", why: str = "", fix: str = "") -> Problem:
        path: Key = (*node.path, "inputs", port) if port else node.path
        return Problem(what, self.source.where(path), ".".join(map(str, path)), why, fix)
