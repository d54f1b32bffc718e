# SPDX-License-Identifier: Apache-2.0
"""A guard around a plugin at work, for the conformance kit: it may write into its own folders only, and open no socket.

It listens to the interpreter's audit events and refuses at the attempt, before a file is made. It finds mistakes, not malice:
installed plugins are trusted code, and one that means harm can get around it (compiled code, other processes).
"""

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Guard", "GuardedError", "guarded"]

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
SYSTEM = ("/dev/", "/proc/", "/sys/")
PATHS: Mapping[str, tuple[int, ...]] = {  # event -> which of its arguments are paths that change
    "os.mkdir": (0,), "os.remove": (0,), "os.rmdir": (0,), "os.rename": (0, 1), "os.link": (1,), "os.symlink": (1,),
    "os.truncate": (0,), "os.chmod": (0,), "sqlite3.connect": (0,),
}  # fmt: skip
FOLDERS: Mapping[str, tuple[int, ...]] = {  # event -> where it has the folders (file descriptors) that its paths start from
    "os.mkdir": (2,), "os.remove": (1,), "os.rmdir": (1,), "os.rename": (2, 3), "os.link": (3,), "os.symlink": (2,),
}  # fmt: skip
SOCKETS = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname")


class GuardedError(PermissionError):
    """Raised inside the guarded code at the attempt."""


@dataclass
class Guard:
    """What is refused, in every thread. allowed: folders that may be written to; found: what was tried, in words."""

    allowed: tuple[str, ...]
    sockets: bool = False
    found: list[str] = field(default_factory=list)

    def event(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Look at an audit event; raises GuardedError for what is refused."""
        if name in SOCKETS:
            if self.sockets and not _local(name, arguments):
                self._refuse(f"opened a socket ({name.partition('.')[2]} {arguments[-1]!r})"[:200])
            return
        for path in _paths(name, arguments):
            if not self._may_write(path):
                self._refuse(f"wrote outside of its folder: {path}")

    def _may_write(self, path: str) -> bool:
        if path.startswith(SYSTEM) or "__pycache__" in path:
            return True
        return any(path == folder or path.startswith(folder + os.sep) for folder in self.allowed)

    def _refuse(self, what: str) -> None:
        if what not in self.found:
            self.found.append(what)
        raise GuardedError(what)


def _local(name: str, arguments: tuple[Any, ...]) -> bool:
    """A socket of this machine's file system: how event loops wake themselves."""
    return name in ("socket.connect", "socket.bind") and isinstance(arguments[1], str | bytes)


def _paths(name: str, arguments: tuple[Any, ...]) -> Iterator[str]:
    """Paths that an event is about to change, links followed."""
    if name == "open":
        path, mode, flags = arguments
        writes = bool(set(mode) & set("wax+")) if isinstance(mode, str) else bool((flags or 0) & WRITING)
        if writes and isinstance(path, str | bytes | os.PathLike):
            yield _real(path)
        return
    for place, folder in zip(PATHS.get(name, ()), FOLDERS.get(name, (99, 99)), strict=False):
        start = arguments[folder] if folder < len(arguments) else -1
        if isinstance(arguments[place], str | bytes | os.PathLike) and os.fspath(arguments[place]) not in (":memory:", ""):
            yield _real(arguments[place], start)


def _real(path: Any, start: int = -1) -> str:
    text = os.fsdecode(path)
    if start is not None and start >= 0:
        with contextlib.suppress(OSError):
            text = os.path.join(os.readlink(f"/proc/self/fd/{start}"), text)  # noqa: PTH118, PTH115 (no Path: this is a hook)
    return os.path.realpath(text)


class _Guards:
    """The guards that are on; one audit hook a process asks them, for hooks cannot be taken away again."""

    def __init__(self) -> None:
        self.on: list[Guard] = []
        self.lock = threading.Lock()
        sys.addaudithook(self.hook)

    def hook(self, name: str, arguments: tuple[Any, ...]) -> None:
        """The audit hook: nothing while no guard is on."""
        if self.on and (name == "open" or name in PATHS or name in SOCKETS):
            for guard in tuple(self.on):
                guard.event(name, arguments)


@functools.lru_cache(maxsize=1)
def _guards() -> _Guards:
    return _Guards()


@contextlib.contextmanager
def guarded(allowed: Iterable[Path], *, sockets: bool = False) -> Iterator[Guard]:
    """Guard what runs inside. allowed: folders it may write to. Yields the guard, whose `found` says what was tried."""
    guards = _guards()
    guard = Guard(tuple(os.path.realpath(folder) for folder in allowed), sockets)
    with guards.lock:
        guards.on.append(guard)
    try:
        yield guard
    finally:
        with guards.lock:
            guards.on.remove(guard)
