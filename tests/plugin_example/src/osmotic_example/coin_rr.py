# SPDX-License-Identifier: Apache-2.0
"""Randomised response over V symbols (Warner 1965; Kairouz, Bonawitz, Ramage 2016, "k-RR").

The symbol itself with probability e^eps / (e^eps + V - 1), any other with 1 / (e^eps + V - 1). Guarantee: pure, exactly epsilon
a token, for any two symbols; a symbol that is not in the space gives the uniform row. Void when: the randomness is seeded.
"""

from typing import TYPE_CHECKING

from pydantic import Field

from osmotic.plugins.contract import Config, Guarantee, Mechanism

if TYPE_CHECKING:
    import numpy as np


class CoinRrConfig(Config):
    """Configuration of `coin-rr`."""

    epsilon: float = Field(gt=0, le=100, strict=False, allow_inf_nan=False, description="Privacy loss a token or field; pure.")


class CoinRandomisedResponse(Mechanism[CoinRrConfig]):
    """The truth, or with a coin's luck any other symbol."""

    name = "coin-rr"

    def log_prob(self, rows: "np.ndarray") -> "np.ndarray":
        """float64 [n, V]: one high value a row, the others equal; the row of the unknown symbol is flat."""
        import numpy as np

        size, rows = self.space.size, np.asarray(rows)
        table = np.full((len(rows), size), -np.log(np.exp(self.config.epsilon) + size - 1))
        known = np.flatnonzero(rows < size)
        table[known, rows[known]] += self.config.epsilon
        table[rows >= size] = -np.log(size)
        return table

    def guarantee(self) -> Guarantee:
        """Certified, epsilon a token."""
        return Guarantee(mechanism_class="certified", epsilon=self.config.epsilon)
