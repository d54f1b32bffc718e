# SPDX-License-Identifier: Apache-2.0
"""A record's one vote, by either rule, and what is read off the counts."""

import random

import numpy as np
import pytest

from osmotic.components.prompting.votes import ABSTAIN, meanings, scores, size, vote


@pytest.mark.parametrize("rule", ["changes", "right"])
@pytest.mark.parametrize("many", [1, 2, 5])
def test_every_record_has_exactly_one_vote_that_has_a_meaning(rule: str, many: int) -> None:
    rng = random.Random(1)
    for _ in range(300):
        right = [rng.random() < 0.5 for _ in range(many)]
        found = vote(rule, right, rng)
        assert 0 <= found < size(rule, many) == len(meanings(rule, many))
        kind, _, number = meanings(rule, many)[found].partition(" ")
        if kind == "abstain":
            assert len(set(right)) == 1 if rule == "changes" else not any(right)
        elif kind == "gain":
            assert right[int(number)] and not right[0]
        elif kind == "loss":
            assert right[0] and not right[int(number)]
        else:
            assert right[int(number)]
    assert len(scores(rule, [0.0] * size(rule, many), many)) == many


def test_agreement_abstains_and_does_not_dilute_what_decides() -> None:
    """1,000 records, 9 candidates; one is right on 60 more. All other records are answered right by all. Over 200 draws the
    score by `changes` is 60 every time; by `right` it is 7 in the mean, and spreads more than that."""
    records = [[True] * 9] * 940 + [[False] * 8 + [True]] * 60
    found: dict[str, list[float]] = {"changes": [], "right": []}
    for rule, seen in found.items():
        for seed in range(200):
            rng = random.Random(seed)
            counts = np.bincount([vote(rule, right, rng) for right in records], minlength=size(rule, 9))
            seen.append(scores(rule, counts.tolist(), 9)[8])
    assert set(found["changes"]) == {60.0}
    assert np.mean(found["right"]) == pytest.approx(60, abs=4)
    assert np.std(found["right"]) > 12


def test_a_candidate_that_breaks_more_than_it_mends_has_a_score_below_zero() -> None:
    records = [[True, False]] * 10 + [[False, True]] * 3 + [[True, True]] * 50 + [[False, False]] * 5
    counts = np.bincount([vote("changes", right, random.Random(0)) for right in records], minlength=3)
    assert counts.tolist() == [55, 3, 10] and scores("changes", counts.tolist(), 2) == [0.0, -7.0]


def test_who_abstains_is_counted_first() -> None:
    assert ABSTAIN == 0 == meanings("changes", 3).index("abstain") == meanings("right", 3).index("abstain")
