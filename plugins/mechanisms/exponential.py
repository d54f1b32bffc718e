# SPDX-License-Identifier: Apache-2.0
"""The exponential mechanism over all symbols, with a utility from vectors.

P(y|x) is proportional to exp(eps * u(x, y) / 2) (McSherry, Talwar 2007, "Mechanism design via differential privacy"), where
u is the cosine similarity of x and y rescaled to [0, 1] within each row: 1 for x itself, 0 for the least similar symbol.
Without vectors u is 1 for x itself and 0 else. Guarantee: pure, at most epsilon a token (u in [0, 1] moves by at most 1, twice:
in the weight and in the normaliser); an unknown symbol gives the uniform row. The certificate says how much of epsilon is
used, often about half (`calibrated` uses all). Void when: the vectors depend on private data, or the randomness is seeded.
"""

from typing import TYPE_CHECKING

from osmotic.plugins.contract import Config, Guarantee, Mechanism, Space
from osmotic.plugins.mechanisms.shared import Epsilon, check_rows
from osmotic.plugins.mechanisms.utility import RESOLUTION, LinearUtility, check_resolution, exponential_rows

if TYPE_CHECKING:
    import numpy as np


class ExponentialConfig(Config):
    """Configuration of `exponential`."""

    epsilon: Epsilon


class Exponential(Mechanism[ExponentialConfig]):
    """The exponential mechanism; the host samples it from `log_prob`."""

    name = "exponential"

    def __init__(self, config: ExponentialConfig, space: Space) -> None:
        import numpy as np

        super().__init__(config, space)
        check_resolution(space, config.epsilon, -2 * float(np.log(RESOLUTION * space.size)))  # P(y|x) >= e^(-eps/2) / V
        self._utility = LinearUtility(space)

    def log_prob(self, rows: "np.ndarray") -> "np.ndarray":
        """float64 [n, V]; the uniform row for the unknown symbol."""
        import numpy as np

        rows = check_rows(rows, self.space)
        v = self.space.size
        out = np.full((len(rows), v), -np.log(v))
        known = np.flatnonzero(rows < v)
        scores = self._utility.rows(rows[known])
        scores *= self.config.epsilon / 2
        out[known] = exponential_rows(scores)
        return out

    def guarantee(self) -> Guarantee:
        """Certified, at most epsilon a token."""
        return Guarantee(mechanism_class="certified", epsilon=self.config.epsilon, unit="token")
