# SPDX-License-Identifier: Apache-2.0
"""Whether a worker gets on: counts what happens while it works, and says when nothing has happened for too long.

What a worker waits for elsewhere is not its own standstill: the party that it waits for watches itself.
"""

import contextlib
import threading
import time
from collections.abc import Iterator


class Pulse:
    """Counts progress. Thread-safe."""

    def __init__(self) -> None:
        self.count = 0
        self.at = time.monotonic()
        self.task = ""
        self._working = self._away = 0
        self._lock = threading.Lock()

    def step(self, task: str = "") -> None:
        """Something has happened (in a task)."""
        with self._lock:
            self.count += 1
            self.at = time.monotonic()
            self.task = task or self.task

    @contextlib.contextmanager
    def working(self, task: str) -> Iterator[None]:
        """While this party works on a request."""
        self.step(task)
        with self._lock:
            self._working += 1
        try:
            yield
        finally:
            with self._lock:
                self._working -= 1
            self.step()

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """While the work waits for another party."""
        with self._lock:
            self._away += 1
        try:
            yield
        finally:
            with self._lock:
                self._away -= 1
            self.step()

    def standstill(self) -> float:
        """Seconds since anything has happened; 0 while there is no work, or it waits for another party."""
        with self._lock:
            return time.monotonic() - self.at if self._working > self._away else 0.0
