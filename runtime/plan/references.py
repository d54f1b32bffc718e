# SPDX-License-Identifier: Apache-2.0
"""The tasks of a pipeline as nodes: components, ports, what their inputs refer to, which axes they span.

Problems are collected and raised together, each with its place.
"""

import re
from collections.abc import Iterator
from itertools import product

from osmotic.plugins.contract import Metrics, Records, input_ports
from osmotic.plugins.host import Registry
from osmotic.runtime.plan.gathering import objections
from osmotic.runtime.plan.load import Loaded, Overridden
from osmotic.runtime.plan.nodes import Node, Reference, all_patches, axes_in, metrics_port, placeholders, word
from osmotic.runtime.plan.sampling import SEED
from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.pipeline import InputSpec, Repeat, RepeatSpec, TaskSpec
from osmotic.schemas.source import Key, Source, did_you_mean

VALUE = re.compile(r"[^\x00-\x1f,=\[\]@>]{1,64}")


def narrowed(source: Source, axis: str) -> bool:
    """Whether --set gave an axis other values than the document does."""
    return isinstance(source, Overridden) and ("matrix", axis) in source.options


class Builder:
    """Makes the nodes of one pipeline."""

    def __init__(self, loaded: Loaded, registry: Registry) -> None:
        self.source, self.pipeline, self.registry = loaded.source, loaded.pipeline, registry
        self.problems: list[Problem] = []
        self.table: dict[str, Node] = {}
        self.carries: dict[tuple[str, str], Reference] = {}

    def nodes(self) -> dict[str, Node]:
        """Task name (``loop.task`` inside a repeat) -> node. Raises ConfigError with every problem."""
        self._values()
        for name, spec in self.pipeline.tasks.items():
            if isinstance(spec, RepeatSpec):
                for inner, task in spec.tasks.items():
                    self._add(f"{name}.{inner}", task, ("tasks", name, "tasks", inner), name, spec.repeat)
            else:
                self._add(name, spec, ("tasks", name), None, None)
        self._stop()
        for name, spec in self.pipeline.tasks.items():
            if isinstance(spec, RepeatSpec):
                self._repeat(name, spec)
        for node in self.table.values():
            self._references(node)
            self._require(node)
        self._report()
        self._stop()
        self._axes()
        self._spans()
        self._cycles()
        self._stop()
        return self.table

    # ---- tasks one by one ----

    def _values(self) -> None:
        """Values of an axis must look different and plain: they are part of identities."""
        for axis, values in self.pipeline.matrix.items():
            words = [word(v) for v in values]
            twice = sorted({w for w in words if words.count(w) > 1})
            if twice:
                self._problem(("matrix", axis), f"the value {twice[0]!r} stands twice")
            if axis in ("for", "round"):
                self._problem(("matrix", axis), f"an axis cannot be called {axis!r}", "it is part of every identity")
            for i, one in enumerate(words):
                if not VALUE.fullmatch(one):
                    what = f"the value {one[:80]!r} cannot be part of an identity"
                    self._problem(("matrix", axis, i), what, "1 to 64 characters, none of , = [ ] @ >; texts go under 'text'")

    def _add(self, name: str, spec: TaskSpec, path: Key, group: str | None, repeat: Repeat | None) -> None:
        parties = self.pipeline.parties
        if spec.at not in parties:
            self._problem((*path, "at"), f"unknown role {spec.at!r}", did_you_mean(spec.at, parties))
        elif spec.each and len(parties[spec.at]) > 1:
            self._problem((*path, "each"), "'each: party' is for a role with a single party")
        self._axes_named(spec, path)
        self._placeholders(spec, path)
        try:
            component = self.registry.component(spec.component)
        except ConfigError as error:
            first = error.problems[0]
            self._problem((*path, "component"), first.what, first.fix, first.why)
            return
        self.table[name] = Node(name, spec, path, group, repeat, component, input_ports(component))

    def _axes_named(self, spec: TaskSpec, path: Key) -> None:
        matrix = self.pipeline.matrix
        for i, axis in enumerate(spec.matrix):
            if axis not in matrix:
                self._problem((*path, "matrix", i), f"unknown axis {axis!r}", did_you_mean(axis, matrix))
        for axis, values in spec.vary.items():
            if axis not in matrix:
                self._problem((*path, "vary", axis), f"unknown axis {axis!r}", did_you_mean(axis, matrix))
                continue
            known = [word(v) for v in matrix[axis]]
            for value in values:
                if value not in known and not self._narrowed(axis):
                    what = f"the axis {axis!r} has no value {value!r}"
                    self._problem((*path, "vary", axis, value), what, did_you_mean(value, known))

    def _narrowed(self, axis: str) -> bool:
        """Whether --set gave an axis other values: what the document says about the ones that it had is then no mistake."""
        return narrowed(self.source, axis)

    def _placeholders(self, spec: TaskSpec, path: Key) -> None:
        tables = {"matrix": ("axis", list(self.pipeline.matrix)), "text": ("text", list(self.pipeline.text))}
        configs = [((), spec.config), *((below, patch.config) for below, patch in all_patches(spec))]
        for below, config in configs:
            for inner, kind, name, alone in placeholders(config):
                where: Key = (*path, *below, "config", *inner)
                if kind not in tables:
                    self._problem(where, f"unknown '${{{kind}.{name}}}'", "there are ${matrix.AXIS} and ${text.NAME}")
                elif not alone:
                    self._problem(where, f"'${{{kind}.{name}}}' must be the whole value", "put the whole text under 'text'")
                elif name not in tables[kind][1]:
                    self._problem(where, f"unknown {tables[kind][0]} {name!r}", did_you_mean(name, tables[kind][1]))

    # ---- references ----

    def _repeat(self, name: str, spec: RepeatSpec) -> None:
        """Carried values come from inside the repeat, start with something before it; 'until' looks inside."""
        for key, carry in spec.repeat.carry.items():
            where: Key = ("tasks", name, "repeat", "carry", key)
            found = self._resolve(carry.source, name, (*where, "from"), carries=False)
            if found and self.table[found.node].group != name:
                what = "a carried value comes from a task inside the repeat"
                self._problem((*where, "from"), what, f"tasks: {', '.join(spec.tasks)}")
            start = self._resolve(carry.start, name, (*where, "start"), carries=False) if carry.start else None
            if start and self.table[start.node].group == name:
                self._problem((*where, "start"), "what is carried first must come from before the repeat")
            if found:
                self.carries[(name, key)] = Reference(found.node, found.port, True, start)
        if spec.repeat.until is not None:
            self._until(name, spec.repeat.until.metric)
        self._sample(name, spec)

    def _sample(self, name: str, spec: RepeatSpec) -> None:
        """Roles that parties are chosen from have as many, and something to do in the repeat."""
        parties, used = self.pipeline.parties, {task.at for task in spec.tasks.values()}
        for role, count in spec.repeat.sample.items():
            where: Key = ("tasks", name, "repeat", "sample", role)
            if role not in parties:
                self._problem(where, f"unknown role {role!r}", did_you_mean(role, parties))
            elif role not in used:
                what = f"no task of this repeat is at {role!r}: there is nothing to take part in"
                self._problem(where, what, f"roles of its tasks: {', '.join(sorted(used))}")
            elif count > len(parties[role]):
                what = f"{count} parties are to take part in a round, but {role!r} has {len(parties[role])}"
                self._problem(where, what, f"at most {len(parties[role])}; without 'sample' all take part")

    def _until(self, name: str, metric: str) -> None:
        where: Key = ("tasks", name, "repeat", "until", "metric")
        text, _, value = metric.partition(":")
        if not value:
            self._problem(where, "write it as task.port:name", "e.g. evaluated.metrics:accuracy_label")
            return
        found = self._resolve(text, name, where, carries=False)
        if found is None:
            return
        node = self.table[found.node]
        if found.node != f"{name}.{text.partition('.')[0]}":
            self._problem(where, "the metric must come from a task inside the repeat, by its short name")
        elif node.component.outputs[found.port].kind is not Metrics:
            self._problem(where, f"{text!r} gives {node.component.outputs[found.port].kind.kind}, not metrics")
        elif len(self.pipeline.parties[node.spec.at]) > 1 or node.spec.each:
            what = "the metric must come from a task that runs once, at a role with a single party"
            self._problem(where, what, "gather and aggregate it there first")

    def _references(self, node: Node) -> None:
        for port, given, where in _inputs(node):
            if port not in node.ports:
                self._problem(where, f"{node.spec.component} has no input {port!r}", did_you_mean(port, node.ports))
            elif given is not None:
                found = self._resolve(given.source, node.group, where)
                if found:
                    node.references[(port, given.source)] = found
                    self._fits(node, port, found, where)
                    for key, what, fix in objections(node, port, given, found, self.table[found.node], self.pipeline.parties):
                        self._problem((*where, key), what, fix)
        for port, about in node.ports.items():
            given_once = any(given for name, given, _ in _inputs(node) if name == port)
            if not given_once and not about.optional:
                what = f"the input {port!r} of {node.spec.component} is not connected"
                self._problem((*node.path, "inputs"), what, f"inputs: {{{port}: TASK}}")

    def _fits(self, node: Node, port: str, found: Reference, where: Key) -> None:
        about = node.ports[port]
        for target in found.targets():
            kind = self.table[target.node].component.outputs[target.port].kind
            if kind is not about.kind:
                what = f"the input {port!r} takes {about.kind.kind}, but {target.node}.{target.port} gives {kind.kind}"
                self._problem(where, what)
        if found.carried and found.start is None and not about.optional:
            what = f"the input {port!r} is needed, and in the first round nothing is carried"
            self._problem(where, what, "give the carried value a 'start'")

    def _resolve(self, text: str, group: str | None, where: Key, carries: bool = True) -> Reference | None:
        """What a reference means, read inside the repeat `group`; None when that is a problem (noted)."""
        parts = text.split(".")
        if parts[0] == "carry" and "carry" not in self.pipeline.tasks:
            return self._carried(parts, group, where, carries)
        candidates = [f"{group}.{parts[0]}"] if group else []
        candidates += [parts[0], ".".join(parts[:2])]
        name = next((c for c in candidates if c in self.table), None)
        if name is None:
            self._unknown(text, group, where)
            return None
        rest = parts[2:] if name == ".".join(parts[:2]) and name != parts[0] else parts[1:]
        outputs = self.table[name].component.outputs
        port = rest[0] if rest else next(iter(outputs))
        if len(rest) > 1 or port not in outputs:
            self._problem(where, f"the task {name!r} has no output {'.'.join(rest)!r}", did_you_mean(port, outputs))
            return None
        return Reference(name, port)

    def _carried(self, parts: list[str], group: str | None, where: Key, carries: bool) -> Reference | None:
        if group is None or not carries:
            what = "'carry' can be used by the inputs of a repeat's tasks only"
            self._problem(where, what, "outside: LOOP.TASK is what the last round gave")
            return None
        spec = self.pipeline.tasks[group]
        known = list(spec.repeat.carry) if isinstance(spec, RepeatSpec) else []
        name = ".".join(parts[1:])
        if name not in known:
            fix = did_you_mean(name, known) if known else "list it under 'repeat: {carry: ...}'"
            self._problem(where, f"nothing is carried under {name!r}", fix)
        return self.carries.get((group, name))

    def _unknown(self, text: str, group: str | None, where: Key) -> None:
        first, _, rest = text.partition(".")
        known = [n.removeprefix(f"{group}.") if group else n for n in self.table]
        spec = self.pipeline.tasks.get(first)
        if not isinstance(spec, RepeatSpec):
            self._problem(where, f"unknown task {first!r}", did_you_mean(first, known))
        elif rest:
            inner = rest.partition(".")[0]
            self._problem(where, f"the repeat {first!r} has no task {inner!r}", did_you_mean(inner, spec.tasks))
        else:
            self._problem(where, f"{first!r} is a repeat", f"name one of its tasks: {first}.{next(iter(spec.tasks))}")

    def _require(self, node: Node) -> None:
        """Bounds are for tasks that give metrics."""
        if node.spec.require and metrics_port(node) is None:
            first = next(iter(node.spec.require))
            self._problem((*node.path, "require", first), f"{node.spec.component} gives no metrics that could be bounded")

    def _report(self) -> None:
        """The table's tasks, its axes, the rows that stand apart, the chart, the samples."""
        report, matrix = self.pipeline.report, self.pipeline.matrix
        for i, name in enumerate(report.table):
            if name not in self.table:
                self._problem(self._nth("table", i), f"unknown task {name!r}", did_you_mean(name, self.table))
        times = max((n.repeat.times for name in report.table if (n := self.table.get(name)) and n.repeat), default=0)
        spans = {**matrix, "round": range(1, times + 1)} if times else matrix
        for i, axis in enumerate(report.rows if "rows" in report.model_fields_set else ()):
            if axis not in spans:
                self._problem(self._nth("rows", i), f"unknown axis {axis!r}", did_you_mean(axis, spans))
        rows = [", ".join(words) for words in product(*([word(v) for v in spans.get(axis, ())] for axis in report.rows))]
        for i, row in enumerate(report.apart):
            if row not in rows and not any(self._narrowed(axis) for axis in report.rows):
                axes = ", ".join(repr(axis) for axis in report.rows)
                what = f"the axis {axes} has no value {row!r}"
                self._problem(("report", "apart", i), what, did_you_mean(row, rows))
        for metric in report.metrics:
            task, colon, _ = metric.partition(":")
            if colon and task not in report.table:
                what = f"the table has no task {task!r}, whose metric this would be"
                self._problem(("report", "metrics", metric), what, did_you_mean(task, report.table))
        self._chart()
        self._samples()

    def _samples(self) -> None:
        """Records that are shown, of tasks at known values of known axes."""
        for title, sample in self.pipeline.report.samples.items():
            where: Key = ("report", "samples", title)
            text, found = sample.source, self._resolve(sample.source, None, where)
            if found and text != f"{found.node}.{found.port}":
                self._problem(where, "write it as task.port", f"{found.node}.{found.port}")
            elif found and self.table[found.node].component.outputs[found.port].kind is not Records:
                self._problem(where, f"{text!r} is not records")
            for axis, value in sample.where.items():
                known = (*self.pipeline.matrix, "round")
                if axis not in known:
                    self._problem((*where, "where", axis), f"unknown axis {axis!r}", did_you_mean(axis, known))
                elif axis != "round" and value not in self.pipeline.matrix[axis] and not self._narrowed(axis):
                    fix = did_you_mean(word(value), [word(v) for v in self.pipeline.matrix[axis]])
                    self._problem((*where, "where", axis), f"the axis {axis!r} has no value {word(value)!r}", fix)

    def _nth(self, key: str, i: int) -> Key:
        """The place of a member of a list in the report, which may be written without the list."""
        found = self.pipeline.report.table if key == "table" else self.pipeline.report.rows
        return ("report", key, i) if len(found) > 1 else ("report", key)

    def _chart(self) -> None:
        """The chart shows columns of the table; its lines are an axis of the rows."""
        report, chart = self.pipeline.report, self.pipeline.report.chart
        if chart is None:
            return
        for key, metric in (("x", chart.x), ("y", chart.y)):
            if metric not in report.metrics:
                what = f"the table has no metric {metric!r}"
                self._problem(("report", "chart", key), what, did_you_mean(metric, report.metrics))
        if chart.by not in report.rows:
            what = f"the rows have no axis {chart.by!r}"
            self._problem(("report", "chart", "by"), what, did_you_mean(chart.by, report.rows))

    # ---- axes and order ----

    def _axes(self) -> None:
        """Own axes and those of the inputs, until nothing changes (carries make loops).

        Where parties are chosen by the seed, all tasks of the repeat span it: they mean the same parties.
        """
        own = {n.name: axes_in(n.spec) for n in self.table.values()}
        changed = True
        while changed:
            changed = False
            seeded = {n.group for n in self.table.values() if n.repeat and n.repeat.sample and SEED in own[n.name]}
            for node in self.table.values():
                wanted = own[node.name].union(*(own[name] for name in producers(node)), {SEED} if node.group in seeded else ())
                if wanted != own[node.name]:
                    own[node.name], changed = wanted, True
        for node in self.table.values():
            node.axes = tuple(a for a in self.pipeline.matrix if a in own[node.name])

    def _spans(self) -> None:
        """What says which of several tasks a sample is of must tell them apart: else it would show nothing."""
        for title, sample in self.pipeline.report.samples.items():
            node = self.table[sample.source.rpartition(".")[0]]
            for axis, value in sample.where.items():
                where: Key = ("report", "samples", title, "where", axis)
                if axis == "round" and node.repeat is not None:
                    times = node.repeat.times
                    given = self.source.options if isinstance(self.source, Overridden) else ()
                    if value not in range(1, times + 1) and ("tasks", node.group, "repeat", "times") not in given:
                        self._problem(where, f"there is no round {word(value)}: {node.group!r} has {times}")
                elif axis not in node.axes:
                    fix = f"its axes: {', '.join(node.axes) or 'none'}"
                    self._problem(where, f"{node.name!r} does not span {axis!r}", fix)

    def _cycles(self) -> None:
        """Tasks must form no cycle (carries go to the next round and make none)."""
        done: set[str] = set()
        for name in self.table:
            self._visit(name, [name], done)

    def _visit(self, name: str, trail: list[str], done: set[str]) -> None:
        if name in done:
            return
        for (port, _), reference in self.table[name].references.items():
            other = reference.node
            if reference.carried:
                continue
            if other in trail:
                circle = " -> ".join([*trail[trail.index(other) :], other])
                what = f"the tasks go round in a circle: {circle}"
                self._problem((*self.table[name].path, "inputs", port), what, "use 'repeat' with 'carry'")
            else:
                self._visit(other, [*trail, other], done)
        done.add(name)

    def _problem(self, path: Key, what: str, fix: str = "", why: str = "") -> None:
        self.problems.append(Problem(what, self.source.where(path), ".".join(str(p) for p in path), why, fix))

    def _stop(self) -> None:
        if self.problems:
            raise ConfigError(*dict.fromkeys(self.problems))


def producers(node: Node) -> Iterator[str]:
    """Names of the nodes that a node's inputs can come from, in any cell and round."""
    for reference in node.references.values():
        yield from (target.node for target in reference.targets())


def _inputs(node: Node) -> Iterator[tuple[str, InputSpec | None, Key]]:
    """(port, what it is given, path) as written, patches included."""
    for port, given in node.spec.inputs.items():
        yield port, given, (*node.path, "inputs", port)
    for below, patch in all_patches(node.spec):
        for port, given in patch.inputs.items():
            yield port, given, (*node.path, *below, "inputs", port)
