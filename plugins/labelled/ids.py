# SPDX-License-Identifier: Apache-2.0
"""What a judge chose among numbered samples: a set of numbers, read from prose after a marker, a bare list, or JSON.

Numbers in prose are counts as often as choices ("I think 3 samples are fine"), so only those count that stand where a choice
stands: after the marker ``The eligible samples:``, alone, or in the JSON list ``eligible``.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from osmotic.plugins.labelled.structured import objects

MARKER = "The eligible samples:"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"eligible": {"type": "array", "items": {"type": "integer", "minimum": 0}}},
    "required": ["eligible"],
    "additionalProperties": False,
}
_MARKER = re.compile(r"eligible\s+(?:samples?|texts?|indexes|indices|ids|items)\b[^:\n0-9]{0,40}:", re.IGNORECASE)
_NUMBER = re.compile(r"\(?([0-9]{1,6})(?:[-\u2013]([0-9]{1,6}))?\)?([.:)]?)")
_NONE = re.compile(r"\W*(?:none|no\s+(?:eligible\s+)?(?:samples?|texts?|items?)|nothing)\b|\W*\[\s*\]", re.IGNORECASE)
_LINKS = frozenset({"and", "&", "sample", "text", "item", "index", "id", "-", "\u2022"})
_COUNTED = frozenset({"of", "out", "samples", "texts", "items", "reviews", "indexes"})
NO_CHOICE = "none of the samples is eligible"


@dataclass(frozen=True)
class Chosen:
    """Numbers of the eligible samples. warning: what is odd about the answer; "" for nothing."""

    ids: frozenset[int]
    warning: str = ""


def choice(answer: str, count: int, finished: bool = True) -> Chosen | None:
    """The samples, of `count` numbered from 0, that an answer chooses; None where it does not say.

    Numbers twice count once, those out of range not at all; only such is no answer. finished: false where the length limit
    ended the answer: then a number that stands at its very end may be half of one, and nothing is read.

    >>> sorted(choice("The eligible samples:\\n\\n0 2 2 9", 4).ids)
    [0, 2]
    >>> choice("I think 3 samples are eligible.", 4) is None
    True
    """
    listed = _from_json(answer)
    if listed is not None:
        return _within(listed, count)
    marks = list(_MARKER.finditer(answer))
    for mark in reversed(marks):
        found = _after(answer[mark.end() :], finished)
        if found is not None:
            return _within(found, count)
    if marks:
        return None
    if answer.strip() and (_NONE.fullmatch(answer.strip().rstrip(".!*`")) or _only(answer)):
        found = _after(answer, finished)
        return None if found is None else _within(found, count)
    return None


def _within(found: list[int], count: int) -> Chosen | None:
    ids = frozenset(i for i in found if 0 <= i < count)
    if not found:
        return Chosen(ids, NO_CHOICE)
    outside = len({i for i in found if i not in ids})
    return Chosen(ids, f"{outside} numbers out of range" if outside else "") if ids else None


def _from_json(answer: str) -> list[int] | None:
    """The list `eligible` of the last JSON object that has one: what was thought of before it does not count."""
    lists = [value["eligible"] for value, _, _ in objects(answer, lambda value: isinstance(value.get("eligible"), list))]
    if not lists:
        return None
    found = lists[-1]
    numbers = [int(v) for v in found if type(v) is int or (isinstance(v, str) and re.fullmatch("[0-9]{1,6}", v))]
    return numbers if len(numbers) == len(found) else None


def _only(answer: str) -> bool:
    """Whether an answer is a list of numbers and nothing else."""
    return re.fullmatch(r"[\s0-9,;.#()\[\]*`-]*[0-9][\s0-9,;.#()\[\]*`-]*", answer) is not None


def _after(text: str, finished: bool) -> list[int] | None:
    """The numbers at the beginning of a text; [] for none, None where it does not say."""
    lines = [line for line in text.splitlines() if line.strip(" \t*`")]
    if not lines:
        return None
    if _NONE.match(lines[0]):
        return []
    if not finished and re.search(r"[0-9]\s*$", text) and all(_line(line) is not None for line in lines):
        return None
    found: list[int] = []
    for line in lines:
        numbers = _line(line)
        if numbers is None:
            break
        found += numbers
    return found or None


def _line(line: str) -> list[int] | None:
    """The numbers that a line chooses: all of a list of numbers, the first of "2. It is on the topic"; None for prose."""
    words = [word for word in re.split(r"[\s,;]+", re.sub(r"[*`\[\]#\"']", " ", line)) if word]
    matches: list[re.Match[str]] = []
    rest = ""
    for word in words:
        found = _NUMBER.fullmatch(word)
        if found is not None:
            matches.append(found)
        elif word.casefold() not in _LINKS:
            rest = word.casefold()
            break
    if not matches or rest.strip(".:!)") in _COUNTED:
        return None
    if rest and matches[0][3]:  # an item of a list: a number, a mark, words about it
        return list(_numbers(matches[:1]))
    if rest and len(matches) == 1 and not rest.startswith(("(", "-", "\u2013", ":")):
        return None  # "2 are fine": a count or a choice
    return list(_numbers(matches))


def _numbers(matches: list[re.Match[str]]) -> Iterator[int]:
    """Every number, "1-3" as 1, 2, 3."""
    for first, last, _ in (match.groups() for match in matches):
        if last and 0 <= int(last) - int(first) <= 1000:
            yield from range(int(first), int(last) + 1)
        else:
            yield from (int(n) for n in (first, last) if n)
