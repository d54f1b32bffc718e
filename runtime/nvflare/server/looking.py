# SPDX-License-Identifier: Apache-2.0
"""The engine's server as its operator has it: started or held up, asked who is there, a session with it.

What is started here is ended here; a server that runs already is used and left as it is.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from osmotic.runtime.nvflare.server import listing
from osmotic.runtime.nvflare.server.deployment import read_server
from osmotic.runtime.party.answering import Wires
from osmotic.runtime.party.service import Service
from osmotic.runtime.transports.base import Header, Reply, refuse
from osmotic.schemas.errors import OsmoticError, PeerError, StoreError
from osmotic.schemas.site import ServerFile

if TYPE_CHECKING:
    from osmotic.runtime.nvflare.server.engine import Engine

Tell = Callable[[str], None]
TURN = 1.0  # seconds between two looks at who is there
EVERY = 10.0  # seconds between two lines about who is waited for


@contextmanager
def running_server(folder: Path, keep: bool, tell: Tell) -> Iterator[None]:
    """The engine's server, as it runs, or started here and ended afterwards."""
    from osmotic.runtime.nvflare.kits.parents import running, start_server

    kit = folder / read_server(folder).server
    if running(kit):
        yield
        return
    tell("starting the server")
    parent = start_server(kit, watch=tell)
    try:
        yield
    finally:
        if not keep:
            parent.stop()


@contextmanager
def connected(folder: Path, home: Path, tell: Tell) -> "Iterator[Engine]":
    """A session with the engine's server; one coordinator at a time."""
    from osmotic.runtime.nvflare.server.engine import Engine

    server = read_server(folder)
    engine = Engine(folder / server.server, folder / server.admin, home, tell)
    engine.open()
    try:
        yield engine
    finally:
        engine.close()


def hold(folder: Path, tell: Tell, over: Callable[[], bool] = lambda: False) -> None:
    """Keep the engine's server running, started again when it ends, until `over` says so or the process is interrupted."""
    from osmotic.runtime.nvflare.kits.parents import start_server

    kit, server = folder / read_server(folder).server, read_server(folder)
    while not over():
        parent = start_server(kit, watch=tell)
        tell(f"the server listens at {server.host}:{server.port}; stop with Ctrl-C")
        try:
            while parent.alive() and not over():
                time.sleep(TURN)
        finally:
            parent.stop()
        if not over():
            tell(f"the engine ended; starting it again; its log: {parent.log}")


def look_around(folder: Path, wait: float | None, tell: Tell) -> dict[str, Any]:
    """Who is there (`listing.listed`). wait: seconds; starts the server if need be, and greets every site.

    Without it nothing is started: while the server is down, or another coordinator is at work, what was seen last is told.
    """
    from osmotic.runtime.nvflare.kits.parents import running

    server = read_server(folder)
    up = running(folder / server.server)
    if not up and wait is None:
        return listing.listed(folder, server.sites, "down", time.time())
    try:
        with ExitStack() as stack:
            stack.enter_context(running_server(folder, False, tell))
            engine = stack.enter_context(connected(folder, folder, tell))
            missing = wait_for(engine, server.sites, wait or 0.0, tell)
            _remember_seen(folder, engine)
            _ask_facts(folder, server, engine, [name for name in server.sites if name not in missing])
    except StoreError:  # another coordinator is at work: it keeps the list up to date
        return listing.listed(folder, server.sites, "up, a run is on", time.time())
    return listing.listed(folder, server.sites, "up" if up else "started for this look", time.time())


class Nobody:
    """A party that is asked nothing: whoever only greets sites has none of its own."""

    def __init__(self) -> None:
        self.site = Wires()
        self.failure: OsmoticError | None = None

    def handle(self, header: Header, blob: bytes) -> Reply:
        """Refuse everything."""
        return refuse(header.get("op"))


@contextmanager
def noted(folder: Path, engine: "Engine") -> Iterator[None]:
    """While it is open, what the server hears of its sites is kept for `osmotic sites`."""
    over = threading.Event()

    def keep() -> None:
        while not over.wait(EVERY):
            _remember_seen(folder, engine)

    thread = threading.Thread(target=keep, name="seen", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(EVERY)
        _remember_seen(folder, engine)


def _remember_seen(folder: Path, engine: "Engine") -> None:
    with contextlib.suppress(PeerError):
        listing.remember(folder, {}, {name: seen.last for name, seen in engine.sites().items()})


def _ask_facts(folder: Path, server: ServerFile, engine: "Engine", here: list[str]) -> None:
    """Greet sites without a plan: what they say of themselves is kept."""
    from osmotic.runtime.transports.nvflare import Nvflare

    nobody = cast(Service, Nobody())
    transport = Nvflare(server.party, nobody, here, engine.carrier(), folder, lambda *_: None)
    try:
        transport.greet(here)
        listing.remember(folder, transport.facts)
    finally:
        transport.close()


def wait_for(engine: "Engine", parties: Sequence[str], wait: float, tell: Tell) -> list[str]:
    """Wait until all of these sites answer, `wait` seconds at most; returns those that do not."""
    begun = told = time.monotonic()
    here: set[str] = set()
    while True:
        now = {name for name, seen in engine.sites().items() if seen.present}
        for name in sorted(now & set(parties) - here):
            tell(f"{name}: here")
        here = now
        missing = [party for party in parties if party not in here]
        passed = time.monotonic() - begun
        if not missing or passed >= wait:
            return missing
        if time.monotonic() - told >= EVERY:
            told = time.monotonic()
            tell(f"waiting for {', '.join(missing)} ({passed:.0f} of {wait:.0f} s)")
        engine.renew(missing)
        time.sleep(TURN)
