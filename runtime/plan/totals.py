# SPDX-License-Identifier: Apache-2.0
"""What all tasks of a plan ask of one document together, against the caps, before anything runs.

A release that several tasks share counts once, and once for all rounds: it is looked up again. A feedback bit counts once a
round: every round is another question. Second releases count as if a document's bits were all yes. A text field counts one
symbol, and document mechanisms, which may spend less than they claim, not at all: so a plan that passes may still be refused
when it runs, by the ledger; nothing of it is drawn over a cap. What is asked a record is in `record_asks`.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from osmotic.runtime.plan import record_asks
from osmotic.runtime.plan.asking import asked_by, is_feedback, is_release
from osmotic.runtime.plan.checks import Configs
from osmotic.runtime.plan.graph import Graph, Instance
from osmotic.runtime.privacy.charging import EPSILON, SLACK, Costs, added, by_kind, cap_of, in_words
from osmotic.schemas.errors import Problem

if TYPE_CHECKING:
    from osmotic.runtime.party.site import Site


def rounds_of(graph: Graph, instance: Instance) -> int:
    """How many times a task runs at its party in its cell."""
    like = (instance.node, instance.party, instance.cell)
    return sum((one.node, one.party, one.cell) == like for one in graph.instances.values())


def chosen(instance: Instance) -> bool:
    """Whether a task releases the documents whose released bit is yes, not every document."""
    return "bits" in instance.inputs


def refusals(site: "Site", graph: Graph, configs: Configs) -> Iterator[Problem]:
    """A data set and kind of unit whose cap all asks of one document would pass together, one at a time."""
    asked: dict[str, dict[Any, tuple[str, Costs]]] = {}
    for instance, config, dataset in asked_by(graph, configs, graph.at(site.party)):
        if not site.datasets.has(dataset) or site.datasets.binding(dataset).label == "public":
            continue
        key, costs = _ask(site, graph, instance, config, dataset)
        asked.setdefault(dataset, {}).setdefault(key, (instance.node, costs))
    for dataset, several in asked.items():
        for kind, amount in by_kind(added(costs for _, costs in several.values())).items():
            cap = cap_of(site.policy, dataset, kind)
            if cap is not None and amount > cap + SLACK:
                yield _refusal(site, graph, dataset, kind, amount, cap, list(several.values()))
    yield from record_asks.totals(site, graph, configs)


def _ask(site: "Site", graph: Graph, instance: Instance, config: Any, dataset: str) -> tuple[Any, Costs]:
    """(what makes it the same release, what a document pays)."""
    if is_feedback(config):
        return (instance.node, instance.cell), {EPSILON: rounds_of(graph, instance) * float(config.epsilon)}
    if not is_release(config):
        return (instance.node, instance.cell), {}
    prepared = site.asked(dataset, config, graph)
    costs = {} if prepared.document is not None else prepared.costs([1] * len(prepared.fields))
    return (prepared.parameters, getattr(config, "attempt", 1)), costs


def _refusal(
    site: "Site", graph: Graph, dataset: str, kind: str, amount: float, cap: float, several: list[tuple[str, Costs]]
) -> Problem:
    parts: dict[str, float] = {}
    for node, costs in several:
        if paid := by_kind(costs).get(kind):
            parts[node] = parts.get(node, 0.0) + paid
    path = (*graph.nodes[next(iter(parts))].path, "config")
    what = f"{site.party}: all tasks together ask {in_words(kind, amount)}, over the cap"
    why = f"cap of {dataset!r}: {cap:g}; asked: {', '.join(f'{node} {paid:g}' for node, paid in parts.items())}"
    where, shown = graph.loaded.source.where(path), ".".join(map(str, path))
    return Problem(
        what, where, shown, why, "lower an epsilon, take a task or rounds away, or raise the cap in the site's policy"
    )
