# SPDX-License-Identifier: Apache-2.0
"""A judge's choice: after the marker, alone or as JSON; counts in prose are none; nothing out of range."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmotic.plugins.labelled.ids import NO_CHOICE, Chosen, choice

M = "The eligible samples:"


@pytest.mark.parametrize(
    ("answer", "ids"),
    [
        (f"{M}\n\n0 2 2 9", {0, 2}),
        (f"{M} none", set()),
        ("none", set()),
        ("None.", set()),
        (f"{M}\nNo samples.", set()),
        (f"{M} []", set()),
        (f"{M} 0, 2 and 3.", {0, 2, 3}),
        (f"{M} [0, 1]", {0, 1}),
        (f"{M} 0-2", {0, 1, 2}),
        (f"**{M}**\n\n1 3", {1, 3}),
        (f"{M}\n- 0\n- 2", {0, 2}),
        (f"{M}\n0. It is good\n2. On topic: 5 stars\n\nThe others...", {0, 2}),
        (f"{M} 0 2 because 3 is an ad", {0, 2}),
        (f"{M}\n0\n2\n\nThese 2 samples are fine", {0, 2}),
        (f"{M} #0, #2", {0, 2}),
        (f"{M} Sample 0, Sample 3", {0, 3}),
        ("THE ELIGIBLE SAMPLES ARE: 1", {1}),
        (f"Answer with '{M}' and numbers, I read. So:\n{M} 3", {3}),
        (f"{M} 1 (it is the best)", {1}),
        ("0 2", {0, 2}),
        ('{"eligible": [0, 3, 3, 7]}', {0, 3}),
        ('Here:\n```json\n{"eligible": []}\n```', set()),
        ('{"a": 1} {"eligible": ["1"]}', {1}),
    ],
)
def test_choices(answer, ids):
    found = choice(answer, 4)
    assert found is not None and found.ids == ids
    assert (found.warning == NO_CHOICE) == (not ids)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I think 3 samples are eligible.",
        "3 samples are eligible",
        "All of them.",
        f"{M} 2 of them are fine",
        f"{M} 2 samples",
        M,
        f"{M} 9",
        f"{M} 0.2",
        f"{M} see above",
        f"{M} 2 are fine",
        "The best is 2",
        "9" * 5000,
        '{"eligible": "0"}',
        '{"eligible": [0.5]}',
        '{"eligible": [true]}',
        '{"eligible": [',
        "{" * 2000,
        "[0, 1"[:1],
    ],
)
def test_what_does_not_say(answer):
    assert choice(answer, 4) is None


def test_ten_and_more_are_numbers_of_their_own():
    assert choice(f"{M} 10 1 11", 12).ids == {1, 10, 11}
    assert choice(f"{M} 10 1", 10).ids == {1} and "1 numbers out of range" in choice(f"{M} 10 1", 10).warning


def test_half_a_number_is_not_read():
    assert choice(f"{M} 0 1", 12, finished=False) is None
    assert choice(f"{M} 0 1\n\nThe others are", 12, finished=False).ids == {0, 1}


@given(st.text(max_size=100), st.integers(0, 5))
def test_never_a_fault_never_out_of_range(answer, count):
    for text in (answer, f"{M} {answer}"):
        found = choice(text, count)
        assert found is None or all(0 <= i < count for i in found.ids)


@given(st.sets(st.integers(0, 30), min_size=1), st.sampled_from([" ", ", ", "\n", "; ", ",", " and "]))
def test_every_list_comes_back(ids, between):
    assert choice(f"{M}\n\n{between.join(map(str, sorted(ids)))}", 31).ids == ids


def test_of_several_objects_the_last_counts():
    assert choice('<think>{"eligible": [0, 1]}? no.</think>{"eligible": [1]}', 3) == Chosen(frozenset({1}))
    assert choice('{"draft": {"eligible": [0]}} then {"eligible": [2], "why": {"eligible": [0]}}', 3) == Chosen(frozenset({2}))
    assert choice('{"eligible": [0]} {"eligible": [NaN]}', 3) is None
