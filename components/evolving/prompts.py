# SPDX-License-Identifier: Apache-2.0
"""Prompts of private evolution: what they may show, how a text is continued, how an answer becomes a text."""

import random
import re
from collections.abc import Collection, Mapping, Sequence

from osmotic.components.metrics import parse
from osmotic.components.patterns import sound
from osmotic.components.rationale_rules import words
from osmotic.components.templates import check_slots, slots

POINTS = ".,;:?!)"  # stand at the word before them
Parents = Sequence[Mapping[str, str]]


def one_group(pattern: str) -> str:
    """Refuse a pattern that is wrong or does not have exactly one group (ValueError)."""
    try:
        groups = sound(pattern).groups
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    if groups != 1:
        raise ValueError(f"must have one group, the text (it has {groups}); write (?:...) for the others")
    return pattern


def random_problems(text: str, several: bool, known: Collection[str], key: str) -> list[str]:
    """What is wrong with a prompt that asks for a text; `several` labels must be told apart by it."""
    found = check_slots(text, {"label", *known}, key)
    if not found and several and "label" not in slots(text):
        found.append(f"{key}: it does not show the label: write {{{{ label }}}} where it belongs")
    return found


def variation_problems(text: str, known: Collection[str], key: str) -> list[str]:
    """What is wrong with a prompt that asks for a variation: it must show the text, or the start that an answer goes on."""
    found = check_slots(text, {"label", "text", "start", *known}, key)
    if not found and not {"text", "start"} & slots(text):
        found.append(f"{key}: it does not show the text: write {{{{ text }}}} or {{{{ start }}}} where it belongs")
    return found


def words_problems(lists: Mapping[str, Sequence[str]]) -> list[str]:
    """What is wrong with the lists of words that are drawn for prompts."""
    found = [f"words.{name}: there are no words" for name, several in lists.items() if not several]
    found += [f"words.{name}: no name of a slot: letters, digits and '_'" for name in lists if not name.isidentifier()]
    taken = [name for name in lists if name in ("label", "text", "start")]
    return found + [f"words.{name}: is filled in anyway; take another name" for name in taken]


def beginning(text: str, keep: tuple[float, float], rng: random.Random) -> str:
    """The first words of a text, as it is written: a share drawn between the two; never all of two words or more.

    >>> beginning("a small tent", (0.5, 0.5), random.Random(0))
    'a'
    """
    ends = [found.end() for found in re.finditer(r"\S+", text)]
    count = int(len(ends) * rng.uniform(*keep))
    return text[: ends[max(0, min(count, len(ends) - 1) - 1)]].strip() if ends else ""


def text_of(answer: str, pattern: str | None, start: str | None, least: int) -> str | None:
    """The text that an answer gives: the pattern's group, put after the start that it goes on; None below `least` words.

    >>> text_of("label: good text: a tent", r"text: (.+)", None, 1), text_of(", dry", None, "a tent", 1)
    ('a tent', 'a tent, dry')
    """
    found = answer.strip() if pattern is None else parse(pattern, answer)
    if not found:
        return None
    if start and not (len(start.split()) > 2 and found.startswith(start)):  # an answer may say the start again
        found = f"{start}{found}" if found[0] in POINTS else f"{start} {found}"
    return found if len(words(found)) >= least else None
