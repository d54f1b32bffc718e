# SPDX-License-Identifier: Apache-2.0
"""A worker's pipe to its bridge: frames out, a letter box a peer, and the ends of everything.

One thread reads. When the bridge closes the pipe, or says that the task is to stop, the process ends at once: what was
finished is kept, and nobody would hear more. When a peer is lost, whoever waits for a message is told; work that goes on for
longer than `GRACE` is cut off, so that the task ends soon with a reason.
"""

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, BinaryIO

from osmotic.runtime.fate import ending
from osmotic.runtime.fate.pulse import Pulse
from osmotic.runtime.fate.wire import BEAT
from osmotic.runtime.transports import frames
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import Code, ComponentError, OsmoticError, PeerError, Problem, ProtocolFault

GRACE = 3.0  # seconds for work under way to end after a peer was lost
OFTEN = 0.05  # seconds between two looks at the clock, at least
MOST = 8  # messages of a peer that wait: requests and answers come one by one
GREETING = 1 << 16  # bytes of a message before it is known who may send any
GONE, STOPPED = 7, 130  # exit statuses: the bridge is gone; it said stop
Message = tuple[dict[str, Any], bytes]


def end_of(error: OsmoticError, outputs: dict[str, Any] | None = None) -> dict[str, Any]:
    """The last frame of a worker that failed."""
    problems = [asdict(problem) for problem in error.problems]
    return {
        "frame": "end", "exit": error.exit_code, "code": str(error.code), "problems": problems, "outputs": outputs or {},
    }  # fmt: skip


class LeftError(Exception):
    """The process is being left: nothing more happens in this thread."""


class Link:
    """The pipe. peers: names of the other parties, as FATE has them."""

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO, leave: Callable[[int], Any] = ending.leave) -> None:
        self.incoming, self.outgoing, self.leave = incoming, outgoing, leave
        self.pulse = Pulse()
        self.boxes: dict[str, queue.SimpleQueue[Message | PeerError]] = {}
        self.names: dict[str, str] = {}  # party of FATE -> party of the pipeline
        self.deadline = math.inf
        self.lost = ""  # the peer that is gone, or silent
        self.failed: PeerError | None = None  # a peer is gone: the run cannot go on
        self.over = False  # the run has ended here; what happens to peers does not matter any more
        self.heard: dict[str, float] = {}  # peer -> when it last said that it is alive
        self._chief = ""  # the coordinator, where it is somebody else
        self._partners: tuple[str, ...] | None = None  # who may send messages, and is to know that this worker is alive
        self._writing = threading.Lock()
        self._ended = False

    def listen(self, peers: Iterable[str]) -> None:
        """Start to read what the bridge sends."""
        self.boxes = {peer: queue.SimpleQueue() for peer in peers}
        threading.Thread(target=self._read, daemon=True, name="bridge").start()

    def partners(self, names: Mapping[str, str], coordinator: str, party: str, deadline: float) -> None:
        """Who is who. The coordinator and everybody else tell each other now and then that they are alive."""
        self.names = {fate: name for name, fate in names.items()}
        everybody = tuple(fate for name, fate in names.items() if name != party)
        self.deadline = deadline
        self._chief = "" if party == coordinator else names[coordinator]
        self._partners = (self._chief,) if self._chief else everybody

    def beat(self) -> None:
        """Tell the bridge, and the partners, that the process is alive; end it when its work stands still."""
        threading.Thread(target=self._beat, daemon=True, name="beat").start()

    def _beat(self) -> None:
        with contextlib.suppress(LeftError):
            self._beats()

    def _beats(self) -> None:
        told = time.monotonic()
        while not self._ended:
            self.say({"frame": "beat", "count": self.pulse.count})
            if time.monotonic() - told >= max(OFTEN, self.deadline / 5) and not self.over:
                told = time.monotonic()
                for peer in self._partners or ():
                    self.put(peer, {"frame": "alive"})
            if self.pulse.standstill() > self.deadline:
                what = f"{self.pulse.task} made no progress for {self.deadline:g} s"
                fix = "give it more time, or see the worker's own log"
                self.fail(ComponentError(Problem(what, path="parameters.deadline", fix=fix)))
            time.sleep(max(OFTEN, min(BEAT, self.deadline / 10)))

    # ---- out ----

    def say(self, header: dict[str, Any], *parts: bytes) -> None:
        """One frame to the bridge. When it is gone, so is the process."""
        with self._writing:
            if self._ended:
                return
            self._ended = header["frame"] == "end"
            try:
                frames.write(self.outgoing, header, *parts)
            except (OSError, ValueError):
                self._go(GONE)

    def put(self, peer: str, header: dict[str, Any], blob: bytes = b"") -> None:
        """A message to the worker of another party."""
        head = canonical(header)
        self.say({"frame": "put", "to": peer}, frames.PREFIX.pack(len(head), len(blob)), head, blob)

    def log(self, text: str, level: str = "info") -> None:
        """A line for FATE's log: names of tasks, counts and codes only."""
        self.say({"frame": "log", "level": level, "text": text})

    # ---- in ----

    def take(self, peer: str, patience: float) -> Message:
        """The next message of a peer. Raises PeerError when one is lost, or this one is silent for `patience` seconds."""
        box = self.boxes.get(peer)
        if box is None:
            raise PeerError(Problem(f"{peer} is no party of this job"))
        if self.failed is not None:
            raise self.failed
        since = time.monotonic()
        while True:
            left = patience - (time.monotonic() - max(since, self.heard.get(peer, since)))
            try:
                found = box.get(timeout=max(0.0, left))
            except queue.Empty:
                if left > 0:  # it may have said meanwhile that it is alive
                    continue
                self.lost = peer
                what, why = f"{self.called(peer)} is silent", f"no sign of life for {patience:g} s"
                raise PeerError(Problem(what, why=why, fix="see its log; 'deadline' says how long to wait")) from None
            if isinstance(found, PeerError):
                raise found
            return found

    def called(self, peer: str) -> str:
        """A peer's name in FATE, and in the pipeline if it is known."""
        return f"{peer} ({self.names[peer]})" if peer in self.names else peer

    def _read(self) -> None:
        with contextlib.suppress(LeftError):
            try:
                while self._next():
                    pass
            except LeftError:
                raise
            except (OSError, ValueError):
                pass
            except OsmoticError as error:
                self.fail(error)
            except Exception as error:  # noqa: BLE001 - else nobody would read any more, and nobody would know
                self.fail(OsmoticError(Problem(f"what the bridge sent cannot be read: {type(error).__name__}")))
            self._go(GONE)

    def _next(self) -> bool:
        """Read and deliver one frame; keeps nothing of it (it may be large). False when the bridge has closed the pipe."""
        found = frames.read_header(self.incoming)
        if found is None:
            return False
        header, size = found
        if header.get("frame") != "got":
            self._heed(header, size)
            return True
        peer = str(header.get("from"))
        self._check(peer, size)
        try:
            message = opened(self.incoming, size)
        except ProtocolFault as error:
            what = f"a message of {self.called(peer)} is damaged"
            raise ProtocolFault(Problem(what, why=error.problems[0].what)) from error
        if message is not None:
            self._deliver(peer, message)
        return message is not None

    def _check(self, peer: str, size: int) -> None:
        """Raise ProtocolFault for a message that this worker waits for from nobody: it would only fill the memory."""
        if peer not in self.boxes:
            raise ProtocolFault(Problem(f"a message of {peer[:80]!r}, which is no party of this job"))
        if self._partners is not None and peer not in self._partners:
            raise ProtocolFault(Problem(f"{self.called(peer)} sent a message, and neither end of it is the coordinator"))
        if self.boxes[peer].qsize() >= MOST or (self._partners is None and size > GREETING):
            raise ProtocolFault(Problem(f"{self.called(peer)} sends more than it was asked for"))

    def _deliver(self, peer: str, message: Message) -> None:
        kind = message[0].get("frame")
        if kind == "alive":
            self.heard[peer] = time.monotonic()
            return
        if kind == "done" and peer == self._chief:
            self.over = True  # what happens to peers from now on is their own matter
        self.boxes[peer].put(message)

    def _heed(self, header: dict[str, Any], size: int) -> None:
        """What the bridge itself says."""
        kind = header.get("frame")
        if kind == "lost" and not size:
            self._lost(str(header.get("peer")), str(header.get("why", "")))
        elif kind == "stop" and not size:
            self._go(STOPPED)
        else:
            raise ProtocolFault(Problem(f"the bridge sent a frame that is none of ours: {str(kind)[:40]!r}"))

    def _lost(self, peer: str, why: str) -> None:
        if self.over or self.failed is not None:  # the first one is the reason: others go because of it
            return
        self.lost = peer
        fix = "start the job again once it is back: what was finished is kept"
        self.failed = PeerError(Problem(f"{self.called(peer)} was lost", why=why[:200], fix=fix))
        for box in self.boxes.values():
            box.put(self.failed)
        timer = threading.Timer(GRACE, self.overdue, [self.failed])
        timer.daemon = True
        timer.start()

    def overdue(self, error: OsmoticError) -> None:
        """End the process from a thread of its own: a task takes longer than the site's policy lets it, or a peer is lost."""
        with contextlib.suppress(LeftError):
            self.fail(error)

    def fail(self, error: OsmoticError) -> None:
        """End the process with a reason, whatever it is doing."""
        self.log(f"ended: {error.code}", "error")
        self.say(end_of(error))
        self._go(error.exit_code)

    def _go(self, status: int) -> None:
        self.leave(status)
        raise LeftError


def opened(stream: BinaryIO, size: int) -> Message | None:
    """A message of so many bytes, which is never in memory twice; None when the stream ends before.

    Raises ProtocolFault for anything that `Link.put` does not write.
    """
    prefix = frames.exactly(stream, min(size, frames.PREFIX.size))
    if prefix is None:
        return None
    if size < frames.PREFIX.size:
        raise ProtocolFault(Problem("is cut short"))
    head, body = frames.PREFIX.unpack(prefix)
    if head > frames.LIMIT or frames.PREFIX.size + head + body != size:
        raise ProtocolFault(Problem("is cut short or too long"))
    header, blob = frames.exactly(stream, head), frames.exactly(stream, body)
    return None if header is None or blob is None else (frames.header_of(header), blob)


def unknown(kind: object) -> ProtocolFault:
    """A message that has no place here."""
    return ProtocolFault(Problem(f"a message of another party that is none of ours: {str(kind)[:40]!r} ({Code.PROTOCOL})"))
