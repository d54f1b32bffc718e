# SPDX-License-Identifier: Apache-2.0
"""The coordinator's line to one site: sealed messages, sent again until they are answered, as long as there is progress.

A site may be restarted, frozen or cut off: its line waits. It is lost when nothing has moved for its patience: no answer came,
or the answers say that its work stands still.
"""

import contextlib
import itertools
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from osmotic.runtime.nvflare.server.credential import Credential
from osmotic.runtime.nvflare.server.renewal import Renewal
from osmotic.runtime.nvflare.wire import PROTOCOL, REFUSALS, Carrier, Header, Message, Refused, Unreachable, check, seal, shape
from osmotic.schemas.errors import Code, PeerError, Problem, ProtocolFault
from osmotic.schemas.terminal import harmless

QUICK = 10.0  # seconds for an answer to a small message
BULKY = 60.0  # and for one with a chunk
OPENING = 600.0  # seconds that a site may take to open, or an earlier process of it to finish
STALLED = 15.0  # seconds more than a message may take between two looks at the clock: this process itself was frozen
DAMAGED = 20  # messages in a row that did not arrive as they were sent
PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.0)  # seconds between two attempts
FIX = "start it again there, then run the same command again: what was finished is kept"


class NoSession(PeerError):  # noqa: N818 - what a site says, not what went wrong
    """The site has no session with this coordinator: its process is new, or another session began since."""


def lost(party: str, reason: str, fix: str = FIX) -> PeerError:
    """The error of a party that is given up, with its reason in a few words."""
    made = PeerError(Problem(f"{party} was lost: {reason}", fix=fix))
    made.reason = reason
    return made


@dataclass
class Line:
    """patience: seconds without progress after which the site is lost, asked at every look."""

    site: str
    carrier: Carrier
    credential: Credential
    renewal: Renewal
    patience: Callable[[], float]
    session: str = ""
    facts: Header = field(default_factory=dict)
    heard: float = float("-inf")
    closed: bool = False
    greeted: int = 0  # sessions so far
    _opening: str = ""  # the session that is being begun
    _epoch: int = 0
    _moved: float = 0.0
    _looked: float = 0.0
    _tick: Any = None
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    def begin(self) -> None:
        """A new request: from now on there is to be progress."""
        self._moved = self._looked = self._clock()
        self._tick = None

    def exchange(self, fields: Header, blob: bytes = b"", timeout: float = QUICK) -> Message:
        """One message and its answer. Raises NoSession, PeerError for a lost site, ProtocolFault for one that cannot be."""
        damaged = 0
        for attempt in itertools.count():
            try:
                header, body = self._once(fields, blob, timeout)
            except Unreachable as error:
                self.renewal.away(self.site, error.why)
                self._pause(attempt, timeout)
                continue
            why = header.get("refused")
            if why is None:
                self._progress(header)
                return header, body
            damaged += why in ("replayed", "altered", "truncated", "malformed", "oversized")
            self._heed(str(why), header, damaged)
            self._pause(attempt, timeout)
        raise lost(self.site, "silent")  # not reached: `_pause` raises

    def ping(self, timeout: float = QUICK) -> bool:
        """Whether the site answers just now, and has nothing of ours at work; once asked, and no progress is read from it."""
        try:
            header, _ = self._once({"op": "ping"}, b"", timeout)
        except Unreachable as error:
            self.renewal.away(self.site, error.why)
            return False
        return header.get("refused") == "session" or header.get("working") is False

    def bye(self) -> None:
        """Let the site go, if it hears it."""
        if self.session:
            with contextlib.suppress(Unreachable):
                self._once({"op": "bye"}, b"", 3.0)
            self.session = ""

    def hello(self) -> None:
        """Begin a session. Raises PeerError when the site is lost, cannot be opened or listens to another coordinator."""
        until, skips = self._clock() + OPENING, 0
        self._moved = self._looked = self._clock()
        self._renumber(0)
        for attempt in itertools.count():
            key = self.credential.key(self.site).hex()
            fields = {"op": "hello", "site": self.site, "key": key, "epoch": self._epoch, "clock": time.time()}
            fields["session"] = self._opening
            try:
                header, _ = self.exchange(fields)
            except StaleEpoch:
                skips += 1
                if skips > 3:
                    fix = f"remove {self.credential.path}: it is taken for another coordinator then, after a minute of silence"
                    raise lost(self.site, "it takes no session of this coordinator", fix) from None
                self._renumber(1000**skips)
                continue
            if header.get("state") == "ready":
                break
            if header.get("state") == "failed":
                raise self._unopened(header.get("error"))
            if self._clock() > until:
                raise lost(self.site, f"not ready after {OPENING:g} s")
            self._moved = self._looked = self._clock()
            time.sleep(PAUSES[min(attempt, len(PAUSES) - 1)])
        self.greeted += 1
        self.session = self._opening
        self._learn(header)

    def _renumber(self, skip: int) -> None:
        self._epoch = self.credential.session(skip)
        self._opening, self._numbers = secrets.token_hex(16), itertools.count(1)

    def _learn(self, header: Header) -> None:
        facts = header.get("facts")
        self.facts = tame(facts) if isinstance(facts, dict) else {}

    def _unopened(self, error: Any) -> PeerError:
        said = error.get("code") if isinstance(error, dict) else None
        code = str(said) if said in list(Code) else str(Code.INTERNAL)
        return lost(self.site, f"its site cannot be opened ({code})", "the reason is in its own log")

    def _once(self, fields: Header, blob: bytes, timeout: float) -> Message:
        """Send one message once; raises Unreachable for no answer, and for one that is not what the site sealed."""
        if self.closed:
            raise lost(self.site, "the run is over")
        key, number = self.credential.key(self.site), next(self._numbers)
        sealed = seal(key, {"session": self.session, **fields, "n": number}, blob)
        header, body = self.carrier.send(self.site, sealed, blob, timeout)
        try:
            shape(header, body)
            if "refused" in header and header.get("mac") == seal(b"", _bare(header), body)["mac"]:
                key = b""  # it had no key yet
            check(key, header, body)
            if header.get("re") != number:
                raise Refused("replayed")
        except Refused as error:
            raise Unreachable(self.site, "timeout") from error
        self.heard = time.monotonic()
        self.renewal.heard(self.site)
        return header, body

    def _progress(self, header: Header) -> None:
        if header.get("state") == "running":
            if header.get("tick") == self._tick:
                self._check()
                return
            self._tick = header.get("tick")
        self._moved = self._looked = self._clock()

    def _heed(self, why: str, header: Header, damaged: int) -> None:
        """A message was not taken: raise unless it may be the next time."""
        if why in ("session", "missing"):
            raise NoSession(f"{self.site} has no such session")
        if why == "replayed" and header.get("about") == "hello":
            raise StaleEpoch(f"{self.site} knows a later session")
        if why == "owned":
            since = harmless(str(header.get("since", "")))[:40]
            raise lost(self.site, f"another coordinator is at work there {since}".rstrip(), "wait for it to end")
        if why == "full":
            raise lost(self.site, "its disk is full", "free some space there, then run the same command again")
        if why == "busy" and header.get("tick") != self._tick:
            self._tick = header.get("tick")
            self._moved = self._looked = self._clock()
        if why in ("protocol", "unknown", "name") or damaged > DAMAGED:
            what = f"{self.site} refused a message: {REFUSALS.get(why, 'for a reason of its own')}"
            raise ProtocolFault(Problem(what, why=f"this side speaks protocol {PROTOCOL}", fix="install the same version"))

    def _pause(self, attempt: int, timeout: float) -> None:
        self._check(timeout)
        time.sleep(PAUSES[min(attempt, len(PAUSES) - 1)])

    def _check(self, timeout: float = QUICK) -> None:
        """Raise PeerError when nothing has moved for too long; time in which this very process stood still does not count."""
        now, patience = self._clock(), self.patience()
        if now - self._looked > timeout + STALLED:
            self._moved += now - self._looked
        self._looked = now
        since = max(self._moved, self.renewal.since(self.site))
        if now - since > patience and self.site not in self.renewal.under_way:
            raise lost(self.site, f"timeout after {patience:g} s without progress")

    def _clock(self) -> float:
        """Seconds, without those in which the engine itself was away."""
        return self.renewal.clock()


class StaleEpoch(PeerError):  # noqa: N818 - what a site says
    """The site knows a later session of this coordinator: its file was restored from an older copy."""


def _bare(header: Header) -> Header:
    return {name: value for name, value in header.items() if name not in ("mac", "osmotic", "size", "tag")}


def tame(value: Any, depth: int = 4) -> Any:
    """What a site tells of itself: short, harmless texts and numbers, not too many of them."""
    if isinstance(value, str):
        return harmless(value[:200])
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict) and depth:
        return {harmless(str(name)[:100]): tame(one, depth - 1) for name, one in list(value.items())[:200]}
    if isinstance(value, list) and depth:
        return [tame(one, depth - 1) for one in value[:200]]
    return ""
