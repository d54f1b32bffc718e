# SPDX-License-Identifier: Apache-2.0
r"""Compare a prompt with the current one, record by record, and stop as soon as it cannot, or will hardly, be better.

The current prompt's answers are known, so a comparison is paired: a new prompt can only gain where the current one is wrong,
and only lose where it is right. So the wrong ones are asked first, in a new random order, in chunks that grow.

Exact stops, which never lose a better prompt: nothing was gained where there was something to gain, or as much was lost as was
gained. Whether a prompt that gains nothing is at least equal, a few records are asked that the current one gets right: no proof
("equal as far as it was seen"), so that whoever walks on over such prompts must compare with answers that are known.

By a bound: let W be the weight of what the current prompt gets wrong. Against "the new one gains `worth` * W or more" a wealth
is bet: before each answer the gain still owed is spread over the rest (m), and a stake l on "less than that" multiplies the
wealth by 1 + l (m - x), 0 <= l <= 1 / (top - m), which under the hypothesis does not grow on average, since the order is random
without replacement. At 1 / alpha the prompt is stopped; by Ville's inequality one that gains so much is stopped by the bound
with probability alpha at most, whenever the betting is looked at. (Waudby-Smith and Ramdas, "Estimating means of bounded random
variables by betting", 2023.) Most is bet all-in, which is fastest where nothing is gained, the rest by half stakes, which
survive a gain.
"""

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SAME = 1e-9  # scores nearer than this are equal
FIRST = 3  # records of the first chunk; a later one is half of what was asked, if that is more
STAKES = ((1.0, 0.8), (0.5, 0.2))  # part of the highest stake, part of the wealth that it is bet with
Ask = Callable[[Sequence[int]], list[bool]]


@dataclass(frozen=True)
class Outcome:
    """right: of each item, whether the new prompt got it; None: it was stopped. change: of the score, as far as it was seen.

    asked: items that were asked. why: "", or why it was stopped: "no gain", "bound" or "losses". equal: it was stopped, and no
    answer was other than the current prompt's, among some that this one has right.
    """

    right: list[bool] | None
    change: float
    asked: int
    why: str = ""
    equal: bool = False


def weights(classes: Sequence[str], own: int, rho: float, by_class: bool) -> list[float]:
    """What each item counts, 1 together. own: items before it are the client's own, those after it public, weighing rho.

    by_class: every class that there is counts alike.

    >>> weights(["a", "a", "b", "b"], 3, 0.5, True)
    [0.25, 0.25, 0.3333333333333333, 0.16666666666666666]
    """
    raw = [1.0 if i < own else rho for i in range(len(classes))]
    total: defaultdict[str, float] = defaultdict(float)
    for name, weight in zip(classes, raw, strict=True):
        total[name] += weight
    there = sum(weight > 0 for weight in total.values())
    if by_class:
        return [w / (total[name] * there) if w else 0.0 for name, w in zip(classes, raw, strict=True)]
    return [w / math.fsum(raw) for w in raw]


def score(items: Sequence[float], right: Sequence[bool]) -> float:
    """The weighted share that is right."""
    return math.fsum(weight for weight, good in zip(items, right, strict=True) if good)


def whole(ask: Ask, items: Sequence[float], current: Sequence[bool]) -> Outcome:
    """Ask everything: the plain comparison."""
    right = ask(range(len(items)))
    return Outcome(right, score(items, right) - score(items, current), len(items))


def race(
    ask: Ask, items: Sequence[float], current: Sequence[bool], rng: random.Random, alpha: float, worth: float,
    ties: bool = False,
) -> Outcome:  # fmt: skip
    """Compare, and stop early; see the module. alpha: 0: exact stops only. ties: whether it matters if it is equal."""
    wrong = [i for i, good in enumerate(current) if not good and items[i] > 0]
    others = [i for i, good in enumerate(current) if good or items[i] <= 0]
    rng.shuffle(wrong)
    rng.shuffle(others)
    found = dict[int, bool]()
    why = _gaining(ask, items, wrong, found, Bet([items[i] for i in wrong], alpha, worth))
    gain, loss = math.fsum(items[i] for i in wrong if found.get(i)), 0.0
    if why:
        if ties and gain <= SAME:
            seen = others[: max(FIRST, len(others) // 4)]
            found |= dict(zip(seen, ask(seen), strict=True))
            loss = math.fsum(items[i] for i in seen if current[i] and not found[i])
        return Outcome(None, -loss, len(found), why, ties and gain <= SAME and loss <= SAME)
    for chunk in _chunks(others, len(wrong)):
        found |= dict(zip(chunk, ask(chunk), strict=True))
        loss = math.fsum(items[i] for i in others if current[i] and not found.get(i, True))
        if loss >= gain - SAME and len(found) < len(items):
            return Outcome(None, gain - loss, len(found), "losses")
    return Outcome([found[i] for i in range(len(items))], gain - loss, len(found))


def _gaining(ask: Ask, items: Sequence[float], wrong: Sequence[int], found: dict[int, bool], bet: "Bet") -> str:
    """Ask what the current prompt gets wrong, into `found`. Returns why to stop, "" to go on."""
    for chunk in _chunks(wrong, 0):
        answers = dict(zip(chunk, ask(chunk), strict=True))
        found |= answers
        for i in chunk:
            bet.see(items[i] if answers[i] else 0.0)
        if bet.won and len(found) < len(wrong):
            return "bound"
    return "" if any(found.values()) else "no gain"


class Bet:
    """Wealth bet against "these items, each of its weight or 0, add up to at least `worth` of their whole weight"."""

    def __init__(self, items: Sequence[float], alpha: float, worth: float) -> None:
        self.owed = worth * math.fsum(items)
        self.left = len(items)
        self.top = max(items, default=0.0)
        self.wealth = [part for _, part in STAKES]
        self._goal = 1 / alpha if alpha > 0 else math.inf
        self.won = False

    def see(self, gain: float) -> None:
        """The next item of the random order; `won` when the wealth has ever reached 1 / alpha."""
        if self.won:
            return
        mean = self.owed / self.left
        if 0 < mean < self.top:
            odds = (mean - gain) / (self.top - mean)
            self.wealth = [have * max(0.0, 1 + stake * odds) for have, (stake, _) in zip(self.wealth, STAKES, strict=True)]
        elif mean >= self.top and gain < self.top - SAME:
            self.wealth = [math.inf if have else 0.0 for have in self.wealth]  # more is owed than there is: impossible
        self.owed -= gain
        self.left -= 1
        self.won = sum(self.wealth) >= self._goal


def _chunks(order: Sequence[int], before: int) -> list[Sequence[int]]:
    """The order in parts that grow with what was asked before."""
    made, start = list[Sequence[int]](), 0
    while start < len(order):
        size = max(FIRST, (before + start) // 2)
        made.append(order[start : start + size])
        start += size
    return made
