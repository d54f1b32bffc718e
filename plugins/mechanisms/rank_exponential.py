# SPDX-License-Identifier: Apache-2.0
"""The exponential mechanism over ranks: how likely y is depends on how many symbols are nearer to x, and on nothing else.

A public rule ranks all V symbols for each x, x itself first (rank 0), ties by index; a staircase g gives every rank a utility
in [0, 1], and P(y|x) = exp(eps * g(rank of y)) / Z. Every row is a permutation of the same V values, so Z is one constant and
the 1/2 of the general exponential mechanism (McSherry, Talwar 2007, "Mechanism design via differential privacy") is not
needed. The optimal mechanisms of local differential privacy are staircases (Kairouz, Oh, Viswanath 2016, "Extremal mechanisms
for local differential privacy"); one step of utility 1 over K ranks is `list-rr`.

Guarantee: pure, at most epsilon a token, whatever the ranks: all values lie in [1/Z, e^eps/Z], so two of them differ by e^eps
at most. It is exactly epsilon when rank 0 has utility 1: y = x attains e^eps/Z, and as each x has V - K symbols off its list,
some y is off another's list, at 1/Z. An unknown symbol gives the uniform row: V values of mean 1/V lie in [1/Z, e^eps/Z], so
1/V does. Void when: ranks or steps are chosen by looking at private data, or the randomness is seeded.

Sampling uses that a row is a mixture: uniform over all symbols with probability V/Z, else uniform inside step j with weight
c_j (e^(eps g_j) - 1). It costs O(1) a token whatever V is; how long it takes is not covered (a list is made when it is
needed).
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


class Step(Config):
    """One step of the staircase: so many ranks, all of the same utility."""

    ranks: int = Field(ge=1, description="How many ranks the step holds.")
    utility: float = Field(ge=0, le=1, allow_inf_nan=False, description="Utility of each, in [0, 1].")


class RankExponentialConfig(Config):
    """Configuration of `rank-exponential`."""

    epsilon: Epsilon
    steps: tuple[Step, ...] = Field(
        (Step(ranks=1, utility=1.0), Step(ranks=4, utility=0.9), Step(ranks=15, utility=0.75)),
        strict=False,
        min_length=1,
        max_length=32,
        description="The staircase from rank 0 (the symbol itself) on; all other ranks have utility 0.",
    )
    lists: Order = Field("nearest", description=f"What ranks go by. {ORDERS}.")


class RankExponential(Mechanism[RankExponentialConfig]):
    """A staircase over ranks; lists are computed for the symbols that occur, in blocks, once an instance."""

    name = "rank-exponential"

    def __init__(self, config: RankExponentialConfig, space: Space) -> None:
        import numpy as np

        super().__init__(config, space)
        self._ranks = np.array([step.ranks for step in config.steps], dtype=np.int64)
        total, v = sum(step.ranks for step in config.steps), space.size
        if total >= v:
            why = f"they hold {total} ranks, the space {space.name!r} has {v} symbols"
            fix = f"at most {v - 1} ranks in all" if v > 1 else "one symbol has nothing to hide: release no such field"
            raise ConfigError(Problem("steps must leave ranks of utility 0", path="steps", why=why, fix=fix))
        self._neighbours = NeighbourLists(space, total, config.lists)
        gains = config.epsilon * np.array([step.utility for step in config.steps])
        self._weights = self._ranks * np.expm1(gains)  # above the uniform part, whose weight is V
        log_total = float(np.log(v + self._weights.sum()))
        self._log_in, self._log_out = np.repeat(gains, self._ranks) - log_total, -log_total
        self._uniform = float(v / (v + self._weights.sum()))

    def lists(self, rows: "np.ndarray") -> "np.ndarray":
        """The public lists of known symbols (not V): int64 [n, K] by rank, K the ranks of all steps."""
        return self._neighbours.of(rows)

    def log_prob(self, rows: "np.ndarray") -> "np.ndarray":
        """float64 [n, V]: one value a step and one for the rest; the uniform row for the unknown symbol."""
        import numpy as np

        rows = check_rows(rows, self.space)
        out = np.full((len(rows), self.space.size), self._log_out)
        known = np.flatnonzero(rows < self.space.size)
        out[known[:, None], self.lists(rows[known])] = self._log_in
        out[rows == self.space.size] = -np.log(self.space.size)
        return out

    def sample(self, rows: "np.ndarray", entropy: Entropy) -> "np.ndarray":
        """int64 [n]: a coin for the uniform part, one for each step until it is found, a place inside it."""
        import numpy as np

        rows = check_rows(rows, self.space)
        v = self.space.size
        spread, out = bernoulli(self._uniform, len(rows), entropy), entropy.integers(v, len(rows))
        near = np.flatnonzero(~spread)
        ranks = self._draw_ranks(len(near), entropy)  # what is drawn, and how much, does not depend on the symbols
        known = rows[near] < v
        out[near[known]] = self._neighbours.at(rows[near[known]], ranks[known])
        return out

    def complete_lists(self) -> None:
        """Make the lists of all symbols of a large table in the background, for later processes (`kept_lists`)."""
        self._neighbours.complete()

    def guarantee(self) -> Guarantee:
        """Certified, epsilon a token."""
        return Guarantee(mechanism_class="certified", epsilon=self.config.epsilon, unit="token")

    def _draw_ranks(self, count: int, entropy: Entropy) -> "np.ndarray":
        """int64 [count]: ranks of the part above uniform. Steps by coins, the lightest first: probabilities stay precise."""
        import numpy as np

        out, open_ = np.zeros(count, dtype=np.int64), np.arange(count)
        starts = np.cumsum(self._ranks) - self._ranks
        order = [int(i) for i in np.argsort(self._weights, kind="stable") if self._weights[i] > 0]
        for place, step in enumerate(order):
            rest = float(self._weights[order[place:]].sum())
            last = place == len(order) - 1
            here = (
                np.ones(open_.size, dtype=bool) if last else bernoulli(float(self._weights[step]) / rest, open_.size, entropy)
            )
            taken, open_ = open_[here], open_[~here]
            out[taken] = starts[step] + entropy.integers(int(self._ranks[step]), taken.size)
        return out
