# SPDX-License-Identifier: Apache-2.0
"""Everything about a graph that can be checked before anything is loaded: component, mechanism and model configuration,
templates against record schemas, and each party's own policy. All problems come together, located.
"""

import functools
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from osmotic.plugins.building import split
from osmotic.plugins.contract import DocumentMechanism, config_type
from osmotic.plugins.host import Registry
from osmotic.plugins.spaces import resolve
from osmotic.runtime.party.data import Datasets
from osmotic.runtime.plan.graph import Cell, Edge, Graph, Instance, Node
from osmotic.runtime.plan.nodes import word
from osmotic.schemas.artifacts import Records
from osmotic.schemas.errors import ConfigError, OsmoticError, Problem
from osmotic.schemas.messages import fingerprint
from osmotic.schemas.policy import SitePolicy
from osmotic.schemas.records import RecordSchema
from osmotic.schemas.source import Key, Source, did_you_mean, problems_of

SHIPPED = "osmotic:"


class Configs:
    """Validated configurations by (node, cell). Raises ConfigError with every problem, located."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.problems: list[Problem] = []
        self._made: dict[tuple[str, Cell], Any] = {}
        self._checked: dict[str, tuple[str, ...]] = {}
        self._raw: dict[tuple[str, Cell], dict[str, Any]] = {}
        self._sources: dict[str, frozenset[str]] = {}
        for instance in graph.instances.values():
            self._make(graph.nodes[instance.node], instance.cell)
        self._models()
        if self.problems:
            raise ConfigError(*dict.fromkeys(self.problems))

    def of(self, instance: Instance) -> Any:
        """The configuration object of an instance."""
        return self._made[(instance.node, instance.cell)]

    def raw(self, instance: Instance) -> dict[str, Any]:
        """The same as plain values, defaults filled in; not to be changed."""
        place = (instance.node, instance.cell)
        if place not in self._raw:
            self._raw[place] = self.of(instance).model_dump(mode="json")
        return self._raw[place]

    def sources(self, identity: str) -> frozenset[str]:
        """Names of the data sets that the sources among an instance and its ancestors read, in no order."""
        if not self._sources:
            for one in self.graph.instances.values():  # producers stand before their consumers
                outs = self.graph.nodes[one.node].component.outputs.values()
                own = {str(getattr(self.of(one), "data", ""))} if any(out.label == "source" for out in outs) else set()
                self._sources[one.id] = frozenset(own).union(*(self._sources[edge.producer] for edge in one.edges()))
        return self._sources[identity]

    def checked(self, node: Node, config: Any, schema: RecordSchema | None) -> tuple[str, ...]:
        """What a component says of its configuration against a schema; asked once for equal ones."""
        key = fingerprint([node.spec.component, config.model_dump(mode="json"), schema and schema.model_dump(mode="json")])
        if key not in self._checked:
            self._checked[key] = tuple(node.component.check(config, schema))
        return self._checked[key]

    def _make(self, node: Node, cell: Cell) -> None:
        if (node.name, cell) in self._made:
            return
        values = self.graph.config_of(node, cell)
        model = config_type(node.component)
        try:
            made = model.model_validate(values)
        except ValidationError as error:
            self._made[(node.name, cell)] = None
            located = problems_of(error, model, Source(node.name, values))
            self.problems += [self.place(node, cell, p) for p in located]
            return
        self._made[(node.name, cell)] = made
        self._mechanism(node, cell, made)
        self._model_names(node, cell, made)

    def place(self, node: Node, cell: Cell, problem: Problem) -> Problem:
        """Put a configuration problem where the value was written: in the patch that set it, or in the task."""
        keys = tuple(int(k) if k.isdigit() else k for k in problem.path.split(".")) if problem.path else ()
        source = self.graph.loaded.source
        path: Key = (*node.path, "config", *keys)
        for axis, value in cell:
            patched: Key = (*node.path, "vary", axis, word(value), "config", *keys)
            if _written(source, patched):
                path = patched
        return Problem(problem.what, source.where(path), ".".join(map(str, path)), problem.why, problem.fix)

    def _mechanism(self, node: Node, cell: Cell, config: Any) -> None:
        mechanism = getattr(config, "mechanism", None)
        if not isinstance(mechanism, Mapping):
            return
        try:
            name, values = split(mechanism)
            found = self.graph.registry.mechanism(name)
            model = config_type(found)
        except ConfigError as error:
            first = error.problems[0]
            problem = Problem(first.what, "", "mechanism.name", first.why, first.fix)
            self.problems.append(self.place(node, cell, problem))
            return
        if issubclass(found, DocumentMechanism) and not releases(node):
            what = f"{node.spec.component} needs a token mechanism: {name!r} works on whole documents"
            fix = "skip it for this mechanism, or name the token mechanism that it is composed of, at its largest epsilon"
            self.problems.append(self.place(node, cell, Problem(what, "", "mechanism.name", fix=fix)))
            return
        try:
            self._model_names(node, cell, model.model_validate(values), "mechanism.")
        except ValidationError as error:
            for p in problems_of(error, model, Source(node.name, values)):
                path = f"mechanism.{p.path}" if p.path else "mechanism"
                self.problems.append(self.place(node, cell, Problem(p.what, "", path, p.why, p.fix)))

    def _model_names(self, node: Node, cell: Cell, config: Any, prefix: str = "") -> None:
        for key in model_fields(config):
            name = getattr(config, key)
            if name is not None and name not in self.graph.pipeline.models:
                fix = did_you_mean(name, self.graph.pipeline.models)
                self.problems.append(self.place(node, cell, Problem(f"unknown model {name!r}", "", f"{prefix}{key}", fix=fix)))
            elif name is not None and key in own_model_keys(type(config)):
                self._own(node, cell, name, f"{prefix}{key}")

    def _own(self, node: Node, cell: Cell, name: str, key: str) -> None:
        """A model that a task trains is at the task's own role: weights of another party cannot be reached."""
        there, here = self.graph.pipeline.models[name].at, node.spec.at
        if there in self.graph.pipeline.parties and there != here:
            what, why = f"a task at {here!r} cannot train the model {name!r} of {there!r}", "it could only ask it questions"
            fix = f"give {name!r} 'at: {here}', name another model, or move the task to {there!r}"
            self.problems.append(self.place(node, cell, Problem(what, "", key, why, fix)))

    def _models(self) -> None:
        source = self.graph.loaded.source
        for name, spec in self.graph.pipeline.models.items():
            path: Key = ("models", name)
            if spec.at not in self.graph.pipeline.parties:
                fix = did_you_mean(spec.at, self.graph.pipeline.parties)
                what = f"unknown role {spec.at!r}"
                self.problems.append(Problem(what, source.where((*path, "at")), f"models.{name}.at", fix=fix))
            try:
                cls = self.graph.registry.model(spec.type)
                config_type(cls).model_validate(spec.config)
                self._shipped(name, spec.config.get("path"))
            except ConfigError as error:
                p = error.problems[0]
                self.problems.append(Problem(p.what, source.where((*path, "type")), f"models.{name}.type", p.why, p.fix))
            except ValidationError as error:
                for p in problems_of(error, config_type(cls), Source(name, spec.config)):
                    keys: Key = (*path, "config", *(p.path.split(".") if p.path else ()))
                    self.problems.append(Problem(p.what, source.where(keys), ".".join(map(str, keys)), p.why, p.fix))

    def _shipped(self, name: str, path: Any) -> None:
        """A shipped model is there, or there is none of that name: no need to wait until it is loaded."""
        if not isinstance(path, str) or not path.startswith(SHIPPED) or path.endswith(".gguf"):
            return
        try:
            resolve(f"{path}/config.json", Path())
        except ConfigError as error:
            where, p = ("models", name, "config", "path"), error.problems[0]
            what = f"no model is shipped as {path!r}"
            self.problems.append(Problem(what, self.graph.loaded.source.where(where), ".".join(where), p.what, p.fix))


def model_fields(config: Any) -> Iterator[str]:
    """Configuration keys that name a model."""
    yield from model_keys(type(config))


def model_keys(cls: type[Any]) -> Iterator[str]:
    """Keys of a configuration class that name a model."""
    named: Any = cls
    yield from _marked(named, "model")


def own_model_keys(cls: type[Any]) -> tuple[str, ...]:
    """Keys of a configuration class that name a model which must be at the task's own role."""
    named: Any = cls
    return _marked(named, "model", "own")


@functools.lru_cache(maxsize=1024)
def _marked(cls: type[Any], kind: str, also: str = "osmotic") -> tuple[str, ...]:
    """Keys whose annotation, or one side of it (``ModelName | None``), says that they name this kind of thing."""
    found = []
    for key, info in cls.model_fields.items():
        inner = [m for a in getattr(info.annotation, "__args__", ()) for m in getattr(a, "__metadata__", ())]
        extras = [info.json_schema_extra, *(getattr(m, "json_schema_extra", None) for m in inner)]
        if any(isinstance(extra, dict) and extra.get("osmotic") == kind and extra.get(also) for extra in extras):
            found.append(key)
    return tuple(found)


def releases(node: Node) -> bool:
    """Whether a task releases data, rather than only looking at the mechanism that its configuration names."""
    return any(out.label == "release" for out in node.component.outputs.values())


def schema_names(config: Any) -> Iterator[tuple[str, str]]:
    """(key, data set) of configuration keys that name a data set whose schema is read, and nothing else of it."""
    for key in _marked(config.__class__, "dataset"):
        if (name := getattr(config, key)) is not None:
            yield key, str(name)


def build_model(registry: Registry, graph: Graph, name: str) -> Any:
    """The model plugin (not yet built) that a pipeline's model names."""
    spec = graph.pipeline.models[name]
    cls = registry.model(spec.type)
    return cls(config_type(cls).model_validate(spec.config))


def site_problems(graph: Graph, configs: Configs, party: str, datasets: Datasets) -> list[Problem]:
    """What one party's policy refuses or lacks: data bindings, components, mechanisms, models, seeds, templates."""
    problems: list[Problem] = []
    policy = datasets.policy
    done: set[tuple[str, Cell]] = set()
    for instance in graph.at(party):
        if (instance.node, instance.cell) in done:
            continue
        done.add((instance.node, instance.cell))
        node, config = graph.nodes[instance.node], configs.of(instance)
        where, path = graph.loaded.source.where(node.path), ".".join(map(str, node.path))
        if not any(w in ("*", node.spec.component) for w in policy.components):
            problems.append(Problem(f"{party} does not allow the component {node.spec.component!r}", where, path))
        if any(out.label == "source" for out in node.component.outputs.values()):
            problems += _binding(graph, node, str(getattr(config, "data", "")), party, policy)
        for key, dataset in schema_names(config):
            problems += _binding(graph, node, dataset, party, policy, key)
        problems += _slots(graph, configs, instance, (datasets,))
    problems += _model_paths(graph, party, policy)
    if graph.pipeline.noise_seed is not None and graph.at(party):
        problems += _seeded(graph, configs, party, policy)
    return list(dict.fromkeys(problems))


def _model_paths(graph: Graph, party: str, policy: SitePolicy) -> list[Problem]:
    """Models that the plan would load here from a place that the site did not name."""
    found: list[Problem] = []
    for name, spec in graph.pipeline.models.items():
        if spec.at != graph.role_of[party]:
            continue
        place = getattr(config_type(graph.registry.model(spec.type)).model_validate(spec.config), "path", None)
        if place is None or str(place).startswith(SHIPPED) or {"*", str(place)} & set(policy.models):
            continue
        path = ("models", name, "config", "path")
        what = f"{party} does not allow the model {str(place)!r}"
        fix = f"add 'models: [{json.dumps(str(place), ensure_ascii=False)}]' to the site file of {party}"
        found.append(Problem(what, graph.loaded.source.where(path), ".".join(path), "a plan may not choose files", fix))
    return found


def slot_problems(
    graph: Graph, configs: Configs, party: str, datasets: Datasets, others: Sequence[Datasets] = ()
) -> list[Problem]:
    """What the components at one party say of their configurations (templates, fields) against its schemas.

    others: data sets of other parties, where one process knows them: the schemas of what this party only gets from them.
    """
    first = {(i.node, i.cell): i for i in reversed(graph.at(party))}
    found = [p for i in reversed(first.values()) for p in _slots(graph, configs, i, (datasets, *others))]
    return list(dict.fromkeys(found))


def _slots(graph: Graph, configs: Configs, instance: Instance, known: Sequence[Datasets]) -> list[Problem]:
    node = graph.nodes[instance.node]
    config = configs.of(instance)
    problems: list[Problem] = []
    for schema in _schemas(graph, configs, instance, known, problems):
        for text in configs.checked(node, config, schema):
            key, colon, rest = text.partition(": ")  # checks begin with the key that they are about
            ours = bool(colon) and key.split(".")[0] in type(config).model_fields
            problems.append(configs.place(node, instance.cell, Problem(rest, path=key) if ours else Problem(text)))
    return problems


def _written(source: Source, path: Key) -> bool:
    """Whether a document (with what --set changed) has a key."""
    try:
        source.at(path)
    except (KeyError, IndexError, TypeError):
        return False
    return True


def _binding(graph: Graph, node: Node, dataset: str, party: str, policy: SitePolicy, key: str = "data") -> list[Problem]:
    if dataset in policy.data:
        return []
    path = (*node.path, "config", key)
    add = f"add 'data: {{{dataset}: {{path: ..., schema: ...}}}}' to the site file of {party}"
    fix = did_you_mean(dataset, policy.data) or add
    what = f"{party} binds no data set called {dataset!r}"
    return [Problem(what, graph.loaded.source.where(path), ".".join(map(str, path)), fix=fix)]


def _schemas(
    graph: Graph, configs: Configs, instance: Instance, known: Sequence[Datasets], problems: list[Problem]
) -> list[RecordSchema | None]:
    """Schemas of the data sets that the instance's records descend from, as far as they are known; [None] when there are none.

    What templates are put over are records: where weights or a document came from says nothing of their fields.
    """
    found: list[RecordSchema | None] = []
    ports = graph.nodes[instance.node].ports
    tables = [edge for edge in instance.edges() if ports[edge.name.rpartition(".")[2]].kind is Records]
    released = _released(graph, configs, tables)
    near = (
        known if released is not None else known[:1]
    )  # elsewhere's fields are known only of what comes straight from a release
    for name in datasets_of(graph, configs, instance, [edge.producer for edge in tables]):
        try:
            one = next((datasets.schema(name) for datasets in near if datasets.has(name)), None)
        except OsmoticError as error:
            problems += error.problems
            continue
        if one is not None:
            left = {field: spec for field, spec in one.fields.items() if released is None or field in released}
            found.append(one.model_copy(update={"fields": left}))
    return found or [None]


def _released(graph: Graph, configs: Configs, tables: Sequence[Edge]) -> frozenset[str] | None:
    """The fields that all of these tables have, where each is a release of fields by name; None where one is something else."""
    fields: frozenset[str] = frozenset()
    for edge in tables:
        producer = graph.instances[edge.producer]
        config = configs.of(producer)
        if graph.nodes[producer.node].component.outputs[edge.port].label != "release" or not hasattr(config, "mechanism"):
            return None
        if not isinstance(getattr(config, "fields", None), list | tuple):
            return None
        fields |= frozenset(config.fields)
    return fields if tables else None


def datasets_of(graph: Graph, configs: Configs, instance: Instance, through: Sequence[str] = ()) -> list[str]:
    """Names of the data sets that an instance descends from, nearest first, at any party; first those whose schema it names.

    through: instances that feed it, to follow these alone.
    """
    names = [name for _, name in schema_names(configs.of(instance))]
    sources = frozenset[str]().union(*(configs.sources(one) for one in through or [instance.id]))
    if len(sources) < 2:  # none is nearer than another
        return list(dict.fromkeys([*names, *sources]))
    todo, seen = deque(through or [instance.id]), set(through or [instance.id])
    while todo:
        current = graph.instances[todo.popleft()]
        outs = graph.nodes[current.node].component.outputs.values()
        if any(out.label == "source" for out in outs):
            names.append(str(getattr(configs.of(current), "data", "")))
        for edge in current.edges():
            if edge.producer not in seen:
                seen.add(edge.producer)
                todo.append(edge.producer)
    return list(dict.fromkeys(names))


def _seeded(graph: Graph, configs: Configs, party: str, policy: SitePolicy) -> list[Problem]:
    where = graph.loaded.source.where(("noise_seed",))
    used = {d for i in graph.at(party) for d in datasets_of(graph, configs, i) if d in policy.data}
    private = [d for d in sorted(used) if policy.data[d].label == "private" and policy.data[d].purpose != "benchmark"]
    if used and not policy.seeded:
        return [Problem(f"{party} does not allow seeded noise", where, "noise_seed", why="a seed voids the guarantee")]
    if private:
        return [Problem(f"{party}: seeded noise works on benchmark data only, not {', '.join(private)}", where, "noise_seed")]
    return []
