# SPDX-License-Identifier: Apache-2.0
"""Near copies: what the index finds is what comparing all pairs finds; one word of thirteen; letters in two encodings."""

import random

import pytest

from osmotic.components.near_duplicates import grams
from osmotic.components.teaching.copies import Texts


def alike(left: str, right: str) -> float:
    one, two = grams(left, 2), grams(right, 2)
    return len(one & two) / len(one | two)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 1.0])
def test_the_index_finds_what_comparing_all_finds(threshold: float):
    rng = random.Random(3)
    given = [" ".join(rng.choices("abcd", k=rng.randint(1, 7))) for _ in range(300)]
    known, later = given[:40], given[40:]
    texts, there = Texts(known, threshold), list(known)
    found = 0
    for text in later:
        near = any(alike(text, other) >= threshold - 1e-9 for other in there)
        assert texts.near(text) is near
        found += near
        if not near:
            texts.add(text)
            there.append(text)
    assert 20 < found < 260


@pytest.mark.parametrize(("words", "found"), [(13, True), (12, False)])
def test_one_word_that_differs_is_found_from_thirteen_words_on(words: int, found: bool):
    text = [f"w{i}" for i in range(words)]
    other = [*text[:6], "new", *text[7:]]
    assert Texts([" ".join(text)], 0.7).near(" ".join(other)) is found


def test_blanks_case_and_encodings_do_not_tell_texts_apart():
    texts = Texts(["Un caf\u00e9 noir"], 0.7)
    assert texts.has("un  cafe\u0301\nNOIR") and not texts.has("un cafe noir") and not texts.near("")
    assert not Texts([""], 0.7).near("") and not Texts(["..."], 0.7).near("!!")
