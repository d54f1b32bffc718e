# SPDX-License-Identifier: Apache-2.0
"""SanText+: only rare words are always sampled; frequent ones pass unchanged most of the time.

Yue et al. 2021, "Differential Privacy for Text Analytics via Natural Text Sanitization", section on utility-optimised metric
local differential privacy. The sensitive symbols are the rarest share w of the table. A sensitive x (the unknown symbol is
one, at the mean of all vectors) comes out as a sensitive y with P proportional to exp(-(eps/2) d(x, y)); any other passes
unchanged with probability 1 - p, and is sampled like a sensitive one with probability p.

Utility-optimised metric LDP says: for sensitive outputs y, P(y|x) <= exp(eps d(x, x') + ln(1/p)) P(y|x'); a frequent word
that comes out was that word with certainty. Its epsilon as a token mechanism is infinite, so its class is heuristic, and it
declares `frequent` as a class that passes in the clear. Void when: frequencies are counted in private text (that is a leak by
itself), the vectors depend on private data, or the randomness is seeded.
"""

from typing import TYPE_CHECKING

from pydantic import Field

from osmotic.plugins.contract import Config, Guarantee, Mechanism, Space
from osmotic.plugins.mechanisms.geometry import Points, log_softmax, public_order
from osmotic.plugins.mechanisms.shared import Epsilon, check_rows

if TYPE_CHECKING:
    import numpy as np


class SanTextPlusConfig(Config):
    """Configuration of `santext-plus`; epsilon is per unit of distance, and covers sensitive symbols only."""

    epsilon: Epsilon
    w: float = Field(0.9, gt=0, le=1, description="Share of the symbols that are sensitive: the rarest ones.")
    p: float = Field(0.3, gt=0, le=1, description="Probability that a symbol which is not sensitive is sampled all the same.")
    frequencies: str | None = Field(
        None,
        description="Public file, SYMBOL<tab>COUNT a line; default: the table's order, most frequent first.",
    )
    sha256: str | None = Field(None, description="SHA-256 of the file of frequencies; needed with it.")


class SanTextPlus(Mechanism[SanTextPlusConfig]):
    """SanText+; the host samples it from `log_prob`."""

    name = "santext-plus"

    def __init__(self, config: SanTextPlusConfig, space: Space) -> None:
        import numpy as np

        super().__init__(config, space)
        self._points = Points(space)
        order = public_order(space, config.frequencies, config.sha256)
        self._sensitive = np.zeros(space.size + space.unknown, dtype=bool)
        self._sensitive[order[space.size - max(round(config.w * space.size), 1) :]] = True
        self._sensitive[space.size :] = True

    def log_prob(self, rows: "np.ndarray") -> "np.ndarray":
        """float64 [n, V]; -inf for every symbol that is neither sensitive nor the input itself."""
        import numpy as np

        rows, v = check_rows(rows, self.space), self.space.size
        far = self._points.distances(rows)[:, :v]
        out = log_softmax(np.where(self._sensitive[:v], -self.config.epsilon / 2 * far, -np.inf))
        passing = np.flatnonzero(~self._sensitive[rows])
        out[passing] += np.log(self.config.p)
        with np.errstate(divide="ignore"):
            out[passing, rows[passing]] = np.log(1 - self.config.p)
        return out

    def distances(self, rows: "np.ndarray") -> "np.ndarray":
        """float64 [n, V + unknown]: Euclidean distances, of which the claim for sensitive outputs speaks."""
        return self._points.distances(check_rows(rows, self.space))

    def guarantee(self) -> Guarantee:
        """Heuristic: utility-optimised metric LDP, epsilon a unit of distance for sensitive outputs, nothing for others."""
        return Guarantee(mechanism_class="heuristic", epsilon=self.config.epsilon, unit="token")

    def cleartext(self) -> tuple[str, ...]:
        """``frequent``, unless every symbol is sensitive."""
        return () if self._sensitive.all() else ("frequent",)
