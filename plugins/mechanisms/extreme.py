# SPDX-License-Identifier: Apache-2.0
"""The worst case of a mechanism that draws tokens from a softmax of clipped logits: two symbols, two rows.

Let logits u be anything in the box [b_min, b_max]^V and P(y|u) = exp(u_y / T) / sum_z exp(u_z / T). log P(y|u) grows in u_y
(derivative (1 - P) / T >= 0) and falls in every other u_z (derivative -P(z|u) / T <= 0). So over the box it is largest where
u_y = b_max and all others are b_min, and smallest where it is the other way round; log P(y|u) - log P(y|u') is at most the
difference of the two, for every y, u and u' in the box. With a = exp((b_max - b_min) / T) that difference is
log [a / (a + V - 1)] - log [1 / (1 + (V - 1) a)] = log a + log [(1 + (V - 1) a) / (a + V - 1)], which grows with V towards
2 log a = eps for T = 2 (b_max - b_min) / eps. The pair of rows (this token largest, this token smallest), with the other
V - 1 tokens merged, is the part that the host certifies; V is taken far above every model's, where the loss is largest.
"""

import math
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from osmotic.plugins.contract import Config, Entropy, Guarantee, Mechanism, Space
from osmotic.plugins.exact import choose
from osmotic.plugins.mechanisms.shared import Epsilon, check_rows

if TYPE_CHECKING:
    import numpy as np

MOST_TOKENS = 1 << 24  # of a model's vocabulary
SPACE = Space("one token of a model", ("this token", "any other"))
LogProbability = Annotated[float, Field(lt=0, allow_inf_nan=False)]


class ExtremePairConfig(Config):
    """The largest and the smallest log-probability that one token can have, over all private texts."""

    epsilon: Epsilon
    largest: LogProbability
    smallest: LogProbability


class ExtremePair(Mechanism[ExtremePairConfig]):
    """Two rows over (this token, any other): where this token is likeliest, and where it is least likely."""

    name = "extreme-pair"

    def __init__(self, config: ExtremePairConfig, space: Space = SPACE) -> None:
        super().__init__(config, space)

    def log_prob(self, rows: "np.ndarray") -> "np.ndarray":
        """float64 [n, 2]."""
        import numpy as np

        high, low = self.config.largest, self.config.smallest
        table = np.array([[high, _rest(high)], [low, _rest(low)]])
        return np.asarray(table[check_rows(rows, self.space)])

    def sample(self, rows: "np.ndarray", entropy: Entropy) -> "np.ndarray":
        """int64 [n], by the sampler that draws the tokens."""
        import numpy as np

        return choose(np.exp(self.log_prob(rows)), entropy)

    def guarantee(self) -> Guarantee:
        """Certified, epsilon a token."""
        return Guarantee(mechanism_class="certified", epsilon=self.config.epsilon, unit="token")


def clipped_pair(epsilon: float, symbols: int = MOST_TOKENS) -> ExtremePair:
    """The extreme pair of the softmax of clipped logits at T = 2 (b_max - b_min) / eps, over `symbols` tokens."""
    half = epsilon / 2  # (b_max - b_min) / T
    largest = -_softplus(math.log(symbols - 1) - half)
    smallest = -_softplus(math.log(symbols - 1) + half)
    return ExtremePair(ExtremePairConfig(epsilon=epsilon, largest=largest, smallest=smallest))


def temperature(epsilon: float, low: float, high: float) -> float:
    """T = 2 (high - low) / eps.

    >>> round(temperature(10, -19.2271, 7.4832), 3), round(temperature(100, -3.2093, 16.3048), 3)
    (5.342, 0.39)
    """
    return 2 * (high - low) / epsilon


def clipped_weights(logits: "np.ndarray", epsilon: float, low: float, high: float) -> "np.ndarray":
    """exp((clip(logit) - high) / T), float64 [n, V], at least exp(-eps / 2). Infinite logits are clipped; NaN stays NaN."""
    import numpy as np

    return np.asarray(np.exp((np.clip(logits.astype(np.float64), low, high) - high) / temperature(epsilon, low, high)))


def _softplus(x: float) -> float:
    """log(1 + exp(x))."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _rest(log: float) -> float:
    """log(1 - exp(log)) for log < 0."""
    return math.log(-math.expm1(log)) if log > -math.log(2) else math.log1p(-math.exp(log))
