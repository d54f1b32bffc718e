# SPDX-License-Identifier: Apache-2.0
"""How fast long work goes, and how long it will go on: from the progress that tasks report."""

import re
from collections import deque

WINDOW = 30.0  # seconds that the rate looks back
TOKENS = re.compile(r"\b(\d+) tokens\b")
COUNTED = re.compile(r"(rows|steps|records|symbols|pairs)\b|loss ")  # what is counted, where a note begins with it


class Pace:
    """The pace of one task: over the last `WINDOW` seconds, so that a change is seen and what was found finished is not."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()
        self.total = 0

    def add(self, now: float, done: int, total: int, note: str = "") -> None:
        """Note a report. A count that goes back begins anew."""
        found = TOKENS.search(note)
        tokens = int(found[1]) if found else 0
        if self._seen and (done < self._seen[-1][1] or tokens < self._seen[-1][2] or total != self.total):
            self._seen.clear()
        self.total = total
        self._seen.append((now, done, tokens))
        while len(self._seen) > 2 and self._seen[1][0] < now - WINDOW:
            self._seen.popleft()

    @property
    def rate(self) -> float:
        """Units a second; 0 before two reports."""
        return self._rate(1)

    @property
    def tokens(self) -> float:
        """Tokens a second, where the notes tell tokens."""
        return self._rate(2)

    @property
    def left(self) -> float | None:
        """Seconds to the end; None where that cannot be said."""
        return (self.total - self._seen[-1][1]) / self.rate if self._seen and self.rate > 0 else None

    def _rate(self, column: int) -> float:
        if len(self._seen) < 2:
            return 0.0
        first, last = self._seen[0], self._seen[-1]
        return (last[column] - first[column]) / (last[0] - first[0]) if last[0] > first[0] else 0.0

    def text(self, note: str = "") -> str:
        """As ``12.3 rows/s, 840 tokens/s, 2 min left``; empty before two reports."""
        if self.rate <= 0:
            return ""
        found = COUNTED.match(note)
        unit = f" {found[1] or 'steps'}" if found else ""  # trainers tell the loss of each step
        parts = [f"{number(self.rate)}{unit}/s"]
        parts += [f"{number(self.tokens)} tokens/s"] if self.tokens > 0 else []
        parts += [f"{duration(self.left)} left"] if self.left else []
        return ", ".join(parts)


def number(value: float) -> str:
    """Three digits at least: 0.0123, 1.23, 12.3, 1,234."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """As 42 s, 5 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
