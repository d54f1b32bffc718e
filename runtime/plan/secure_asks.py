# SPDX-License-Identifier: Apache-2.0
"""What a plan's secure sums ask of a party whose vectors go into them: how few, who may be in league, how much noise in all.

With noise, each sum costs this party, as one client, what the accountant says; all sums of the plan that descend from a data
set are composed and compared with its cap `per_client` before anything runs. What was spent before counts when it is charged.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from osmotic.plugins.accounting import ADD_OR_REMOVE_ONE, CLASSES, compose
from osmotic.runtime.plan.checks import Configs, datasets_of
from osmotic.runtime.plan.graph import Edge, Graph, Instance
from osmotic.runtime.privacy.charging import SLACK
from osmotic.runtime.privacy.composition import SHARES, USUAL_DELTA, ShareEvents, size_of
from osmotic.runtime.secure.agreeing import SESSION, sum_plan
from osmotic.runtime.secure.received import edges_of
from osmotic.schemas.errors import BudgetError, ConfigError, Problem, RefusedError
from osmotic.schemas.secure import SecureSum

if TYPE_CHECKING:
    from osmotic.runtime.party.site import Site

Asked = tuple[Instance, Edge]  # consumer and this party's own edge


def seen(consumer: Instance, edge: Edge) -> str:
    """What the receiver of a sum sees, in words."""
    several = edges_of(consumer, edge.name.rpartition(".")[2])
    noisy = edge.secure is not None and edge.secure.noisy
    return f"sum of {len(several)}, only the sum is seen{', with noise' if noisy else ''}"


def asked_of(graph: Graph, party: str) -> Iterator[Asked]:
    """Every sum that a vector of this party goes into."""
    for instance in graph.at(party):
        for consumer, edge in graph.consumers.get(instance.id, ()):
            if edge.secure is not None and edge.sender == party:
                yield consumer, edge


def objections(site: "Site", graph: Graph, configs: Configs) -> list[Problem]:
    """What this party's policy says against the secure sums of a plan, located."""
    problems: list[Problem] = []
    told: set[tuple[str, int, SecureSum]] = set()
    every = list(asked_of(graph, site.party))
    for consumer, edge in every:
        count = len(edges_of(consumer, edge.name.rpartition(".")[2]))  # rounds that draw parties may differ
        if edge.secure is not None and (edge.name, count, edge.secure) not in told:
            told.add((edge.name, count, edge.secure))
            found = [*_rules(site, consumer, edge, edge.secure), *_impossible(graph, consumer, edge)]
            problems += [_located(graph, consumer, edge, problem) for problem in found]
    for dataset, several in noisy(site, graph, configs, every).items():
        try:
            _check(site, dataset, [event for _, _, event in several])
        except (BudgetError, ConfigError, RefusedError) as error:
            consumer, edge, _ = several[0]
            problems += [_located(graph, consumer, edge, problem) for problem in error.problems]
    return list(dict.fromkeys(problems))


def _rules(site: "Site", consumer: Instance, edge: Edge, secure: SecureSum) -> Iterator[Problem]:
    """What the site's own rules say: fewest clients, fewest in league, keys of everybody where keys are named."""
    rules, everybody = site.policy.secure_sum, edges_of(consumer, edge.name.rpartition(".")[2])
    if secure.fewest(len(everybody)) < rules.at_least:
        what = (
            f"{site.party}: a sum of {secure.fewest(len(everybody))} is asked for, and its site wants {rules.at_least} or more"
        )
        yield Problem(what, path="at_least", fix="a higher at_least; the site's rule is 'secure_sum' in its policy")
    if secure.colluding < rules.colluding:
        what = f"{site.party} takes {rules.colluding} clients to be in league with the server, the plan {secure.colluding}"
        yield Problem(what, path="colluding", fix=f"colluding: {rules.colluding}")
    listed = {*site.policy.identities, site.party}
    unknown = [one.sender for one in everybody if one.sender not in listed]
    unknown += [edge.receiver] if edge.receiver not in listed else []
    if site.policy.identities and unknown:
        what = f"{site.party} knows the public keys of some parties and not of {', '.join(unknown[:5])}"
        yield Problem(what, fix="add them under 'identities' in its policy (osmotic keys identity), or name none")


def _impossible(graph: Graph, consumer: Instance, edge: Edge) -> list[Problem]:
    """Why no such sum can be made, whatever the tensors: its noise is not accounted for, or has no room in the words."""
    try:
        sum_plan(graph, edges_of(consumer, edge.name.rpartition(".")[2]), bytes(SESSION), {"": (1,)})
    except ConfigError as error:
        return list(error.problems)
    return []


def _located(graph: Graph, consumer: Instance, edge: Edge, problem: Problem) -> Problem:
    path = (*graph.nodes[consumer.node].path, "inputs", edge.name.rpartition(".")[2], "secure_sum")
    where, shown = graph.loaded.source.where(path), ".".join(map(str, path))
    return Problem(problem.what, where, shown, problem.why, problem.fix)


def noisy(
    site: "Site", graph: Graph, configs: Configs, every: list[Asked]
) -> dict[str, list[tuple[Instance, Edge, Mapping[str, Any]]]]:
    """Private data set -> (consumer, edge, event) of all noisy sums that descend from it."""
    from osmotic.runtime.privacy.noisy_sums import event_of

    found: dict[str, list[tuple[Instance, Edge, Mapping[str, Any]]]] = {}
    for consumer, edge in every:
        if edge.secure is None or not edge.secure.noisy:
            continue
        try:
            event = event_of(edge.secure.noise())
        except ConfigError:
            continue  # said elsewhere: it cannot be made
        for name in datasets_of(graph, configs, graph.instances[edge.producer]):
            if site.datasets.has(name) and site.datasets.binding(name).label == "private":
                found.setdefault(name, []).append((consumer, edge, event))
    return found


def _check(site: "Site", dataset: str, events: list[Mapping[str, Any]]) -> None:
    """Raise RefusedError without a cap, BudgetError when the plan's sums would pass it by themselves."""
    cap = ShareEvents(site.ledger, site.policy).cap(SHARES + dataset)
    if cap is None:
        return
    epsilon = compose(events, cap.delta)[ADD_OR_REMOVE_ONE]
    if epsilon > cap.epsilon + SLACK:
        what = f"{site.party}: {len(events)} secure sums would cost epsilon {epsilon:.4g} > {cap.epsilon:g} a client"
        why = f"cap of {dataset!r} at delta {cap.delta:g}; noise {_noises(events)}"
        raise BudgetError(
            Problem(what, why=why, fix="more noise or fewer rounds; the cap is 'per_client' in the site's policy")
        )


def _noises(events: list[Mapping[str, Any]]) -> str:
    return ", ".join(f"{z:g}" for z in sorted({float(event["parameters"]["noise_multiplier"]) for event in events}))


def rows(sites: Mapping[str, "Site"], graph: Graph, configs: Configs) -> list[dict[str, Any]]:
    """Rows of a plan's budget: what all noisy sums of each party and data set cost together."""
    made: list[dict[str, Any]] = []
    for party, site in sites.items():
        for dataset, several in noisy(site, graph, configs, list(asked_of(graph, party))).items():
            events = ShareEvents(site.ledger, site.policy)
            account, cap = SHARES + dataset, events.limit(SHARES + dataset)
            spent = events.total(account, events.events(account))
            own = events.total(account, [event for _, _, event in several]) or {"epsilon": None, "delta": USUAL_DELTA}
            times = f"{len(several)} secure sums" if len(several) > 1 else "a secure sum"
            noise = _noises([event for _, _, event in several])
            made.append(
                {
                    "party": party, "dataset": dataset, "task": graph.instances[several[0][1].producer].node,
                    "epsilon": None if own["epsilon"] is None else float(f"{own['epsilon']:.4g}"),
                    "detail": f"{times}, noise {noise} of clip, delta {own['delta']:g}, a client"
                    if own["epsilon"] is not None else f"{times}, {size_of(own)} a client",
                    "unit": "client", "class": CLASSES["gaussian"], "cards_missing": [], "seconds": 0.0, "already_released": 0,
                    "spent": 0.0 if spent is None else spent["epsilon"], "cap": cap.epsilon if cap else None,
                }
            )  # fmt: skip
    return made
