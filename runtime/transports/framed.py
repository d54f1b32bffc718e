# SPDX-License-Identifier: Apache-2.0
"""What transports that carry frames have in common: the loop of one request, model calls between parties, their circles.

While a party works on a request it may send frames that are not the answer: how far it has come, and calls of other parties'
models. A transport supplies the channels; everything else is here.
"""

import threading
from collections.abc import Mapping
from typing import Any, Protocol

from osmotic.runtime.transports.base import Header, Reply, Watch, refuse
from osmotic.schemas.errors import OsmoticError, PeerError, Problem, ProtocolFault


class Channel(Protocol):
    """The way to one party. lock: held for the whole of a request, so that answers cannot be mixed up."""

    @property
    def lock(self) -> threading.Lock:
        """Held by whoever asks."""

    def send(self, header: Header, blob: bytes) -> None:
        """Send one frame; raises PeerError when the party is gone."""

    def receive(self) -> Reply:
        """Wait for its next frame; raises PeerError when the party is gone, ProtocolFault for a damaged frame."""

    def abandon(self) -> None:
        """Nothing that this party sends can be understood any more."""


class Framed:
    """Base of transports whose parties are reached by frames, one request at a time a party."""

    parallel = True

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.calls: dict[str, str] = {}  # party that waits for a model call -> party that is asked
        self.calling = threading.Lock()

    def channels(self) -> Mapping[str, Channel]:
        """Party -> the way to it."""
        return {}

    def request(self, party: str, header: Header, blob: bytes = b"") -> Reply:
        """Send a frame, serve what the party asks meanwhile (progress, model calls), return its answer."""
        channel = self.channels().get(party)
        if channel is None:
            raise PeerError(Problem(f"there is no party {party!r}"))
        with channel.lock:
            try:
                channel.send(header, blob)
                while True:
                    answer, body = channel.receive()
                    kind = answer.pop("frame", None)
                    if kind == "reply":
                        return answer, body
                    self._meanwhile(party, kind, answer, body, channel)
            except ProtocolFault:  # where its next frame begins is not known
                channel.abandon()
                raise

    def _meanwhile(self, party: str, kind: Any, frame: Header, body: bytes, channel: Channel) -> None:
        """Serve a frame that is not the answer: progress, or a model call."""
        if kind == "progress" and {"task", "done", "total", "note"} <= frame.keys():
            self.watch(party, frame["task"], frame["done"], frame["total"], frame["note"])
        elif kind == "outbound" and isinstance(frame.get("to"), str):
            channel.send(*self._call(party, frame.pop("to"), frame, body))
        else:
            raise ProtocolFault(Problem(f"the process of {party} sent a frame that is none of ours"))

    def _call(self, party: str, to: str, header: Header, body: bytes) -> Reply:
        """A model call from one party to another, as a frame for the caller; whatever goes wrong is the caller's to hear."""
        if header.get("op") != "call":
            reply, answer = refuse(header.get("op"))
            return {**reply, "frame": "outbound"}, answer
        with self.calling:
            self.calls[party] = to
            seen, asked = {party}, to
            while asked in self.calls and asked not in seen:
                seen.add(asked)
                asked = self.calls[asked]
            circle = asked in seen
        try:
            if circle:  # both hold their own channel: waiting would never end
                raise PeerError(Problem(f"{party} and {to} wait for each other's models"))
            reply, answer = self.request(to, {**header, "from": party}, body)
        except OsmoticError as error:
            reply, answer = {"error": {"code": str(error.code), "exit": error.exit_code, "problems": []}}, b""
        finally:
            with self.calling:
                self.calls.pop(party, None)
        return {**reply, "frame": "outbound"}, answer
