# SPDX-License-Identifier: Apache-2.0
"""What transports to parties of other operators have in common, at the coordinator.

Its own party is in process. What another party answers is checked for its form. Words of its own, which would be shown here,
are dropped: of an error a known code is left. Only why a site refused the plan may be told in words, where a transport lets it
(`tells`): a few of them, short, without anything that a terminal obeys.
"""

import contextlib
import threading
from typing import Any

from osmotic.runtime.party.service import Service
from osmotic.runtime.run import FAMILIES
from osmotic.runtime.transports.base import Header, Reply, Watch
from osmotic.runtime.transports.framed import Channel, Framed
from osmotic.schemas.errors import Code, PeerError, Problem, ProtocolFault
from osmotic.schemas.terminal import harmless

WITHHELD = ("metrics", "samples", "document")  # a refusal of these is no failure: what a party keeps back is named, not shown
ANSWERS: dict[str, dict[str, Any]] = {  # what an answer has at least
    "run": {"cached": bool, "seconds": (int, float)},
    "pull": {"digest": str, "same": bool},
    "held": {"held": dict},
    "until": {"stop": bool},
    "heads": {"heads": dict},
    "hashes": {"hashes": dict},
}
MOST_PROBLEMS, LONGEST = 20, 500


class Remote(Framed):
    """Base of such transports. own: the party that this process has, with its service."""

    tells: tuple[str, ...] = ()  # requests whose refusals may say why

    def __init__(self, own: str, service: Service, watch: Watch) -> None:
        super().__init__(watch)
        self.own, self.service = own, service
        self.failures: dict[str, str] = {}  # party -> code of the last request that failed there
        self._alone = threading.Lock()
        service.site.outbound = self._outbound
        service.site.progress = lambda task, done, total, note: watch(own, task, done, total, note)

    def called(self, party: str) -> str:
        """A party's name in messages."""
        return party

    def working(self, task: str) -> contextlib.AbstractContextManager[Any]:
        """Entered while the own party works on a request."""
        return contextlib.nullcontext()

    def away(self) -> contextlib.AbstractContextManager[Any]:
        """Entered while the own party waits for another one's model."""
        return contextlib.nullcontext()

    def request(self, party: str, header: Header, blob: bytes = b"") -> Reply:
        """Ask a party; remember where a request failed."""
        if party == self.own:
            with self._alone, self.working(str(header.get("id", header.get("op")))):
                reply, answer = self.service.handle(header, blob)
            failure = self.service.failure
            code = str(failure.code) if failure is not None else ""  # as it may be told
        else:
            reply, answer = super().request(party, header, blob)
            reply = self._checked(party, str(header.get("op")), reply)
            if header.get("op") == "fragment" and "error" not in reply:
                return self._steps(party, header, reply, answer), answer
            code = reply["error"]["code"] if "error" in reply else ""
        if "error" in reply and header.get("op") not in WITHHELD:
            self.failures[party] = code
        return reply, answer

    def _steps(self, party: str, asked: Header, reply: Header, blob: bytes) -> Header:
        """The answers to a fragment's steps, each checked as one of its own; the last may be an error, and ends it."""
        steps, found = asked["steps"], reply.get("steps")
        if not isinstance(found, list) or len(found) > len(steps) or not all(isinstance(one, dict) for one in found):
            raise self._unread(party, "fragment")
        checked: list[Header] = []
        sizes = 0
        for step, one in zip(steps, found, strict=False):
            op = str(step.get("op"))
            checked.append({"later": True} if op == "pull" and one.get("later") is True else self._checked(party, op, one))
            size = one.get("bytes", 0)
            if type(size) is not int or size < 0 or ("error" in one and len(checked) < len(found)):
                raise self._unread(party, op)
            sizes += size
        if sizes != len(blob):
            raise self._unread(party, "fragment")
        if checked and "error" in checked[-1]:
            self.failures[party] = checked[-1]["error"]["code"]
        return {**reply, "steps": checked}

    def _checked(self, party: str, op: str, reply: Header) -> Header:
        """What another party answered; raises ProtocolFault for an answer that is none. Of an error its code is left."""
        if "error" in reply:
            return {"error": plain(reply["error"], words=op in self.tells)}
        wrong = [key for key, kind in ANSWERS.get(op, {}).items() if not isinstance(reply.get(key), kind)]
        if op == "heads" and not wrong:
            wrong = [key for key in ("charges", "crossings") if not isinstance(reply["heads"].get(key), str)]
        if wrong:
            raise self._unread(party, op)
        return reply

    def _unread(self, party: str, op: str) -> ProtocolFault:
        return ProtocolFault(Problem(f"{self.called(party)} gave no answer to {op!r} that can be read"))

    def _meanwhile(self, party: str, kind: Any, frame: Header, body: bytes, channel: Channel) -> None:
        """Model calls alone: how far a task elsewhere has come is nobody's business."""
        super()._meanwhile(party, kind if kind == "outbound" else None, frame, body, channel)

    def _call(self, party: str, to: str, header: Header, body: bytes) -> Reply:
        """A model call; a party elsewhere hears no words of why it failed."""
        reply, answer = super()._call(party, to, header, body)
        if party != self.own and "error" in reply:
            reply = {"error": plain(reply["error"]), "frame": "outbound"}
        return reply, answer

    def _outbound(self, to: str, header: Header, blob: bytes) -> Reply:
        """A model call of the own party's task."""
        with self.away():
            reply, answer = self._call(self.own, to, header, blob)
        reply.pop("frame", None)
        return reply, answer


def plain(error: Any, words: bool = False) -> Header:
    """Another party's error as a code of the closed list and its exit status; with words, why it refused, made harmless."""
    said = error.get("code") if isinstance(error, dict) else None
    code = str(said) if said in list(Code) else str(Code.PROTOCOL)
    problems = error.get("problems") if words and isinstance(error, dict) else None
    told = [_problem(one) for one in problems[:MOST_PROBLEMS]] if isinstance(problems, list) else []
    found = [one for one in told if one["what"]]
    return {"code": code, "exit": FAMILIES.get(code, PeerError).exit_code, "problems": found}


def _problem(said: Any) -> dict[str, str]:
    """Another party's words: a problem's own keys, one line each, and not long."""
    given = said if isinstance(said, dict) else {}
    found = {}
    for key in ("what", "where", "path", "why", "fix"):
        value = given.get(key)
        found[key] = harmless(" ".join(value[:LONGEST].split())) if isinstance(value, str) else ""
    return found
