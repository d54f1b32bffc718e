# SPDX-License-Identifier: Apache-2.0
"""The work of a site: one request after another in one thread, its answer, and what it asks of other parties meanwhile."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from osmotic.runtime.nvflare.site.activity import Activity
from osmotic.runtime.nvflare.site.sessions import Session
from osmotic.runtime.nvflare.wire import CHUNK, Header, Message, Refused
from osmotic.runtime.party.service import refusal
from osmotic.schemas.errors import Code, ComponentError, OsmoticError, PeerError, Problem, StoreError

DESERTED = 600.0  # seconds without a word of the coordinator after which a model call is given up
FAREWELL = 30.0  # seconds for the coordinator to fetch the answer of a task that was ended, before this process goes
TAKEN = "another run is using this folder"


class Served(Protocol):
    """What answers requests: a party's service. Its `site` is given the ways out: outbound, progress, overdue."""

    @property
    def site(self) -> Any:
        """What the ways out are set at."""

    def handle(self, header: Header, blob: bytes) -> Message:
        """Answer one request; never raises for what is wrong with it."""


@dataclass
class Ask:
    """A model call that waits for its answer. call: its number within the request."""

    call: int
    header: Header
    blob: bytes
    reply: Message | None = None


@dataclass
class Task:
    """A request. identity: equal when it is sent again; body: gives its bytes, once; orphaned: nobody waits for its answer."""

    session: Session
    seq: int
    identity: str
    header: Header
    body: Callable[[], bytes]
    answer: Message | None = None
    ask: Ask | None = None
    calls: int = 0
    orphaned: bool = False


@dataclass
class Desk:
    """One worker thread; everything else looks at it under `changed`."""

    open: Callable[[], Served]
    leave: Callable[[int], Any]
    refused: Callable[[Header, str], None]  # told: header and code of a request that this party's rules forbid
    activity: Activity = field(default_factory=Activity)
    changed: threading.Condition = field(default_factory=threading.Condition)
    task: Task | None = None
    service: Served | None = None
    failure: Header | None = None  # why it could not be opened
    taken: bool = False  # it could not, since an earlier process still has the folder
    _opening: bool = False
    _jobs: "queue.SimpleQueue[Callable[[], None] | None]" = field(default_factory=queue.SimpleQueue)
    _thread: threading.Thread | None = None
    _calling: threading.Lock = field(default_factory=threading.Lock)

    def ready(self, wait: float) -> str:
        """opening, ready, busy or failed: opens the service when it has not been."""
        with self.changed:
            if self.service is None and not self._opening:
                self._opening, self.failure, self.taken = True, None, False
                self._put(self._open)
            self.changed.wait_for(lambda: not self._opening, wait)
            if self._opening:
                return "opening"
            return "ready" if self.service else "busy" if self.taken else "failed"

    def working(self) -> bool:
        """Whether a request is at work, or the service is being opened."""
        with self.changed:
            return self._opening or (self.task is not None and self.task.answer is None)

    def begin(self, task: Task) -> Task:
        """Take a request, or find the same one. Raises Refused: busy, replayed, altered, session."""
        with self.changed:
            held = self.task
            if held is not None and held.session is task.session:
                if held.seq == task.seq and held.identity == task.identity:
                    return held
                if held.seq >= task.seq:
                    raise Refused("altered" if held.seq == task.seq else "replayed", f"request {task.seq}")
            if held is not None and held.answer is None:
                raise Refused("busy")
            if self.service is None:
                raise Refused("session", "the site was not opened")
            self.task = task
            self._put(lambda: self._work(task))
            return task

    def of(self, session: Session, seq: object) -> Task:
        """The request that a message is about; raises Refused."""
        with self.changed:
            if self.task is None or self.task.session is not session or self.task.seq != seq:
                raise Refused("missing", "a request that is not here")
            return self.task

    def state(self, task: Task, wait: float) -> Message:
        """How far a request is: waits for a change at most so many seconds."""
        with self.changed:
            self.changed.wait_for(lambda: task.answer or (task.ask and task.ask.reply is None), wait)
            if task.answer is not None:
                header, blob = task.answer
                return {"state": "done", "header": header, "total": len(blob)}, bytes(blob[:CHUNK])
            if task.ask is not None and task.ask.reply is None:
                ask = task.ask
                found = {"state": "asking", "call": ask.call, "header": ask.header, "total": len(ask.blob)}
                return found, bytes(ask.blob[:CHUNK])
        return {"state": "running", "tick": self.activity.look()}, b""

    def chunk(self, task: Task, call: object, offset: object) -> bytes:
        """A part of an answer (call 0) or of a model call's question; raises Refused."""
        with self.changed:
            ask = task.ask
            blob = task.answer[1] if task.answer and call == 0 else ask.blob if ask and ask.call == call else None
        if blob is None or type(offset) is not int or offset % CHUNK or not 0 <= offset < len(blob):
            raise Refused("missing", "a chunk that is not here")
        return bytes(blob[offset : offset + CHUNK])

    def reply(self, task: Task, call: object, header: Header, body: Callable[[], bytes]) -> None:
        """Hand in the answer to a model call; again is fine. Raises Refused."""
        with self.changed:
            if type(call) is not int or not 0 < call <= task.calls:
                raise Refused("missing", "a model call that is not here")
            if task.ask is not None and task.ask.call == call and task.ask.reply is None:
                task.ask.reply = header, body()
                self.changed.notify_all()

    def forget(self, task: Task) -> None:
        """The answer has arrived: let go of its bytes."""
        with self.changed:
            if task.answer is not None:
                task.answer = task.answer[0], b""

    def orphan(self) -> None:
        """Another session has begun: what is at work is finished and kept, but nobody answers its model calls."""
        with self.changed:
            if self.task is not None:
                self.task.orphaned = True
                self.changed.notify_all()

    def close(self, wait: float) -> bool:
        """Wait for what is at work; whether it has ended. What waits for a model call is given up."""
        self.orphan()
        with self.changed:
            done = self.changed.wait_for(lambda: not self._opening and not (self.task and self.task.answer is None), wait)
        self._jobs.put(None)
        return bool(done)

    # ---- in the worker ----

    def _put(self, job: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, daemon=True, name="site")
            self.activity.thread = self._thread
            self._thread.start()
        self._jobs.put(job)

    def _loop(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
        close = getattr(self.service, "close", None)
        if close is not None:
            close()

    def _open(self) -> None:
        service, failure, taken = None, None, False
        try:
            service = self.open()
            self._wire(service)
        except OsmoticError as error:
            failure = refusal(error, False)["error"]
            taken = isinstance(error, StoreError) and TAKEN in str(error)
            self.refused({"op": "open"}, str(error.code))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it was, the coordinator is to hear that it failed
            failure = refusal(ComponentError(), False)["error"]
            self.refused({"op": "open"}, type(error).__name__)
        with self.changed:
            self.service, self.failure, self.taken, self._opening = service, failure, taken, False
            self.changed.notify_all()

    def _wire(self, service: Served) -> None:
        def progress(task: str, done: int, total: int, note: str) -> None:
            self.activity.step()

        service.site.outbound, service.site.progress, service.site.overdue = self._outbound, progress, self._overdue

    def _work(self, task: Task) -> None:
        self.activity.step()
        try:
            if self.service is None:
                raise PeerError("the site was not opened")
            answer = self.service.handle(task.header, task.body())
        except OsmoticError as error:
            answer = refusal(error, False), b""
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the coordinator waits for an answer
            self.refused(task.header, type(error).__name__)
            answer = refusal(ComponentError(), False), b""
        self._done(task, answer)

    def _done(self, task: Task, answer: Message) -> None:
        error = answer[0].get("error")
        if isinstance(error, dict) and error.get("code") in FORBIDDEN:
            self.refused(task.header, str(error["code"]))
        with self.changed:
            if task.answer is None:
                task.answer = (answer[0], b"") if task.orphaned else answer
            task.body, task.ask = bytes, None
            self.changed.notify_all()

    def _outbound(self, to: str, header: Header, blob: bytes) -> Message:
        """A model call: the coordinator hears of it with its next question. Raises PeerError when there is none any more."""
        with self._calling, self.changed:
            task = self.task
            if task is None:
                raise PeerError("no request is at work")
            task.calls += 1
            ask = task.ask = Ask(task.calls, {**header, "to": to}, blob)
            self.changed.notify_all()
            while ask.reply is None:
                if task.orphaned or time.monotonic() - task.session.heard > DESERTED:
                    raise PeerError(Problem("the coordinator is gone", fix="it asks again when it is back"))
                self.changed.wait(5.0)
            task.ask = None
        self.activity.step()
        reply, body = ask.reply
        return {key: value for key, value in reply.items() if key != "frame"}, body

    def _overdue(self, error: OsmoticError) -> None:
        """A task does not return: its answer is the error, and this process ends once that has been fetched."""
        task = self.task
        if task is not None:
            self._done(task, (refusal(error, False), b""))
        until = time.monotonic() + FAREWELL
        with self.changed, contextlib.suppress(RuntimeError):
            self.changed.wait_for(lambda: self.task is not task, max(0.0, until - time.monotonic()))
        self.leave(error.exit_code)


FORBIDDEN = (str(Code.POLICY), str(Code.BUDGET), str(Code.MEMBRANE), str(Code.PROTOCOL))
