# SPDX-License-Identifier: Apache-2.0
"""A site's end of the engine: answers the coordinator's messages, refuses every other one, and writes down which.

`Mailbox.handle` is called by the engine's threads, several at once. It returns within about a second, whatever is at work.
Nothing here opens a file whose name came with a message, and nothing of a body is looked into.
"""

import json
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from osmotic.runtime.nvflare.site.audit import Audit
from osmotic.runtime.nvflare.site.desk import Desk, Served, Task
from osmotic.runtime.nvflare.site.sessions import Session, Sessions, key_in
from osmotic.runtime.nvflare.site.spool import Spool, room
from osmotic.runtime.nvflare.wire import (
    CHUNK,
    OPERATIONS,
    PROTOCOL,
    TOTAL,
    WITH_BODY,
    Header,
    Message,
    Refused,
    seal,
    shape,
)  # fmt: skip
from osmotic.schemas.artifacts import canonical

LONGEST_WAIT = 1.0  # seconds for which a message may wait for something to happen
SMALL = 1 << 16  # bytes of a body that a nearly full disk is not asked about
APART = 300.0  # seconds between two clocks that are worth a word


class Mailbox:
    """One a process. folder: the site's, for what arrives; open: makes the service, once, in the thread that does the work.

    facts: what a greeting tells of this site, asked then too. leave: ends the process, when a task does not return in time.
    """

    def __init__(
        self, party: str, folder: Path, open: Callable[[], Served], audit: Audit, facts: Callable[[], Header] = dict,
        leave: Callable[[int], Any] = os._exit,
    ) -> None:  # fmt: skip
        self.party, self.audit = party, audit
        self.boot = secrets.token_hex(8)
        self.sessions = Sessions(party, folder)
        self.spool = Spool(folder)
        self.spool.drop()
        self._facts: Header = {}

        def opened() -> Served:
            self._facts = json.loads(canonical(facts()))
            return open()

        self.desk = Desk(opened, leave, self._forbidden)
        self.closing = False
        self._heard = time.monotonic()
        self._operations: dict[str, Callable[[Session, Header, bytes], Message]] = {
            "start": self._start,
            "poll": self._poll,
            "put": self._put,
            "get": self._get,
            "answer": self._answer,
            "ack": self._ack,
            "ping": self._ping,
            "bye": self._bye,
        }

    def handle(self, header: Any, blob: Any, origin: str = "server") -> Message:
        """Answer one message; never raises. origin: who sent it, as the engine says."""
        number, key = header.get("n") if isinstance(header, dict) else None, b""
        try:
            fields, op = shape(header, blob), header.get("op")
            if op not in OPERATIONS:
                raise Refused("unknown", f"an operation of {len(str(op))} characters")
            if op not in WITH_BODY and blob:
                raise Refused("oversized", f"a body of {len(blob)} bytes with {op}")
            if self.closing:
                raise Refused("closing")
            if op == "hello":
                found, body = self._hello(fields, origin)
                session = self.sessions.current
            else:
                session = self.sessions.of(fields, blob)
                self._heard = time.monotonic()
                found, body = self._operations[op](session, fields, blob)
            key = session.key if session is not None else b""
        except Refused as refused:
            found, body = self._refused(header, refused, origin), b""
            key = self._known(header, refused)
        except Exception as error:  # noqa: BLE001 - the engine would tell the server of it; here it is written down
            self.audit.note("internal", origin, type(error).__name__)
            found, body = {"refused": "internal"}, b""
        return seal(key, {**found, "re": number, "boot": self.boot}, body), body

    def idle(self) -> float:
        """Seconds since the last message that was taken; 0.0 while something is at work."""
        return 0.0 if self.desk.working() else time.monotonic() - self._heard

    def close(self, wait: float = 0.0) -> bool:
        """Take nothing new and wait for what is at work; whether it has ended."""
        self.closing = True
        ended = self.desk.close(wait)
        self.spool.drop()
        return ended

    # ---- what is not taken ----

    def _known(self, header: Any, refused: Refused) -> bytes:
        """The key that whoever sent a message that is not taken has, if it is one of ours at all."""
        held = self.sessions.current
        if isinstance(header, dict) and header.get("op") == "hello":
            return key_in(header) or b""
        return held.key if held is not None and refused.why not in ("session", "altered", "truncated") else b""

    def _refused(self, header: Any, refused: Refused, origin: str) -> Header:
        """The answer to a message that is not taken; what is no part of an honest run is written down."""
        asks = isinstance(header, dict) and (header.get("op"), refused.why) == ("ping", "session")  # whether this site is back
        if refused.why not in ("busy", "closing", "missing") and not asks:
            self.audit.note(refused.why, origin, refused.detail)
        found: Header = {"refused": refused.why}
        if refused.why == "owned":
            found["since"] = refused.detail
        if isinstance(header, dict) and header.get("op") == "hello":
            found["about"] = "hello"
        if refused.why == "busy":
            found["tick"] = self.desk.activity.look()
        return found

    def _forbidden(self, header: Header, code: str) -> None:
        """A request that this party's rules forbid."""
        op = str(header.get("op"))
        known = op if op.isidentifier() and len(op) < 20 else "request"
        self.audit.note(f"{known} refused", self.sessions.current.origin if self.sessions.current else "here", code)

    # ---- operations ----

    def _hello(self, header: Header, origin: str) -> Message:
        new = self.sessions.hello(header, origin, self.desk.working())
        self._heard = time.monotonic()
        if new:
            self.desk.orphan()
            self.spool.drop()
        found: Header = {"state": self.desk.ready(LONGEST_WAIT), "party": self.party, "clock": time.time()}
        said = header.get("clock")
        if new and isinstance(said, int | float) and abs(found["clock"] - said) > APART:
            self.audit.note("clock", origin, f"{abs(found['clock'] - said):.0f} s apart")
        if found["state"] == "failed":
            found["error"] = self.desk.failure
        elif found["state"] == "ready":
            found["facts"] = self._facts
        return {**found, "protocol": PROTOCOL}, b""

    def _start(self, session: Session, header: Header, blob: bytes) -> Message:
        seq, task, identity = header.get("seq"), header.get("header"), header.get("id")
        if type(seq) is not int or seq < 1 or not isinstance(task, dict) or not isinstance(identity, str):
            raise Refused("malformed", "a request")
        held = self.desk.task
        if held is None or held.session is not session or (held.seq, held.identity) != (seq, identity):
            held = self.desk.begin(Task(session, seq, identity, task, self._body((seq, 0), header, blob)))
        return self.desk.state(held, LONGEST_WAIT)

    def _body(self, name: tuple[int, int], header: Header, blob: bytes) -> Callable[[], bytes]:
        """What gives a body: as it came with the message, or of the chunks that came before."""
        total = header.get("total")
        if type(total) is not int or total < 0:
            raise Refused("malformed", "a body")
        if total > TOTAL:
            raise Refused("oversized", f"a body of {total} bytes")
        if total > CHUNK:
            self.spool.whole(name, total)
            return self.spool.take
        if total != len(blob):
            raise Refused("truncated", f"{len(blob)} bytes of {total}")
        if total > SMALL:
            room(self.spool.folder, total)
        return lambda: blob

    def _poll(self, session: Session, header: Header, blob: bytes) -> Message:
        wait = header.get("wait")
        task = self.desk.of(session, header.get("seq"))
        return self.desk.state(task, min(max(wait, 0.0), LONGEST_WAIT) if isinstance(wait, int | float) else 0.0)

    def _put(self, session: Session, header: Header, blob: bytes) -> Message:
        seq, call, offset, total = (header.get(name) for name in ("seq", "call", "offset", "total"))
        if not (type(seq) is int and type(call) is int and type(offset) is int and type(total) is int):
            raise Refused("malformed", "a chunk")
        held = self.desk.task
        if call:
            self.desk.of(session, seq)
        elif held is not None and held.session is session and seq <= held.seq:
            raise Refused("replayed", f"a chunk of request {seq}")
        elif self.desk.working():  # what is at work may still have to read its own
            raise Refused("busy")
        self.spool.put((seq, call), offset, total, blob)
        return {}, b""

    def _get(self, session: Session, header: Header, blob: bytes) -> Message:
        task = self.desk.of(session, header.get("seq"))
        return {}, self.desk.chunk(task, header.get("call"), header.get("offset"))

    def _answer(self, session: Session, header: Header, blob: bytes) -> Message:
        task, reply, call = self.desk.of(session, header.get("seq")), header.get("header"), header.get("call")
        if not isinstance(reply, dict) or type(call) is not int:
            raise Refused("malformed", "an answer")
        ask = task.ask
        if ask is not None and ask.call == call and ask.reply is None:
            self.desk.reply(task, call, reply, self._body((task.seq, call), header, blob))
        return self.desk.state(task, LONGEST_WAIT)

    def _ack(self, session: Session, header: Header, blob: bytes) -> Message:
        self.desk.forget(self.desk.of(session, header.get("seq")))
        return {}, b""

    def _ping(self, session: Session, header: Header, blob: bytes) -> Message:
        return {"tick": self.desk.activity.look(), "working": self.desk.working()}, b""

    def _bye(self, session: Session, header: Header, blob: bytes) -> Message:
        self.desk.orphan()
        self.sessions.end(session)
        return {}, b""
