# SPDX-License-Identifier: Apache-2.0
"""Bytes between the bridges, by nothing but FATE's `put` and `get` of `bytes`.

FATE takes each (name, tag, party) once, its `get` waits for ever, and a value above its largest message goes through a table.
So: one numbered sequence in each direction between two parties, values below that size, a thread for each `get`. A value
begins with its kind: here, hello, data, more (of the data before it), fault, bye.

What an earlier run under the same federation id left unread must not be taken for this one's: the first value has a word made
for this run, the second gives the peer's word back, and the tags of all that follow have both.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import struct
import threading
from typing import Any, Callable, Iterable, Iterator

HERE, HELLO, DATA, MORE, FAULT, BYE = (bytes([kind]) for kind in b"phdmfb")
TOTAL = struct.Struct(">Q")
AROUND = 4096  # what FATE's pickling and we put around a slice
SLICE = (1 << 20) - AROUND
# Names at FATE: message queues make a topic of each, so there are two. And how many values come before the pair's own tags.
PLACES = {"data": ("osmotic", 2), "beat": ("osmotic_beat", 0)}
WORD = re.compile(r"[0-9a-f]{16}")


class Channel:
    """Numbered values of one kind between this party and its peers, on FATE's context.

    task: part of every tag, so that two tasks of a job never read each other's values. What has been read is forgotten:
    FATE keeps a record of every tag, which would grow for as long as the task runs. putting: one lock for all channels.
    keys: of each peer that has been met, for both channels (`key`).
    """

    def __init__(self, ctx: Any, place: str, task: str, putting: threading.Lock, keys: dict[str, str]) -> None:
        self.name, self.before = PLACES[place]
        self.ctx = ctx.sub_ctx(f"{self.name}_{hashlib.sha256(task.encode()).hexdigest()[:16]}")
        self.putting, self.keys = putting, keys
        self.next: dict[str, tuple[int, Any, Any]] = {}  # what the next `put` needs, made before it is called

    def put(self, peer: str, number: int, value: bytes) -> None:
        """Send a value as number `number` of this party's values to `peer`."""
        with self.putting:
            ready, party, ctx = self.next.pop(peer, (-1, None, None))
            if ready != number:
                party, ctx = self._party(peer, number)
            party.put(self.name, value)
            self._forget(ctx, "_push_history", party)
            if number >= self.before:
                self.next[peer] = number + 1, *self._party(peer, number + 1)

    def get(self, peer: str, number: int) -> bytes:
        """Wait for value `number` of `peer`, for ever if it never comes."""
        party, ctx = self._party(peer, number)
        value = party.get(self.name)
        self._forget(ctx, "_pull_history", party)
        if not isinstance(value, bytes) or not value:
            raise ValueError(f"{peer} sent something that is none of our messages")
        return value

    def open(self, own: str) -> None:
        """Before several threads `get`: FATE's standalone engine opens its files at a first use, and two at once break it."""
        if type(self.ctx.federation).__name__ == "StandaloneFederation":
            self.put(own, 0, HELLO)
            self.get(own, 0)

    def _party(self, peer: str, number: int) -> tuple[Any, Any]:
        ctx = (self.ctx if number < self.before else self.ctx.sub_ctx(self.keys[peer])).indexed_ctx(number)
        return next(party for party in ctx.parties if named(party) == peer), ctx

    def _forget(self, ctx: Any, history: str, party: Any) -> None:
        tags = getattr(ctx.federation, history, None)
        if isinstance(tags, set):
            tags.discard((self.name, ctx.namespace.federation_tag, tuple(party.party)))


def named(party: Any) -> str:
    """A party as it is named here: its role and its id."""
    return f"{party.role}:{party.party_id}"


def everybody(ctx: Any) -> tuple[str, list[str]]:
    """(this party, all parties in FATE's order). Raises RuntimeError where FATE gives no federation."""
    return named(ctx.local), [named(party) for party in ctx.parties]


def key(own: str, peer: Any) -> str:
    """What the tags of two parties have that have met. Raises ValueError for what is no peer's word."""
    if not (isinstance(peer, str) and WORD.fullmatch(peer)):
        raise ValueError("a peer's first value has no word of its run")
    return "_".join(sorted((own, peer)))


def largest(ctx: Any) -> int:
    """How many bytes fit into one value without FATE's making a table of it."""
    try:
        return max(AROUND, int(ctx.federation.get_default_max_message_size()) - AROUND)
    except (AttributeError, TypeError, ValueError):
        return SLICE


class Outbox:
    """What this party sends to one peer: whole messages, one after the other; a fault may stand within one."""

    def __init__(self, channel: Channel, peer: str, most: int) -> None:
        self.channel, self.peer, self.most = channel, peer, most
        self.numbers = itertools.count()
        self.counting, self.sending = threading.Lock(), threading.Lock()

    def say(self, kind: bytes, *parts: bytes) -> None:
        """One value: its kind and the rest."""
        with self.counting:
            self.channel.put(self.peer, next(self.numbers), b"".join((kind, *parts)))

    def send(self, size: int, body: Iterator[bytes]) -> None:
        """A message of `size` bytes, put slice by slice as they come (each at most `most` bytes)."""
        with self.sending:
            first = next(body, b"")
            self.say(DATA, TOTAL.pack(size), first)
            for piece in body:
                self.say(MORE, piece)


Heard = Callable[[str, bytes, bytes], None]  # peer, kind, value: here, hello, fault, bye
Deliver = Callable[[str, int, "Iterable[bytes | memoryview]"], None]  # peer, size of a message, its slices


class Inbox(threading.Thread):
    """Reads what one peer sends, until it says fault or bye. `alive` is called for every value, `broken` when FATE fails."""

    def __init__(self, channel: Channel, peer: str, heard: Heard, deliver: Deliver, broken: Callable[[str, str], None]) -> None:
        super().__init__(name=f"from {peer}", daemon=True)
        self.channel, self.peer = channel, peer
        self.heard, self.deliver, self.broken = heard, deliver, broken
        self.numbers = itertools.count()
        self.values = 0  # a sign of life
        self.over: bytes | None = None

    def run(self) -> None:
        """Read and hand on."""
        try:
            while self.over is None:
                kind, value = self._next()
                if kind == DATA:
                    self._message(value)
                elif kind in (HERE, HELLO, FAULT, BYE):
                    self._control(kind, value)
                else:
                    raise ValueError(f"{self.peer} sent a slice of nothing")
        except Exception as error:  # noqa: BLE001 - FATE's get raises whatever its engine does; the main thread must hear it
            self.broken(self.peer, f"{type(error).__name__}: {error}")

    def _next(self) -> tuple[bytes, memoryview]:
        value = self.channel.get(self.peer, next(self.numbers))
        self.values += 1
        return value[:1], memoryview(value)[1:]

    def _control(self, kind: bytes, value: memoryview) -> None:
        if kind in (FAULT, BYE):
            self.over = kind
        self.heard(self.peer, kind, bytes(value))

    def _message(self, first: memoryview) -> None:
        if len(first) < TOTAL.size:
            raise ValueError(f"{self.peer} sent a message without its size")
        size = TOTAL.unpack(first[: TOTAL.size])[0]
        self.deliver(self.peer, size, self._slices(size, first[TOTAL.size :]))

    def _slices(self, size: int, first: memoryview) -> Iterator[memoryview]:
        left, piece = size - len(first), first
        while True:
            if left < 0:
                raise ValueError(f"{self.peer} sent more than it announced")
            yield piece
            if not left:
                return
            kind, piece = self._next()
            if kind != MORE:
                self._control(kind, piece)
                raise ValueError(f"{self.peer} broke off in the middle of a message")
            left -= len(piece)
