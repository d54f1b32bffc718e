# SPDX-License-Identifier: Apache-2.0
"""Asks the engine for new processes of sites that are away, and keeps the time in which the engine itself was.

While the engine's server is away nobody can be heard: that is no site's silence. When it is back, every site has its time anew.
"""

import threading
import time
from collections.abc import Callable

from osmotic.schemas.errors import OsmoticError

ABSENT, SILENT = 2.0, 30.0  # seconds after which the engine is asked for a new process: it knows the site not, or none came
OUTAGE = 600.0  # seconds that the engine may be away before its sites count as silent


class Renewal:
    """Thread-safe. renew: one thread at a time, no more often than `every` seconds; gives the sites that got a new process.

    under_way: sites that the engine is asked for just now.
    """

    def __init__(self, renew: Callable[[list[str]], object] | None, every: float = 3.0) -> None:
        self.renew, self.every = renew, every
        self.under_way: tuple[str, ...] = ()
        self._missing: dict[str, float] = {}
        self._given: dict[str, float] = {}
        self._anew = float("-inf")  # on our clock: when the engine came back
        self._asked = float("-inf")
        self._heard = time.monotonic()  # anybody
        self._down: float | None = None  # since when the engine is away
        self._paused = 0.0
        self._lock, self._asking = threading.Lock(), threading.Lock()

    def clock(self) -> float:
        """Seconds that do not run while the engine is away."""
        with self._lock:
            return self._clock()

    def since(self, site: str) -> float:
        """When, on this clock, a site got a new process, or the engine came back."""
        with self._lock:
            return max(self._anew, self._given.get(site, float("-inf")))

    def heard(self, site: str) -> None:
        """A site has answered."""
        with self._lock:
            self._missing.pop(site, None)
            self._heard = time.monotonic()
            self._back()

    def away(self, site: str, why: str) -> None:
        """A site has not."""
        at = time.monotonic()
        with self._lock:
            since = self._missing.setdefault(site, at)
            sites = sorted(self._missing)
        if self.renew is None or why == "starting" or at - since < (ABSENT if why == "absent" else SILENT):
            return
        if self._asking.acquire(blocking=False):
            try:
                if time.monotonic() - self._asked >= self.every:
                    self._renew(self.renew, sites)
            finally:
                self._asking.release()

    def _renew(self, renew: Callable[[list[str]], object], sites: list[str]) -> None:
        self.under_way = tuple(sites)
        try:
            given = renew(sites)
        except OsmoticError:  # the engine's server does not answer
            with self._lock:
                self._down = self._heard if self._down is None else self._down
        else:
            with self._lock:
                self._back()
                got = given if isinstance(given, list) else []
                self._given.update((site, self._clock()) for site in got)
        finally:
            self.under_way, self._asked = (), time.monotonic()

    def _back(self) -> None:
        """The engine is there."""
        if self._down is not None:
            self._paused += min(time.monotonic() - self._down, OUTAGE)
            self._down = None
            self._anew = self._clock()

    def _clock(self) -> float:
        now = time.monotonic()
        away = min(now - self._down, OUTAGE) if self._down is not None else 0.0
        return now - self._paused - away
