# SPDX-License-Identifier: Apache-2.0
"""SanText: the exponential mechanism whose utility is the negative Euclidean distance between vectors as the table gives them.

P(y|x) is proportional to exp(-(eps/2) d(x, y)) over all V symbols (Yue et al. 2021, "Differential Privacy for Text Analytics
via Natural Text Sanitization"). Guarantee: metric, P(y|x) <= exp(eps d(x, x')) P(y|x') for all x, x', y, by the triangle
inequality, once in the weight and once in the normaliser; epsilon has the unit 1/distance and is no number to add to budgets
of local differential privacy: far symbols may be told apart with certainty. The unknown symbol is the point at the public
mean of all vectors: its row and its distances come from that point, so the proof covers it. Void when: the vectors depend on
private data, or the randomness is seeded.
"""

from typing import TYPE_CHECKING

from osmotic.plugins.contract import Config, Guarantee, Mechanism, Space
from osmotic.plugins.mechanisms.geometry import Points, log_softmax
from osmotic.plugins.mechanisms.shared import Epsilon, check_rows

if TYPE_CHECKING:
    import numpy as np


class SanTextConfig(Config):
    """Configuration of `santext`; epsilon is per unit of distance."""

    epsilon: Epsilon


class SanText(Mechanism[SanTextConfig]):
    """SanText; the host samples it from `log_prob`."""

    name = "santext"

    def __init__(self, config: SanTextConfig, space: Space) -> None:
        super().__init__(config, space)
        self._points = Points(space)

    def log_prob(self, rows: "np.ndarray") -> "np.ndarray":
        """float64 [n, V]."""
        return log_softmax(-self.config.epsilon / 2 * self.distances(rows)[:, : self.space.size])

    def distances(self, rows: "np.ndarray") -> "np.ndarray":
        """float64 [n, V + unknown]: Euclidean distances; the unknown symbol is at the mean of all vectors."""
        return self._points.distances(check_rows(rows, self.space))

    def guarantee(self) -> Guarantee:
        """Metric, epsilon a unit of distance."""
        return Guarantee(mechanism_class="metric", epsilon=self.config.epsilon, unit="distance")
