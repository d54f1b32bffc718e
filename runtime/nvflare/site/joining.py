# SPDX-License-Identifier: Apache-2.0
"""A site at work: the engine's process in the foreground, kept running, with a line whenever something changes.

It opens connections outwards only. Ending this process ends everything that it started.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.runtime.nvflare.site.founding import Site, look
from osmotic.schemas.errors import OsmoticError

if TYPE_CHECKING:
    from osmotic.runtime.nvflare.kits.parents import Parent

Tell = Callable[[str], None]
TURN = 1.0  # seconds between two looks
FIRST, LONGEST = 2.0, 60.0  # seconds until the engine is started again, doubled each time
STEADY = 120.0  # seconds after which an end counts as the first one again


@dataclass
class State:
    """What was last told."""

    connected: bool | None = None
    working: bool = False
    expired: bool = False


def join(folder: Path, tell: Tell, once: bool = False, over: Callable[[], bool] = lambda: False) -> Site:
    """Take part until `over` says so or the process is interrupted. once: until a first run here has ended.

    Raises ConfigError, RefusedError (a site that is not in order) before anything is started.
    """
    site = look(folder)
    for problem in site.warnings:
        tell(f"note: {problem}")
    tell(f"{site.party}: connecting to {site.host}:{site.port}; stop with Ctrl-C")
    again, audit = FIRST, Audit(folder)
    while not over():
        begun = time.monotonic()
        ended = _once(folder, site, tell, once, over, audit)
        if ended or over():
            break
        again = FIRST if time.monotonic() - begun > STEADY else min(again * 2, LONGEST)
        tell(f"{site.party}: the engine ended; starting it again in {again:.0f} s; its log: {folder / 'osmotic-engine.log'}")
        _sleep(again, over)
    return site


def _once(folder: Path, site: Site, tell: Tell, once: bool, over: Callable[[], bool], audit: "Audit") -> bool:
    """One life of the engine's process; whether it ended since all was done."""
    from osmotic.runtime.nvflare.kits.parents import start_site

    parent, state = start_site(folder, wait=0), State()
    try:
        while parent.alive() and not over():
            worked = state.working
            _told(folder, site, parent, state, tell)
            for line in audit.new():
                tell(f"{site.party}: refused: {line}")
            if once and worked and not state.working:
                return True
            time.sleep(TURN)
        return False
    finally:
        parent.stop()


def _told(folder: Path, site: Site, parent: "Parent", state: State, tell: Tell) -> None:
    """A line for each change: connected, lost, at work, done."""
    connected = is_connected(parent.pid, site.port)
    if connected != state.connected and (connected or state.connected is not None):
        place = f"{site.host}:{site.port}"
        tell(f"{site.party}: connected to {place}" if connected else f"{site.party}: the server is away; it is tried again")
    if not connected:
        _ended(folder, state, tell)
    state.connected = connected
    working = at_work(folder)
    if working != state.working:
        tell(f"{site.party}: {f'at work for {site.server}' if working else 'done; waiting'}")
    state.working = working


def _ended(folder: Path, state: State, tell: Tell) -> None:
    """Say once that the certificate is no good any more: a connection outlives its end, and cannot be made again."""
    from osmotic.runtime.nvflare.kits.kit import check_certificate

    try:
        check_certificate(folder)
    except OsmoticError as error:
        if not state.expired:
            tell(str(error))
        state.expired = True


def is_connected(pid: int, port: int) -> bool:
    """Whether a process has an open connection to that port."""
    import psutil

    with contextlib.suppress(psutil.Error):
        found = psutil.Process(pid).net_connections("tcp")
        return any(one.raddr and one.raddr.port == port and one.status == psutil.CONN_ESTABLISHED for one in found)
    return False


def at_work(folder: Path) -> bool:
    """Whether a process of this site answers a coordinator."""
    import psutil

    from osmotic.runtime.nvflare.site.standing import PROCESS

    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, psutil.Error):
        noted = json.loads((folder / PROCESS).read_text(encoding="utf-8"))
        process = psutil.Process(int(noted["pid"]))
        return bool(process.create_time() == noted["since"] and process.status() != psutil.STATUS_ZOMBIE)
    return False


class Audit:
    """Reads what is added to a site's audit from now on."""

    def __init__(self, folder: Path) -> None:
        from osmotic.runtime.nvflare.site.standing import AUDIT

        self.path = folder / AUDIT
        self.at = self._size()

    def _size(self) -> int:
        with contextlib.suppress(OSError):
            return self.path.stat().st_size
        return 0

    def new(self) -> Iterator[str]:
        """What was refused since the last look; a line each."""
        size = self._size()
        if size == self.at:
            return
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            file.seek(self.at if size > self.at else 0)  # a shorter one was begun anew
            text = file.read()
            whole = text.rfind(b"\n") + 1
            self.at = (self.at if size > self.at else 0) + whole
            for line in text[:whole].splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    yield _line(json.loads(line))


def _line(entry: dict[str, Any]) -> str:
    why = f": {entry['why']}" if entry.get("why") else ""
    return f"{entry['what']} from {entry['from']}{why}"


def _sleep(seconds: float, over: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not over():
        time.sleep(min(TURN, seconds))
