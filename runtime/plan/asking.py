# SPDX-License-Identifier: Apache-2.0
"""What a plan asks of a party's data: releases, feedback bits, histograms, trainings, votes; checked against models, policy and
caps before anything runs.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from osmotic.plugins.building import is_document, mechanism_config, split
from osmotic.plugins.contract import Records
from osmotic.runtime.party.endpoints import address_of
from osmotic.runtime.plan import flow, record_asks
from osmotic.runtime.plan.checks import Configs, build_model, datasets_of, model_fields, releases
from osmotic.runtime.plan.graph import Edge, Graph, Instance
from osmotic.runtime.privacy.charging import by_kind, cap_of, check_cap, in_words
from osmotic.runtime.privacy.composition import ClientEvents, RecordEvents
from osmotic.runtime.privacy.histograms import event_of
from osmotic.runtime.privacy.noisy_sums import check_plan
from osmotic.schemas.errors import ConfigError, Problem, RefusedError
from osmotic.schemas.labels import Label
from osmotic.schemas.noise import ClientNoise, CountNoise, VoteNoise
from osmotic.schemas.source import did_you_mean

if TYPE_CHECKING:
    from osmotic.runtime.party.site import Site

Raw = Callable[[Edge], bool]  # whether the artifact of an edge is private


class OwnModels:
    """Models at this party's role, for mechanisms. Implements `preparing.Models`."""

    def __init__(self, site: "Site", graph: Graph) -> None:
        self._site, self._graph = site, graph

    def fingerprint(self, name: str) -> str:
        """What the model is; raises ConfigError for an unknown one, RefusedError for one elsewhere or behind an endpoint."""
        models = self._graph.pipeline.models
        if name not in models:
            raise ConfigError(Problem(f"unknown model {name!r}", path="mechanism", fix=did_you_mean(name, models)))
        here, there = self._graph.role_of[self._site.party], models[name].at
        if there != here:
            why = "private text would cross to it before it is protected"
            what = f"a mechanism at {here!r} may not ask the model {name!r} at {there!r}"
            raise RefusedError(Problem(what, path="mechanism", why=why, fix=f"give it a model with 'at: {here}'"))
        if (address := address_of(self._site.registry, self._graph, name)) is not None:
            why = f"private text would go to {address.origin} before it is protected"
            what, fix = f"a mechanism may not ask the model {name!r}: a server answers", "give it a model that runs here"
            raise RefusedError(Problem(what, path="mechanism", why=why, fix=fix))
        return str(build_model(self._site.registry, self._graph, name).fingerprint())

    def get(self, name: str) -> Any:
        """The model itself; raises what `fingerprint` raises."""
        self.fingerprint(name)
        return self._site.own_model(name)


def is_release(config: Any) -> bool:
    """Whether a task releases fields through a mechanism."""
    return isinstance(getattr(config, "mechanism", None), dict) and hasattr(config, "fields")


def is_feedback(config: Any) -> bool:
    """Whether a task releases a feedback bit a document: its key `epsilon` is marked so."""
    info = type(config).model_fields.get("epsilon")
    extra = info.json_schema_extra if info is not None else None
    return isinstance(extra, dict) and extra.get("osmotic") == "feedback"


def is_histogram(config: Any) -> bool:
    """Whether a task releases counts."""
    return isinstance(getattr(config, "mechanism", None), CountNoise)


def asks(config: Any) -> bool:
    """Whether a task asks for any privacy budget."""
    return is_release(config) or is_feedback(config) or is_histogram(config) or record_asks.noise_in(config) is not None


def asked_by(graph: Graph, configs: Configs, instances: list[Instance]) -> Iterator[tuple[Instance, Any, str]]:
    """(instance, configuration, data set) of whatever asks for budget; once for all rounds."""
    done: set[tuple[Any, ...]] = set()
    for instance in instances:
        config = configs.of(instance)
        if not asks(config) or not releases(graph.nodes[instance.node]):
            continue
        for dataset in datasets_of(graph, configs, instance):
            key = (instance.party, instance.node, instance.cell, dataset)
            if key not in done:
                done.add(key)
                yield instance, config, dataset


def objections(site: "Site", graph: Graph, configs: Configs) -> list[Problem]:
    """Mechanisms and budgets that the plan asks of a party's data and may not have, located."""
    problems: list[Problem] = []
    seen: set[str] = set()
    for instance in graph.at(site.party):  # each round has its own inputs
        if is_feedback(configs.of(instance)) and releases(graph.nodes[instance.node]):
            raw = partial(_computed, graph)
            problems += _located(graph, instance, "epsilon", partial(check_own, graph, configs, instance, seen, raw))
    for instance, config, dataset in asked_by(graph, configs, graph.at(site.party)):
        if record_asks.noise_in(config):
            continue
        key = "epsilon" if is_feedback(config) else "mechanism"
        problems += _located(graph, instance, key, partial(_check, site, graph, dataset, config))
    problems += [*record_asks.objections(site, graph, configs), *_mixed(site, graph, configs)]
    for node in sorted({instance.node for instance in graph.at(site.party)}):
        problems += _client_sums(site, graph, configs, node)
    return list(dict.fromkeys(problems))


def _computed(graph: Graph, edge: Edge) -> bool:
    """Whether an output is neither a release nor a source, as its component declares it."""
    outputs = graph.nodes[graph.instances[edge.producer].node].component.outputs
    return bool(outputs[edge.port].label == "join")


def _client_sums(site: "Site", graph: Graph, configs: Configs, node: str) -> list[Problem]:
    """What is against the noisy sums over clients that a task makes at this party, over all its rounds and cells."""
    own = [instance for instance in graph.at(site.party) if instance.node == node]
    noises = [(instance, getattr(configs.of(instance), "dp", None)) for instance in own]
    asked = [(instance, noise) for instance, noise in noises if isinstance(noise, ClientNoise)]
    problems: list[Problem] = []
    events = ClientEvents(site.ledger, site.policy)
    for noise in dict.fromkeys(noise for _, noise in asked):
        same = [instance for instance, other in asked if other == noise]
        problems += _located(graph, same[0], "dp", partial(check_plan, events, noise, len(same)))
    return problems


def _located(graph: Graph, instance: Instance, key: str, check: Callable[[], None]) -> list[Problem]:
    """What a check objects to, at a key of the instance's configuration."""
    path = (*graph.nodes[instance.node].path, "config", key)
    try:
        check()
    except (ConfigError, RefusedError) as error:
        where, shown = graph.loaded.source.where(path), ".".join(map(str, path))
        return [Problem(p.what, where, shown, p.why, p.fix) for p in error.problems]
    return []


def _check(site: "Site", graph: Graph, dataset: str, config: Any) -> None:
    if is_release(config):
        mechanism_models(site, graph, config.mechanism)
    if not site.datasets.has(dataset) or site.datasets.binding(dataset).label == "public":
        return
    if is_histogram(config):
        _check_counts(site, dataset, config.mechanism)
        return
    check_cap(site.policy, dataset)
    if is_feedback(config):
        costs, detail = {"epsilon": float(config.epsilon)}, "a feedback bit"
    else:
        prepared = site.asked(dataset, config, graph)
        ones = [1] * len(prepared.fields)
        costs, detail = prepared.costs(ones), prepared.detail(ones)
    for unit, amount in by_kind(costs).items():
        cap = cap_of(site.policy, dataset, unit)
        if cap is not None and amount > cap + 1e-9:
            what = f"{site.party}: {in_words(unit, amount)} ({detail}) is over the cap"
            raise RefusedError(Problem(what, why=f"cap of {dataset!r}: {cap:g} a document", fix="lower epsilon"))


def check_own(graph: Graph, configs: Configs, instance: Instance, seen: set[str], raw: Raw) -> None:
    """Raise RefusedError when a feedback bit may depend on other documents than its own: those would not be charged for it.

    What came from elsewhere, and what was released, is the same for every document; rows computed here must not be mixed.
    seen: instances that are known not to mix, which is added to. raw: which artifacts are private.
    """
    waiting = [instance]
    while waiting:
        for edge in waiting.pop().edges():
            before = graph.instances[edge.producer]
            node = graph.nodes[before.node]
            if edge.crossing or node.component.outputs[edge.port].label == "source" or not raw(edge):
                continue
            if mixing(graph, configs, edge):
                what = f"feedback may not depend on {before.node!r}: a row of it may depend on other records"
                why = "each document pays for its own bit alone"
                raise RefusedError(Problem(what, why=why, fix="leave out rules and components that compare records"))
            if before.id not in seen:
                seen.add(before.id)
                waiting.append(before)


def mixing(graph: Graph, configs: Configs, edge: Edge) -> bool:
    """Whether a row of an artifact computed here may depend on other records than its own; what has no rows depends on all."""
    before = graph.instances[edge.producer]
    component = graph.nodes[before.node].component
    return component.outputs[edge.port].kind is not Records or component.mixes(configs.of(before))


def _mixed(site: "Site", graph: Graph, configs: Configs) -> list[Problem]:
    """Trainings and votes that several private inputs would reach: a record is charged for what it adds by itself alone."""
    asking = [one for one in graph.at(site.party) if record_asks.noise_in(configs.of(one))]
    labels = flow.infer(graph, {site.party: site.policy}).labels if asking else {}
    problems = []
    for instance in asking:
        raw = partial(_is_raw, labels)
        private = [edge for edge in instance.edges() if not edge.crossing and raw(edge)]
        private = [edge for edge in private if not own_rows(graph, configs, instance, edge, raw)]
        if len(private) > 1 and releases(graph.nodes[instance.node]):
            path = (*graph.nodes[instance.node].path, "inputs")
            named = ", ".join(sorted({f"{graph.instances[edge.producer].node}.{edge.port}" for edge in private}))
            what, why = f"several inputs are private ({named}), and only the records may be", "a record pays for its own share"
            fix = "connect released or public artifacts to the other inputs"
            problems.append(Problem(what, graph.loaded.source.where(path), ".".join(map(str, path)), why, fix))
    return problems


def _is_raw(labels: Mapping[tuple[str, str], Label], edge: Edge) -> bool:
    """Whether an artifact is private, as the plan has it."""
    return bool(labels[(edge.producer, edge.port)].of("raw"))


def own_rows(graph: Graph, configs: Configs, instance: Instance, edge: Edge, raw: Raw) -> bool:
    """Whether a private input of a task that counts votes has rows of one record each: a vote that reads its own record's rows
    depends on no other record. The same is asked of whatever a feedback bit depends on; a data set is an input of its own.

    raw: which artifacts are private: what was to be released and was not is private all the same.
    """
    asked = record_asks.noise_in(configs.of(instance))
    if asked is None or not isinstance(asked[1], VoteNoise) or edge.crossing:
        return False
    waiting, seen = [edge], set[tuple[str, str]]()
    while waiting:
        one = waiting.pop()
        before = graph.instances[one.producer]
        source = graph.nodes[before.node].component.outputs[one.port].label == "source"
        if source and one is edge:
            return False
        if one.crossing or source or not raw(one) or (one.producer, one.port) in seen:
            continue  # from elsewhere, or released: the same for every record
        if mixing(graph, configs, one):
            return False
        seen.add((one.producer, one.port))
        waiting += before.edges()
    return True


def _check_counts(site: "Site", dataset: str, noise: CountNoise) -> None:
    """Raise RefusedError for counts that would pass the cap alone, without anything that was spent before."""
    cap = RecordEvents(site.ledger, site.policy).cap(dataset)
    if cap is not None and (noise.epsilon > cap.epsilon + 1e-9 or (noise.delta and not cap.delta)):
        asked = f"epsilon {noise.epsilon:g}, delta {noise.delta:g} a record is over the cap"
        why = f"cap of {dataset!r}: epsilon {cap.epsilon:g}, delta {cap.delta:g}"
        raise RefusedError(Problem(f"{site.party}: {asked}", why=why, fix="more noise"))
    event_of(noise)


def mechanism_models(site: "Site", graph: Graph, mechanism: Mapping[str, Any]) -> dict[str, str]:
    """Configuration key -> fingerprint of the model it names, of a document mechanism; refuses a model at another role."""
    if not is_document(site.registry, mechanism):
        return {}
    name, given = split(mechanism)
    config = mechanism_config(site.registry, name, given)
    models = OwnModels(site, graph)
    named = {key: getattr(config, key) for key in model_fields(config)}
    return {key: models.fingerprint(model) for key, model in named.items() if model is not None}
