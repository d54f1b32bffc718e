# SPDX-License-Identifier: Apache-2.0
"""Public lists of neighbours: for every symbol x the K symbols that a rule puts first, x itself before all others.

They come from the public space alone: its vectors (`nearest`) or its order (`order`). Guarantees that rest on ranks hold for
any lists, as long as nothing private chooses them. Lists are computed in blocks, for the symbols that occur, once an instance;
what else is asked for never changes a list. Vectors stay where they are (memory-mapped, say): only blocks of them are copied.
All lists of a large table, once they have all been made, are kept for later processes (`kept_lists`).
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from osmotic.plugins.contract import Space
from osmotic.plugins.mechanisms.kept_lists import LARGE, in_background, key_of_lists, read_lists, write_lists
from osmotic.plugins.mechanisms.shared import check_rows, vector_norms
from osmotic.schemas.errors import ConfigError, Problem

if TYPE_CHECKING:
    import threading

    import numpy as np

__all__ = ["ORDERS", "NeighbourLists", "Order"]

BLOCK = 128  # lists computed at a time
SMALL = 32  # in the background
SAFE = 1e-9, 1e9  # lengths of vectors whose products neither overflow nor lose digits in float32
Order = Literal["nearest", "order"]
ORDERS = (
    "nearest: the K symbols at the smallest Euclidean distance between vectors of length 1 (ties: the lower index); "
    "order: neighbours on a ring in the domain's order, +1, -1, +2, -2, ..."
)


class NeighbourLists:
    """The first `k` symbols of each symbol's public order. known: bool [V], the lists that are computed by now.

    k is in 1..V-1. Raises ConfigError when `nearest` has no vectors to go by, or vectors without a direction.
    """

    def __init__(self, space: Space, k: int, order: Order) -> None:
        import numpy as np

        if order == "nearest" and k > 1 and space.vectors is None:
            why = f"the space {space.name!r} has none"
            fix = "give the field a 'table: FILE#KEY', or use 'lists: order'"
            raise ConfigError(Problem("lists: nearest needs vectors", path="lists", why=why, fix=fix))
        self.space, self.k = replace(space, unknown=False), k
        self.known = np.zeros(space.size, dtype=bool)
        self._by_vector = order == "nearest" and k > 1
        if self._by_vector:
            self._norms = vector_norms(space)
            self._right, self._scale = self._product_side()
        self._lists = np.zeros((space.size, k), dtype=np.int32)
        self._keeps = self._by_vector and space.size >= LARGE
        self._key: str | None = None  # of the kept lists, when they have been looked for

    def of(self, rows: "np.ndarray") -> "np.ndarray":
        """int64 [n, K] for known symbols (not V): the symbol itself, then the others in order."""
        import numpy as np

        rows = check_rows(rows, self.space)
        self._find(rows)
        return np.asarray(self._lists[rows], dtype=np.int64)

    def at(self, rows: "np.ndarray", ranks: "np.ndarray") -> "np.ndarray":
        """int64 [n]: the symbol of that rank (0..K-1) on each row's list. Costs O(1) a row; rank 0 needs no list."""
        import numpy as np

        out = check_rows(rows, self.space).copy()
        others = np.flatnonzero(ranks)
        self._find(out[others])
        out[others] = self._lists[out[others], ranks[others]]
        return out

    def _find(self, rows: "np.ndarray") -> None:
        """Compute the lists that are missing, unless all are found in the cache; keep them when there are all of them."""
        import numpy as np

        missing = np.unique(rows[~self.known[rows]])
        if not len(missing) or (self._keeps and self._key is None and self._load()):
            return
        self._make(missing)
        if self._key is not None and self.known.all():
            write_lists(self._key, self._lists)

    def _load(self) -> bool:
        """Take all lists from the cache, if they are there; asked once."""
        try:
            self._key = key_of_lists(self.space, self.k, Path(__file__))
        except (OSError, RuntimeError):
            self._keeps = False
            return False
        found = read_lists(self._key, self.space.size, self.k)
        if found is None:
            return False
        self._lists, self.known[:] = found, True
        return True

    def complete(self) -> "threading.Thread | None":
        """Make all lists of a large table in the background, for later processes, if this one had to make some.

        By another instance, in the order of the symbols: what is asked of this one is neither waited for nor seen.
        """
        if self._key is None or self.known.all():
            return None
        other = NeighbourLists(self.space, self.k, "nearest")
        return in_background(self._key, other._all)

    def _all(self) -> "Iterator[None]":
        import numpy as np

        if self._load():
            return
        for start in range(0, self.space.size, SMALL):
            self._make(np.arange(start, min(start + SMALL, self.space.size)))
            yield
        if self._key is not None:
            write_lists(self._key, self._lists)

    def _make(self, missing: "np.ndarray") -> None:
        for start in range(0, len(missing), BLOCK):
            block = missing[start : start + BLOCK]
            self._lists[block] = self._nearest(block) if self._by_vector else self._ring(block)
            self.known[block] = True

    def _ring(self, rows: "np.ndarray") -> "np.ndarray":
        import numpy as np

        steps = np.arange(self.k)
        offsets = np.where(steps % 2, (steps + 1) // 2, -(steps // 2))
        return np.asarray((rows[:, None] + offsets) % self.space.size)

    def _unit(self, rows: "np.ndarray") -> "np.ndarray":
        """float32 [n, d]: vectors of length 1."""
        import numpy as np

        return np.asarray(np.asarray(self.space.vectors)[rows] / self._norms[rows, None], dtype=np.float32)

    def _product_side(self) -> "tuple[np.ndarray, np.ndarray | None]":
        """What products are taken with, and multiplied by: the table as it lies, unless its lengths are extreme."""
        import numpy as np

        vectors = np.asarray(self.space.vectors)
        if vectors.dtype == np.float32 and self._norms.min() > SAFE[0] and self._norms.max() < SAFE[1]:
            return vectors, (1.0 / self._norms).astype(np.float32)
        return self._unit(np.arange(len(vectors))), None

    def _nearest(self, rows: "np.ndarray") -> "np.ndarray":
        """Candidates by a float32 product with a margin for its rounding; order by float64, so blocks never change a list."""
        import numpy as np

        near = self._unit(rows) @ self._right.T
        if self._scale is not None:
            near *= self._scale
        near[np.arange(len(rows)), rows] = np.inf
        margin = 4 * (self._right.shape[1] + 4) * np.finfo(np.float32).eps
        hits = np.flatnonzero(near >= (_at_most(near, self.k) - margin)[:, None])
        which, candidate = np.divmod(hits, self.space.size)
        exact = np.empty(len(which))
        for start in range(0, len(which), 1 << 12):
            part = slice(start, start + (1 << 12))
            left, right = self._unit(rows[which[part]]).astype(np.float64), self._unit(candidate[part])
            exact[part] = np.square(left - right).sum(axis=1)
        exact[candidate == rows[which]] = -1.0
        order = np.lexsort((candidate, exact, which))
        first = np.searchsorted(which, np.arange(len(rows)))
        return np.asarray(candidate[order][first[:, None] + np.arange(self.k)])


def _at_most(near: "np.ndarray", k: int) -> "np.ndarray":
    """[n]: at most the k-th largest value of each row: when k groups of columns have a maximum so large, k values are."""
    import numpy as np

    each = max(near.shape[1] // (32 * k), 1)
    if each > 1:
        groups = near.shape[1] // each
        near = near[:, : each * groups].reshape(len(near), each, groups).max(axis=1)
    return np.asarray(np.partition(near, -k, axis=1)[:, -k])
