# SPDX-License-Identifier: Apache-2.0
"""The coordinator's channel to one site: requests over its line, bodies in chunks, and a new start after the site's.

Chunks of a body travel several at a time. When the site's process is new, it hears again what its memory had (`replay`) before
the request in hand is repeated; every request may be.
"""

import itertools
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from osmotic.runtime.nvflare.server.line import BULKY, QUICK, Line, NoSession, lost
from osmotic.runtime.nvflare.server.replay import Replay
from osmotic.runtime.nvflare.wire import CHUNK, TOTAL, Header, Message, offsets
from osmotic.schemas.errors import Problem, ProtocolFault

IN_FLIGHT = 3  # chunks
WAIT = 1.0  # seconds for which a question may wait at the site
RESTARTS = 50  # new processes of a site within one request
T = TypeVar("T")


@dataclass
class Request:
    """A request in hand. again: it was answered before, by a process of the site that is gone."""

    header: Header
    blob: bytes
    again: bool = False
    seq: int = 0
    identity: str = field(default_factory=lambda: secrets.token_hex(16))
    calls: set[int] = field(default_factory=set)  # model calls that were answered


class Post:
    """A channel as transports with frames have it."""

    def __init__(self, line: Line) -> None:
        self.line, self.lock, self.replay = line, threading.Lock(), Replay()
        self.away = False  # lost in a request, and not yet back without one at work
        self._todo: list[Request] = []
        self._state: Message | None = None
        self._call = 0
        self._seq = 0

    def send(self, header: Header, blob: bytes) -> None:
        """A request, or the answer to a model call of the one that is at work."""
        if header.get("frame") == "outbound":
            self._answer({key: value for key, value in header.items() if key != "frame"}, blob)
            return
        self.line.begin()
        self._todo, self._state = [Request(header, blob)], None

    def receive(self) -> Message:
        """The site's next frame: a model call, or the reply. Raises PeerError for a site that is lost."""
        for _ in range(RESTARTS):
            try:
                if not self.line.session:
                    raise NoSession(f"{self.line.site} was not greeted")
                while True:
                    if self._state is None:
                        self._state = self._start(self._todo[0])
                    found = self._look(self._todo[0], *self._state)
                    if found is not None:
                        return found
            except NoSession:
                self._again()
        raise lost(self.line.site, f"it was started {RESTARTS} times during one request")

    def greet(self) -> None:
        """Begin a session while nothing is asked. Raises PeerError."""
        self._todo = []
        self.line.hello()
        self._seq = 0

    def abandon(self) -> None:
        """What this site says cannot be understood: the next request begins a session."""
        self.line.session = ""

    def _again(self) -> None:
        """Begin a session; what the site had heard comes before the request in hand."""
        self.line.session = ""
        self.line.hello()
        self._seq, self._state = 0, None
        in_hand = self._todo[-1]
        self._todo = [Request(header, blob, again=True) for header, blob in self.replay.requests()]
        self._todo.append(Request(in_hand.header, in_hand.blob))

    # ---- a request ----

    def _start(self, request: Request) -> Message:
        if not request.seq:
            self._seq += 1
            request.seq = self._seq
        fields = {"op": "start", "seq": request.seq, "id": request.identity, "header": request.header}
        return self._carry(fields, request.blob, 0)

    def _answer(self, header: Header, blob: bytes) -> None:
        """Hand in the answer to a model call; a site that was started meanwhile asks again."""
        request = self._todo[0]
        try:
            fields = {"op": "answer", "seq": request.seq, "call": self._call, "header": header}
            self.line.begin()
            self._state = self._carry(fields, blob, self._call)
            request.calls.add(self._call)
        except NoSession:
            self.line.session = ""

    def _carry(self, fields: Header, blob: bytes, call: int) -> Message:
        """A message with a body, which goes ahead in chunks where it is long."""
        total = len(blob)
        fields = {**fields, "total": total}
        if total <= CHUNK:
            return self.line.exchange(fields, bytes(blob), BULKY if total > CHUNK // 8 else QUICK)
        view, seq = memoryview(blob), fields["seq"]

        def put(offset: int) -> None:
            chunk = bytes(view[offset : offset + CHUNK])
            self.line.exchange({"op": "put", "seq": seq, "call": call, "offset": offset, "total": total}, chunk, BULKY)

        for _ in several(put, offsets(total)):
            pass
        return self.line.exchange(fields)

    def _look(self, request: Request, header: Header, first: bytes) -> Message | None:
        """What the site said of the request: None when it is to be asked again, or there is another request to begin."""
        state, call = header.get("state"), header.get("call", 0)
        if state == "running" or (state == "asking" and call in request.calls):
            self._state = self.line.exchange({"op": "poll", "seq": request.seq, "wait": WAIT})
            return None
        inner = header.get("header")
        if state not in ("asking", "done") or not isinstance(inner, dict) or type(call) is not int:
            raise ProtocolFault(Problem(f"{self.line.site} gave no answer that can be read"))
        body = self._fetch(request, call, header.get("total"), first)
        if state == "asking":
            self._call = call
            return {**inner, "frame": "outbound"}, body
        self._state = None
        if len(body) > CHUNK:
            self.line.exchange({"op": "ack", "seq": request.seq})
        if request.again and self._went_on(request, inner):
            self._todo.pop(0)
            return None
        if not request.again:
            self.replay.note(request.header, request.blob, inner)
        return {**inner, "frame": "reply"}, body

    def _went_on(self, request: Request, reply: Header) -> bool:
        """Whether a new process has taken up what an earlier one did; if not, its answer is that of the request in hand."""
        op = str(request.header.get("op"))
        if op == "known" and "error" not in reply and not reply.get("digest"):
            raise lost(self.line.site, "it no longer has what it had received")
        return "error" not in reply or op.endswith("-receive")

    def _fetch(self, request: Request, call: int, total: object, first: bytes) -> bytes:
        """The whole of a body of which the first chunk is here."""
        if type(total) is not int or not 0 <= total <= TOTAL or len(first) != min(total, CHUNK):
            raise ProtocolFault(Problem(f"{self.line.site} gave no answer that can be read"))
        if total <= CHUNK:
            return first

        def get(offset: int) -> bytes:
            fields = {"op": "get", "seq": request.seq, "call": call, "offset": offset}
            _, chunk = self.line.exchange(fields, timeout=BULKY)
            if len(chunk) != min(CHUNK, total - offset):
                raise ProtocolFault(Problem(f"{self.line.site} sent a part of another length"))
            return chunk

        return b"".join(itertools.chain([first], several(get, offsets(total)[1:])))


def several(work: Callable[[int], T], over: range) -> Iterator[T]:
    """Like `map`, with a few at work at once, and not many more results waiting than that. The first failure is raised."""
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        waiting: deque[Future[T]] = deque()
        for item in over:
            waiting.append(pool.submit(work, item))
            if len(waiting) > IN_FLIGHT:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
