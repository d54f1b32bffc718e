# SPDX-License-Identifier: Apache-2.0
"""Near-duplicate texts: Jaccard similarity of word 3-gram sets, exact up to 10,000 texts, by MinHash beyond.

Exact: prefix filtering; two sets as similar as t share one of their len - ceil(t * len) + 1 rarest members, so only those are
indexed. MinHash (Broder 1997) with banding finds candidates, whose similarity is then computed: nothing is called a duplicate
that is none, and a pair just as similar as the threshold is missed with probability below .001.
"""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from osmotic.components.rationale_rules import words

if TYPE_CHECKING:
    import numpy as np

EXACT = 10_000
HASHES = 128
MISSED = 1e-3
Gram = tuple[str, ...]


def grams(text: str, size: int = 3) -> frozenset[Gram]:
    """The set of word n-grams; of a text shorter than n, the one tuple of all its words."""
    found = words(text)
    return frozenset(tuple(found[i : i + size]) for i in range(max(1, len(found) - size + 1))) if found else frozenset()


def near_duplicates(texts: Sequence[str], threshold: float, exact: int = EXACT) -> list[int]:
    """Indices of texts that are as similar as `threshold` (0..1] to an earlier one that stays. `exact`: up to so many texts."""
    sets = [grams(text) for text in texts]
    keys: Iterable[list[Any]] = _rarest(sets, threshold) if len(sets) <= exact else _bands(sets, threshold)
    index: dict[Any, list[int]] = defaultdict(list)
    out: list[int] = []
    for i, (members, mine) in enumerate(zip(sets, keys, strict=True)):
        near = {j for key in mine for j in index[key]}
        if any(_similar(members, sets[j], threshold) for j in near):
            out.append(i)
            continue
        for key in mine:
            index[key].append(i)
    return out


def _similar(left: frozenset[Any], right: frozenset[Any], threshold: float) -> bool:
    shared = len(left & right)
    return shared >= threshold * (len(left) + len(right) - shared) - 1e-9


def _rarest(sets: Sequence[frozenset[Gram]], threshold: float) -> Iterable[list[Gram]]:
    """Of each set, the members of which similar sets share one."""
    common = Counter(gram for members in sets for gram in members)
    for members in sets:
        rarest = sorted(members, key=lambda gram: (common[gram], gram))
        yield rarest[: len(rarest) - math.ceil(threshold * len(rarest) - 1e-9) + 1]


def _bands(sets: Sequence[frozenset[Gram]], threshold: float) -> Iterable[list[tuple[int, bytes]]]:
    """Of each set, the bands of its signature: similar sets share one, but for `MISSED`."""
    rows = max((r for r in range(1, HASHES + 1) if _missed(threshold, r) <= MISSED), default=1)
    masks = _hashed([f"mask {i}" for i in range(HASHES)])
    known: dict[Gram, int] = {}
    for members in sets:
        for gram in members:
            if gram not in known:
                known[gram] = _hash(" ".join(gram))
        if not members:
            yield []
            continue
        signature = _mixed(_array([known[gram] for gram in members])[:, None] ^ masks[None, :]).min(axis=0)
        yield [(b, signature[b * rows : (b + 1) * rows].tobytes()) for b in range(HASHES // rows)]


def _missed(threshold: float, rows: int) -> float:
    """Probability that two sets of that similarity share none of the bands of so many rows."""
    return float((1 - threshold**rows) ** (HASHES // rows))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _hashed(texts: Sequence[str]) -> "np.ndarray":
    return _array([_hash(text) for text in texts])


def _array(values: Sequence[int]) -> "np.ndarray":
    import numpy as np

    return np.array(values, dtype=np.uint64)


def _mixed(values: "np.ndarray") -> "np.ndarray":
    """A bijection of 64 bits that scatters them (the finaliser of splitmix64, Steele et al. 2014)."""
    import numpy as np

    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(values ^ (values >> np.uint64(31)))
