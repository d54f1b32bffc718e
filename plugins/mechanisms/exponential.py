# SPDX-License-Identifier: Apache-2.0
"""The exponential mechanism over all symbols, with a utility from vectors.

P(y|x) is proportional to exp(eps * u(x, y) / 2) (McSherry, Talwar 2007, "Mechanism design via differential privacy"), where
u is the cosine similarity of x and y rescaled to [0, 1] within each row: 1 for x itself, 0 for the least similar symbol.
Without vectors u is 1 for x itself and 0 else. Guarantee: pure, at most epsilon a token (u in [0, 1] moves by at most 1, twice:
in the weight and in the normaliser); an unknown symbol gives the uniform row. The certificate says how much of epsilon is
used, often about half. Void when: the vectors depend on private data, or the randomness is seeded.
"""

from typing import TYPE_CHECKING

from osmotic.plugins.contract import Config, Guarantee, Mechanism, Space
from osmotic.plugins.mechanisms.shared import Epsilon, check_rows, unit_vectors
from osmotic.schemas.errors import ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np

RESOLUTION = 1e-10  # sampling resolves 2^-53: a smallest probability above this is drawn with a relative error below 1e-5
ROUNDING = 1e-9  # similarities closer than this to 1 are no difference


class ExponentialConfig(Config):
    """Configuration of `exponential`."""

    epsilon: Epsilon


class Exponential(Mechanism[ExponentialConfig]):
    """The exponential mechanism; the host samples it from `log_prob`."""

    name = "exponential"

    def __init__(self, config: ExponentialConfig, space: Space) -> None:
        import numpy as np

        super().__init__(config, space)
        largest = -2 * float(np.log(RESOLUTION * space.size))
        if config.epsilon > largest:
            why = f"with {space.size} symbols the smallest probabilities would be lost in rounding"
            raise ConfigError(Problem(f"must be at most {largest:.1f} here", path="epsilon", why=why, fix="use list-rr"))
        self._unit = None if space.vectors is None else unit_vectors(space, np.float64)

    def log_prob(self, rows: "np.ndarray") -> "np.ndarray":
        """float64 [n, V]."""
        import numpy as np

        rows = check_rows(rows, self.space)
        v = self.space.size
        scores = np.zeros((len(rows), v))
        known = np.flatnonzero(rows < v)
        scores[known] = self.config.epsilon / 2 * self._utility(rows[known])
        scores -= scores.max(axis=1, keepdims=True)
        return np.asarray(scores - np.log(np.exp(scores).sum(axis=1, keepdims=True)))

    def guarantee(self) -> Guarantee:
        """Certified, at most epsilon a token."""
        return Guarantee(mechanism_class="certified", epsilon=self.config.epsilon, unit="token")

    def _utility(self, rows: "np.ndarray") -> "np.ndarray":
        """float64 [n, V] in [0, 1]; the symbol itself has 1. Rows without any difference have 1 everywhere."""
        import numpy as np

        at = (np.arange(len(rows)), rows)
        if self._unit is None:
            flat = np.zeros((len(rows), self.space.size))
            flat[at] = 1.0
            return flat
        near = self._unit[rows] @ self._unit.T
        near[at] = 1.0
        low = near.min(axis=1, keepdims=True)
        width = np.maximum(1.0 - low, ROUNDING)
        return np.asarray(np.where(1.0 - low > ROUNDING, np.clip((near - low) / width, 0.0, 1.0), 1.0))
