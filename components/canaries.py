# SPDX-License-Identifier: Apache-2.0
"""Canaries: made-up records whose beginnings are like other records' and whose ends no model can guess (Carlini et al. 2019).

A pattern gives some fields a text: `{{ NAME }}` takes a word of a public list, `{{ suffix }}` so many words drawn at random,
which differ from canary to canary; the other fields are those of a random record. So what a model says to a canary beyond its
controls, made by the same pattern and planted nowhere, it remembers.
"""

import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from osmotic.components.templates import Template, check_slots, compile_template, slots

SUFFIX = "suffix"
DIGITS = tuple("0123456789")
SPACE = 100  # suffixes that there must be, a canary or control: else it could be guessed
Row = dict[str, Any]


@dataclass(frozen=True)
class Pattern:
    """fields: field -> template. words: slot -> public words. A suffix has `length` of `suffix_words`, with blanks between."""

    fields: Mapping[str, str]
    words: Mapping[str, Sequence[str]]
    suffix_words: Sequence[str] = DIGITS
    length: int = 6

    def problems(self, count: int) -> list[str]:
        """What no data set could make right; count: canaries and controls that are to differ."""
        found = [
            text for name, one in self.fields.items() for text in check_slots(one, [*self.words, SUFFIX], f"fields.{name}")
        ]
        if found:
            return found
        used = set[str]().union(*(slots(text) for text in self.fields.values()))
        if SUFFIX not in used:
            found.append("fields: none has the slot 'suffix', so all canaries of the same words would be alike")
        found += [f"words.{name}: no field has this slot" for name in sorted(set(self.words) - used)]
        lists = {**{f"words.{name}": words for name, words in self.words.items()}, "suffix_words": self.suffix_words}
        found += [f"{key}: has no words" for key, words in lists.items() if not words]
        found += [f"{key}: a word stands twice" for key, words in lists.items() if len(set(words)) < len(words)]
        if SUFFIX in self.words:
            found.append("words.suffix: the name is taken: it stands for the random end")
        if len(set(self.suffix_words)) ** self.length < SPACE * count:
            found.append(
                f"suffix_words: {self.length} of them make too few suffixes for {count}: give more, or a longer suffix"
            )
        return found

    def made(self, rows: Sequence[Row], count: int, rng: random.Random) -> Iterator[Row]:
        """`count` rows whose suffixes differ; the other fields (and the id) are those of random `rows`, not empty."""
        templates = {name: compile_template(text, f"fields.{name}") for name, text in self.fields.items()}
        for suffix in self._suffixes(count, rng):
            row, drawn = rng.choice(rows), {name: rng.choice(list(words)) for name, words in self.words.items()}
            yield {**row, **_rendered(templates, {**drawn, SUFFIX: suffix})}

    def _suffixes(self, count: int, rng: random.Random) -> list[str]:
        base, size = list(self.suffix_words), len(self.suffix_words) ** self.length
        numbers = rng.sample(range(size), count) if size <= sys.maxsize else _distinct(size, count, rng)
        return [
            " ".join(base[number // len(base) ** place % len(base)] for place in range(self.length - 1, -1, -1))
            for number in numbers
        ]


def _rendered(templates: Mapping[str, Template], slots_: Mapping[str, str]) -> dict[str, str]:
    return {name: template.render(slots_) for name, template in templates.items()}


def _distinct(size: int, count: int, rng: random.Random) -> list[int]:
    """Different numbers below a size that is too large for `random.sample`."""
    found = dict[int, None]()
    while len(found) < count:
        found[rng.randrange(size)] = None
    return list(found)
