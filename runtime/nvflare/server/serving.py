# SPDX-License-Identifier: Apache-2.0
"""A pipeline run from the server's machine: the own party in this process, every other one at its site, over the engine.

Before anything runs every site is greeted, versions are compared, and every site says yes or no to the plan by its own policy.
What is started here is ended here; a server that runs already is used and left as it is.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.plugins.host import Registry, build_registry
from osmotic.runtime.nvflare.server import greeting, listing
from osmotic.runtime.nvflare.server.deployment import read_server
from osmotic.runtime.nvflare.server.looking import Tell, connected, noted, running_server, wait_for
from osmotic.runtime.party.answering import coordinator_of
from osmotic.runtime.party.policies import beside, check_binds, open_site, policies_of
from osmotic.runtime.party.service import Service
from osmotic.runtime.party.site import Site
from osmotic.runtime.plan.checks import Configs, slot_problems
from osmotic.runtime.plan.flow import infer
from osmotic.runtime.plan.graph import Graph
from osmotic.runtime.plan.load import find, load, sites_file
from osmotic.runtime.results.verifying import ELSEWHERE
from osmotic.runtime.run import Runner, Watcher, accept, locked, spare
from osmotic.runtime.screen.tables import grid, width
from osmotic.runtime.screen.watch import watched
from osmotic.runtime.storage.store import disk
from osmotic.runtime.transports.base import Header, Reply
from osmotic.schemas.errors import ConfigError, OsmoticError, PeerError, Problem, RefusedError
from osmotic.schemas.site import ServerFile
from osmotic.schemas.source import did_you_mean

if TYPE_CHECKING:
    from osmotic.runtime.nvflare.server.engine import Engine
    from osmotic.runtime.transports.nvflare import Nvflare


@dataclass
class Share:
    """What the server's machine has of a run."""

    folder: Path
    server: ServerFile
    graph: Graph
    configs: Configs
    site: Site
    home: Path
    answers: dict[str, "Answer"] = field(default_factory=dict)
    away: Mapping[str, OsmoticError] = field(default_factory=dict)  # sites that did not come while they were waited for

    @property
    def own(self) -> str:
        """The server's party."""
        return self.server.party

    @property
    def others(self) -> list[str]:
        """Parties at sites, in the pipeline's order."""
        return [party for party in self.graph.role_of if party != self.own]


@dataclass(frozen=True)
class Answer:
    """What a site says to the plan. reasons: why not, or what it has to say besides."""

    yes: bool
    reasons: tuple[Problem, ...] = ()


def serve(
    pipeline: str | Path, folder: Path, *, overrides: tuple[str, ...] = (), sites: Path | None = None, home: Path | None = None,
    binds: tuple[str, ...] = (), wait: float = 60.0, keep: bool = False, watcher: Watcher | None = None,
    tell: Tell | None = None, registry: Registry | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run a pipeline over the sites of a deployment; returns the summary, also saved in ``home/run.json``.

    folder: of `osmotic site kits`. sites: policies, of which the server's own party's counts. wait: seconds until every site
    has to be there. keep: leave the engine's server running. tell: gets lines about what goes on. Raises OsmoticError;
    whatever had been finished anywhere is found again by the next run.
    """
    from osmotic.runtime.api import Quiet

    said = tell or (lambda line: None)
    with ExitStack() as stack:
        share = stack.enter_context(opened(str(pipeline), folder, overrides, sites, home, binds, registry))
        seen = stack.enter_context(watched(watcher or Quiet(), share.graph, share.home))
        stack.enter_context(running_server(folder, keep, said))
        engine = stack.enter_context(connected(folder, share.home, said))
        stack.enter_context(noted(folder, engine))
        missing = wait_for(engine, share.others, wait, said)
        if missing:
            _away(share, {name: engine.trouble(name) for name in missing}, wait)
        transport = stack.enter_context(carried(share, engine, seen))
        _greet(share, transport, [party for party in share.others if party not in missing], said)
        return coordinate(share, transport, seen, said)


@contextmanager
def opened(
    pipeline: str, folder: Path, overrides: tuple[str, ...], sites: Path | None, home: Path | None, binds: tuple[str, ...],
    registry: Registry | None = None,
) -> Iterator[Share]:  # fmt: skip
    """Check everything that needs no site, and open the server's own party."""
    server, registry = read_server(folder), registry or build_registry()
    graph = Graph(load(pipeline, overrides), registry)
    configs = Configs(graph)
    check_parties(graph, server, folder)
    file = sites_file(sites) if sites else beside(find(pipeline))
    policies = policies_of([server.party], file, binds)
    check_binds(policies, binds)
    place = home or Path("osmotic-runs") / graph.pipeline.name
    with locked(place), locked(place / "parties" / server.party):
        site = open_site(server.party, place, policies, registry)
        try:
            if problems := slot_problems(graph, configs, server.party, site.datasets):
                raise ConfigError(*dict.fromkeys(problems))
            site.ledger.remember(ELSEWHERE, json.dumps(sorted(other for other in graph.role_of if other != server.party)))
            yield Share(folder, server, graph, configs, site, place)
        finally:
            site.ledger.close()


def check_parties(graph: Graph, server: ServerFile, folder: Path) -> None:
    """Raise ConfigError for a pipeline whose parties are not those of the deployment, each with its place."""
    parties, source, problems = graph.pipeline.parties, graph.loaded.source, []
    chief = coordinator_of(parties)
    role = next(role for role, names in parties.items() if chief in names)
    if chief != server.party:
        what = f"the pipeline's server is {chief!r}; this machine is {server.party!r}"
        fix = f"--set parties.{role}={server.party}"
        problems.append(Problem(what, source.where(("parties", role)), f"parties.{role}", fix=fix))
    for role, names in parties.items():
        for name in names:
            if name not in (*server.sites, server.party, chief):
                guess = did_you_mean(name, server.sites)
                fix = f"{guess}; or make its kit: osmotic site kits --sites {name} --out {folder}"
                where = source.where(("parties", role))
                problems.append(Problem(f"there is no site {name!r}", where, f"parties.{role}", "it has no kit", fix))
    if problems:
        raise ConfigError(*problems)


def _away(share: Share, missing: Mapping[str, str], wait: float) -> None:
    """Raise PeerError for sites that are not there, unless the quorums of the plan can do without all of them.

    missing: site -> what the engine knows of why, if anything.
    """
    known, errors = listing.recall(share.folder), dict[str, OsmoticError]()
    for name, trouble in missing.items():
        why = trouble or f"last seen {listing.ago(known.get(name, {}).get('seen'))}"
        fix = "there: osmotic join; how it is: osmotic sites"
        errors[name] = made = PeerError(Problem(f"the site {name!r} is not there", why=why, fix=fix))
        made.reason = f"not there after {wait:g} s"
    share.away = errors
    share.answers |= {name: Answer(False, tuple(error.problems)) for name, error in errors.items()}
    if any(name not in share.graph.waits for name in missing):
        raise PeerError(*[problem for error in errors.values() for problem in error.problems])
    spare(share.graph, errors)


@contextmanager
def carried(share: Share, engine: "Engine", watcher: Watcher) -> "Iterator[Nvflare]":
    """The transport over the engine; closed at the end, whatever happens."""
    from osmotic.runtime.transports.nvflare import Nvflare

    service = Service(share.site, local=True)
    transport = Nvflare(
        share.own,
        service,
        share.others,
        engine.carrier(),
        share.folder,  # one coordinator a deployment: a run that was killed and another --home are the same to the sites
        watcher.progress,
        renew=engine.renew,
    )
    try:
        yield transport
    finally:
        transport.close()


def _greet(share: Share, transport: "Nvflare", parties: list[str], tell: Tell) -> None:
    """Compare versions; raises RefusedError where a site's are not this machine's, PeerError for one that does not answer."""
    errors = transport.greet(parties)
    share.answers |= {party: Answer(False, tuple(error.problems)) for party, error in errors.items()}
    if any(party not in share.graph.waits for party in errors):
        tell(answers_text(share.answers))
        raise PeerError(*[problem for error in errors.values() for problem in error.problems])
    facts: Mapping[str, Mapping[str, Any]] = transport.facts
    listing.remember(share.folder, facts)
    from osmotic.runtime.nvflare.site.site_file import versions_of

    found = greeting.compare(share.graph, versions_of(share.graph.registry), facts)
    for problems in found.said.values():
        for problem in problems:
            tell(f"note: {problem}")
    if found.refused:
        share.answers |= {party: Answer(False, tuple(problems)) for party, problems in found.refused.items()}
        tell(answers_text(share.answers))
        raise RefusedError(*[problem for problems in found.refused.values() for problem in problems])


def coordinate(share: Share, transport: "Nvflare", watcher: Watcher, tell: Tell) -> dict[str, Any]:
    """Ask for every site's yes or no, run, write the report."""
    from osmotic.runtime.reporting.gather import plan_of
    from osmotic.runtime.results.concluding import conclude

    try:
        refused = accept(Listening(transport, share), share.graph)
    finally:
        tell(answers_text(share.answers))
    labels = infer(share.graph, {share.own: share.site.policy})
    plan = plan_of(share.graph, share.configs, labels, {share.own: share.site})
    runner = Runner(share.graph, transport, watcher, home=share.home, refused=refused)
    outcome = runner.run()
    summary = conclude(share.graph, transport, outcome, plan)
    summary["home"] = str(share.home)
    summary["resolved"] = share.graph.pipeline.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    save(share, summary)
    runner.over()
    return summary


class Listening:
    """A transport that remembers what each party said to the plan. Sites that are away are not asked: they were waited for."""

    def __init__(self, inner: "Nvflare", share: Share) -> None:
        self.inner, self.share = inner, share
        self.parallel = inner.parallel

    def request(self, party: str, header: Header, blob: bytes = b"") -> Reply:
        """Ask a party."""
        if party in self.share.away:
            raise self.share.away[party]
        try:
            reply, body = self.inner.request(party, header, blob)
        except OsmoticError as error:
            self.share.answers[party] = Answer(False, tuple(error.problems))
            raise
        if header.get("op") == "plan":
            self.share.answers[party] = _answer(reply)
        return reply, body

    def close(self) -> None:
        """Nothing: the transport is closed by whoever opened it."""


def _answer(reply: Header) -> Answer:
    error = reply.get("error")
    if error is None:
        return Answer(True)
    problems = [Problem(**problem) for problem in error["problems"]]
    return Answer(False, tuple(problems) or (Problem(f"{error['code']}; the reason stays there, in its log"),))


def answers_text(answers: Mapping[str, Answer]) -> str:
    """What every site said, as a table."""
    rows = [
        [party, "yes" if answer.yes else "no", "; ".join(f"{p.where} {p.what}".strip() for p in answer.reasons)]
        for party, answer in answers.items()
    ]
    return f"what the parties say to the plan:\n{grid(['party', 'plan', 'why'], rows, width())}" if rows else ""


def save(share: Share, summary: dict[str, Any]) -> None:
    """Write ``run.json`` and ``report.html``; of the ledgers, the server's own alone is here."""
    from osmotic.runtime.reporting.gather import books, installed
    from osmotic.runtime.reporting.page import render

    told = {**summary, "ledger": [books(share.site)], "lock": installed(share.home)}
    with disk(share.home):
        (share.home / "run.json").write_text(json.dumps(summary, indent=1, sort_keys=True), encoding="utf-8")
        (share.home / "report.html").write_text(render(told), encoding="utf-8")
