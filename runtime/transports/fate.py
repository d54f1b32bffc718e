# SPDX-License-Identifier: Apache-2.0
"""The transport inside FATE, at the coordinator: its own party in process, every other one by messages between workers.

FATE's bridge carries the messages and never looks inside; the membrane of each party has decided what is in them. A party that
is lost ends the run with its name and why; one that is silent for `patience` seconds counts as lost.

A message is in memory once on its way. Reading an artifact out of it makes copies: weights take about three times their size at
the party that gets them (2 GB: 6 GB), twice at the one that sends them.
"""

import contextlib
import threading
from collections.abc import Mapping
from typing import Protocol

from osmotic.runtime.fate.pulse import Pulse
from osmotic.runtime.party.service import Service
from osmotic.runtime.transports.base import Header, Reply, Watch
from osmotic.runtime.transports.remote import Remote, plain

__all__ = ["Fate", "Mailbox", "Peer", "plain"]


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


class Fate(Remote):
    """names: party of the pipeline -> party of FATE. own: the party that this process has, with its service."""

    whole = True  # a job of FATE ends when any party is lost

    def __init__(
        self, own: str, service: Service, names: Mapping[str, str], mailbox: Mailbox, watch: Watch, patience: float
    ) -> None:
        super().__init__(own, service, watch)
        self.mailbox = mailbox
        self.peers = {party: Peer(fate, mailbox, patience) for party, fate in names.items() if party != own}
        self.code = ""  # of what ended the run

    def channels(self) -> Mapping[str, Peer]:
        """Everybody else."""
        return self.peers

    def called(self, party: str) -> str:
        """A party's name in FATE, and in the pipeline."""
        return f"{self.peers[party].fate} ({party})"

    def working(self, task: str) -> contextlib.AbstractContextManager[None]:
        """Entered while the own party works on a request."""
        return self.mailbox.pulse.working(task)

    def away(self) -> contextlib.AbstractContextManager[None]:
        """Entered while the own party waits for another one's model."""
        return self.mailbox.pulse.away()

    def close(self) -> None:
        """Tell every party that the run is over, and how it ended: by code and party."""
        for peer in self.peers.values():
            self.mailbox.put(peer.fate, {"frame": "done", "code": self.code, "parties": self.failures if self.code else {}})
        self.peers = {}
