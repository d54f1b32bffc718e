# SPDX-License-Identifier: Apache-2.0
"""Patterns that could take for ever are refused, harmless ones are not, and what is let through is quick."""

import re
import time

import pytest

from osmotic.components.patterns import sound


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$", "((?:a|aa)+)$", "(?:a*)*b", "(a|a?)+$", r"(\w+\s?)*$", "(?:(?:a{1,3})b?)+", "(?=(a+)+$)a",
        "(?:x(?:y(a+)+))$", "(a+){20}", "(?:a+?)+?$", "(?P<x>.*)*", "(?:ab|.b)*$",
    ],
)  # fmt: skip
def test_what_could_take_for_ever_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="too many ways"):
        sound(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(\S+)\s*$", "(?:a++)+$", r"(?:\s++\w++)*", "(?:ab|cd)*", "(?:answer|result) is (.+)", "(?>a+)+$",
        "^instruction: (?P<instruction>.+?) response: (?P<response>.+)$", r"(?i)answer is:?\s*\(?([A-D])\b", "(a+){3}",
    ],
)  # fmt: skip
def test_what_is_let_through_is_quick(pattern: str) -> None:
    begun, made = time.process_time(), sound(pattern)
    for text in ("a" * 400 + "!", "ab" * 200 + "!", "aab cd " * 60 + "!", "answer is " * 40):
        list(made.finditer(text))
    assert time.process_time() - begun < 1.0


def test_what_is_no_pattern_is_told_as_ever() -> None:
    with pytest.raises(re.error):
        sound("(a")
