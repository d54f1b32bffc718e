# SPDX-License-Identifier: Apache-2.0
"""How many requests at a time, and how long until the next try: additive increase, multiplicative decrease, backoff.

A single refusal says little about load, and each one waits by itself as long as the server asks for. Only when more than a
fifth of the last twenty requests met an overloaded server (429, 503, timeout, no connection) is the number halved, and, if the
server named a time, nothing at all is sent until then.
"""

import math
import random
from collections import deque
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

RECENT = 20  # requests over which the share of overload is taken
SHARE = 0.2  # chance refusals of a few requests in a hundred stay below it
FIRST = 4.0  # requests at a time, to begin with; doubled each round until the first sign of overload
BASE, LONGEST = 0.5, 30.0  # seconds: first backoff and longest one
LONGEST_ASKED = 120.0  # seconds that a server may ask for at most


class Pace:
    """The number of requests that may be under way, between 1 and `most`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = min(float(most), FIRST)
        self._rising = True
        self._recent: deque[bool] = deque(maxlen=RECENT)

    @property
    def room(self) -> int:
        """Requests that may be under way now."""
        return int(self.limit)

    def note(self, overloaded: bool) -> bool:
        """Take in how a request ended; True when the limit was halved for it."""
        self._recent.append(overloaded)
        if not overloaded:
            self.limit = min(float(self.most), self.limit + (1.0 if self._rising else 1.0 / self.limit))
            return False
        if sum(self._recent) <= SHARE * RECENT:
            return False
        self._rising = False
        self.limit = max(1.0, self.limit / 2)
        self._recent.clear()
        return True


def backoff(tries: int, asked: float | None, draw: random.Random) -> float:
    """Seconds until the next try after `tries` failed ones. asked: what the server asked for; it is kept, up to a bound."""
    own = min(LONGEST, BASE * 2.0 ** (tries - 1)) * draw.uniform(0.5, 1.0)
    if asked is None:
        return own
    return min(asked, LONGEST_ASKED) + draw.uniform(0.0, 0.1)


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number or an HTTP date; None when it says neither."""
    if value is None:
        return None
    text = value.strip()
    try:
        seconds = float(text)
    except ValueError:
        return _until(text)
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _until(text: str) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
