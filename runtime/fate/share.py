# SPDX-License-Identifier: Apache-2.0
"""One party's share of a pipeline inside a FATE job: the coordinator runs the plan, the others answer its requests.

The coordinator is the party that has the pipeline's role `server`. Every party reads the pipeline itself, says yes or no by its
own policy, and hands over its own outputs.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osmotic.plugins.host import build_registry
from osmotic.runtime.fate import giving, wire
from osmotic.runtime.fate.handing import Handed, planned
from osmotic.runtime.fate.link import Link, unknown
from osmotic.runtime.fate.mapping import assign, coordinator_of, in_order
from osmotic.runtime.fate.parameters import Settings, check_names, check_party, located, settings
from osmotic.runtime.fate.taking import binds
from osmotic.runtime.party.policies import open_site
from osmotic.runtime.party.service import Service
from osmotic.runtime.party.site import Site
from osmotic.runtime.plan.checks import Configs
from osmotic.runtime.plan.graph import Graph, Instance
from osmotic.runtime.results.verifying import ELSEWHERE
from osmotic.runtime.run import Runner, accept, locked, settle
from osmotic.runtime.storage.store import disk
from osmotic.runtime.transports.fate import Fate, plain
from osmotic.schemas.errors import Code, OsmoticError, PeerError, Problem, ProtocolFault, RefusedError


@dataclass
class Share:
    """What one party has of the job. names: party of the pipeline -> party of FATE."""

    start: wire.Start
    given: Settings
    names: dict[str, str]
    party: str
    coordinator: str
    graph: Graph
    site: Site
    home: Path
    handed: list[Handed]
    given_out: dict[str, dict[str, Any]] | None = None

    @property
    def patience(self) -> float:
        """Seconds without a sign of life."""
        return self.given.job.deadline


def run_pipeline(start: wire.Start, link: Link) -> dict[str, Any]:
    """Run this party's share; returns what its outputs are, by FATE's names. Raises OsmoticError."""
    with opened(start, link) as share:
        greet(share, link)
        return coordinate(share, link) if share.party == share.coordinator else follow(share, link)


@contextmanager
def opened(start: wire.Start, link: Link) -> Iterator[Share]:
    """Check everything that needs no other party, and open the site."""
    given = settings(start)
    roles = given.loaded.pipeline.parties
    names = assign(roles, in_order(start.peers, start.party), given.job)
    party = next(party for party, fate in names.items() if fate == start.party)
    if given.site.party not in (None, party):
        fix = f"write: parties: {json.dumps({given.site.party: start.party})}"
        what = f"this site is {given.site.party!r}; the job makes {start.party} the party {party!r}"
        raise RefusedError(Problem(what, start.site_file, "site.party", fix=fix))
    check_party(given.site, start.site_file)
    link.partners(names, coordinator_of(roles), party, given.job.deadline)
    registry = build_registry(names=given.site.plugins)
    with located():
        graph = Graph(given.loaded, registry)
        Configs(graph)
    policies = given.policies([party], binds(given.site.inputs, start.inputs))
    check_names(given.site, policies.policies[party], names, party, start.site_file)
    handed = planned(graph, policies.policies[party], party, given.job.of(start.party), start.outputs)
    home = given.home
    with locked(home / "parties" / party):
        site = open_site(party, home, policies, registry)
        site.overdue = link.overdue
        site.ledger.remember(ELSEWHERE, json.dumps(sorted(other for other in names if other != party)))
        try:
            yield Share(start, given, names, party, coordinator_of(roles), graph, site, home, handed)
        finally:
            site.ledger.close()


def greet(share: Share, link: Link) -> None:
    """Compare versions and job: the coordinator with everybody. Raises ProtocolError or ConfigError naming both sides."""
    chief, own = share.names[share.coordinator], share.names[share.party]
    mine = wire.greeting(chief, share.given.print_of(share.names))
    others = [fate for fate in share.names.values() if fate != own] if own == chief else [chief]
    for fate in others:
        link.put(fate, mine)
    for fate in others:
        wire.check_greeting(fate, link.take(fate, share.patience)[0], mine)


def follow(share: Share, link: Link) -> dict[str, Any]:
    """Answer the coordinator until it says that the run is over. Raises PeerError, or why it failed here."""
    service, chief = Service(share.site, local=False), share.names[share.coordinator]

    def outbound(party: str, header: dict[str, Any], blob: bytes) -> tuple[dict[str, Any], bytes]:
        link.put(chief, {**header, "frame": "outbound", "to": party}, blob)
        with link.pulse.away():
            reply, body = link.take(chief, share.patience)
        if reply.pop("frame", None) != "outbound":
            raise unknown("an answer to a model call was expected")
        return {"error": plain(reply["error"])} if "error" in reply else reply, body

    share.site.outbound = outbound
    share.site.progress = lambda task, done, total, note: link.pulse.step(task)
    mine = len(share.graph.at(share.party))
    while True:
        header, blob = link.take(chief, share.patience)
        kind = header.pop("frame", None)
        if kind == "done":
            _check_done(share, service, header)
            return giving.give(share, link)
        if kind != "request":
            raise unknown(kind)
        _check_request(share, header, blob)
        with link.pulse.working(str(header.get("id", header.get("op")))):
            reply, body = service.handle(header, blob)
        link.put(chief, {**reply, "frame": "reply"}, body)
        if header.get("op") in ("plan", "run"):
            about = f"plan of {mine} tasks here" if header["op"] == "plan" else str(header.get("id"))
            link.log(f"{about}: {reply['error']['code'] if 'error' in reply else 'done'}")


def _check_request(share: Share, header: dict[str, Any], blob: bytes) -> None:
    """Raise ProtocolFault for a plan that is not the job's, or a second one: it says who asks, not what is run.

    Artifacts are handed over before the first account of the run is given, so that they count in it.
    """
    if header.get("op") == "plan":
        mine = share.given.loaded
        if share.site.graph is not None or (blob, header.get("overrides")) != (mine.text.encode(), list(mine.overrides)):
            raise ProtocolFault(Problem(f"{share.names[share.coordinator]} sent another plan than the job's"))
    if header.get("op") == "account":
        giving.hand_over(share)


def _check_done(share: Share, service: Service, header: dict[str, Any]) -> None:
    """Raise what ended the run: in full what went wrong here, by party and code what went wrong elsewhere."""
    if not header.get("code"):
        return
    said, parties = header.get("parties"), {}
    for party in share.names:
        if isinstance(said, dict) and party in said:
            parties[party] = plain({"code": said[party]})["code"]
    if share.party in parties and service.failure is not None:
        raise service.failure
    others = {party: code for party, code in parties.items() if party != share.party}
    raise PeerError(*_elsewhere(share, others or {share.coordinator: plain(header)["code"]}))


def _elsewhere(share: Share, parties: dict[str, str]) -> list[Problem]:
    return [
        Problem(f"{share.names[party]} ({party}) ended the run: {code}", fix="the reason is in its own log")
        for party, code in parties.items()
        if party != share.party
    ]


class Watching:
    """A watcher for FATE's log: names of tasks and counts."""

    def __init__(self, link: Link) -> None:
        self.link, self.total, self.done = link, 0, 0

    def started(self, total: int) -> None:
        """The plan was accepted everywhere."""
        self.total = total
        self.link.log(f"plan accepted by all parties: {total} tasks")

    def task(self, instance: Instance, cached: bool, seconds: float) -> None:
        """One line a task."""
        self.done += 1
        self.link.pulse.step()
        self.link.log(f"[{self.done}/{self.total}] {instance.id}")

    def lost(self, party: str, why: str) -> None:
        """A line for a party that the run goes on without."""
        self.link.log(f"lost: {party} ({why})" if why else f"back: {party}")

    def progress(self, party: str, task: str, done: int, total: int, note: str) -> None:
        """Something goes on; what, is nobody's business."""
        self.link.pulse.step(task)


def coordinate(share: Share, link: Link) -> dict[str, Any]:
    """Run the plan. Whatever ends it is told to everybody by party and code."""
    from osmotic.runtime.results.summary import summarise

    watcher = Watching(link)
    service = Service(share.site, local=True)
    transport = Fate(share.party, service, share.names, link, watcher.progress, share.patience)
    try:
        for refused in accept(transport, share.graph).values():
            raise refused  # every party of a job is needed, whatever the pipeline's quorums say
        runner = Runner(share.graph, transport, watcher, home=share.home)
        outcome = runner.run()
        giving.hand_over(share)
        summary = summarise(share.graph, transport, outcome)
        settle(transport, share.graph)
        _save(share, summary)
        runner.over()
        return giving.give(share, link, summary)
    except OsmoticError as error:
        told = _told(share, service, transport.failures, error)
        transport.code = str(told.code)
        if link.lost:
            transport.failures[link.names.get(link.lost, link.lost)] = str(PeerError.code)
        raise told from error
    except BaseException:
        transport.code = str(Code.INTERNAL)
        raise
    finally:
        link.over = True
        transport.close()


def _told(share: Share, service: Service, failures: dict[str, str], error: OsmoticError) -> OsmoticError:
    """The error as FATE may show it: in full what went wrong here, by party and code what went wrong elsewhere."""
    if not failures:
        return error
    own = service.failure if share.party in failures else None
    made, like = OsmoticError(*(own.problems if own else ()), *_elsewhere(share, failures)), own or error
    made.code, made.exit_code = like.code, like.exit_code
    return made


def _save(share: Share, summary: dict[str, Any]) -> None:
    """Keep the result of the whole beside the own party's report, as a local run does."""
    summary["home"] = str(share.home)
    with disk(share.home):
        (share.home / "run.json").write_text(json.dumps(summary, indent=1, sort_keys=True), encoding="utf-8")
