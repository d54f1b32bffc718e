# SPDX-License-Identifier: Apache-2.0
"""Between the coordinator and the server's job processes: frames over a Unix socket that only the own user can open.

A job process dials the coordinator and tells its job and sites; then the coordinator asks, many things at a time, by number.
"""

import contextlib
import itertools
import json
import os
import socket
import struct
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from osmotic.runtime.nvflare.wire import Unreachable
from osmotic.runtime.storage.durable import own_folder, write_whole
from osmotic.runtime.storage.store import disk
from osmotic.runtime.transports import frames
from osmotic.schemas.errors import ProtocolFault

RELAY_FILE = "osmotic-relay.json"  # under the server kit's `local`: where the coordinator listens
LONGEST = 100  # bytes of a socket's path; the system's limit is 107
SLACK = 5.0  # seconds more than the message itself may take


class Wire:
    """A connection that carries frames; writing is for any thread, reading for one."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._in, self._out = sock.makefile("rb"), sock.makefile("wb")
        self._alone = threading.Lock()

    def write(self, header: dict[str, Any], blob: bytes = b"") -> None:
        """Send one frame; raises OSError when the other side is gone."""
        with self._alone:
            try:
                frames.write(self._out, header, blob)
            except ValueError as error:
                raise OSError("the connection is closed") from error

    def read(self) -> tuple[dict[str, Any], bytes] | None:
        """The next frame; None when the other side is gone. Raises ProtocolFault for what is no frame."""
        try:
            return frames.read(self._in)
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """End it; whoever reads gets None. Safe to call twice."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def dial(book: Path) -> Wire | None:
    """Connect to the coordinator whose socket is named in `book`; None while there is none."""
    try:
        path = json.loads(book.read_text(encoding="utf-8"))["socket"]
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    try:
        sock.connect(str(path))
    except OSError:
        sock.close()
        return None
    if not ours(sock):
        sock.close()
        return None
    return Wire(sock)


def ours(sock: socket.socket) -> bool:
    """Whether the own user is at the other end: the folder says who may open the socket, the system says who did."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True  # not told here; the folder and the mode of the socket decide
    _, user, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return bool(user == os.getuid())


class Line:
    """One job of ours. sites: those that it has, as far as they answered; named: those that it may have."""

    def __init__(self, wire: Wire, job: str, named: list[str]) -> None:
        self.wire, self.job, self.named = wire, job, named
        self.sites: list[str] = []
        self.alive = True
        self._waiting: dict[int, Future[tuple[dict[str, Any], bytes]]] = {}
        self._numbers = itertools.count(1)
        self._alone = threading.Lock()

    def send(self, site: str, header: dict[str, Any], blob: bytes, timeout: float) -> tuple[dict[str, Any], bytes]:
        """One message and its answer. Raises Unreachable."""
        answer: Future[tuple[dict[str, Any], bytes]] = Future()
        with self._alone:
            if not self.alive:
                raise Unreachable(site, "absent")
            number = next(self._numbers)
            self._waiting[number] = answer
        try:
            self.wire.write({"id": number, "site": site, "timeout": timeout, "header": header}, blob)
            said, body = answer.result(timeout + SLACK)
        except TimeoutError as error:
            raise Unreachable(site, "timeout") from error
        except OSError as error:
            raise Unreachable(site, "absent") from error
        finally:
            with self._alone:
                self._waiting.pop(number, None)
        found = said.get("header")
        if not isinstance(found, dict):
            raise Unreachable(site, str(said.get("why", "absent")).partition(":")[0])
        return found, body

    def read(self) -> None:
        """Hand out answers until the job's process is gone."""
        with contextlib.suppress(ProtocolFault):
            while (found := self.wire.read()) is not None:
                with self._alone:
                    waiting = self._waiting.pop(found[0].get("id", 0), None)
                if waiting is not None:
                    waiting.set_result(found)
        self.drop()

    def drop(self) -> None:
        """The job's process is gone: nothing more is sent, and nobody waits any more."""
        with self._alone:
            self.alive = False
            left, self._waiting = list(self._waiting.values()), {}
        for waiting in left:
            waiting.set_exception(ConnectionError("the job has ended"))
        self.wire.close()

    def bye(self) -> None:
        """End the job."""
        with contextlib.suppress(OSError):
            self.wire.write({"bye": True})


class Hub:
    """Where job processes dial in. book: the file that tells them where. changed: called when a line comes or goes."""

    def __init__(self, home: Path, book: Path, changed: Callable[[Line], None]) -> None:
        self.lines: dict[str, Line] = {}
        self._changed, self._alone = changed, threading.Lock()
        self._scratch: Path | None = None
        self.path = self._place(own_folder(home))
        self.path.unlink(missing_ok=True)
        with disk(home):
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(str(self.path))
            self.path.chmod(0o600)
            self._listener.listen(64)
        write_whole(book, json.dumps({"socket": str(self.path)}).encode())
        threading.Thread(target=self._accept, name="hub", daemon=True).start()

    def _place(self, home: Path) -> Path:
        path = home.resolve() / "relay.sock"
        if len(str(path).encode()) <= LONGEST:
            return path
        self._scratch = Path(tempfile.mkdtemp(prefix="osmotic-"))
        return self._scratch / "relay.sock"

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            if not ours(sock):
                sock.close()
                continue
            threading.Thread(target=self._line, args=(Wire(sock),), name="line", daemon=True).start()

    def _line(self, wire: Wire) -> None:
        """The life of one connection."""
        try:
            found = wire.read()
        except ProtocolFault:
            found = None
        if found is None or not isinstance(found[0].get("hello"), str):
            wire.close()
            return
        line = Line(wire, found[0]["hello"], [str(name) for name in found[0].get("sites", [])])
        with self._alone:
            self.lines[line.job] = line
        self._changed(line)
        line.read()
        with self._alone:
            if self.lines.get(line.job) is line:
                del self.lines[line.job]
        self._changed(line)

    def found(self) -> list[Line]:
        """The lines that are there now."""
        with self._alone:
            return list(self.lines.values())

    def close(self) -> None:
        """Stop listening and let go of every line; jobs that were not told bye wait for the next coordinator."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for line in self.found():
            line.drop()
        self.path.unlink(missing_ok=True)
        if self._scratch is not None:
            self._scratch.rmdir()
