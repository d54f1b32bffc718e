# SPDX-License-Identifier: Apache-2.0
"""A site that answers another operator's server: its service opens with the first plan, and a refused plan says why.

Of the reasons only those are told that follow from the plan and the policy alone (`telling`); of all else a code crosses. The
policy is read anew for every plan: one that was narrowed holds from then on, whichever process of the site is asked.
"""

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from osmotic.plugins.host import Registry
from osmotic.runtime.party.policies import Policies, open_site
from osmotic.runtime.party.service import Header, Reply, Service, refusal
from osmotic.runtime.party.telling import MOST, by_way_of_server, name_of, read_plan, reasons, tellable
from osmotic.runtime.results.verifying import ELSEWHERE
from osmotic.runtime.run import locked
from osmotic.schemas.errors import ConfigError, OsmoticError, Problem, RefusedError, StoreError
from osmotic.schemas.site import SiteFile

PATIENCE = 600.0  # seconds in which an earlier process of this site may still finish what it has in hand
TURN = 0.5
SERVER = "server"

Outbound = Callable[[str, Header, bytes], Reply]
Progress = Callable[[str, int, int, str], None]
Overdue = Callable[[OsmoticError], None]


def coordinator_of(roles: Mapping[str, tuple[str, ...]]) -> str:
    """The party that asks the others: the first one of the role `server`, or of the first role."""
    return roles.get(SERVER, next(iter(roles.values())))[0]


@dataclass
class Wires:
    """How a task reaches models elsewhere, tells how far it is, and ends its process when it is overdue."""

    outbound: Outbound | None = None
    progress: Progress | None = None
    overdue: Overdue | None = None


@dataclass(frozen=True)
class Rules:
    """What the site's operator wrote. home: of all pipelines; each has a folder of its own below it, by its name."""

    site: SiteFile
    home: Path
    policies: Policies


class Answering:
    """What a site's process answers with. read: the site's rules as they are now; raises ConfigError."""

    def __init__(self, read: Callable[[], Rules], registry: Registry) -> None:
        self.read, self.rules, self.registry = read, read(), registry
        self.service: Service | None = None
        self.failure: OsmoticError | None = None
        self._pipeline = ""
        self._open = contextlib.ExitStack()
        self.site = Wires()  # of the site that the next plan opens; whoever carries messages sets them

    @property
    def site_file(self) -> SiteFile:
        """The site's own file."""
        return self.rules.site

    def handle(self, header: Header, blob: bytes) -> Reply:
        """Answer one request; errors become a header with a code from the closed list, and a plan's with its reasons."""
        if header.get("op") == "plan":
            try:
                self._read_again()
            except OsmoticError as error:
                self.close()  # rules that cannot be read allow nothing
                self.failure = error
                return refusal(error, local=False), b""
        try:
            service = self._for_plan(header, blob) if header.get("op") == "plan" else self._ready()
        except OsmoticError as error:
            self.failure = error
            return self._refused(error, blob, header, error.problems), b""
        reply, body = service.handle(header, blob)
        if header.get("op") != "plan":
            self.failure = service.failure
        elif "error" not in reply and (carried := by_way_of_server(service.site, self.site_file.server)):
            service.site.graph = service.site.configs = None
            self.failure = RefusedError(*carried)
            return self._refused(self.failure, blob, header, carried), b""
        elif "error" in reply and service.failure is not None:
            self.failure = service.failure
            return self._refused(self.failure, blob, header), body
        return reply, body

    def close(self) -> None:
        """Close the ledger and let go of the folder; safe to call twice."""
        self.service = None
        self._open.close()

    # ---- opening ----

    def _read_again(self) -> None:
        """Take up what the operator changed. Raises ConfigError for rules that are wrong, or need a new process."""
        before, found = self.rules.site, self.read()
        if (found.site.party, found.site.plugins) != (before.party, before.plugins):
            what, fix = "the site's file names another party or other plugins than before", "start osmotic join again"
            raise ConfigError(Problem(what, path="party, plugins", fix=fix))
        if found != self.rules:
            self.close()
            self.rules = found

    def _ready(self) -> Service:
        if self.service is None:
            raise RefusedError(Problem(f"{self.site_file.party} has accepted no plan"))
        return self.service

    def _for_plan(self, header: Header, blob: bytes) -> Service:
        """The service of the plan's folder. Raises ConfigError for what is no plan, RefusedError for one of another server."""
        pipeline = read_plan(header, blob).pipeline
        own, server, told = self.site_file.party, self.site_file.server, coordinator_of(pipeline.parties)
        if told != server:
            why = "the policy trusts parties by their names, and the plan gives the server another one"
            fix = f"--set 'parties.{_role_of(pipeline.parties, told)}={server}'"
            raise RefusedError(Problem(f"the plan's server is {told!r}; for {own} the server is {server!r}", why=why, fix=fix))
        if self.service is None or self._pipeline != pipeline.name:
            self.close()
            self._begin(pipeline.name)
        service, others = self._ready(), {name for names in pipeline.parties.values() for name in names} - {own}
        service.site.ledger.remember(ELSEWHERE, json.dumps(sorted(others)))
        return service

    def _begin(self, pipeline: str) -> None:
        home, party = self.rules.home / pipeline, self.site_file.party
        with contextlib.ExitStack() as stack:
            self._enter(stack, home / "parties" / party)
            site = open_site(party, home, self.rules.policies, self.registry)
            stack.callback(site.ledger.close)
            self._open = stack.pop_all()
        site.outbound, site.overdue = self.site.outbound, self.site.overdue
        site.progress = self.site.progress or site.progress
        self.service, self._pipeline = Service(site, local=False), pipeline

    def _enter(self, stack: contextlib.ExitStack, folder: Path) -> None:
        """Lock a party's folder; an earlier process of this site is waited for, and that counts as progress."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                stack.enter_context(locked(folder))
                return
            except StoreError:
                if time.monotonic() > until:
                    raise
            if self.site.progress is not None:
                self.site.progress("plan", 0, 0, "waiting for an earlier process")
            time.sleep(TURN)

    # ---- refusing ----

    def _refused(self, error: OsmoticError, blob: bytes, header: Header, known: Sequence[Problem] = ()) -> Header:
        """An error's code and, of a plan, the reasons that may be told. known: problems that the plan and the policy make."""
        reply = refusal(error, local=False)
        if header.get("op") == "plan" and self.site_file.tells == "reasons" and isinstance(error, RefusedError | ConfigError):
            whole = list(known) if self.service is None or known else reasons(self.service.site, header, blob, error)
            name, text = name_of(header), blob.decode(errors="replace")
            told = [tellable(problem, name, text, self.site_file.party) for problem in whole]
            reply["error"]["problems"] = [asdict(problem) for problem in told if problem is not None][:MOST]
        return reply


def _role_of(roles: Mapping[str, tuple[str, ...]], party: str) -> str:
    return next(role for role, parties in roles.items() if party in parties)
