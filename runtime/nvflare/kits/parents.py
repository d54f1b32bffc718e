# SPDX-License-Identifier: Apache-2.0
"""The engine's standing processes: one at the server, one at a site. Started here without the engine's shell scripts.

Their output is in the kit's folder (``osmotic-engine.log``). One process a kit: a second one is refused. Job processes are
their children, in sessions of their own; they are ended by the tree, and those that were left over by what they stand on.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osmotic.runtime.nvflare.kits.harden import check_hardened, harden
from osmotic.runtime.nvflare.kits.kit import Kit, check_certificate
from osmotic.runtime.nvflare.site.standing import end
from osmotic.runtime.storage.durable import own_file, write_whole
from osmotic.runtime.storage.store import disk
from osmotic.schemas.errors import ConfigError, PeerError, Problem, RefusedError, StoreError

LOG = "osmotic-engine.log"
LOG_LIMIT = 20 << 20
NOTE = "osmotic-engine.json"
LOCK = "osmotic-engine.lock"
MODULES = {"server": "nvflare.private.fed.app.server.server_train", "site": "nvflare.private.fed.app.client.client_train"}
JOBS = {"server": "nvflare.private.fed.app.server.runner_process", "site": "nvflare.private.fed.app.client.worker_process"}
REGISTERED = "Successfully registered client"
JOB = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
STEP = 0.2
MEMORY = {"MALLOC_ARENA_MAX": "4", "MALLOC_MMAP_THRESHOLD_": "1048576"}  # what a message took goes back to the system at once
Told = Callable[[str], None]


@dataclass
class Parent:
    """A standing process that was started here. start: where its part of the log begins (bytes)."""

    kit: Kit
    process: "subprocess.Popen[bytes]"
    start: int

    @property
    def pid(self) -> int:
        """Of the standing process; its children are jobs."""
        return self.process.pid

    @property
    def log(self) -> Path:
        """What it and its jobs printed."""
        return self.kit.folder / LOG

    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def said(self) -> str:
        """What it printed since it was started."""
        try:
            with self.log.open("rb") as file:
                file.seek(self.start)
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def tail(self, lines: int = 12) -> str:
        """The end of what it printed."""
        return "\n".join(self.said().splitlines()[-lines:])

    def registered(self) -> bool:
        """A site: whether the server has taken it in since the start."""
        return REGISTERED in self.said()

    def stop(self, grace: float = 10.0) -> None:
        """End it and its jobs: asked first, after `grace` seconds no more. Safe to call twice."""
        family = self._family()
        end(family, grace)
        self._reap()

    def kill(self) -> None:
        """End it and its jobs at once, as a power cut would."""
        for process in self._family():
            with contextlib.suppress(Exception):
                process.kill()
        self._reap()

    def _family(self) -> list[Any]:
        import psutil

        found = []
        with contextlib.suppress(psutil.Error):
            own = psutil.Process(self.pid)
            found = [*own.children(recursive=True), own]
        return found + [one for one in leftovers(self.kit) if one not in found]

    def _reap(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)


def start_server(kit: Path, *, wait: float = 60.0, watch: Told | None = None) -> Parent:
    """Start the server of a deployment; returns when it accepts connections. wait 0: do not wait.

    Raises ConfigError (certificate, port in use), StoreError (it runs already), PeerError (it ended or was not ready in time).
    """
    harden(kit)  # where it keeps its jobs follows the folder
    parent = _start(Kit.read(kit), "server")
    _until(parent, lambda: _listens(parent.kit.port), wait, "the server is not ready", watch)
    return parent


def start_site(kit: Path, *, wait: float = 60.0, watch: Told | None = None) -> Parent:
    """Start a site; returns when the server has taken it in. wait 0: do not wait, it goes on trying by itself.

    Raises ConfigError (certificate), RefusedError (settings looser than they must be), StoreError (it runs already), PeerError.
    """
    problems = check_hardened(kit)
    if problems:
        raise RefusedError(*problems)
    parent = _start(Kit.read(kit), "site")
    _until(parent, parent.registered, wait, "the server has not taken this site in", watch)
    return parent


def _start(kit: Kit, kind: str) -> Parent:
    if kit.kind != kind:
        raise ConfigError(Problem(f"this is the kit of a {kit.kind}, not of a {kind}", str(kit.folder)))
    if any(mark in str(kit.folder) + sys.executable for mark in " \t\n'\"\\"):
        what = "the engine cannot start from a path with spaces, quotes or backslashes"
        raise ConfigError(Problem(what, str(kit.folder), why=f"kit: {kit.folder}; Python: {sys.executable}", fix="move it"))
    check_certificate(kit.folder)
    if kind == "server" and _listens(kit.port):
        fix = "stop what listens there; which one: ss -ltnp"
        raise ConfigError(Problem(f"port {kit.port} is in use on this machine", str(kit.folder), fix=fix))
    lock = _only_one(kit)
    try:
        _clean(kit)
        return _spawn(kit, lock)
    finally:
        os.close(lock)


def _spawn(kit: Kit, lock: int) -> Parent:
    log = kit.folder / LOG
    if log.is_file() and log.stat().st_size > LOG_LIMIT:
        log.replace(log.with_suffix(".log.1"))
    own_file(log)
    (kit.folder / "transfer").mkdir(mode=0o700, exist_ok=True)
    with disk(log), log.open("ab") as output:
        start = output.tell()
        process = subprocess.Popen(
            [
                sys.executable,
                "-u",
                "-m",
                MODULES[kit.kind],
                "-m",
                str(kit.folder),
                "-s",
                _config(kit),
                "--set",
                *_settings(kit),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=kit.folder,
            start_new_session=True,
            umask=0o077,
            pass_fds=(lock,),
            env={**MEMORY, **os.environ},
        )
    write_whole(kit.folder / NOTE, json.dumps({"pid": process.pid, "since": time.strftime("%Y-%m-%d %H:%M:%S")}).encode())
    return Parent(kit, process, start)


def _clean(kit: Kit) -> None:
    """Remove what jobs left: none of them goes on after a start, and nothing of ours is in them."""
    old = [path for path in kit.folder.iterdir() if path.is_dir() and JOB.fullmatch(path.name)]
    if kit.kind == "server":
        old += [path for part in ("jobs", "snapshots") for path in (kit.folder / "state" / part).iterdir()]
    for path in old:
        shutil.rmtree(path, ignore_errors=True)


def _config(kit: Kit) -> str:
    return "fed_server.json" if kit.kind == "server" else "fed_client.json"


def _settings(kit: Kit) -> list[str]:
    common = ["secure_train=true", "org=osmotic", "config_folder=config"]
    return common if kit.kind == "server" else [*common, f"uid={kit.name}", "heart_beat_interval=5.0"]


def _only_one(kit: Kit) -> int:
    """The kit's lock, which the process and its jobs have as long as they live; what was left over is ended first."""
    path = kit.folder / LOCK
    own_file(path)
    with disk(path):
        lock = os.open(path, os.O_RDWR)
    for last in (False, True):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except OSError as error:
            if last or running(kit.folder) is not None:
                os.close(lock)
                fix = "stop that one first, or leave it"
                what = "the engine runs already from this folder"
                raise StoreError(Problem(what, str(kit.folder), why=_noted(kit.folder), fix=fix)) from error
            end(leftovers(kit))
    raise StoreError(Problem("the engine's lock cannot be had", str(path)))


def _noted(folder: Path) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        return f"process {int(found['pid'])} since {found['since']}"
    return ""


def running(folder: Path) -> int | None:
    """The standing process of this kit, whoever started it."""
    kit = Kit.read(folder)
    return next((int(one.pid) for one in _of(kit) if MODULES[kit.kind] in _line(one)), None)


def leftovers(kit: Kit) -> list[Any]:
    """Job processes of this kit, with or without a parent."""
    return [one for one in _of(kit) if JOBS[kit.kind] in _line(one)]


def _of(kit: Kit) -> list[Any]:
    """Processes of this user that the engine started for this folder."""
    import psutil

    found, uid = [], os.getuid()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            known = any(name in line for name in (MODULES[kit.kind], JOBS[kit.kind]))
            if known and str(kit.folder) in line and process.uids().real == uid:
                found.append(process)
    return found


def _line(process: Any) -> list[str]:
    import psutil

    with contextlib.suppress(psutil.Error):
        return list(process.cmdline())
    return []


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


def _until(parent: Parent, ready: Callable[[], bool], wait: float, what: str, watch: Told | None) -> None:
    begun = told = time.monotonic()
    while not ready():
        if not parent.alive():
            raise PeerError(_ended(parent, f"{what}: it ended"))
        if time.monotonic() - begun >= wait:
            if wait <= 0:
                return
            parent.stop()
            raise PeerError(_ended(parent, f"{what} after {wait:.0f} s"))
        if watch is not None and time.monotonic() - told >= 5.0:
            told = time.monotonic()
            watch(f"{what} yet ({told - begun:.0f} s)")
        time.sleep(STEP)


def _ended(parent: Parent, what: str) -> Problem:
    last = [line for line in parent.said().splitlines() if " - ERROR - " in line or "Error" in line][-3:]
    return Problem(what, str(parent.log), why="\n".join(line[-300:] for line in last), fix="the whole is in this file")
