# SPDX-License-Identifier: Apache-2.0
"""The bandit's numbers by hand; comparisons that stop early: what they never lose, and how seldom they lose the rest."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osmotic.components.prompting.racing import SAME, Bet, race, score, weights, whole
from osmotic.components.prompting.search import Search


def test_bandit_and_credit_by_hand():
    search = Search(random.Random(0), c=0.1, credit_weight=5.0, tau=2.0)
    search.learn(0, "old", "new", 0.25, True)
    search.learn(0, "new", "odd", -0.05, False)
    search.learn(1, "it", "that", 0.0, False)
    assert math.isclose(search.bound(0), 0.1 + 0.1 * math.sqrt(math.log(4) / 3))
    assert math.isclose(search.bound(1), 0.1 * math.sqrt(math.log(4) / 2))
    assert math.isclose(search.bound(2), 0.1 * math.sqrt(math.log(4)))
    assert search.position([0, 1, 2]) == 0
    # "new" at 0 gained .25 when it came, and .05 was lost when it went: .15 on average
    assert math.isclose(search.credit(0, "new"), 0.15) and math.isclose(search.credit(0, "old"), -0.25)
    search.tried.clear()
    fresh, worn = -1.0, -0.5  # logp / 2 + 5 * credit: -.5 against -.25 - 1.25
    assert search.choice(0, "odd", [("old", worn), ("fresh", fresh)]) == ("fresh", fresh)
    assert search.choice(0, "odd", [("fresh", fresh), ("new", -2.0)]) == ("new", -2.0)  # -1 + .75


def test_what_was_tried_is_not_tried_again_until_a_prompt_is_better():
    search = Search(random.Random(0))
    search.learn(0, "a", "b", 0.0, False)
    assert search.choice(0, "c", [("a", -1.0), ("b", -1.0), ("C", -1.0)]) is None
    assert search.choice(1, "c", [("a", -1.0)]) == ("a", -1.0)
    search.learn(1, "x", "y", 0.5, True)
    assert search.choice(0, "c", [("b", -1.0)]) == ("b", -1.0)
    assert search.choice(1, "y", [("x", -1.0)]) is None  # what was just replaced by a better one


def test_ties_between_positions_are_drawn():
    drawn = {Search(random.Random(seed)).position([3, 5, 8]) for seed in range(30)}
    assert drawn == {3, 5, 8}


def test_scores_by_hand():
    items = weights(["a", "a", "b", "b"], own=2, rho=0.5, by_class=False)
    assert items == [1 / 3, 1 / 3, 1 / 6, 1 / 6]
    assert math.isclose(score(items, [True, False, True, False]), (1 + 0.5 * 1) / (2 + 0.5 * 2))
    skewed = weights(["a"] * 9 + ["b"], own=10, rho=1.0, by_class=True)
    assert math.isclose(score(skewed, [True] * 9 + [False]), 0.5)


OUTCOMES = st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from([1.0, 0.5])), min_size=1, max_size=40)


@given(OUTCOMES, st.integers(0, 5))
@settings(max_examples=300, deadline=None)
def test_exact_stops_never_lose_a_better_prompt(rows, seed):
    items, current, new = [w for *_, w in rows], [one for one, *_ in rows], [two for _, two, _ in rows]
    items = [w / sum(items) for w in items]
    asked: list[int] = []

    def ask(chosen):
        asked.extend(chosen)
        return [new[i] for i in chosen]

    plain, fast = whole(lambda all_: list(new), items, current), race(ask, items, current, random.Random(seed), 0.0, 0.2)
    assert len(asked) == len(set(asked)) == fast.asked
    if plain.change > SAME:
        assert fast.right == new and math.isclose(fast.change, plain.change, abs_tol=1e-9)
    else:
        assert fast.right in (None, new) and fast.change <= SAME
    if not any(new[i] and not current[i] for i in range(len(new))):
        assert fast.asked == sum(not one for one in current)  # nothing gained: only what was wrong was asked


@pytest.mark.parametrize("worth", [0.2, 0.5])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_bound_loses_what_is_worth_it_with_chance_alpha_at_most(worth, mixed):
    """20 or 30 items; gains of exactly `worth`; 4,000 orders: a chance of .12 instead of .1 would be seen (4 sigma)."""
    rng, size, lost = random.Random(7), 20, 0
    items = [1.0] * size + ([0.5] * 10 if mixed else [])
    gaining = int(worth * size)
    gains = (
        [1.0] * gaining + [0.0] * (size - gaining) + ([0.5] * int(worth * 10) + [0.0] * (10 - int(worth * 10)) if mixed else [])
    )
    for _ in range(4000):
        bet = Bet(items, 0.1, worth)
        order = rng.sample(gains, len(gains))
        for gain in order:
            bet.see(gain)
        lost += bet.won
    assert lost / 4000 <= 0.1 + 3 * math.sqrt(0.09 / 4000)


def test_the_bound_stops_what_gains_nothing_early():
    current = [False] * 40
    outcome = race(lambda chosen: [False] * len(chosen), [1 / 40] * 40, current, random.Random(0), 0.1, 0.2)
    assert outcome.why == "bound" and outcome.right is None and outcome.asked <= 16
    exact = race(lambda chosen: [False] * len(chosen), [1 / 40] * 40, current, random.Random(0), 0.0, 0.2)
    assert exact.why == "no gain" and exact.asked == 40


def test_equal_as_far_as_it_was_seen():
    current = [False] * 8 + [True] * 16

    def asked(new, ties):
        return race(lambda chosen: [new[i] for i in chosen], [1 / 24] * 24, current, random.Random(0), 0.0, 0.2, ties)

    same = asked(current, True)
    assert same.equal and same.right is None and same.asked == 8 + 4 and same.change == 0  # a quarter of what is right
    assert not asked(current, False).equal and asked(current, False).asked == 8
    worse = asked([False] * 24, True)
    assert not worse.equal and math.isclose(worse.change, -4 / 24)
    better = asked([True] * 24, True)
    assert better.right == [True] * 24 and not better.equal
    swapped = asked([True] * 8 + [False] * 16, True)
    assert swapped.why == "losses" and 8 + 8 <= swapped.asked < 24 and swapped.change <= 0


def test_a_bet_is_won_when_more_is_owed_than_there_is():
    bet = Bet([1.0, 1.0], 0.1, 1.0)
    bet.see(1.0)
    assert not bet.won
    bet.see(0.0)
    assert bet.won
    bet.see(0.0)  # nothing more can happen
    assert bet.won
