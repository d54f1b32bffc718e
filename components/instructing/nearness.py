# SPDX-License-Identifier: Apache-2.0
"""Texts that are too near to known ones: ROUGE-L strictly above a threshold, or a run of words that a known one has, too.

ROUGE-L is that of `components.metrics` (F-measure of the longest common subsequence of words, 2 * length / (words of both)),
compared as a fraction: a threshold of 0.7 is seven tenths, and a pair that has just that is not near. Exact and without the
table of all pairs: the longest common subsequence is at most the multiset of common words, so a near pair shares one of the
rarest of its words (prefix filtering, as in `near_duplicates`) and enough of all; only pairs that do are computed, bit-parallel
(Hyyrö 2004).

What it does not see: the F-measure of a short known text within a long new one is low, though it is there word for word.
`longest_run` bounds that. Neither is a guarantee.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from fractions import Fraction

from osmotic.components.metrics import tokens

Member = tuple[str, int]  # a word, and how many of it stand before it in the text


def common(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    >>> common("a b c d".split(), "b x d a".split())
    2
    """
    places: dict[str, int] = defaultdict(int)
    for i, word in enumerate(left):
        places[word] |= 1 << i
    full = (1 << len(left)) - 1
    rows = full  # a bit of 0: the subsequence grows at this word
    for word in right:
        hit = rows & places.get(word, 0)
        rows = ((rows + hit) | (rows - hit)) & full
    return len(left) - rows.bit_count()


class Nearness:
    """Known texts. threshold: ROUGE-L, 0..1, above which (never at which) another text is near to one of them."""

    def __init__(self, texts: Iterable[str], threshold: float) -> None:
        self._threshold = Fraction(str(threshold))
        self._words: list[list[str]] = []
        self._members: list[frozenset[Member]] = []
        self._index: dict[Member, list[int]] = defaultdict(list)
        given = list(dict.fromkeys(tuple(tokens(text)) for text in texts))
        self._common = Counter(member for words in given for member in _members(words))
        self.compared = 0  # pairs whose subsequence was computed
        for words in given:
            self._add(list(words))

    def near(self, text: str) -> bool:
        """Whether some known text is nearer than the threshold; a text without words is near to none."""
        words = tokens(text)
        members = frozenset(_members(words))
        found = sorted({place for member in self._rarest(words) for place in self._index.get(member, ())})
        return any(self._above(words, members, place) for place in found)

    def _add(self, words: list[str]) -> None:
        for member in self._rarest(words):
            self._index[member].append(len(self._words))
        self._words.append(words)
        self._members.append(frozenset(_members(words)))

    def _above(self, words: Sequence[str], members: frozenset[Member], place: int) -> bool:
        """Whether the pair is nearer than the threshold; bounds first."""
        other = self._words[place]
        top, bottom = self._threshold.as_integer_ratio()
        least = top * (len(words) + len(other)) // (2 * bottom)  # whole numbers above a bound are those above its floor
        if min(len(words), len(other)) <= least or len(members & self._members[place]) <= least:
            return False
        self.compared += 1
        return common(words, other) > least

    def _rarest(self, words: Sequence[str]) -> list[Member]:
        """The members of which near texts share one.

        A near text has s > t (n + m) / 2 words in common with one of n words; as m >= s, s > t n / (2 - t).
        """
        needed = int(self._threshold * len(words) / (2 - self._threshold)) + 1
        order = sorted(_members(words), key=lambda member: (self._common[member], member))
        return order[: max(0, len(order) - needed + 1)]


class Known:
    """Texts that a new one may not be too near to. longest_run: words in a row that it may share with one; None: any."""

    def __init__(self, texts: Sequence[str], rouge_l: float, longest_run: int | None = None) -> None:
        self._near = Nearness(texts, rouge_l)
        self._size = None if longest_run is None else longest_run + 1
        self._runs = {run for text in texts for run in self._cut(text)}

    def has(self, text: str) -> bool:
        """Whether a text is too near."""
        return self._near.near(text) or any(run in self._runs for run in self._cut(text))

    def _cut(self, text: str) -> list[tuple[str, ...]]:
        if self._size is None:
            return []
        words = tokens(text)
        return [tuple(words[i : i + self._size]) for i in range(len(words) - self._size + 1)]


def _members(words: Sequence[str]) -> list[Member]:
    """The multiset of words as a set."""
    seen: Counter[str] = Counter()
    found = []
    for word in words:
        found.append((word, seen[word]))
        seen[word] += 1
    return found
