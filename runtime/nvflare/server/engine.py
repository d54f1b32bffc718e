# SPDX-License-Identifier: Apache-2.0
"""The engine as the coordinator sees it: who is there, a way to send each site a message, new processes for sites that return.

A job of the engine carries messages to the sites that it was submitted for. The first has all of them; a site that comes back
gets another one of its own, so that the others are not disturbed. If a whole job is ended because of one of its sites, each of
its sites gets its own. Jobs outlive a coordinator that is killed: the next one at the same server takes them over.
"""

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from osmotic.runtime.nvflare.extra import need_extra
from osmotic.runtime.nvflare.kits.kit import Kit
from osmotic.runtime.nvflare.server.jobs import OVER, Admin, Seen, waited
from osmotic.runtime.nvflare.server.lines import RELAY_FILE, Hub, Line
from osmotic.runtime.nvflare.wire import Unreachable
from osmotic.runtime.storage.store import disk
from osmotic.schemas.errors import PeerError, Problem, StoreError

LOCK = "coordinator.lock"
FRESH = 12.0  # seconds: a site was heard of since
TAKING_OVER = 1.5  # seconds that jobs of an earlier coordinator get to dial in
STARTED = 20.0  # seconds from a job's submission until its sites answer
COMING = 10.0  # seconds more after each sign that a site's process is starting: machines may be slow
LATEST = 90.0  # seconds from a job's submission, at most
AGAIN = 10.0  # seconds before a site gets another job
GOING = 5.0  # seconds that jobs get to end
HEARD = 1.0  # seconds after which their sites know
KEEP = 60.0  # seconds between two signs of life to a site


def silence(line: str) -> None:
    """Nobody is told."""


class Engine:
    """Open it, take `carrier()`, close it. server, admin: folders of these kits. home: the coordinator's folder."""

    def __init__(self, server: Path, admin: Path, home: Path, log: Callable[[str], None] = silence) -> None:
        need_extra()
        self.kit = Kit.read(server)
        self.home, self.log = home, log
        self._admin = Admin(Kit.read(admin))
        self._hub: Hub | None = None
        self._lock: Any = None
        self._alone = threading.RLock()  # one job is submitted at a time
        self._coming = 0.0
        self._tried: dict[str, float] = {}
        self._vain: dict[str, int] = {}  # site -> how often it got a process in vain
        self._trouble: dict[str, str] = {}
        self._split: set[str] = set()  # sites that get jobs of their own
        self._lost: dict[str, list[str]] = {}  # jobs that are gone although nobody said bye
        self._over = threading.Event()

    def __enter__(self) -> "Engine":
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, timeout: float = 60.0) -> None:
        """Connect, take over or end what is left of an earlier coordinator, give every site that is there a process.

        Raises StoreError while another coordinator is at work, ConfigError for a bad certificate, PeerError if the server does
        not answer in time.
        """
        self._lock = _only_one(self.kit.folder, self.home)
        try:
            self._hub = Hub(self.home, self.kit.local / RELAY_FILE, self._changed)
            self._connect(time.monotonic() + timeout)
            self._take_over()
            self.renew()
        except BaseException:
            self.close()
            raise
        threading.Thread(target=self._keep, name="keep", daemon=True).start()

    def close(self) -> None:
        """End our jobs and let go; safe to call twice."""
        self._over.set()
        if self._hub is not None:
            self._end(self._hub.found())
            self._hub.close()
            self._hub = None
        self._admin.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _end(self, lines: list[Line]) -> None:
        """Say bye to jobs, and wait a little until their sites have heard it: if the server is stopped now, they do not."""
        until = time.monotonic() + GOING
        for line in lines:
            line.bye()
        while any(line.alive for line in lines) and waited(until):
            pass
        if lines:
            time.sleep(HEARD)

    def carrier(self) -> "Engine":
        """What messages are sent by: `send` below; the same over all renewals."""
        return self

    def send(self, site: str, header: dict[str, Any], blob: bytes, timeout: float) -> tuple[dict[str, Any], bytes]:
        """One message to a site and its answer. Raises Unreachable: timeout, absent, starting."""
        line = self._line(site)
        if line is None:
            raise Unreachable(site, "absent")
        return line.send(site, header, blob, timeout)

    def sites(self) -> dict[str, Seen]:
        """Who is registered; `present` where it has a process that a message can be sent to."""
        with self._alone:
            found = self._asked()
        return {name: Seen(name, seen.last, self._line(name) is not None) for name, seen in found.items()}

    def back(self) -> list[str]:
        """Sites that are registered but have no process of ours that answers."""
        now = time.time()
        return sorted(name for name, seen in self.sites().items() if now - seen.last < FRESH and not self.ping(name))

    def ping(self, site: str, timeout: float = 3.0) -> bool:
        """Whether the site's process answers now."""
        try:
            return self.send(site, {"engine": "ping"}, b"", timeout)[0].get("engine") == "pong"
        except Unreachable:
            return False

    def renew(self, sites: Iterable[str] | None = None) -> list[str]:
        """Give a process to sites (default: all) that are registered and have none that answers; returns who got one.

        Nothing happens for a site that is not there, or got one in vain a while ago. Raises PeerError if the server is gone.
        """
        with self._alone:
            self._learn()
            asked = None if sites is None else set(sites)
            missing = [name for name in self.back() if (asked is None or name in asked) and self._due(name)]
            left = self._give(missing)
            again = [name for name in left if name in self._split and self._vain.get(name) == 1]
            if len(again) > 1:  # the job of several was ended, by one of them: each for itself
                left = [*(name for name in left if name not in again), *self._give(again)]
            return [name for name in missing if name not in left]

    def trouble(self, site: str) -> str:
        """What is known of why a site that is there has no process; empty if nothing is."""
        return self._trouble.get(site, "")

    def _due(self, site: str) -> bool:
        wait = AGAIN * 2.0 ** (min(self._vain.get(site, 0), 5) - 1)
        return site not in self._vain or time.monotonic() - self._tried[site] >= wait

    def _learn(self) -> None:
        """Sites of jobs that the server ended get jobs of their own from now on: one of them was the cause."""
        lost, self._lost = self._lost, {}
        for job, sites in lost.items():
            if len(sites) > 1 and self._ended(job):
                self._split.update(sites)

    def _give(self, sites: list[str]) -> list[str]:
        """Jobs for these sites; wait until they answer, or for STARTED seconds. Returns those that do not."""
        together = [name for name in sites if name not in self._split]
        groups = [*([together] if together else []), *([name] for name in sites if name in self._split)]
        begun, jobs = time.monotonic(), {}
        self._coming = begun + STARTED - COMING
        for group in groups:
            self.log(f"starting at {', '.join(group)}")
            jobs[self._admin.submit(group)] = group
        left = dict(jobs)
        while left and waited(min(self._coming + COMING, begun + LATEST)):
            left = {job: names for job, names in left.items() if not self._started(job, names)}
        late = [name for names in left.values() for name in names]
        self._note(sites, [name for name in sites if self._line(name) is None or name in late])
        self._end_empty()
        return late

    def _started(self, job: str, names: list[str]) -> bool:
        """Whether all of a job's sites answer, or the job has ended."""
        line = self._lines().get(job)
        if line is not None:
            names[:] = [name for name in names if not self._answers(line, name)]
            return not names
        if self._ended(job):
            self._split.update(names)
            return True
        return False

    def _note(self, sites: list[str], failed: list[str]) -> None:
        now = time.monotonic()
        for name in sites:
            self._trouble.pop(name, None)
            self._vain.pop(name, None) if name not in failed else self._vain.update({name: self._vain.get(name, 0) + 1})
            self._tried[name] = now
        for name in failed:
            self._trouble[name] = (
                "it is registered, but starts nothing: was `osmotic site init` run there? Its audit tells more"
            )
        if failed:
            self.log(f"no answer from {', '.join(failed)}")

    def _answers(self, line: Line, name: str) -> bool:
        try:
            if line.send(name, {"engine": "ping"}, b"", 2.0)[0].get("engine") == "pong":
                line.sites = sorted({*line.sites, name})
                return True
        except Unreachable as error:
            if error.why == "starting":
                self._coming = max(self._coming, time.monotonic())
        return False

    def _ended(self, job: str) -> bool:
        with contextlib.suppress(PeerError):
            return self._admin.status(job).startswith(OVER)
        return False

    def _lines(self) -> dict[str, Line]:
        return {line.job: line for line in self._hub.found()} if self._hub is not None else {}

    def _line(self, site: str) -> Line | None:
        """The newest line that has this site."""
        having = [line for line in self._lines().values() if line.alive and site in line.sites]
        return having[-1] if having else None

    def _end_empty(self) -> None:
        """Sites belong to their newest line; a line without any is ended."""
        taken: set[str] = set()
        for line in reversed(list(self._lines().values())):
            line.sites = [name for name in line.sites if name not in taken]
            taken.update(line.sites)
            if not line.sites:
                line.bye()

    def _changed(self, line: Line) -> None:
        """A job dialled in, or is gone."""
        if not line.alive and line.sites and not self._over.is_set():
            self._lost[line.job] = list(line.sites)

    def _connect(self, until: float) -> None:
        while True:
            try:
                self._admin.connect(min(10.0, max(1.0, until - time.monotonic())))
                return
            except PeerError:
                if not waited(until, 1.0):
                    raise
                self.log("waiting for the server")

    def _asked(self) -> dict[str, Seen]:
        """Who is registered; connects again if the server was started again meanwhile."""
        try:
            return self._admin.sites()
        except PeerError:
            self._admin.connect(5.0)
            return self._admin.sites()

    def _take_over(self) -> None:
        """Jobs of ours that run are taken over; those that do not dial in (their server was killed) are ended."""
        found = self._admin.running()
        until = time.monotonic() + TAKING_OVER
        while set(found) - set(self._lines()) and waited(until):
            pass
        for job in found:
            line = self._lines().get(job)
            if line is None:
                with contextlib.suppress(PeerError):
                    self._admin.abort(job)
                continue
            for name in line.named:
                self._answers(line, name)

    def _keep(self) -> None:
        """Tell every site now and then that somebody is there."""
        while not self._over.wait(KEEP):
            for line in self._lines().values():
                for name in list(line.sites):
                    self.ping(name)


def _only_one(server: Path, home: Path) -> Any:
    """The lock of the coordinator at a server; who has it stands in it."""
    path = server / LOCK
    with disk(path):
        file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        said = _said(file.read())
        file.close()
        fix = "wait until it has ended, or stop it; two cannot share the sites of one server"
        raise StoreError(Problem("another coordinator is at work at this server", str(server), why=said, fix=fix)) from error
    file.truncate(0)
    file.write(json.dumps({"pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S"), "home": str(home)}))
    file.flush()
    return file


def _said(text: str) -> str:
    try:
        found = json.loads(text)
        return f"process {found['pid']} since {found['since']}, with --home {found['home']}"
    except (ValueError, KeyError, TypeError):
        return "it has the lock"
