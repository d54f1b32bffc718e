# SPDX-License-Identifier: Apache-2.0
"""Whether a text is nearly one that was there before: Jaccard similarity of sets of pairs of words, exact.

Pairs, not the triples of `near_duplicates`: what is compared has one or two sentences, and one word that is replaced changes
two pairs (0.7 finds that from 13 words on). Prefix filtering as there: two sets as similar as t share one of the first
len - ceil(t * len) + 1 members in any fixed order, so texts may be added as they come.
"""

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable

from osmotic.components.near_duplicates import Gram, grams


def same(text: str) -> str:
    """What alike texts have in common: neither case, blanks nor the way that a letter is encoded tell them apart."""
    return " ".join(unicodedata.normalize("NFKC", text).split()).casefold()


class Texts:
    """Texts to compare others with. threshold: similarity, 0..1, from which another one is near."""

    def __init__(self, texts: Iterable[str], threshold: float) -> None:
        self._threshold = threshold
        self._exact: set[str] = set()
        self._sets: list[frozenset[Gram]] = []
        self._index: dict[Gram, list[int]] = defaultdict(list)
        given = {same(text): None for text in texts}
        self._common = Counter(gram for text in given for gram in grams(text, 2))
        for text in given:
            self.add(text)

    def has(self, text: str) -> bool:
        """Whether the text itself is there."""
        return same(text) in self._exact

    def near(self, text: str) -> bool:
        """Whether one that is as similar as the threshold is there."""
        mine = grams(same(text), 2)
        found = {place for gram in self._rarest(mine) for place in self._index.get(gram, ())}
        return any(self._similar(mine, self._sets[place]) for place in found)

    def add(self, text: str) -> None:
        """One more."""
        plain = same(text)
        if plain in self._exact:
            return
        self._exact.add(plain)
        members = grams(plain, 2)
        for gram in self._rarest(members):
            self._index[gram].append(len(self._sets))
        self._sets.append(members)

    def _similar(self, left: frozenset[Gram], right: frozenset[Gram]) -> bool:
        shared = len(left & right)
        return shared >= self._threshold * (len(left) + len(right) - shared) - 1e-9

    def _rarest(self, members: frozenset[Gram]) -> list[Gram]:
        """The members of which similar sets share one; the order is that of the texts that were there at the beginning."""
        order = sorted(members, key=lambda gram: (self._common[gram], gram))
        return order[: len(order) - math.ceil(self._threshold * len(order) - 1e-9) + 1]
