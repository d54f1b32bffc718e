# SPDX-License-Identifier: Apache-2.0
"""Whether work gets on, as one counter: by the progress that a task tells, and by the processor time of its thread and of the
processes that it started. What it does, and how much, is not in it: it moves at most once in EVERY seconds, however often it is
looked at, so that a server that asks all the time cannot count a task's steps.
"""

import contextlib
import os
import threading
import time
from pathlib import Path

EVERY = 1.0  # seconds between two movements of the counter
STEP = 0.05  # seconds of processor time between two looks that count as getting on
DEEPEST = 4  # generations of processes


class Activity:
    """The counter of one thread's work. Thread-safe."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._steps = self._seen = self._tick = 0
        self._spent = 0.0
        self._moved = float("-inf")

    def step(self) -> None:
        """Something has happened."""
        with self._lock:
            self._steps += 1

    def look(self) -> int:
        """The counter, moved on if there was progress since it last did, and that was not just now."""
        if time.monotonic() - self._moved < EVERY:
            return self._tick
        spent = _spent(self.thread)
        with self._lock:
            if self._steps != self._seen or abs(spent - self._spent) >= STEP:  # less: a process has ended
                self._seen, self._spent = self._steps, spent
                self._tick += 1
                self._moved = time.monotonic()
            return self._tick


def _spent(thread: threading.Thread | None) -> float:
    """Seconds of processor time of a thread and of the processes below it; 0.0 where the system does not tell."""
    if thread is None or thread.ident is None or not thread.is_alive():
        return 0.0
    total = 0.0
    with contextlib.suppress(OSError, AttributeError):
        total = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    return total + _below(Path(f"/proc/self/task/{thread.native_id}/children"), DEEPEST)


def _below(children: Path, depth: int) -> float:
    total = 0.0
    if depth:
        with contextlib.suppress(OSError, ValueError, IndexError):
            for child in children.read_text().split():
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                total += sum(_below(one / "children", depth - 1) for one in Path(f"/proc/{child}/task").iterdir())
    return total
