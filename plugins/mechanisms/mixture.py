# SPDX-License-Identifier: Apache-2.0
"""Any token mechanism, mixed with uniform noise until it is certified.

With T = t_max and Q(.|x) the inner mechanism's row capped at T, P(y|x) = (1 - l) Q(y|x) + l/V. All values lie in [l/V, (1 -
l) T + l/V], whatever the inner mechanism is, so epsilon = ln(1 + (1 - l) T V / l), solved for l: l = T V / (T V + e^eps - 1).
A mixture with a uniform answer is Warner's randomised response (1965) with a mechanism in it.

The cap: where a row p has a value above T, Q(y) = min(T, c p(y)) with the c >= 1 that makes the sum 1; so the cap holds after
renormalising, which moves mass to the symbols that p likes next. If all symbols that p can give are at T and mass is left, it
is spread evenly over the others (T >= 1/V is needed for that, and checked). A row without such values stays as it is.

Guarantee: pure, at most epsilon a token, for an inner row that depends on its input symbol alone; what the inner mechanism
claims plays no part. The unknown symbol's row is the inner one's, capped and mixed like any other. Void when: the inner
mechanism keeps state, draws noise in `log_prob`, or reads anything but its symbol and public data; or the randomness is
seeded.
"""

from typing import TYPE_CHECKING, Any

from pydantic import Field

from osmotic.plugins.contract import Config, Guarantee, Mechanism, Space
from osmotic.plugins.mechanisms.shared import Epsilon, check_rows
from osmotic.plugins.mechanisms.utility import RESOLUTION, check_resolution
from osmotic.schemas.errors import ComponentError, ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np

SUM = 1e-6  # an inner row that is further from 1 is no distribution


class MixtureConfig(Config):
    """Configuration of `mixture`."""

    epsilon: Epsilon
    inner: dict[str, Any] = Field(description="The token mechanism inside: its name and configuration.")
    t_max: float = Field(0.3, gt=0, le=1, allow_inf_nan=False, description="Hard cap of the inner probabilities; at least 1/V.")


class Mixture(Mechanism[MixtureConfig]):
    """Uniform with probability `share`, else the inner mechanism, capped; the host samples it from `log_prob`."""

    name = "mixture"
    wraps = True

    def __init__(self, config: MixtureConfig, space: Space, inner: Mechanism[Any] | None = None) -> None:
        import numpy as np

        super().__init__(config, space, inner)
        if inner is None:
            raise ConfigError(Problem("mixture needs a mechanism inside", path="inner", fix="inner: {name: rantext, ...}"))
        if inner.space.symbols != space.symbols or inner.space.unknown != space.unknown:
            raise ConfigError(Problem("the mechanism inside works on other symbols", path="inner"))
        if config.t_max * space.size < 1:
            why = f"the space {space.name!r} has {space.size} symbols: a row capped below 1/{space.size} cannot sum to 1"
            raise ConfigError(Problem("t_max is too small", path="t_max", why=why, fix=f"at least {1 / space.size:.3g}"))
        check_resolution(space, config.epsilon, float(np.log(config.t_max / RESOLUTION)))  # P(y|x) >= l/V
        spread = config.t_max * space.size
        self.share = float(spread / (spread + np.expm1(config.epsilon)))

    def log_prob(self, rows: "np.ndarray") -> "np.ndarray":
        """float64 [n, V]."""
        import numpy as np

        rows = check_rows(rows, self.space)
        out = self._capped(rows)
        out *= 1 - self.share
        out += self.share / self.space.size
        return np.asarray(np.log(out, out=out))

    def guarantee(self) -> Guarantee:
        """Certified, at most epsilon a token."""
        return Guarantee(mechanism_class="certified", epsilon=self.config.epsilon, unit="token")

    def _capped(self, rows: "np.ndarray") -> "np.ndarray":
        """Q: float64 [n, V], at most t_max. Raises ComponentError when an inner row is no distribution."""
        import numpy as np

        values = np.asarray(self.inner.log_prob(rows) if self.inner else (), dtype=np.float64)
        if values.shape != (len(rows), self.space.size):
            raise ComponentError(Problem("the mechanism inside gave rows of another shape", why=f"{values.shape}"))
        p = np.exp(np.minimum(values, 1.0))
        sums = p.sum(axis=1, keepdims=True)
        if not (np.abs(sums - 1.0) <= SUM).all():
            raise ComponentError(Problem("the mechanism inside gave rows that do not sum to 1"))
        p /= sums
        for row in np.flatnonzero((p > self.config.t_max).any(axis=1)):
            p[row] = capped(p[row], self.config.t_max)
        return p


def capped(p: "np.ndarray", cap: float) -> "np.ndarray":
    """min(cap, c p) with the c that makes the sum 1; what the support cannot take goes evenly to the rest. float64 [V]."""
    import numpy as np

    full = p >= cap
    while True:
        open_ = np.where(full, 0.0, p)
        left, rest = max(1.0 - cap * np.count_nonzero(full), 0.0), float(open_.sum())
        scaled = open_ / rest * left if rest > 0 else np.full(len(p), left / max(int(np.count_nonzero(~full)), 1))
        more = ~full & (scaled > cap)
        if rest <= 0 or not more.any():
            return np.asarray(np.where(full, cap, np.minimum(scaled, cap)))
        full |= more
