# SPDX-License-Identifier: Apache-2.0
"""A deployment for the tests: the engine's server and sites as real processes with TLS on loopback, the coordinator here."""

import json
import socket
import time
from pathlib import Path
from typing import Any

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.nvflare.kits.parents import Parent, start_server, start_site
from osmotic.runtime.nvflare.kits.provision import provision
from osmotic.runtime.nvflare.server.engine import Engine
from osmotic.runtime.nvflare.site.standing import FAILURES
from osmotic.runtime.party.policies import open_site
from osmotic.runtime.party.service import Service
from osmotic.runtime.results.summary import summarise
from osmotic.runtime.run import Runner, accept, locked, settle
from osmotic.runtime.transports.nvflare import Nvflare
from osmotic.schemas.errors import OsmoticError, Problem

OWN = "hub"


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Deployed:
    """A server and sites. Their processes take the environment that they are started in."""

    def __init__(self, folder: Path, sites: tuple[str, ...]) -> None:
        self.folder, self.sites = folder, sites
        self.kits = provision(folder / "d", "localhost", sites, port=free_port())
        self.parents: list[Parent] = []
        self.engine: Engine | None = None

    def up(self) -> None:
        """Start everything; returns when every site is taken in."""
        self.parents.append(start_server(self.kits.server))
        self.parents += [start_site(self.kits.sites[name], wait=0) for name in self.sites]
        end = time.monotonic() + 60
        while not all(parent.registered() for parent in self.parents[1:]):
            if time.monotonic() > end:
                raise TimeoutError([parent.tail() for parent in self.parents])
            time.sleep(0.2)

    def down(self) -> None:
        """End everything."""
        self.again()
        for parent in reversed(self.parents):
            parent.stop(3.0)

    def settle_in(self, policy: Path, home: Path, plugins: list[str] | None = None) -> None:
        """What the sites read with the next plan. home: where a pipeline's name makes the folder of a run."""
        for name, kit in self.kits.sites.items():
            found = {"osmotic_site": 1, "party": name, "server": OWN, "policy": str(policy), "home": str(home)}
            found |= {} if plugins is None else {"plugins": plugins}
            (kit / "local" / "osmotic-site.json").write_text(json.dumps(found))
            (kit / FAILURES).unlink(missing_ok=True)

    def run(self, file: Path, home: Path, registry: Registry, watcher: Any = None, **given: Any) -> dict[str, Any]:
        """The run of a pipeline; its errors have what the sites' operators read. home: as in `settle_in`."""
        watcher = watcher or api.Quiet()
        ready = api.prepare(file, home=home, registry=registry, **given)
        others = [party for party in ready.graph.role_of if party != OWN]
        service = Service(open_site(OWN, ready.home, ready.policies, registry), True)
        try:
            with locked(ready.home):
                engine = self.coordinator()
                transport = Nvflare(OWN, service, others, engine.carrier(), self.folder, watcher.progress, renew=engine.renew)
                try:
                    refused = accept(transport, ready.graph)
                    outcome = Runner(ready.graph, transport, watcher, 1, ready.home, refused).run()
                    summary = summarise(ready.graph, transport, outcome)
                    settle(transport, ready.graph, outcome.lost)
                    summary["home"] = str(ready.home)
                    api.save(ready, summary)
                except OsmoticError as error:
                    raise self._told(error, service) from error
                finally:
                    transport.close()
        finally:
            service.site.ledger.close()
        return json.loads(json.dumps(summary))  # type: ignore[no-any-return]

    def coordinator(self) -> Engine:
        """The engine's session, one for all runs; after `again` a new one, with new processes at the sites."""
        if self.engine is None:
            self.engine = Engine(self.kits.server, self.kits.admin, self.folder / "engine")
            self.engine.open()
        return self.engine

    def again(self) -> None:
        """End the processes that answer: the next run has others, as the next `osmotic serve` would."""
        if self.engine is not None:
            self.engine.close()
        self.engine = None

    def _told(self, error: OsmoticError, service: Service) -> OsmoticError:
        logs = [(kit / FAILURES) for kit in self.kits.sites.values()]
        texts = [Problem(path.read_text()) for path in logs if path.is_file()]
        if service.failure is not None:
            texts += service.failure.problems
        made = type(error)(*(texts or error.problems))
        made.code, made.exit_code = error.code, error.exit_code
        for note in getattr(error, "__notes__", ()):
            made.add_note(note)
        return made
