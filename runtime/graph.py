# SPDX-License-Identifier: Apache-2.0
"""From a pipeline document to a graph of frozen task instances: references, axes, rounds, parties.

A *node* is a task as written; an *instance* is a node in one cell of its axes, in one round, at one party (and, with
``each: party``, for one sending party). Edges between parties are crossings.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from osmotic.plugins.contract import Port, input_ports
from osmotic.plugins.host import Registry
from osmotic.runtime.load import Loaded
from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.pipeline import InputSpec, Patch, Repeat, RepeatSpec, Scalar, TaskSpec
from osmotic.schemas.source import Key, did_you_mean

Cell = tuple[tuple[str, Scalar], ...]
AXIS = re.compile(r"^\$\{matrix\.([a-z0-9_-]+)\}$")
TEXT = re.compile(r"^\$\{text\.([a-z0-9_-]+)\}$")


@dataclass(frozen=True, slots=True)
class Edge:
    """One artifact that an instance takes: from which instance and port, at which party."""

    producer: str
    port: str
    sender: str
    receiver: str
    name: str  # task.input of the receiving task
    waive: str | None = None

    @property
    def crossing(self) -> bool:
        """Whether it goes from one party to another."""
        return self.sender != self.receiver


@dataclass(frozen=True, slots=True)
class Instance:
    """One run of one component at one party. `inputs`: port -> edge, or a tuple of edges for a gathered port."""

    id: str
    node: str
    party: str
    cell: Cell
    round: int | None
    each: str | None
    inputs: Mapping[str, Edge | tuple[Edge, ...]]
    variant: Cell

    def edges(self) -> Iterator[Edge]:
        """Every edge that comes in."""
        for value in self.inputs.values():
            if isinstance(value, Edge):
                yield value
            else:
                yield from value


@dataclass
class Node:
    """A task as written, with what was found out about it."""

    name: str
    spec: TaskSpec
    path: Key
    group: str | None
    repeat: Repeat | None
    component: type[Any]
    ports: dict[str, Port]
    axes: tuple[str, ...] = ()
    references: dict[tuple[str, str], "Reference"] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """What an input's text means: a node and port, or a carried value."""

    node: str
    port: str
    carry: str | None = None


class Graph:
    """The whole plan, unrolled. `instances` in an order in which every producer stands before its consumers."""

    def __init__(self, loaded: Loaded, registry: Registry) -> None:
        self.loaded = loaded
        self.pipeline = loaded.pipeline
        self.registry = registry
        self.role_of = _roles(loaded)
        self.nodes = _Builder(self).nodes()
        self.instances: dict[str, Instance] = {}
        _Unroller(self).unroll()

    def at(self, party: str) -> list[Instance]:
        """Instances of one party, in order."""
        return [i for i in self.instances.values() if i.party == party]

    @cached_property
    def consumers(self) -> dict[str, list[tuple[Instance, Edge]]]:
        """Producer id -> (consumer, edge) pairs."""
        table: dict[str, list[tuple[Instance, Edge]]] = {}
        for instance in self.instances.values():
            for edge in instance.edges():
                table.setdefault(edge.producer, []).append((instance, edge))
        return table

    def crossings(self) -> Iterator[tuple[Instance, Edge]]:
        """Every edge that leaves a party."""
        for instance in self.instances.values():
            yield from ((instance, edge) for edge in instance.edges() if edge.crossing)

    def ancestors(self, start: list[str]) -> set[str]:
        """Ids of instances that the given ones depend on, themselves included."""
        seen, todo = set(start), list(start)
        while todo:
            for edge in self.instances[todo.pop()].edges():
                if edge.producer not in seen:
                    seen.add(edge.producer)
                    todo.append(edge.producer)
        return seen

    def config_of(self, node: Node, variant: Cell) -> dict[str, Any]:
        """The configuration of a node in a cell: patches applied, axis values filled in."""
        config = dict(node.spec.config)
        for patch in patches(node.spec, variant):
            config = _merge(config, patch.config)
        filled: dict[str, Any] = _fill(config, dict(variant), self.pipeline.text)
        return filled


def patches(spec: TaskSpec, cell: Cell) -> list[Patch]:
    """The patches that apply in a cell, in the axes' order."""
    return [spec.vary[a][str(v)] for a, v in cell if a in spec.vary and str(v) in spec.vary[a]]


def task_id(node: str, cell: Cell, round_: int | None, each: str | None, party: str) -> str:
    """``node[round=2,arm=x,for=north]@hub``"""
    parts = [f"{a}={v}" for a, v in cell]
    if round_ is not None:
        parts.insert(0, f"round={round_}")
    if each is not None:
        parts.append(f"for={each}")
    return f"{node}[{','.join(parts)}]@{party}" if parts else f"{node}@{party}"


def _roles(loaded: Loaded) -> dict[str, str]:
    roles: dict[str, str] = {}
    for role, parties in loaded.pipeline.parties.items():
        for party in parties:
            if party in roles:
                where = loaded.source.where(("parties", role))
                raise ConfigError(Problem(f"the party {party!r} has two roles or stands twice", where, f"parties.{role}"))
            roles[party] = role
    return roles


def _merge(base: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in patch.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _fill(value: Any, cell: Mapping[str, Scalar], texts: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {k: _fill(v, cell, texts) for k, v in value.items()}
    if isinstance(value, list):
        return [_fill(v, cell, texts) for v in value]
    if isinstance(value, str) and (axis := AXIS.match(value)):
        return cell[axis[1]]
    if isinstance(value, str) and (named := TEXT.match(value)):
        return texts[named[1]]
    return value


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for child in value.values():
            yield from _texts_in(child)
    elif isinstance(value, list):
        for child in value:
            yield from _texts_in(child)
    elif isinstance(value, str) and (found := TEXT.match(value)):
        yield found[1]


def _axes_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for child in value.values():
            yield from _axes_in(child)
    elif isinstance(value, list):
        for child in value:
            yield from _axes_in(child)
    elif isinstance(value, str) and (found := AXIS.match(value)):
        yield found[1]


class _Builder:
    """Nodes: components, ports, references and axes, with every problem collected."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.source = graph.loaded.source
        self.pipeline = graph.pipeline
        self.problems: list[Problem] = []
        self.table: dict[str, Node] = {}

    def nodes(self) -> dict[str, Node]:
        for name, spec in self.pipeline.tasks.items():
            if isinstance(spec, RepeatSpec):
                for inner, task in spec.tasks.items():
                    self._add(f"{name}.{inner}", task, ("tasks", name, "tasks", inner), name, spec.repeat)
            else:
                self._add(name, spec, ("tasks", name), None, None)
        self._stop()
        for node in self.table.values():
            self._references(node)
        self._carries()
        self._stop()
        self._axes()
        self._cycles()
        self._stop()
        return self.table

    def _add(self, name: str, spec: TaskSpec, path: Key, group: str | None, repeat: Repeat | None) -> None:
        try:
            component = self.graph.registry.component(spec.component)
        except ConfigError as error:
            self._problem((*path, "component"), error.problems[0].what, error.problems[0].fix, error.problems[0].why)
            return
        if spec.at not in self.pipeline.parties:
            self._problem((*path, "at"), f"unknown role {spec.at!r}", did_you_mean(spec.at, self.pipeline.parties))
            return
        if spec.each and len(self.pipeline.parties[spec.at]) > 1:
            self._problem((*path, "each"), "'each: party' is for a role with a single party")
        for axis in (*spec.matrix, *spec.vary, *_axes_in(spec.config)):
            if axis not in self.pipeline.matrix:
                self._problem(path, f"unknown axis {axis!r}", did_you_mean(axis, self.pipeline.matrix))
        for text in _texts_in([spec.config, *(p.config for v in spec.vary.values() for p in v.values())]):
            if text not in self.pipeline.text:
                self._problem((*path, "config"), f"unknown text {text!r}", did_you_mean(text, self.pipeline.text))
        for axis, values in spec.vary.items():
            known = [str(v) for v in self.pipeline.matrix.get(axis, ())]
            for value in values:
                if axis in self.pipeline.matrix and value not in known:
                    self._problem((*path, "vary", axis, value), f"the axis {axis!r} has no value {value!r}", did_you_mean(value, known))
        self.table[name] = Node(name, spec, path, group, repeat, component, input_ports(component))

    def _references(self, node: Node) -> None:
        for port, given, where in self._inputs(node):
            if port not in node.ports:
                self._problem(where, f"{node.spec.component} has no input {port!r}", did_you_mean(port, node.ports))
            elif given is not None:
                found = self._resolve(given.source, node, where)
                if found:
                    node.references[(port, given.source)] = found
        for port, about in node.ports.items():
            bound = node.spec.inputs.get(port) is not None
            varied = any(p.inputs.get(port) for v in node.spec.vary.values() for p in v.values())
            if not bound and not about.optional and not varied:
                self._problem((*node.path, "inputs"), f"the input {port!r} of {node.spec.component} is not connected")

    def _inputs(self, node: Node) -> Iterator[tuple[str, InputSpec | None, Key]]:
        for port, given in node.spec.inputs.items():
            yield port, given, (*node.path, "inputs", port)
        for axis, values in node.spec.vary.items():
            for value, patch in values.items():
                for port, given in patch.inputs.items():
                    yield port, given, (*node.path, "vary", axis, value, "inputs", port)

    def _resolve(self, text: str, node: Node, where: Key) -> Reference | None:
        parts = text.split(".")
        if parts[0] == "carry" and node.repeat:
            if len(parts) != 2 or parts[1] not in node.repeat.carry:
                self._problem(where, f"nothing is carried under {'.'.join(parts[1:])!r}", did_you_mean(parts[-1], node.repeat.carry))
                return None
            return Reference("", "", parts[1])
        candidates = [f"{node.group}.{parts[0]}"] if node.group else []
        candidates += [parts[0], ".".join(parts[:2])]
        name = next((c for c in candidates if c in self.table), None)
        if name is None:
            known = [n.removeprefix(f"{node.group}.") if n.startswith(f"{node.group}.") else n for n in self.table]
            what = f"unknown task {parts[0]!r}" if parts[0] not in self.pipeline.tasks else f"{parts[0]!r} is a repeat"
            fix = did_you_mean(text, known)
            self._problem(where, what, fix)
            return None
        rest = parts[2:] if name == ".".join(parts[:2]) and name != parts[0] else parts[1:]
        outputs = self.table[name].component.outputs
        port = rest[0] if rest else next(iter(outputs))
        if len(rest) > 1 or port not in outputs:
            self._problem(where, f"the task {name!r} has no output {'.'.join(rest)!r}", did_you_mean(port, outputs))
            return None
        return Reference(name, port)

    def _carries(self) -> None:
        """Carried values refer to tasks of the repeat; their start to tasks before it."""
        for name, spec in self.pipeline.tasks.items():
            if not isinstance(spec, RepeatSpec):
                continue
            inside = next((n for n in self.table.values() if n.group == name), None)
            if inside is None:
                continue
            for key, carry in spec.repeat.carry.items():
                where: Key = ("tasks", name, "repeat", "carry", key)
                found = self._resolve(carry.source, inside, (*where, "from"))
                if found and (found.carry or self.table[found.node].group != name):
                    self._problem((*where, "from"), "a carried value comes from a task inside the repeat", f"tasks: {', '.join(spec.tasks)}")
                if carry.start is not None:
                    self._resolve(carry.start, inside, (*where, "start"))
            if spec.repeat.until is not None:
                self._until(name, spec, inside)

    def _until(self, name: str, spec: RepeatSpec, inside: Node) -> None:
        where: Key = ("tasks", name, "repeat", "until", "metric")
        until = spec.repeat.until
        text, colon, metric = until.metric.partition(":") if until else ("", "", "")
        found = self._resolve(text, inside, where)
        if not colon or not metric:
            self._problem(where, "write it as task.port:name", "e.g. evaluated.metrics:accuracy_label")
        elif found and (found.carry or self.table[found.node].group != name):
            self._problem(where, "the metric must come from a task inside the repeat")
        elif found and len(self.pipeline.parties[self.table[found.node].spec.at]) > 1:
            self._problem(where, "the metric must come from a role with a single party", "gather and aggregate it there first")

    def reference_of_carry(self, node: Node, name: str, start: bool) -> Reference | None:
        repeat = node.repeat
        if repeat is None:
            return None
        carry = repeat.carry[name]
        text = carry.start if start else carry.source
        return self._resolve(text, node, node.path) if text else None

    def _axes(self) -> None:
        """Own axes and those of the inputs, until nothing changes (carries make loops)."""
        order = list(self.pipeline.matrix)
        own = {n.name: {*n.spec.matrix, *n.spec.vary, *_axes_in(n.spec.config)} for n in self.table.values()}
        changed = True
        while changed:
            changed = False
            for node in self.table.values():
                wanted = set(own[node.name])
                for producer in self._producers(node):
                    wanted |= own[producer]
                if wanted != own[node.name]:
                    own[node.name], changed = wanted, True
        for node in self.table.values():
            node.axes = tuple(a for a in order if a in own[node.name])

    def _producers(self, node: Node) -> Iterator[str]:
        for reference in node.references.values():
            if reference.carry:
                for start in (True, False):
                    found = self.reference_of_carry(node, reference.carry, start)
                    if found:
                        yield found.node
            else:
                yield reference.node

    def _cycles(self) -> None:
        """Tasks must form no cycle (carries go to the next round and make none)."""
        state: dict[str, int] = {}

        def visit(name: str, trail: list[str]) -> None:
            state[name] = 1
            for reference in self.table[name].references.values():
                other = reference.node
                if reference.carry:
                    continue
                if state.get(other) == 1:
                    circle = " -> ".join([*trail[trail.index(other) :], other])
                    self._problem((*self.table[name].path, "inputs"), f"the tasks go round in a circle: {circle}", "use 'repeat' with 'carry'")
                elif other not in state:
                    visit(other, [*trail, other])
            state[name] = 2

        for name in self.table:
            if name not in state:
                visit(name, [name])

    def _problem(self, path: Key, what: str, fix: str = "", why: str = "") -> None:
        self.problems.append(Problem(what, self.source.where(path), ".".join(str(p) for p in path), why, fix))

    def _stop(self) -> None:
        if self.problems:
            raise ConfigError(*dict.fromkeys(self.problems))


class _Unroller:
    """Nodes x cells x rounds x parties -> instances, in dependency order."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.builder = _Builder(graph)
        self.builder.table = graph.nodes
        self.pipeline = graph.pipeline
        self.skipped: set[tuple[str, Cell]] = set()

    def unroll(self) -> None:
        for block in self._blocks():
            repeat = block[0].repeat
            for round_ in range(1, repeat.times + 1) if repeat else (None,):
                for node in block:
                    self._node(node, round_)
        empty = [n for n in self.graph.nodes.values() if not any((n.name, c) not in self.skipped for c in self._cells(n))]
        if empty:
            where = self.graph.loaded.source.where(empty[0].path)
            raise ConfigError(Problem("every cell of this task is skipped", where, ".".join(map(str, empty[0].path))))

    def _blocks(self) -> list[list[Node]]:
        """Top-level tasks and whole repeats, in dependency order."""
        nodes = self.graph.nodes
        block_of = {name: node.group or name for name, node in nodes.items()}
        needs: dict[str, set[str]] = {block: set() for block in block_of.values()}
        for name, node in nodes.items():
            needs[block_of[name]] |= {block_of[p] for p in self.builder._producers(node)} - {block_of[name]}
        order, done = [], set()
        while len(done) < len(needs):
            ready = [b for b in needs if b not in done and needs[b] <= done]
            if not ready:
                raise ConfigError(Problem(f"a repeat and the tasks around it need each other: {', '.join(set(needs) - done)}"))
            order += ready
            done |= set(ready)
        return [self._inner_order([n for n in nodes.values() if (n.group or n.name) == block]) for block in order]

    def _inner_order(self, block: list[Node]) -> list[Node]:
        names = {n.name for n in block}
        order: list[Node] = []
        while len(order) < len(block):
            placed = {n.name for n in order}
            order += [
                n
                for n in block
                if n.name not in placed
                and {r.node for r in n.references.values() if not r.carry} & names <= placed
            ]
        return order

    def _cells(self, node: Node) -> list[Cell]:
        values = [[(a, v) for v in self.pipeline.matrix[a]] for a in node.axes]
        return [tuple(cell) for cell in itertools.product(*values)]

    def _node(self, node: Node, round_: int | None) -> None:
        parties = self.pipeline.parties[node.spec.at]
        for cell in self._cells(node):
            if any(p.skip for p in patches(node.spec, cell)):
                self.skipped.add((node.name, cell))
                continue
            inputs = self._inputs(node, cell, round_)
            if inputs is None:
                self.skipped.add((node.name, cell))
                continue
            for party in parties:
                for each in self._keys(node, inputs) if node.spec.each else (None,):
                    self._instance(node, cell, round_, party, each, inputs)

    def _keys(self, node: Node, inputs: dict[str, Any]) -> list[str]:
        """The sending parties of an ``each: party`` task."""
        senders = [list(self.pipeline.parties[p.spec.at]) for p, _, _, _ in inputs.values() if p.spec.at != node.spec.at]
        keyed = [self._keys_of(p) for p, _, _, _ in inputs.values() if p.spec.at == node.spec.at and p.spec.each]
        found = senders + [k for k in keyed if k]
        if not found:
            raise self._error(node, "'each: party' needs an input that comes from several parties")
        return sorted(set(found[0]).intersection(*found[1:]))

    def _keys_of(self, node: Node) -> list[str]:
        return sorted({i.each for i in self.graph.instances.values() if i.node == node.name and i.each})

    def _inputs(self, node: Node, cell: Cell, round_: int | None) -> dict[str, Any] | None:
        """port -> (producer node, port, cell, round) with the given input; None when a required one is skipped."""
        wanted: dict[str, InputSpec | None] = dict(node.spec.inputs)
        for patch in patches(node.spec, cell):
            wanted.update(patch.inputs)
        found: dict[str, Any] = {}
        for port, given in wanted.items():
            source = self._source(node, port, given, cell, round_) if given else None
            if source is not None:
                found[port] = source
            elif not node.ports[port].optional:
                return None
        missing = [p for p, about in node.ports.items() if p not in found and not about.optional]
        return None if missing else found

    def _source(self, node: Node, port: str, given: InputSpec, cell: Cell, round_: int | None) -> Any:
        reference: Reference | None = node.references[(port, given.source)]
        at_round = round_
        if reference and reference.carry:
            at_round = (round_ or 1) - 1
            reference = self.builder.reference_of_carry(node, reference.carry, start=at_round == 0)
        if reference is None:
            return None
        producer = self.graph.nodes[reference.node]
        if producer.group != node.group or producer.group is None:
            at_round = producer.repeat.times if producer.repeat else None
        theirs = tuple((a, v) for a, v in cell if a in producer.axes)
        if (producer.name, theirs) in self.skipped:
            return None
        return producer, reference.port, (theirs, at_round), given

    def _instance(self, node: Node, cell: Cell, round_: int | None, party: str, each: str | None, inputs: dict[str, Any]) -> None:
        bound: dict[str, Edge | tuple[Edge, ...]] = {}
        for port, (producer, out, (theirs, at_round), given) in inputs.items():
            edges = tuple(
                Edge(task_id(producer.name, theirs, at_round, key, sender), out, sender, party, f"{node.name}.{port}", given.waive)
                for sender, key in self._senders(node, port, producer, party, each)
            )
            edges = tuple(e for e in edges if e.producer in self.graph.instances)
            bound[port] = self._fit(node, port, producer, out, edges)
        identity = task_id(node.name, cell, round_, each, party)
        self.graph.instances[identity] = Instance(identity, node.name, party, cell, round_, each, bound, cell)

    def _senders(self, node: Node, port: str, producer: Node, party: str, each: str | None) -> list[tuple[str, str | None]]:
        parties = self.pipeline.parties[producer.spec.at]
        if producer.spec.at == node.spec.at:
            if not producer.spec.each:
                return [(party, None)]
            return [(party, each)] if each else [(party, key) for key in self._keys_of(producer)]
        if producer.spec.each:  # scatter: each party gets its own part
            return [(parties[0], party)]
        if node.spec.each:
            return [(each, None)] if each else []
        return [(sender, None) for sender in sorted(parties)]

    def _fit(self, node: Node, port: str, producer: Node, out: str, edges: tuple[Edge, ...]) -> Edge | tuple[Edge, ...]:
        about = node.ports[port]
        kind = producer.component.outputs[out].kind
        if kind is not about.kind:
            what = f"the input {port!r} takes {about.kind.kind}, but {producer.name}.{out} gives {kind.kind}"
            raise self._error(node, what, port)
        if about.gathered:
            return edges
        if len(edges) != 1:
            what = f"the input {port!r} takes one artifact, but {len(edges)} parties send one"
            raise self._error(node, what, port, "'each: party' runs the task once per sender")
        return edges[0]

    def _error(self, node: Node, what: str, port: str = "", fix: str = "") -> ConfigError:
        path: Key = (*node.path, "inputs", port) if port else node.path
        return ConfigError(Problem(what, self.graph.loaded.source.where(path), ".".join(map(str, path)), fix=fix))
