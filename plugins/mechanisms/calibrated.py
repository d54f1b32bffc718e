# SPDX-License-Identifier: Apache-2.0
"""The exponential mechanism at the sharpness that uses all of epsilon on the table at hand.

P(y|x) is proportional to exp(s * u(x, y)), u as in `exponential`. Any s up to eps/2 is private whatever u is (McSherry,
Talwar 2007); how much more the table allows is computed: eps_true(s) = max_y [max_x log P(y|x) - min_x log P(y|x)] over every
row, in float64, and s is sought until eps_true(s) lies in [.999 eps, eps], never above. It is continuous with eps_true(eps/2)
<= eps, and eps_true(eps + ln V) >= eps unless all utilities are equal (the symbol a and one x with u(x, a) = 0: log P(a|a) >=
-ln V, log P(a|x) <= -s), so that bisection finds one; most steps are secant steps.

Guarantee: pure, at most epsilon a token, for this table: it rests on the computation, which the certificate repeats for the s
in use. An unknown symbol gives the uniform row, which is part of the computation. Void when: the vectors depend on private
data, or the randomness is seeded. The cached sharpness (OSMOTIC_CACHE, XDG_CACHE_HOME/osmotic or ~/.cache/osmotic) need not be
believed: it stands on the card (`derived`), and the host certifies another value anew before it is drawn with, so that a forged
one is refused, or private. Code that calls `sample` without the host has only the file's checksum.
"""

from typing import TYPE_CHECKING

from osmotic.plugins.contract import Config, Guarantee, Mechanism, Space
from osmotic.plugins.mechanisms import cache
from osmotic.plugins.mechanisms.shared import Epsilon, check_rows
from osmotic.plugins.mechanisms.utility import RESOLUTION, LinearUtility, check_resolution, exponential_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

BELOW = 1e-3  # eps_true lies in [(1 - BELOW) eps, eps]
MARGIN = 1e-6  # so much is left free, that rounding elsewhere never makes it more than eps
COARSE = 1024  # rows of the first, rough search
BLOCK, PART = 256, 8  # rows a product, rows whose exponentials stay in the processor's cache
PASSES = 60  # far more than are needed; running out leaves epsilon partly unused
NOTHING = 1e-12
SMALLEST = 1e-6  # below it rounding hides what is used of epsilon: eps/2 it is


class CalibratedConfig(Config):
    """Configuration of `calibrated`."""

    epsilon: Epsilon


class Calibrated(Mechanism[CalibratedConfig]):
    """The exponential mechanism at its largest sharpness, found when it is first needed and cached on disk."""

    name = "calibrated"

    def __init__(self, config: CalibratedConfig, space: Space) -> None:
        import numpy as np

        super().__init__(config, space)
        check_resolution(space, config.epsilon, -float(np.log(RESOLUTION * space.size)))  # P(y|x) >= e^-eps P(y|y) >= e^-eps/V
        self._utility = LinearUtility(space)
        self._sharpness = 0.0

    def sharpness(self) -> float:
        """s: the factor before the utility. Computed once for a table and an epsilon: some passes over V x V similarities."""
        if not self._sharpness:
            from osmotic.plugins.certificate import code_digest, space_digest

            key = cache.key_of(self.name, code_digest(type(self)), space_digest(self.space), self.config.epsilon.hex())
            found, low, high = cache.read_number(key), *self._bounds()
            self._sharpness = found if found is not None and low <= found <= high else self._search()
            if self._sharpness != found:
                cache.write_number(key, self._sharpness)
        return self._sharpness

    def derived(self) -> str:
        """The sharpness, exactly; sought if it was not found yet."""
        return f"sharpness {self.sharpness().hex()}"

    def log_prob(self, rows: "np.ndarray") -> "np.ndarray":
        """float64 [n, V]; the uniform row for the unknown symbol."""
        import numpy as np

        rows, v = check_rows(rows, self.space), self.space.size
        out = np.full((len(rows), v), -np.log(v))
        known = np.flatnonzero(rows < v)
        if known.size:
            scores = self._utility.rows(rows[known])
            scores *= self.sharpness()
            out[known] = exponential_rows(scores)
        return out

    def guarantee(self) -> Guarantee:
        """Certified, at most epsilon a token."""
        return Guarantee(mechanism_class="certified", epsilon=self.config.epsilon, unit="token")

    def spread(self, sharpness: "Sequence[float]", every: int = 1) -> "np.ndarray":
        """eps_true of each sharpness, float64: one pass over the similarities for all of them, O(V) memory.

        every: take every n-th row only, which gives a lower bound.
        """
        import numpy as np

        v = self.space.size
        highest, lowest = np.zeros((len(sharpness), v)), np.full((len(sharpness), v), np.inf)
        if self.space.unknown:
            highest[:], lowest[:] = 1.0 / v, 1.0 / v
        rows = np.arange(0, v, every)
        for start in range(0, len(rows), BLOCK):
            utility = self._utility.rows(rows[start : start + BLOCK])
            for first in range(0, len(utility), PART):
                part = utility[first : first + PART]
                for i, s in enumerate(sharpness):
                    p = np.exp(s * (part - 1.0))
                    p /= p.sum(axis=1, keepdims=True)
                    np.maximum(highest[i], p.max(axis=0), out=highest[i])
                    np.minimum(lowest[i], p.min(axis=0), out=lowest[i])
        return np.asarray(np.log(highest / lowest).max(axis=1))

    def _bounds(self) -> tuple[float, float]:
        """Between these is a sharpness that uses epsilon up; the lower one never uses more."""
        import numpy as np

        return self.config.epsilon / 2, self.config.epsilon + float(np.log(self.space.size))

    def _search(self) -> float:
        """The sharpness, sought among some of the rows first (which is cheap), then near what they say among all."""
        low, high = self._bounds()
        if self.config.epsilon < SMALLEST:
            return low
        points = [f * self.config.epsilon for f in (0.6, 0.75, 0.9, 1.05)]
        every = self.space.size // COARSE
        if every > 1:
            near = self._narrow([s for s in points if low < s < high], every)
            points = [f * near for f in (0.91, 0.94, 0.97, 1.0)]
        return self._narrow([s for s in points if low < s < high])

    def _narrow(self, points: list[float], every: int = 1) -> float:
        """Narrow [s that uses at most epsilon, s that uses more] until the first uses nearly all of it."""
        target, limit = self.config.epsilon * (1 - BELOW / 2), self.config.epsilon * (1 - MARGIN)
        low, high = self._bounds()
        tried: dict[float, float] = {}
        for _ in range(PASSES):
            tried |= dict(zip(points, self.spread(points, every).tolist(), strict=True))
            high = min((s for s, e in tried.items() if e > limit), default=high)
            low = max((s for s, e in tried.items() if e <= limit and s < high), default=low)
            nothing = max(tried.values(), default=0.0) < NOTHING  # all utilities are equal: any sharpness gives uniform rows
            if nothing or tried.get(low, 0.0) >= self.config.epsilon * (1 - BELOW):
                break
            points = _between(low, high, target, tried)
        return low


def _between(low: float, high: float, target: float, tried: dict[float, float]) -> list[float]:
    """Where to look next: the middle, and the secant's guess with a point on each side."""
    middle = (low + high) / 2
    if low not in tried or high not in tried:
        return sorted({(3 * low + high) / 4, middle, (low + 3 * high) / 4})
    width = high - low
    guess = low + width * (target - tried[low]) / (tried[high] - tried[low])
    points = {guess - width / 64, guess, guess + width / 64, middle}
    return sorted(point for point in points if low < point < high)
