# SPDX-License-Identifier: Apache-2.0
"""Signs of life between the bridges: a numbered value every few seconds, under tags of its own.

FATE's `get` has no deadline and a killed party sends nothing, so silence is all there is to see. It is counted in ticks of the
bridge's own loop: after a pause of the whole machine nobody is blamed for it.
"""

from __future__ import annotations

import itertools
import struct
import threading
import time
from typing import Any, Callable

from osmotic_fate.federation import Channel

EVERY = 5.0
MISSED = 4
NUMBER = struct.Struct(">Q")
LAST = b"."  # after the number: no further one comes


class Beats:
    """Sends this party's heartbeats to peers that were met, and reads theirs. broken(peer, why) is called when FATE fails.

    every: seconds.
    """

    def __init__(self, channel: Channel, broken: Callable[[str, str], None], every: float = EVERY) -> None:
        self.channel, self.broken, self.every = channel, broken, every
        self.stopped = threading.Event()
        self.seen: dict[str, int] = {}  # peer -> its last heartbeat's number
        self.sent: dict[str, int] = {}  # peer that was met -> how many have been sent
        self.gone: set[str] = set()  # peers that need no more

    def meet(self, peer: str) -> None:
        """Begin to send to a peer and to read what it sends."""
        if not self.sent:
            threading.Thread(target=self._send, name="heartbeats", daemon=True).start()
        self.sent[peer] = 0
        threading.Thread(target=self._read, args=(peer,), name=f"heartbeats of {peer}", daemon=True).start()

    def leave(self, peer: str) -> None:
        """Send no more to a peer that has ended."""
        self.gone.add(peer)

    def stop(self) -> None:
        """Send a last one; threads that wait in FATE's `get` end with the process."""
        self.stopped.set()

    def _send(self) -> None:
        while True:
            last = self.stopped.wait(self.every)
            for peer, number in list(self.sent.items()):
                try:
                    if peer not in self.gone:
                        self.channel.put(peer, number, NUMBER.pack(number) + LAST * last)
                        self.sent[peer] = number + 1
                except Exception as error:  # noqa: BLE001 - whatever FATE's engine raises
                    self.broken(peer, f"{type(error).__name__}: {error}")
                    return
            if last:
                return

    def _read(self, peer: str) -> None:
        try:
            for number in itertools.count():
                beat = self.channel.get(peer, number)
                if beat == NUMBER.pack(number):
                    self.seen[peer] = number
                if beat.endswith(LAST, NUMBER.size) or self.stopped.wait(0.9 * self.every):  # `get` asks without a pause
                    return
        except Exception as error:  # noqa: BLE001 - whatever FATE's engine raises
            if not self.stopped.is_set():
                self.broken(peer, f"{type(error).__name__}: {error}")


class Silence:
    """How long each of several sources has shown no change, in seconds of the own loop (`tick`)."""

    def __init__(self) -> None:
        self.last: dict[str, Any] = {}
        self.quiet: dict[str, float] = {}
        self.at: float | None = None

    def tick(self, signs: dict[str, Any], most: float) -> dict[str, float]:
        """Note the present signs; returns the seconds without a change for each. A tick counts for `most` seconds at most."""
        now = time.monotonic()
        passed = min(most, now - self.at) if self.at is not None else 0.0
        self.at = now
        for name, sign in signs.items():
            same = name in self.last and self.last[name] == sign
            self.quiet[name] = self.quiet.get(name, 0.0) + passed if same else 0.0
            self.last[name] = sign
        return {name: self.quiet[name] for name in signs}
