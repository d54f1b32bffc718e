# SPDX-License-Identifier: Apache-2.0
"""The plan's numbers beside what a run really did: budget before and after, calls and tokens of models that were asked.

Read from the parties' own files on this machine, by whoever operates all of them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from osmotic.runtime.party.policies import open_site
from osmotic.runtime.party.site import Site
from osmotic.runtime.plan import estimating
from osmotic.runtime.privacy.accounts import summary as books

if TYPE_CHECKING:
    from osmotic.runtime.api import Prepared

Spent = dict[tuple[str, str, str], tuple[float | None, float | None]]  # (party, data set, unit) -> (largest, cap)


@contextmanager
def sites_of(ready: "Prepared") -> Iterator[Mapping[str, Site]]:
    """The parties' sites: those that are open in this process, else opened to be read."""
    if ready.sites:
        yield ready.sites
        return
    opened: dict[str, Site] = {}
    try:
        for party in ready.graph.role_of:
            opened[party] = open_site(party, ready.home, ready.policies, ready.registry, passing=True)
        yield opened
    finally:
        for site in opened.values():
            site.ledger.close()


def spent(sites: Mapping[str, Site]) -> Spent:
    """The largest sum that a document (or all records, or clients) of each data set has cost so far, and its cap."""
    found: Spent = {}
    for party, site in sites.items():
        for dataset in books(site)["datasets"]:
            for unit in dataset["units"]:
                found[(party, dataset["dataset"], f"{unit['unit']}, a document")] = (unit["largest"], unit["cap"])
            if (record := dataset["record"]) is not None:
                cap = record["cap"]["epsilon"] if record["cap"] else None
                found[(party, dataset["dataset"], f"epsilon, a {record['unit']}")] = (record["epsilon"], cap)
    return found


def budget(before: Spent, after: Spent) -> list[dict[str, Any]]:
    """Rows {party, dataset, unit, before, after, cap, left}; None: not computed, or no cap."""
    rows = []
    for place, (now, cap) in sorted(after.items()):
        earlier = before.get(place, (0.0, cap))[0]
        left = max(0.0, cap - now) if cap is not None and now is not None else None
        named = dict(zip(("party", "dataset", "unit"), place, strict=True))
        rows.append({**named, "before": earlier, "after": now, "cap": cap, "left": left})
    return rows


def calls(
    ready: "Prepared", sites: Mapping[str, Site], times: Mapping[str, float], costs: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What the tasks that ran were estimated to ask of models, and what they say they asked (`actual`, None where they do not).

    costs: of `reporting.gather`: all runs of a task together, so those that were found finished count there too.
    """
    states = {identity: "cached" for identity, seconds in times.items() if not seconds}
    if all(identity in states for identity in ready.graph.instances):
        return []
    shapes = estimating.shapes(ready.graph, ready.configs, sites)
    found = estimating.calls(ready.graph, ready.configs, shapes, states, ("cached",))
    said = {row["task"]: row for row in costs}
    whole = {row["task"]: sum(i.node == row["task"] for i in ready.graph.instances.values()) for row in found}
    return [
        {**row, "actual": _actual(said.get(row["task"])) if row["instances"] == whole[row["task"]] else None} for row in found
    ]


def _actual(cost: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if cost is None:
        return None
    told = {"calls": cost["prompts"], "prompt_tokens": cost["prompt_tokens"], "new_tokens": cost["tokens"]}
    return {**told, "cost": cost["cost"]}
