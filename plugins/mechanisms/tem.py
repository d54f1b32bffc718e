# SPDX-License-Identifier: Apache-2.0
"""TEM, the truncated exponential mechanism: near symbols by distance, all far ones alike.

Carvalho, Vasiloudis, Feyisetan, Wang 2023, "TEM: High Utility Metric Differential Privacy on Text". gamma = (2/eps) ln((1 -
beta)(V - 1)/beta); symbols within gamma score -d(x, y), one item for the n_out others scores -gamma + 2 ln(n_out)/eps and is
uniform over them; the best of all scores with Gumbel(2/eps) noise wins. The noise marginalises to a softmax at eps/2, which
gives each far symbol the weight exp(-eps gamma/2): P(y|x) is proportional to exp(-(eps/2) min(d(x, y), gamma)), computed here
in this closed form; without far symbols it is `santext`.

Guarantee: metric, epsilon a unit of distance, at every radius: min(d, gamma) is a distance as well, so it changes by at most
min(d(x, x'), gamma) from x to x', twice. Hence |log P(y|x) - log P(y|x')| <= eps min(d(x, x'), gamma), which also bounds it
by eps gamma = 2 ln((1 - beta)(V - 1)/beta) for all pairs, whatever epsilon (34.5 at V = 30,522). Tests compare the closed
form with the two-stage one, and the largest ratio with both bounds over all pairs of small tables with radii that cut them
anywhere. The unknown symbol is the point at the public mean of all vectors. Void when: the vectors depend on private data, or
the randomness is seeded.
"""

from typing import TYPE_CHECKING

from pydantic import Field

from osmotic.plugins.contract import Config, Guarantee, Mechanism, Space
from osmotic.plugins.mechanisms.geometry import Points, log_softmax
from osmotic.plugins.mechanisms.shared import Epsilon, check_rows

if TYPE_CHECKING:
    import numpy as np


class TemConfig(Config):
    """Configuration of `tem`; epsilon is per unit of distance."""

    epsilon: Epsilon
    beta: float = Field(1e-3, gt=0, lt=0.5, description="Bound on the probability that a known symbol leaves the radius gamma.")


class Tem(Mechanism[TemConfig]):
    """TEM; the host samples it from `log_prob`."""

    name = "tem"

    def __init__(self, config: TemConfig, space: Space) -> None:
        import numpy as np

        super().__init__(config, space)
        self._points = Points(space)
        self.gamma = float(2 / config.epsilon * np.log((1 - config.beta) * max(space.size - 1, 1) / config.beta))

    def log_prob(self, rows: "np.ndarray") -> "np.ndarray":
        """float64 [n, V]."""
        import numpy as np

        near = np.minimum(self.distances(rows)[:, : self.space.size], self.gamma)
        return log_softmax(-self.config.epsilon / 2 * near)

    def distances(self, rows: "np.ndarray") -> "np.ndarray":
        """float64 [n, V + unknown]: Euclidean, not cut at gamma; the unknown symbol is at the mean of all vectors."""
        return self._points.distances(check_rows(rows, self.space))

    def guarantee(self) -> Guarantee:
        """Metric, epsilon a unit of distance."""
        return Guarantee(mechanism_class="metric", epsilon=self.config.epsilon, unit="distance")
