# SPDX-License-Identifier: Apache-2.0
"""ROUGE-L strictly above a threshold: the same as the plain computation over all pairs, without computing most of them."""

import random
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osmotic.components.instructing.nearness import Known, Nearness, common
from osmotic.components.metrics import rouge_l, tokens

WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "tea"]), max_size=14).map(" ".join)
THRESHOLDS = st.sampled_from([0.05, 0.3, 0.5, 0.7, 0.95, 1.0])


def table(left: list[str], right: list[str]) -> int:
    """The textbook's table."""
    rows = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, j in product(range(len(left)), range(len(right))):
        same = left[i] == right[j]
        rows[i + 1][j + 1] = rows[i][j] + 1 if same else max(rows[i][j + 1], rows[i + 1][j])
    return rows[-1][-1]


@settings(max_examples=50)
@given(WORDS, WORDS)
def test_the_common_subsequence_is_that_of_the_table(left: str, right: str) -> None:
    one, other = left.split(), right.split()
    assert common(one, other) == table(one, other) == common(other, one)
    if one or other:
        assert rouge_l([left], [right])[0] == pytest.approx(2 * common(one, other) / (len(one) + len(other)), abs=1e-12)


@settings(max_examples=120)
@given(st.lists(WORDS, max_size=12), WORDS, THRESHOLDS)
def test_near_is_what_all_pairs_say(known: list[str], text: str, threshold: float) -> None:
    index = Nearness(known, threshold)
    mine = text.split()
    exact = [Fraction(2 * table(one.split(), mine), len(one.split()) + len(mine) or 1) for one in known]
    assert index.near(text) == any(score > Fraction(str(threshold)) for score in exact)


def pair(same: int, left: int, right: int) -> tuple[str, str]:
    """Two texts of so many words, so many of them the same."""
    first = [f"s{i}" for i in range(same)] + [f"l{i}" for i in range(left - same)]
    return " ".join(first), " ".join([f"s{i}" for i in range(same)] + [f"r{i}" for i in range(right - same)])


@pytest.mark.parametrize("left", range(7, 14))
def test_just_seven_tenths_is_not_near_whatever_the_lengths(left: int) -> None:
    for same, total in ((7, 20), (14, 40)):  # 2 * 7 / 20: what floats make of it depends on the lengths
        one, other = pair(same, left * total // 20, total - left * total // 20)
        assert rouge_l([one], [other])[0] == pytest.approx(0.7)
        assert not Nearness([one], 0.7).near(other)
        assert Nearness([one], 0.699).near(other)
    closer, other = pair(71, 100, 100)
    assert Nearness([closer], 0.7).near(other) and not Nearness([closer], 0.71).near(other)


def test_words_are_those_of_the_metric() -> None:
    known = Nearness(["Boil 2 cups of TEA, please: now!"], 0.7)
    assert known.near("boil 2 cups of tea please now") and known.near("Boil\n2 cups (of) tea; please now")
    assert not known.near("") and not known.near("!!!") and not Nearness(["", "..."], 0.7).near("")
    chinese = Nearness(["今天天气很好我们去公园"], 0.7)
    assert chinese.near("今天天气很好我们去学校") and tokens("很好") == ["很", "好"]


def test_thousands_of_texts_are_compared_with_a_handful() -> None:
    rng = random.Random(3)
    words = [f"w{i}" for i in range(2000)] + ["the", "of", "a"] * 100
    known = [" ".join(rng.choices(words, k=rng.randint(5, 40))) for _ in range(4000)]
    asked = [" ".join(rng.choices(words, k=rng.randint(5, 40))) for _ in range(100)]
    asked += [text.replace(" the ", " ") for text in known[:20]]
    index = Nearness(known, 0.7)
    found = [index.near(text) for text in asked]
    assert found == [False] * 100 + [True] * 20
    assert 20 <= index.compared <= 40  # of 480,000 pairs


def test_a_short_text_within_a_long_one_is_found_by_its_run_only() -> None:
    secret = "my locker number is four two seven"
    text = f"please write a polite letter to the caretaker of the building and say that {secret} and ask for a spare key"
    assert not Known([secret], 0.7).has(text)
    assert Known([secret], 0.7, longest_run=6).has(text)
    assert not Known([secret], 0.7, longest_run=7).has(text)  # seven words in a row are allowed then
    assert Known([secret], 0.7).has(secret.upper()) and not Known([], 0.7, 1).has(secret)
