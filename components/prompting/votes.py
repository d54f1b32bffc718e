# SPDX-License-Identifier: Apache-2.0
"""What a record says about candidate prompts when it has one vote, and how counts of such votes are read.

A record is charged for one vote, however many candidates there are, so the vote should carry what decides: where a candidate
differs from the current prompt (number 0). Candidates of one round are edits of one prompt and agree on most records.

right: the vote goes to one of the candidates that answer right, by chance. A record on which n candidates are right tells 1/n
of a vote about each of them; one on which all are right tells nothing, but adds the spread of its choice to every count.
changes (default): a record on which no candidate differs from the current prompt in being right abstains. Any other gives its
whole vote to one of those that differ: a gain where the current prompt is wrong, a loss where it is right. The score of a
candidate, gains less losses, is in expectation what changing to it does to records (each counted once, shared among the
candidates that it speaks for), its noise is that of two counts as with `right`, and agreement adds none. Losses have counts of
their own because a vote can only be given: without them a candidate that breaks ten records and mends three would be chosen.
"""

import random
from collections.abc import Sequence
from typing import Literal

__all__ = ["ABSTAIN", "Rule", "meanings", "scores", "size", "vote"]
Rule = Literal["changes", "right"]
ABSTAIN = 0  # the count of records that have nothing to say


def size(rule: Rule, candidates: int) -> int:
    """How many counts there are: of those who abstain, then of each candidate (right), or of each candidate but the current
    one its gains, then its losses (changes).

    >>> size("right", 3), size("changes", 3)
    (4, 5)
    """
    return candidates + 1 if rule == "right" else 2 * candidates - 1


def vote(rule: Rule, right: Sequence[bool], rng: random.Random) -> int:
    """The number of the count that a record adds one to. right: whether each candidate answers it right, the current one first.

    rng: of this record alone.
    """
    if rule == "right":
        among = [number for number, is_right in enumerate(right) if is_right]
        return 1 + rng.choice(among) if among else ABSTAIN
    others = [number for number, is_right in enumerate(right) if is_right != right[0]]
    if not others:
        return ABSTAIN
    return rng.choice(others) + (len(right) - 1 if right[0] else 0)


def scores(rule: Rule, counts: Sequence[float], candidates: int) -> list[float]:
    """By how much each candidate is better than the current one, in votes; 0 for that one.

    >>> scores("changes", [50.0, 7.0, 1.0, 2.0, 3.0], 3)
    [0.0, 5.0, -2.0]
    """
    if rule == "right":
        return [counts[1 + number] - counts[1] for number in range(candidates)]
    losses = candidates - 1
    return [0.0, *(counts[number] - counts[losses + number] for number in range(1, candidates))]


def meanings(rule: Rule, candidates: int) -> list[str]:
    """What each count is of, for a report: ``abstain``, ``right 0``, ``gain 1``, ``loss 1``."""
    if rule == "right":
        return ["abstain", *(f"right {number}" for number in range(candidates))]
    numbers = range(1, candidates)
    return ["abstain", *(f"gain {number}" for number in numbers), *(f"loss {number}" for number in numbers)]
