# SPDX-License-Identifier: Apache-2.0
"""List randomised response: the symbol itself and its neighbours, or anything else, with two probabilities.

A public rule gives every symbol x a list of K symbols, x first; with V symbols, P(y|x) = e^eps / (K e^eps + V - K) on the list
and 1 / (K e^eps + V - K) off it. The two-step case of a staircase over ranks (Kairouz, Oh, Viswanath 2016, "Extremal
mechanisms for local differential privacy"). Guarantee: pure, exactly epsilon a token, whatever the lists, because every row is
a permutation of the same values; an unknown symbol gives the uniform row, which lies between the two. Void when: lists are
chosen by looking at private data, or the randomness is seeded.

Sampling uses that the row is a mixture: with probability V / (K e^eps + V - K) uniform over all symbols, else uniform on the
list. It costs O(1) a token and does not depend on V; a list is made when a draw first needs it. What is drawn is covered by the
guarantee, how long it takes is not: the first draws that need new lists take longer, so whoever can time a party's steps learns
something about which symbols occur.
"""

from typing import TYPE_CHECKING

from pydantic import Field

from osmotic.plugins.contract import Config, Entropy, Guarantee, Mechanism, Space
from osmotic.plugins.exact import bernoulli
from osmotic.plugins.mechanisms.neighbours import ORDERS, NeighbourLists, Order
from osmotic.plugins.mechanisms.shared import Epsilon, check_rows
from osmotic.schemas.errors import ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np


class ListRrConfig(Config):
    """Configuration of `list-rr`."""

    epsilon: Epsilon
    k: int = Field(8, ge=1, description="Size K of each list, the symbol itself included; smaller than the number of symbols.")
    lists: Order = Field("nearest", description=ORDERS)


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
        self._neighbours = NeighbourLists(space, k, config.lists)
        log_total = np.logaddexp(np.log(k) + config.epsilon, np.log(v - k))
        self._log_in, self._log_out = float(config.epsilon - log_total), float(-log_total)
        self._uniform = float(np.exp(np.log(v) - log_total))  # weight of the uniform part of the mixture; below 1

    def lists(self, rows: "np.ndarray") -> "np.ndarray":
        """The public lists of known symbols (not V): int64 [n, K], the symbol itself first, then by distance, ties by index."""
        return self._neighbours.of(rows)

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
        """int64 [n]: one coin a token, a place on the list, a symbol of all: every row draws the same amount."""
        import numpy as np

        rows = check_rows(rows, self.space)
        n, v = len(rows), self.space.size
        spread = bernoulli(self._uniform, n, entropy)
        place, out = entropy.integers(self.config.k, n), entropy.integers(v, n)
        near = np.flatnonzero(~spread & (rows < v))  # the unknown symbol is always uniform
        out[near] = self._neighbours.at(rows[near], place[near])
        return out

    def complete_lists(self) -> None:
        """Make the lists of all symbols of a large table in the background, for later processes (`kept_lists`)."""
        self._neighbours.complete()

    def guarantee(self) -> Guarantee:
        """Certified, epsilon a token."""
        return Guarantee(mechanism_class="certified", epsilon=self.config.epsilon, unit="token")
