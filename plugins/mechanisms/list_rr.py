# SPDX-License-Identifier: Apache-2.0
"""List randomised response: the symbol itself and its neighbours, or anything else, with two probabilities.

A public rule gives every symbol x a list of K symbols, x first; with V symbols, P(y|x) = e^eps / (K e^eps + V - K) on the list
and 1 / (K e^eps + V - K) off it. The two-step case of a staircase over ranks (Kairouz, Oh, Viswanath 2016, "Extremal
mechanisms for local differential privacy"). Guarantee: pure, exactly epsilon a token, whatever the lists, because every row is
a permutation of the same values; an unknown symbol gives the uniform row, which lies between the two. Void when: lists are
chosen by looking at private data, or the randomness is seeded. Sampling costs O(K) and does not depend on V.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from osmotic.plugins.contract import Config, Entropy, Guarantee, Mechanism, Space
from osmotic.plugins.mechanisms.shared import Epsilon, bernoulli, check_rows, unit_vectors
from osmotic.schemas.errors import ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np

BLOCK = 256


class ListRrConfig(Config):
    """Configuration of `list-rr`."""

    epsilon: Epsilon
    k: int = Field(8, ge=1, description="Size K of each list, the symbol itself included; smaller than the number of symbols.")
    lists: Literal["nearest", "order"] = Field(
        "nearest",
        description="nearest: the K symbols at the smallest Euclidean distance between vectors of length 1 (ties: the lower "
        "index); order: neighbours on a ring in the domain's order, +1, -1, +2, -2, ...",
    )


class ListRandomisedResponse(Mechanism[ListRrConfig]):
    """List randomised response; lists are computed for the symbols that occur, in blocks, once an instance."""

    name = "list-rr"

    def __init__(self, config: ListRrConfig, space: Space) -> None:
        import numpy as np

        super().__init__(config, space)
        k, v = config.k, space.size
        if k >= v:
            why = f"k is {k}, the space {space.name!r} has {v} symbols"
            raise ConfigError(
                Problem("k must be smaller than the number of symbols", path="k", why=why, fix=f"k: {max(v // 2, 1)}")
            )
        if config.lists == "nearest" and k > 1 and space.vectors is None:
            why = f"the space {space.name!r} has none"
            fix = "give the field a 'table: FILE#KEY', or use 'lists: order'"
            raise ConfigError(Problem("lists: nearest needs vectors", path="lists", why=why, fix=fix))
        self._unit = unit_vectors(space, np.float32) if config.lists == "nearest" and k > 1 else None
        self._lists = np.zeros((v, k), dtype=np.int64)
        self._known = np.zeros(v, dtype=bool)
        log_total = np.logaddexp(np.log(k) + config.epsilon, np.log(v - k))
        self._log_in, self._log_out = float(config.epsilon - log_total), float(-log_total)
        self._outside = float(np.exp(np.log(v - k) - log_total))  # probability of leaving the list

    def lists(self, rows: "np.ndarray") -> "np.ndarray":
        """The public lists of known symbols (not V): int64 [n, K], the symbol itself first, then by distance, ties by index."""
        import numpy as np

        rows = check_rows(rows, replace(self.space, unknown=False))
        missing = np.unique(rows[~self._known[rows]])
        for start in range(0, len(missing), BLOCK):
            block = missing[start : start + BLOCK]
            self._lists[block] = self._ring(block) if self._unit is None else self._nearest(block)
            self._known[block] = True
        return np.asarray(self._lists[rows])

    def log_prob(self, rows: "np.ndarray") -> "np.ndarray":
        """float64 [n, V]: two values a row; the uniform row for the unknown symbol."""
        import numpy as np

        rows = check_rows(rows, self.space)
        v = self.space.size
        out = np.full((len(rows), v), self._log_out)
        known = np.flatnonzero(rows < v)
        out[known[:, None], self.lists(rows[known])] = self._log_in
        out[rows == v] = -np.log(v)
        return out

    def sample(self, rows: "np.ndarray", entropy: Entropy) -> "np.ndarray":
        """int64 [n]: one coin a token, then uniform on the list, or uniform off it. Every row draws the same amount."""
        import numpy as np

        rows = check_rows(rows, self.space)
        n, k, v = len(rows), self.config.k, self.space.size
        leave = bernoulli(self._outside, n, entropy)
        inside, off = entropy.integers(k, n), entropy.integers(v - k, n)
        out = entropy.integers(v, n)  # stays for the unknown symbol
        known = np.flatnonzero(rows < v)
        lists = self.lists(rows[known])
        chosen = lists[np.arange(len(known)), inside[known]]
        rank = off[known]
        for column in np.sort(lists, axis=1).T:  # the rank-th symbol that is not on the list
            rank += rank >= column
        out[known] = np.where(leave[known], rank, chosen)
        return out

    def guarantee(self) -> Guarantee:
        """Certified, epsilon a token."""
        return Guarantee(mechanism_class="certified", epsilon=self.config.epsilon, unit="token")

    def _ring(self, rows: "np.ndarray") -> "np.ndarray":
        import numpy as np

        steps = np.arange(self.config.k)
        offsets = np.where(steps % 2, (steps + 1) // 2, -(steps // 2))
        return np.asarray((rows[:, None] + offsets) % self.space.size)

    def _nearest(self, rows: "np.ndarray") -> "np.ndarray":
        """Candidates by a float32 product with a margin for its rounding; order by float64, so blocks never change a list."""
        import numpy as np

        unit = self._unit if self._unit is not None else np.empty((0, 0), dtype=np.float32)
        k = self.config.k
        near = unit[rows] @ unit.T
        near[np.arange(len(rows)), rows] = np.inf
        margin = 4 * unit.shape[1] * np.finfo(np.float32).eps
        least = np.partition(near, -k, axis=1)[:, -k] - margin
        which, candidate = np.nonzero(near >= least[:, None])
        exact = np.empty(len(which))
        for start in range(0, len(which), 1 << 14):
            part = slice(start, start + (1 << 14))
            left, right = unit[rows[which[part]]].astype(np.float64), unit[candidate[part]]
            exact[part] = np.square(left - right).sum(axis=1)
        exact[candidate == rows[which]] = -1.0
        order = np.lexsort((candidate, exact, which))
        first = np.searchsorted(which, np.arange(len(rows)))
        return np.asarray(candidate[order][first[:, None] + np.arange(k)])
