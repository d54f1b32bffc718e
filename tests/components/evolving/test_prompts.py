# SPDX-License-Identifier: Apache-2.0
"""Prompts of private evolution: checked before anything is loaded, starts of texts, texts out of answers."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmotic.components.candidate_evolver import CandidateEvolver, CandidateEvolverConfig
from osmotic.components.evolving.prompts import beginning, text_of

BASE: dict[str, Any] = {
    "labels": ["up", "down"], "model": "m", "random_prompt": "write {{ label }}", "variation_prompt": "vary {{ text }}",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"variation_prompt": "again, {{ label }}"}, "does not show the text"),
        ({"variation_prompt": "again, {{ txt }}"}, "unknown slot 'txt'"),
        ({"variation_prompt": None}, "variation_prompt: needed"),
        ({"model": None}, "model: needed"),
        ({"random_prompt": "write"}, "does not show the label"),
        ({"words": {"text": ["a"]}}, "take another name"),
        ({"words": {"topic": []}}, "there are no words"),
        ({"labels": ["up", "up"]}, "stands twice"),
        ({"labels": ["up", " "]}, "is empty"),
        ({"keep": [0.9, 0.1]}, "the smaller first"),
        ({"words": {"a b": ["x"]}}, "no name of a slot"),
        ({"labels": ["up", " up"]}, "stands twice"),
    ],
)
def test_prompts_are_checked_before_anything_is_loaded(changed: dict[str, Any], said: str):
    found = CandidateEvolver.check(CandidateEvolverConfig.model_validate({**BASE, **changed}), None)
    assert any(said in text for text in found)
    assert not CandidateEvolver.check(CandidateEvolverConfig.model_validate(BASE), None)


@pytest.mark.parametrize("pattern", ["(", "no group", "(two) (groups)"])
def test_a_pattern_has_one_group(pattern: str):
    with pytest.raises(ValueError, match="answer_pattern"):
        CandidateEvolverConfig.model_validate({**BASE, "answer_pattern": pattern})


@given(st.lists(st.sampled_from(["a", "bb", "c,", "d\n"]), max_size=12).map(" ".join), st.integers(0, 99))
def test_a_beginning_is_some_of_the_words_and_never_all_of_two(text: str, seed: int):
    found = beginning(text, (0.0, 1.0), random.Random(seed))
    count = len(found.split())
    assert text.strip().startswith(found)
    assert count >= 1 if text.split() else count == 0
    assert count < len(text.split()) or len(text.split()) <= 1


def test_an_answer_becomes_a_text_or_nothing():
    assert text_of("a text: b\ntext: c d", r"text: (.+)", None, 2) == "c d"
    assert text_of("no colon", r"text: (.+)", None, 1) is None
    assert text_of("  ", None, "the start", 1) is None  # nothing was added
    assert text_of("and on", None, "the start", 5) is None
    assert text_of(": on", None, "the start", 3) == "the start: on"
    assert text_of("the start of it and on", None, "the start of it", 3) == "the start of it and on"  # said again
    assert text_of("very dry", None, "very", 3) == "very very dry"
