# SPDX-License-Identifier: Apache-2.0
"""Where a prompt is changed next, and to what (FedDTPT, arXiv 2411.00985): a bandit over positions, credit for words.

A position's worth is its mean change of the score, with sqrt(ln(t + 1) / (n + 1)) for those that were seldom tried. At a
position, the candidate of the largest logp / tau + lambda * credit is tried. Credit is what a word at a position changed, on
average, when it came; the word that went gets the opposite, so that one that was missed comes back (the paper leaves this
open). A word is tried once at a position, until a better prompt makes it worth another look.
"""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

Candidate = tuple[str, float]  # a word, its log-probability
Place = tuple[int, str]


@dataclass
class Mean:
    """A running mean of `count` numbers."""

    count: int = 0
    value: float = 0.0

    def add(self, number: float) -> None:
        """One number more."""
        self.count += 1
        self.value += (number - self.value) / self.count


@dataclass
class Search:
    """What was learned so far. c: of the bandit; credit_weight: lambda; tau: temperature of the log-probabilities."""

    rng: random.Random
    c: float = 0.1
    credit_weight: float = 5.0
    tau: float = 1.0
    steps: int = 0
    positions: dict[int, Mean] = field(default_factory=dict)
    credits: dict[Place, Mean] = field(default_factory=dict)
    tried: set[Place] = field(default_factory=set)

    def bound(self, position: int) -> float:
        """Mean change at a position plus what is allowed for not knowing better."""
        seen = self.positions.get(position, Mean())
        return seen.value + self.c * math.sqrt(math.log(self.steps + 1) / (seen.count + 1))

    def position(self, among: Sequence[int]) -> int:
        """The position of the largest bound; of equal ones, chance takes one."""
        bounds = [self.bound(position) for position in among]
        best = max(bounds)
        return self.rng.choice([position for position, bound in zip(among, bounds, strict=True) if bound == best])

    def credit(self, position: int, word: str) -> float:
        """What a word at a position changed, on average; 0 where it never stood."""
        found = self.credits.get((position, word))
        return found.value if found else 0.0

    def choice(self, position: int, current: str, candidates: Iterable[Candidate]) -> Candidate | None:
        """The candidate to try; None where all are tried, or are what stands there."""
        best: tuple[float, Candidate] | None = None
        for word, logp in candidates:
            if word.casefold() == current.casefold() or (position, word) in self.tried:
                continue
            worth = logp / self.tau + self.credit_weight * self.credit(position, word)
            if best is None or worth > best[0]:
                best = worth, (word, logp)
        return None if best is None else best[1]

    def learn(self, position: int, before: str, word: str, change: float, better: bool) -> None:
        """A word came in the place of another, and the score changed. better: the prompt is new; all may be tried again."""
        self.steps += 1
        self.positions.setdefault(position, Mean()).add(change)
        self.credits.setdefault((position, word), Mean()).add(change)
        self.credits.setdefault((position, before), Mean()).add(-change)
        if better:
            self.tried.clear()
        self.tried |= {(position, word), (position, before)}
