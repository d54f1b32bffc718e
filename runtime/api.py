# SPDX-License-Identifier: Apache-2.0
"""osmotic from Python: `run`, `plan`, `call`. The command line is a thin layer over these."""

import json
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.plugins.host import Registry, build_registry
from osmotic.runtime.party.data import Datasets
from osmotic.runtime.party.endpoints import address_of
from osmotic.runtime.party.policies import Policies, beside, check_binds, open_site, policies_of
from osmotic.runtime.party.site import Site
from osmotic.runtime.plan.asked import Asked
from osmotic.runtime.plan.checks import Configs, model_fields, slot_problems
from osmotic.runtime.plan.flow import Flow, infer
from osmotic.runtime.plan.graph import Graph, Instance
from osmotic.runtime.plan.load import Loaded, find, load, sites_file
from osmotic.runtime.run import Runner, Watcher, accept, locked, spare
from osmotic.runtime.screen.watch import watched
from osmotic.runtime.storage.store import disk
from osmotic.schemas.errors import ConfigError, OsmoticError, Problem, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from osmotic.plugins.contract import Artifact, Records
    from osmotic.runtime.transports.base import Transport
    from osmotic.schemas.policy import SitePolicy

MOST_JOBS = 64  # processes a party


@dataclass
class Prepared:
    """A pipeline, its graph and the policies of the parties of this machine."""

    loaded: Loaded
    graph: Graph
    configs: Configs
    policies: Policies
    registry: Registry
    home: Path
    binds: tuple[str, ...] = ()
    sites: dict[str, Site] = field(default_factory=dict)
    refused: dict[str, OsmoticError] = field(default_factory=dict)  # parties that the plan's quorums can do without

    def open(self, passing: bool = False) -> dict[str, Site]:
        """Open every party's site; passing: what is there is read, and nothing is made on disk."""
        try:
            for party in self.graph.role_of:
                self.sites[party] = open_site(party, self.home, self.policies, self.registry, passing)
        except OsmoticError:
            self.close()
            raise
        return self.sites

    def close(self) -> None:
        """Close every open ledger."""
        for site in self.sites.values():
            site.ledger.close()

    def asks(self, instance: Instance) -> set[str]:
        """Models that an instance asks and that are not of its very party: at another role, or behind an endpoint."""
        config, models = self.configs.of(instance), self.graph.pipeline.models
        named = {name for key in model_fields(config) if (name := getattr(config, key)) in models}
        here = self.graph.role_of[instance.party]
        return {n for n in named if models[n].at != here or address_of(self.registry, self.graph, n) is not None}

    def flow(self) -> Flow:
        """Labels and refused crossings under the policies of all parties of this machine."""
        return infer(self.graph, self.policies.policies)

    def refusals(self, inferred: Flow) -> list[Problem]:
        """Everything that any party of this machine has against the plan: crossings, and each site's own objections."""
        problems = list(inferred.refusals)
        for site in self.sites.values():
            problems += site.objections(self.graph, self.configs)
        return list(dict.fromkeys(problems))


def prepare(
    pipeline: str | Path, *, overrides: tuple[str, ...] = (), sites: Path | None = None, home: Path | None = None,
    binds: tuple[str, ...] = (), registry: Registry | None = None,
) -> Prepared:  # fmt: skip
    """Load and check everything that needs no data: the document, names, configurations, and the site policies' schemas
    against templates. Raises ConfigError with every problem, located.
    """
    loaded = load(str(pipeline), overrides)
    registry = registry or build_registry()
    graph = Graph(loaded, registry)
    configs = Configs(graph)
    file = sites_file(sites) if sites else beside(find(str(pipeline)))
    policies = policies_of(list(graph.role_of), file, binds)
    check_binds(policies, binds)
    problems: list[Problem] = []
    known = {party: Datasets(policy, policies.base, party) for party, policy in policies.policies.items()}
    for party, datasets in known.items():
        problems += slot_problems(graph, configs, party, datasets, list(known.values()))
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    place = home or Path("osmotic-runs") / loaded.pipeline.name
    return Prepared(loaded, graph, configs, policies, registry, place, binds)


def run(
    pipeline: str | Path, *, overrides: tuple[str, ...] = (), sites: Path | None = None, home: Path | None = None,
    binds: tuple[str, ...] = (), isolate: bool = False, jobs: int = 1, watcher: Watcher | None = None,
    registry: Registry | None = None, lock: Path | bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Run a pipeline on this machine; returns the summary (see `runtime.results.summary`), also saved in ``home/run.json``.

    isolate: a process a party; jobs: so many processes a party, more than one isolates too. lock: a lock file, or True for the
    one beside the pipeline or of the last run: other code than that is refused. Raises OsmoticError; whatever had been
    finished is found again by the next run.
    """
    from osmotic.runtime.reporting.gather import plan_of
    from osmotic.runtime.results import actuals
    from osmotic.runtime.results.concluding import conclude
    from osmotic.runtime.tools import locking

    ready = prepare(pipeline, overrides=overrides, sites=sites, home=home, binds=binds, registry=registry)
    if lock:
        locking.check_lock(locking.lock_beside(find(str(pipeline)), ready.home) if lock is True else Path(lock), ready.registry)
    seen = watched(watcher or Quiet(), ready.graph, ready.home)
    with locked(ready.home), seen as watcher, transport_of(ready, isolate, watcher, jobs) as transport:
        locking.write_lock(ready.home / locking.FILE, ready.registry)
        with actuals.sites_of(ready) as own:
            spent, plan = actuals.spent(own), plan_of(ready.graph, ready.configs, ready.flow(), own)
        runner = Runner(ready.graph, transport, watcher, jobs, ready.home, ready.refused)
        outcome = runner.run()
        summary = conclude(ready.graph, transport, outcome, plan)
        summary["home"] = str(ready.home)
        summary["asked"] = Asked(str(pipeline), overrides, sites, binds).to_json()
        summary["resolved"] = ready.loaded.pipeline.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        with actuals.sites_of(ready) as own:
            summary["plan"]["calls"] = actuals.calls(ready, own, outcome.times, summary["costs"])
            summary["plan"]["budget"] = actuals.budget(spent, actuals.spent(own))
        save(ready, summary)
        runner.over()
    return summary


@contextmanager
def transport_of(ready: Prepared, isolate: bool, watcher: Watcher, jobs: int = 1) -> "Iterator[Transport]":
    """A local transport over which every party has accepted the plan; closed at the end, whatever happens."""
    from osmotic.runtime.transports.inprocess import InProcess

    check_jobs(jobs)
    apart = isolate or jobs > 1
    transport = _processes(ready, watcher, jobs) if apart else InProcess(ready.open(), watcher.progress)
    try:
        if apart:
            ready.refused = accept(transport, ready.graph)
        else:
            ready.refused = _accept_together(ready)
        yield transport
    finally:
        transport.close()


def check_jobs(jobs: int) -> None:
    """Raise ConfigError for a number of processes that cannot be."""
    if isinstance(jobs, bool) or not isinstance(jobs, int) or not 1 <= jobs <= MOST_JOBS:
        what = f"jobs must be a number from 1 to {MOST_JOBS}"
        raise ConfigError(Problem(what, path="jobs", why=f"got {jobs!r}", fix="as many as there are cores, or fewer"))


def _processes(ready: Prepared, watcher: Watcher, jobs: int) -> "Transport":
    """A process a party, or several."""
    from osmotic.runtime.transports.pool import Pool
    from osmotic.runtime.transports.processes import Processes

    file, home, parties = ready.policies.file, ready.home.resolve(), list(ready.graph.role_of)
    sites = file.resolve() if file else None
    if jobs == 1:
        return Processes(parties, home, sites, watcher.progress, ready.binds)
    return Pool(ready.graph, home, sites, watcher.progress, ready.binds, jobs, ready.asks)


def _accept_together(ready: Prepared) -> dict[str, OsmoticError]:
    """Parties of one process read the same graph; each checks it against its own policy. Returns what `accept` does."""
    problems = ready.refusals(ready.flow())
    if problems and not ready.graph.waits:
        raise RefusedError(*problems)
    refused: dict[str, OsmoticError] = {}
    for party, site in ready.sites.items() if problems else ():
        own = site.objections(ready.graph, ready.configs) + infer(ready.graph, {party: site.policy}).refusals
        if own:
            refused[party] = RefusedError(*dict.fromkeys(own))
    spare(ready.graph, refused)
    for party, site in ready.sites.items():
        if party not in refused:
            site.take(ready.graph, ready.configs)
    return refused


def save(ready: Prepared, summary: dict[str, Any]) -> None:
    """Write ``run.json`` and ``report.html`` into the home folder."""
    from osmotic.runtime.reporting.gather import books, installed
    from osmotic.runtime.reporting.page import render
    from osmotic.runtime.results import actuals

    with actuals.sites_of(ready) as own:
        ledgers = [books(site) for site in own.values()]
    with_ledger = {**summary, "ledger": ledgers, "lock": installed(ready.home)}
    with disk(ready.home):
        (ready.home / "run.json").write_text(json.dumps(summary, indent=1, sort_keys=True), encoding="utf-8")
        (ready.home / "report.html").write_text(render(with_ledger), encoding="utf-8")


def plan(
    pipeline: str | Path, *, overrides: tuple[str, ...] = (), sites: Path | None = None, home: Path | None = None,
    binds: tuple[str, ...] = (), registry: Registry | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What a run would do: tasks with reasons, crossings with labels, budget, refusals. Reads, and changes nothing."""
    from osmotic.runtime.plan.planning import describe

    ready = prepare(pipeline, overrides=overrides, sites=sites, home=home, binds=binds, registry=registry)
    with _reading(ready) as (opened, inferred):
        return describe(ready.graph, ready.configs, opened, inferred, ready.refusals(inferred))


@contextmanager
def _reading(ready: Prepared) -> "Iterator[tuple[dict[str, Site], Flow]]":
    """(every party's site, labels of the plan): what is there is read, and nothing is made on disk."""
    try:
        yield ready.open(passing=True), ready.flow()
    finally:
        ready.close()


def why(
    task: str, pipeline: str | Path, *, overrides: tuple[str, ...] = (), sites: Path | None = None, home: Path | None = None,
    binds: tuple[str, ...] = (), registry: Registry | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Why a task would run or is found finished, what it depends on, whose data that is (see `runtime.plan.explaining`)."""
    from osmotic.runtime.plan.explaining import explain

    ready = prepare(pipeline, overrides=overrides, sites=sites, home=home, binds=binds, registry=registry)
    with _reading(ready) as (opened, inferred):
        return explain(task, ready.graph, ready.configs, opened, inferred, ready.refusals(inferred))


def call(
    component: str, records: "Records | None" = None, config: Mapping[str, Any] | None = None, *, site: "SitePolicy | Path",
    home: Path, party: str = "here", inputs: "Mapping[str, Artifact] | None" = None, data: str = "records",
    models: Mapping[str, Any] | None = None, registry: Registry | None = None,
) -> "dict[str, Artifact]":  # fmt: skip
    """Run one component at one party, without a pipeline: the same policy, ledger, store and releases.

    The first input is `records`, or without them the data set `data` as the policy binds it. Records and `inputs` given
    here count as data of the binding `data`: its schema, label, purpose and budget hold for them, and the same record (by
    its id) never pays twice for the same release. What was released and spent lies beside a policy file that binds private
    data, else in `home`. models: as in a pipeline, without 'at'. Returns every output, those that
    may not leave the party too: the caller is the party. Raises ConfigError, DataError, RefusedError or ComponentError.
    """
    from osmotic.runtime.party.single import Call

    made = Call(component, dict(config or {}), party, data, dict(models or {}), registry or build_registry())
    return made.run(records, dict(inputs or {}), site, home)


class Quiet:
    """A watcher that shows nothing."""

    def started(self, total: int) -> None:
        """Nothing."""

    def task(self, instance: Any, cached: bool, seconds: float) -> None:
        """Nothing."""

    def progress(self, party: str, task: str, done: int, total: int, note: str) -> None:
        """Nothing."""


__all__ = ["Prepared", "Quiet", "call", "plan", "prepare", "run", "why"]
