# SPDX-License-Identifier: Apache-2.0
"""Regular expressions of a pipeline: compiled, and refused where their time could grow beyond all bounds with a text.

A pipeline's author may be another party than the one whose texts are read: ``(a+)+$`` on 40 letters keeps a processor busy for
hours. What is refused is every repeat that can divide the same letters in several ways: one with another repeat of changing
length in it, or with alternatives that do not begin with different letters. Time that grows with a power of the length is left;
the `deadline` of a site's policy bounds that.
"""

import importlib
import re
from collections.abc import Iterator
from typing import Any

_MANY = 12  # times: 2 ** 12 ways are soon tried
_REPEATS = ("MAX_REPEAT", "MIN_REPEAT")  # possessive ones and atomic groups never go back
_WHY = "the same letters could be divided in too many ways"


def sound(pattern: str) -> re.Pattern[str]:
    """The compiled pattern; re.error when it is none, ValueError when matching could take for ever."""
    made = re.compile(pattern)
    parser: Any = importlib.import_module("re._parser")  # the one that `re` itself uses; it has no public name
    for body in _repeated(parser.parse(pattern)):
        if any(name in _REPEATS and value[0] != value[1] for name, value in _nodes(body)):
            fix = "make the inner one possessive (a++, a*+), or take one away"
            raise ValueError(f"a repeat inside a repeat may take for ever, for {_WHY}: {fix}")
        if any(name == "BRANCH" and not _apart(value[1]) for name, value in _nodes(body)):
            raise ValueError(f"alternatives inside a repeat must begin with different letters: else {_WHY}")
    return made


def _nodes(tree: Any) -> Iterator[tuple[str, Any]]:
    """Name and value of every part of a parsed pattern, but not of what never goes back once it has matched."""
    for operator, value in tree:
        yield str(operator), value
        if str(operator) not in ("ATOMIC_GROUP", "POSSESSIVE_REPEAT"):
            for inner in _inside(value):
                yield from _nodes(inner)


def _inside(value: Any) -> Iterator[Any]:
    """Parsed patterns in the value of a part."""
    if hasattr(value, "data") and hasattr(value, "state"):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _inside(one)


def _repeated(tree: Any) -> Iterator[Any]:
    """What stands in repeats of many times, wherever they are."""
    for operator, value in tree:
        if str(operator) in _REPEATS and int(value[1]) > _MANY:
            yield value[2]
        for inner in _inside(value):
            yield from _repeated(inner)


def _apart(branches: Any) -> bool:
    """Whether alternatives begin with letters that differ, whatever their case."""
    first = [branch[0] if len(branch) else None for branch in branches]
    letters = [chr(one[1]).lower() if one is not None and str(one[0]) == "LITERAL" else "" for one in first]
    return "" not in letters and len(set(letters)) == len(letters)
