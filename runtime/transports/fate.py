# SPDX-License-Identifier: Apache-2.0
"""The transport inside FATE, at the coordinator: its own party in process, every other one by messages between workers.

FATE's bridge carries the messages and never looks inside; the membrane of each party has decided what is in them. A party that
is lost ends the run with its name and why; one that is silent for `patience` seconds counts as lost. What another party answers
is checked for its form. Words of its own, which would be shown here, are dropped: of an error a known code is left.

A message is in memory once on its way. Reading an artifact out of it makes copies: weights take about three times their size at
the party that gets them (2 GB: 6 GB), twice at the one that sends them.
"""

import threading
from collections.abc import Mapping
from typing import Any, Protocol

from osmotic.runtime.fate.pulse import Pulse
from osmotic.runtime.party.service import Service
from osmotic.runtime.run import FAMILIES
from osmotic.runtime.transports.base import Header, Reply, Watch
from osmotic.runtime.transports.framed import Channel, Framed
from osmotic.schemas.errors import Code, PeerError, Problem, ProtocolFault

WITHHELD = ("metrics", "samples", "document")  # a refusal of these is no failure: what a party keeps back is named, not shown
ANSWERS: dict[str, dict[str, Any]] = {  # what an answer has at least
    "run": {"cached": bool, "seconds": (int, float)},
    "pull": {"digest": str, "same": bool},
    "held": {"held": dict},
    "until": {"stop": bool},
    "heads": {"heads": dict},
    "hashes": {"hashes": dict},
}


class Mailbox(Protocol):
    """How messages reach the workers of other parties."""

    pulse: Pulse

    def put(self, peer: str, header: Header, blob: bytes = b"") -> None:
        """Send one; order is kept."""

    def take(self, peer: str, patience: float) -> Reply:
        """Wait for the next one; raises PeerError when that party, or any other one, is lost."""


class Peer:
    """The way to one party. fate: its name in FATE, `role:party_id`."""

    def __init__(self, fate: str, mailbox: Mailbox, patience: float) -> None:
        self.fate, self.mailbox, self.patience = fate, mailbox, patience
        self.lock = threading.Lock()

    def send(self, header: Header, blob: bytes) -> None:
        """A request, or what it answers to a question."""
        self.mailbox.put(self.fate, {"frame": "request", **header}, blob)

    def receive(self) -> Reply:
        """Its next message."""
        return self.mailbox.take(self.fate, self.patience)

    def abandon(self) -> None:
        """Nothing: the end of the run is told to everybody."""


class Fate(Framed):
    """names: party of the pipeline -> party of FATE. own: the party that this process has, with its service."""

    def __init__(
        self, own: str, service: Service, names: Mapping[str, str], mailbox: Mailbox, watch: Watch, patience: float
    ) -> None:
        super().__init__(watch)
        self.own, self.service, self.mailbox = own, service, mailbox
        self.peers = {party: Peer(fate, mailbox, patience) for party, fate in names.items() if party != own}
        self.failures: dict[str, str] = {}  # party -> code of the last request that failed there
        self.code = ""  # of what ended the run
        self._alone = threading.Lock()
        service.site.outbound = self._outbound
        service.site.progress = lambda task, done, total, note: watch(own, task, done, total, note)

    def channels(self) -> Mapping[str, Peer]:
        """Everybody else."""
        return self.peers

    def request(self, party: str, header: Header, blob: bytes = b"") -> Reply:
        """Ask a party; remember where a request failed."""
        if party == self.own:
            with self._alone, self.mailbox.pulse.working(str(header.get("id", header.get("op")))):
                reply, answer = self.service.handle(header, blob)
            failure = self.service.failure
            code = str(failure.code) if failure is not None else ""  # as it may be told
        else:
            reply, answer = super().request(party, header, blob)
            reply = self._checked(party, str(header.get("op")), reply)
            code = reply["error"]["code"] if "error" in reply else ""
        if "error" in reply and header.get("op") not in WITHHELD:
            self.failures[party] = code
        return reply, answer

    def _checked(self, party: str, op: str, reply: Header) -> Header:
        """What another party answered; raises ProtocolFault for an answer that is none. Of an error its code is left."""
        if "error" in reply:
            return {"error": plain(reply["error"])}
        wrong = [key for key, kind in ANSWERS.get(op, {}).items() if not isinstance(reply.get(key), kind)]
        if op == "heads" and not wrong:
            wrong = [key for key in ("charges", "crossings") if not isinstance(reply["heads"].get(key), str)]
        if wrong:
            raise ProtocolFault(Problem(f"{self.peers[party].fate} ({party}) gave no answer to {op!r} that can be read"))
        return reply

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
        with self.mailbox.pulse.away():
            reply, answer = self._call(self.own, to, header, blob)
        reply.pop("frame", None)
        return reply, answer

    def close(self) -> None:
        """Tell every party that the run is over, and how it ended: by code and party."""
        for peer in self.peers.values():
            self.mailbox.put(peer.fate, {"frame": "done", "code": self.code, "parties": self.failures if self.code else {}})
        self.peers = {}


def plain(error: Any) -> Header:
    """Another party's error as a code of the closed list and its exit status, and nothing else."""
    said = error.get("code") if isinstance(error, dict) else None
    code = str(said) if said in list(Code) else str(Code.PROTOCOL)
    return {"code": code, "exit": FAMILIES.get(code, PeerError).exit_code, "problems": []}
