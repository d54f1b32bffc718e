# SPDX-License-Identifier: Apache-2.0
"""Progress of a run: live lines at a terminal, plain lines elsewhere. Counts, names of tasks, rates and seconds only."""

import shutil
import threading
import time
from typing import TextIO

from osmotic.runtime.plan.graph import Instance
from osmotic.runtime.screen.pace import Pace
from osmotic.schemas.terminal import harmless

EVERY = 10.0  # seconds between plain lines of one long task


class Console:
    """A watcher that writes to a stream."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.live = stream.isatty()
        self.lock = threading.Lock()
        self.total = self.done = self.cached = 0
        self.start = time.monotonic()
        self.last: dict[str, float] = {}
        self.current: dict[str, str] = {}
        self.paces: dict[tuple[str, str], Pace] = {}

    def started(self, total: int) -> None:
        """Remember how many tasks there are."""
        self.total, self.start = total, time.monotonic()
        self._line(f"{total} tasks")

    def task(self, instance: Instance, cached: bool, seconds: float) -> None:
        """One line a finished task; cached ones are only counted."""
        with self.lock:
            self.done += 1
            self.cached += cached
            self.current.pop(instance.party, None)
            self.paces.pop((instance.party, instance.id), None)
            if not cached:
                self._line(f"[{self.done}/{self.total}] {instance.id} {seconds:.1f} s")
            elif self.done == self.total:
                self._line(f"[{self.done}/{self.total}] done, {self.cached} found finished")
            self._show()

    def lost(self, party: str, why: str) -> None:
        """A line for a party that the run goes on without, or that is back."""
        with self.lock:
            self.current.pop(party, None)
            self._line(f"lost: {party} ({why})" if why else f"back: {party}")
            self._show()

    def progress(self, party: str, task: str, done: int, total: int, note: str) -> None:
        """Progress inside a task."""
        with self.lock:
            now = time.monotonic()
            pace = self.paces.setdefault((party, task), Pace())
            pace.add(now, done, total, note)
            self.current[party] = ", ".join(filter(None, (f"{task} {done}/{total} {note}".strip(), pace.text(note))))
            if self.live:
                if now - self.last.get("", 0.0) > 0.1:
                    self.last[""] = now
                    self._show()
            elif task not in self.last or now - self.last[task] > EVERY:
                self.last[task] = now
                if done:
                    self._line(f"    {self.current[party]}")

    def _line(self, text: str) -> None:
        clear = "\r\x1b[K" if self.live else ""
        print(f"{clear}{time.monotonic() - self.start:6.1f}s {harmless(text)}", file=self.stream, flush=True)

    def _show(self) -> None:
        if self.live and self.current:
            text = harmless("  |  ".join(self.current[p] for p in sorted(self.current))).replace("\n", " ")
            width = shutil.get_terminal_size().columns - 1  # one line: a longer one could not be cleared
            print(f"\r\x1b[K{text[:width]}", end="", file=self.stream, flush=True)
        elif self.live:
            print("\r\x1b[K", end="", file=self.stream, flush=True)
