# SPDX-License-Identifier: Apache-2.0
"""osmotic from Python: `run`, `plan`, `call`. The command line is a thin layer over these."""

import json
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.plugins.host import Registry, build_registry
from osmotic.runtime.checks import Configs, slot_problems
from osmotic.runtime.data import Datasets
from osmotic.runtime.flow import Flow, infer
from osmotic.runtime.graph import Graph
from osmotic.runtime.load import Loaded, find, load, sites_file
from osmotic.runtime.policies import Policies, beside, check_binds, open_site, policies_of
from osmotic.runtime.run import Runner, Watcher, accept, locked, settle
from osmotic.runtime.site import Site
from osmotic.runtime.store import disk
from osmotic.schemas.errors import ConfigError, OsmoticError, Problem, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from osmotic.plugins.contract import Artifact, Records
    from osmotic.runtime.transports.base import Transport
    from osmotic.schemas.policy import SitePolicy


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
    for party, policy in policies.policies.items():
        problems += slot_problems(graph, configs, party, Datasets(policy, policies.base, party))
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    place = home or Path("osmotic-runs") / loaded.pipeline.name
    return Prepared(loaded, graph, configs, policies, registry, place, binds)


def run(
    pipeline: str | Path, *, overrides: tuple[str, ...] = (), sites: Path | None = None, home: Path | None = None,
    binds: tuple[str, ...] = (), isolate: bool = False, watcher: Watcher | None = None, registry: Registry | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run a pipeline on this machine; returns the summary (see `runtime.summary`), also saved in ``home/run.json``.

    isolate: a process a party. Raises OsmoticError; whatever had been finished is found again by the next run.
    """
    from osmotic.runtime.summary import summarise

    ready = prepare(pipeline, overrides=overrides, sites=sites, home=home, binds=binds, registry=registry)
    with locked(ready.home), transport_of(ready, isolate, watcher or Quiet()) as transport:
        outcome = Runner(ready.graph, transport, watcher or Quiet()).run()
        summary = summarise(ready.graph, transport, outcome)
        settle(transport, ready.graph)
        summary["home"] = str(ready.home)
        save(ready, summary)
    return summary


@contextmanager
def transport_of(ready: Prepared, isolate: bool, watcher: Watcher) -> "Iterator[Transport]":
    """A local transport over which every party has accepted the plan; closed at the end, whatever happens."""
    from osmotic.runtime.transports.inprocess import InProcess
    from osmotic.runtime.transports.processes import Processes

    transport: Transport
    if isolate:
        file, parties = ready.policies.file, list(ready.graph.role_of)
        transport = Processes(parties, ready.home.resolve(), file.resolve() if file else None, watcher.progress, ready.binds)
    else:
        transport = InProcess(ready.open(), watcher.progress)
    try:
        if isolate:
            accept(transport, ready.graph)
        else:
            _accept_together(ready)
        yield transport
    finally:
        transport.close()


def _accept_together(ready: Prepared) -> None:
    """Parties of one process read the same graph; each checks it against its own policy."""
    problems = ready.refusals(ready.flow())
    if problems:
        raise RefusedError(*problems)
    for site in ready.sites.values():
        site.take(ready.graph, ready.configs)


def save(ready: Prepared, summary: dict[str, Any]) -> None:
    """Write ``run.json`` and ``report.html`` into the home folder."""
    from osmotic.runtime.report import render

    with_ledger = {**summary, "ledger": [_ledger_of(ready, party) for party in ready.graph.role_of]}
    with disk(ready.home):
        (ready.home / "run.json").write_text(json.dumps(summary, indent=1, sort_keys=True), encoding="utf-8")
        (ready.home / "report.html").write_text(render(with_ledger), encoding="utf-8")


def _ledger_of(ready: Prepared, party: str) -> dict[str, Any]:
    from osmotic.runtime.accounts import summary

    site = open_site(party, ready.home, ready.policies, ready.registry)
    try:
        return summary(site)
    finally:
        site.ledger.close()


def plan(
    pipeline: str | Path, *, overrides: tuple[str, ...] = (), sites: Path | None = None, home: Path | None = None,
    binds: tuple[str, ...] = (), registry: Registry | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What a run would do: tasks with reasons, crossings with labels, budget, refusals. Reads, and changes nothing."""
    from osmotic.runtime.planning import describe

    ready = prepare(pipeline, overrides=overrides, sites=sites, home=home, binds=binds, registry=registry)
    opened = ready.open(passing=True)
    try:
        inferred = ready.flow()
        return describe(ready.graph, ready.configs, opened, inferred, ready.refusals(inferred))
    finally:
        ready.close()


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
    from osmotic.runtime.single import Call

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


__all__ = ["Prepared", "Quiet", "call", "plan", "prepare", "run"]
