# SPDX-License-Identifier: Apache-2.0
"""An engine of threads for the tests: carries the coordinator's messages to mailboxes in this process, and loses them."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.nvflare.site.audit import Audit
from osmotic.runtime.nvflare.site.mailbox import Mailbox
from osmotic.runtime.nvflare.wire import Header, Message, Unreachable
from osmotic.runtime.party.policies import open_site
from osmotic.runtime.party.service import Service
from osmotic.runtime.results.summary import summarise
from osmotic.runtime.run import Runner, accept, locked, settle
from osmotic.runtime.transports.nvflare import Nvflare
from osmotic.schemas.errors import OsmoticError

OWN = "hub"
Fault = Callable[[str, Header, bytes], Message]  # what arrives at a site; raises Unreachable for what does not


class Loop:
    """A carrier. opens: site -> makes its service. fault, damage: see and change what goes to a site, and what comes back."""

    def __init__(self, opens: dict[str, Callable[[], Any]], folder: Path) -> None:
        self.opens, self.folder = opens, folder
        self.boxes: dict[str, Mailbox] = {}
        self.fault: Fault = lambda site, header, blob: (header, blob)
        self.damage: Callable[[str, Header, Header, bytes], Message] = lambda site, asked, header, blob: (header, blob)
        self.away: set[str] = set()
        self.renewed: list[list[str]] = []
        self.sent: list[tuple[str, Header, int]] = []
        self.left: list[int] = []
        self.services: dict[str, Any] = {}
        self._lock = threading.Lock()

    def start(self, site: str) -> Mailbox:
        """A new process of a site; the one before is gone."""
        old = self.boxes.get(site)
        audit = Audit(self.folder / site / "audit.jsonl")
        self.boxes[site] = Mailbox(site, self.folder / site, self.opens[site], audit, lambda: {"party": site}, self.left.append)
        if old is not None:
            old.close()
        return self.boxes[site]

    def send(self, site: str, header: Header, blob: bytes, timeout: float) -> Message:
        with self._lock:
            self.sent.append((site, header, len(blob)))
            box = self.boxes.get(site)
        if site in self.away or box is None:
            raise Unreachable(site, "absent")
        header, blob = self.fault(site, json.loads(json.dumps(header)), blob)
        answer, body = box.handle(header, blob)
        if site in self.away or self.boxes.get(site) is not box:
            raise Unreachable(site, "timeout")
        return self.damage(site, header, json.loads(json.dumps(answer)), body)

    def renew(self, sites: list[str]) -> None:
        """Those that are back get a new process."""
        self.renewed.append(sites)
        for site in sites:
            if site not in self.away:
                self.start(site)

    def close(self) -> None:
        for box in self.boxes.values():
            box.close(5.0)
        self.boxes = {}


def deploy(file: Path, home: Path, registry: Registry, watch: Any = lambda *_: None, **given: Any) -> tuple[Any, Nvflare, Loop]:
    """What is prepared, the transport of the hub, and the engine with a mailbox for everybody else."""
    ready = api.prepare(file, home=home, registry=registry)

    def opened(party: str, local: bool) -> Service:
        made = services[party] = Service(open_site(party, ready.home, ready.policies, registry), local)
        return made

    services: dict[str, Service] = {}

    others = [party for party in ready.graph.role_of if party != OWN]
    loop = Loop({party: lambda party=party: opened(party, False) for party in others}, home / "boxes")  # type: ignore[misc]
    loop.services = services
    for party in others:
        loop.start(party)
    transport = Nvflare(OWN, opened(OWN, True), others, loop, home, watch, renew=loop.renew, **given)
    return ready, transport, loop


def told(error: OsmoticError, loop: Loop) -> OsmoticError:
    """An error with what the sites' own operators are told of it."""
    problems = [problem for service in loop.services.values() if service.failure for problem in service.failure.problems]
    if not problems:
        return error
    made = type(error)(*problems)
    made.code, made.exit_code = error.code, error.exit_code
    for note in getattr(error, "__notes__", ()):
        made.add_note(note)
    return made


def by_post(file: Path, home: Path, registry: Registry, watcher: Any = None, on: Any = None, **given: Any) -> dict[str, Any]:
    """The run of a pipeline over the loop. on: sees transport and loop before anything runs."""
    watcher = watcher or api.Quiet()
    ready, transport, loop = deploy(file, home, registry, watcher.progress, **given)
    with locked(ready.home):
        try:
            if on is not None:
                on(transport, loop)
            ready.refused = accept(transport, ready.graph)
            outcome = Runner(ready.graph, transport, watcher, 1, ready.home, ready.refused).run()
            summary = summarise(ready.graph, transport, outcome)
            settle(transport, ready.graph, outcome.lost)
            summary["home"] = str(ready.home)
            api.save(ready, summary)
        except OsmoticError as error:
            raise told(error, loop) from error
        finally:
            transport.close()
            loop.close()
            transport.service.site.ledger.close()
    return json.loads(json.dumps(summary))  # type: ignore[no-any-return]
