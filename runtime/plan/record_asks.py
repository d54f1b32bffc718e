# SPDX-License-Identifier: Apache-2.0
"""What a plan asks of a data set a record (private training, votes, counts), against the caps, before anything runs.

Equal trainings and counts are found again and count once; votes count once a round and cell of the matrix. What was charged
before is added: an earlier event that is equal to one of the plan's may be the very same, so it is counted once. The sum is
thus a lower bound of what the ledger will say, and a plan over the cap could not have ended. How many records there are is
read from the party's own data; where they are not there yet, the epsilon that the configuration names is compared.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from osmotic.plugins.accounting import CLASSES, Event, compose
from osmotic.runtime.plan.checks import Configs, datasets_of, releases
from osmotic.runtime.plan.graph import Edge, Graph, Instance
from osmotic.runtime.privacy.charging import SLACK
from osmotic.runtime.privacy.composition import RecordEvents, told
from osmotic.runtime.privacy.histograms import event_of
from osmotic.runtime.privacy.record_noise import check_delta, plan_of, training_event, vote_event
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ConfigError, DataError, Problem, RefusedError
from osmotic.schemas.noise import CountNoise, TrainingNoise, VoteNoise

if TYPE_CHECKING:
    from osmotic.runtime.party.site import Site

RecordNoise = TrainingNoise | VoteNoise
FIX = "more noise, or fewer trainings, seeds and rounds; the cap is 'per_record' in the site's policy"


@dataclass(frozen=True)
class Ask:
    """What one task asks of one data set. event: None where it is not known."""

    instance: Instance
    key: str
    noise: RecordNoise | CountNoise
    event: Event | None
    same: str

    @property
    def name(self) -> str:
        """The task with its cell."""
        return self.instance.id.rpartition("@")[0]


def noise_in(config: Any) -> tuple[str, RecordNoise] | None:
    """(configuration key, noise) of private training or votes that a task asks for."""
    for key in type(config).model_fields:
        value = getattr(config, key)
        if isinstance(value, TrainingNoise | VoteNoise):
            return key, value
    return None


def seed_of(graph: Graph, instance: Instance) -> str:
    """The seed of an instance's streams: the axis ``seed`` if there is one, the round; never the arm."""
    axis = dict(instance.cell).get("seed", "")
    return f"{graph.pipeline.seed}/{axis}/{instance.round or 0}/{instance.each or ''}"


def size_of_set(site: "Site", dataset: str) -> int | None:
    """How many records the party's own data set has; None where it is not there (told when it is needed)."""
    try:
        return site.datasets.size(dataset)
    except (ConfigError, DataError):
        return None


def event_for(noise: RecordNoise | CountNoise, records: int | None) -> Event | None:
    """The event that is charged once for it; None where that needs the number of records. Raises ConfigError."""
    if isinstance(noise, CountNoise):
        return event_of(noise)
    if isinstance(noise, VoteNoise):
        return vote_event(noise, records)
    return None if records is None else training_event(plan_of(noise, records))


def asks(site: "Site", graph: Graph, configs: Configs) -> dict[str, list[Ask]]:
    """data set -> what this party's tasks ask of it a record, over all cells and rounds."""
    found: dict[str, list[Ask]] = {}
    sizes: dict[str, int | None] = {}
    for instance in graph.at(site.party):
        config, node = configs.of(instance), graph.nodes[instance.node]
        key, noise = noise_in(config) or ("mechanism", getattr(config, "mechanism", None))
        if not isinstance(noise, TrainingNoise | VoteNoise | CountNoise) or not releases(node):
            continue
        for dataset in datasets_of(graph, configs, instance):
            if not site.datasets.has(dataset) or site.datasets.binding(dataset).label == "public":
                continue
            if not isinstance(noise, CountNoise) and dataset not in sizes:
                sizes[dataset] = size_of_set(site, dataset)
            try:
                event = event_for(noise, sizes.get(dataset))
            except ConfigError:
                event = None  # `objections` says why
            found.setdefault(dataset, []).append(Ask(instance, key, noise, event, _same(graph, configs, instance, noise)))
    return found


def _same(graph: Graph, configs: Configs, instance: Instance, noise: RecordNoise | CountNoise) -> str:
    """What two tasks that ask for the very same have in common: then it is charged once."""
    if isinstance(noise, VoteNoise):
        return instance.id
    if isinstance(noise, CountNoise):
        return canonical(["counts", getattr(configs.of(instance), "field", ""), noise.model_dump()]).decode()
    several = {port: [edge] if isinstance(edge, Edge) else edge for port, edge in instance.inputs.items()}
    inputs = sorted([port, edge.producer, edge.port] for port, edges in several.items() for edge in edges)
    named = graph.nodes[instance.node].component.name
    return canonical([named, configs.raw(instance), inputs, seed_of(graph, instance)]).decode()


def distinct(several: list[Ask]) -> list[Ask]:
    """One ask for each thing that is charged."""
    return list({ask.same: ask for ask in reversed(several)}.values())[::-1]


def objections(site: "Site", graph: Graph, configs: Configs) -> Iterator[Problem]:
    """What is against each training and each round of votes by itself: no cap, impossible noise, over the cap alone."""
    done: set[str] = set()
    for instance in graph.at(site.party):
        asked = noise_in(configs.of(instance))
        if asked is None or not releases(graph.nodes[instance.node]):
            continue
        for dataset in datasets_of(graph, configs, instance):
            same = canonical([dataset, instance.node, asked[1].model_dump()]).decode()
            if site.datasets.has(dataset) and site.datasets.binding(dataset).label != "public" and same not in done:
                done.add(same)
                yield from _alone(site, graph, instance, dataset, *asked)


def _alone(site: "Site", graph: Graph, instance: Instance, dataset: str, key: str, noise: RecordNoise) -> Iterator[Problem]:
    try:
        events = RecordEvents(site.ledger, site.policy)
        cap, records = events.cap(dataset), size_of_set(site, dataset)
        check_delta(cap, records or 0, dataset)
        event = event_for(noise, records)
        if cap is None:
            return
        lost = _lost([event], cap.delta) if event is not None else noise.epsilon or 0.0
        if lost > cap.epsilon + SLACK:
            words = told(event) if event is not None else "the training"
            what = f"{site.party}: {words} is epsilon {lost:.4g} at delta {cap.delta:g} a record, over the cap"
            raise RefusedError(Problem(what, why=f"cap of {dataset!r}: epsilon {cap.epsilon:g}", fix=FIX))
    except (ConfigError, RefusedError) as error:
        for one in error.problems:
            yield located(graph, instance, key, one)


def located(graph: Graph, instance: Instance, key: str, problem: Problem) -> Problem:
    """A problem at a key of an instance's configuration; its own path says which part of the value."""
    inner = [part for part in problem.path.split(".") if part and part not in (key, "budget")]
    path = (*graph.nodes[instance.node].path, "config", key)
    full = (*path, *inner) if len(inner) == 1 else path
    where = graph.loaded.source.where(full)
    return Problem(problem.what, where, ".".join(map(str, full)), problem.why, problem.fix)


def totals(site: "Site", graph: Graph, configs: Configs) -> Iterator[Problem]:
    """A data set whose cap all tasks would pass together, with what was charged before, one at a time."""
    events = RecordEvents(site.ledger, site.policy)
    for dataset, several in asks(site, graph, configs).items():
        cap = events.limit(dataset)
        if cap is None:
            continue
        wanted = [ask for ask in distinct(several) if ask.event is not None]
        if not wanted:
            continue
        everything = together(events, dataset, wanted)
        try:
            lost = _lost(everything, cap.delta)
        except ConfigError:
            continue  # without an accountant: what is found again is free, and anything else is refused when it is charged
        if lost > cap.epsilon + SLACK:
            parts = Counter(f"{ask.name}: {told(ask.event)}" for ask in wanted if ask.event is not None)
            named = "; ".join(f"{n} x {part}" if n > 1 else part for part, n in parts.items())
            before = len(everything) - len(wanted)
            earlier = f"; and {before} charged before" if before > 0 else ""
            what = f"{site.party}: all tasks together ask epsilon {lost:.4g} at delta {cap.delta:g} a record, over the cap"
            why = f"cap of {dataset!r}: epsilon {cap.epsilon:g}; trainings, seeds, rounds and counts add up: {named}{earlier}"
            yield located(graph, wanted[0].instance, wanted[0].key, Problem(what, why=why, fix=FIX))


def together(events: RecordEvents, dataset: str, wanted: list[Ask]) -> list[Event]:
    """Everything charged before and everything asked; of equal events, the larger number."""
    old = {_key(event): event for event in events.events(dataset)}
    new = {_key(ask.event): ask.event for ask in wanted if ask.event is not None}
    count = Counter(_key(event) for event in events.events(dataset))
    count |= Counter(_key(ask.event) for ask in wanted if ask.event is not None)
    known: Mapping[str, Event] = {**old, **new}
    return [known[key] for key, times in sorted(count.items()) for _ in range(times)]


def _key(event: Event) -> str:
    return canonical([event["kind"], event["parameters"], event["neighbours"]]).decode()


def _lost(events: list[Event], delta: float) -> float:
    """Epsilon of some events, of the worst neighbouring relation. Raises ConfigError without an accountant."""
    return max(compose(events, delta).values(), default=0.0)


def row(site: "Site", dataset: str, several: list[Ask], config_noise: RecordNoise, mine: list[Ask]) -> dict[str, Any]:
    """A row of the plan's budget table. several: all that is asked of the data set; mine: by this task and cell, all rounds."""
    events = RecordEvents(site.ledger, site.policy)
    cap, spent = events.limit(dataset), events.total(dataset, events.events(dataset))
    own = events.total(dataset, [ask.event for ask in mine if ask.event is not None])
    after = events.total(dataset, together(events, dataset, distinct(several)))
    kind = CLASSES["gaussian" if isinstance(config_noise, VoteNoise) else "dp-sgd"]
    words = ""
    if own is not None and mine[0].event is not None:
        times = f"{len(mine)} rounds of votes, " if len(mine) > 1 else "a round of votes, " if kind == "gaussian" else ""
        words = f"{times}{told(mine[0].event)}, delta {own['delta']:g}, "
    end = ""
    if after is not None and after["epsilon"] is not None:
        left = f", {max(0.0, cap.epsilon - after['epsilon']):.4g} left" if cap else ""
        end = f"; the whole plan then: {after['epsilon']:.4g}{left}"
    asked = config_noise.epsilon if own is None else own["epsilon"]
    return {
        "epsilon": None if asked is None else float(f"{asked:.4g}"), "detail": f"{words}a record{end}", "unit": "record",
        "class": kind, "cards_missing": [], "seconds": 0.0, "already_released": 0,
        "spent": 0.0 if spent is None else spent["epsilon"], "cap": cap.epsilon if cap else None,
    }  # fmt: skip
