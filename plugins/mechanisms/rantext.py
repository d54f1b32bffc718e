# SPDX-License-Identifier: Apache-2.0
"""RanText: candidates within a noisy radius around the private symbol, then the exponential mechanism among them.

Tong et al. 2023, "InferDPT: Privacy-preserving Inference for Black-box Large Language Models", in two forms:

- `reference`: Y_j ~ Laplace(0, delta_j / Z(eps)), delta_j the range of coordinate j; R = ||Y||; candidates d(x, y) < R;
  weights exp(eps/2 (1 - d/R)). Z(eps) is eps below 2, else a ln(b eps + c) + d: it jumps from 2 to 9.12.
- `fate`, as FATE-LLM runs it: Laplace scale delta_j / (eps/2), c = cos(x, x + Y); candidates cos(x, y) >= c; weights
  exp(eps/2 cos(x, y)).

Both are published as eps-LDP. They are not: the candidates are centred on the private symbol, so what cannot come out tells
what went in. Class heuristic, and nothing here can raise it: in one dimension the true epsilon of a nominal 3 is 10.95; in
many dimensions most pairs of symbols have supports that are disjoint but for noise nobody will ever see. `log_prob` has the
noise integrated out: exactly (but for rounding) in one dimension, else as a numerical estimate (`exact` is False, and
`osmotic.plugins.mechanisms.rantext_law` says how it is made). `sample` draws the noise itself, a value a coordinate, once a
token, of 32 random bits, so that no value is beyond 22 scales: what is rarer never comes out. Rows of similarities are made in
blocks of distinct symbols. An unknown symbol gives the uniform row, where the published code lets it pass unchanged.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from osmotic.plugins.contract import Config, Entropy, Guarantee, Mechanism, Space
from osmotic.plugins.mechanisms.geometry import plain_vectors
from osmotic.plugins.mechanisms.rantext_law import SLACK, FateLaw, ReferenceLaw, laplace_scale, on_a_line
from osmotic.plugins.mechanisms.shared import Epsilon, check_rows, unit_vectors

if TYPE_CHECKING:
    import numpy as np

TINY = 1e-30  # a radius of 0
WORD = 1 << 32  # a value of noise takes 32 random bits: no guarantee rests on its tail
NOISE = 1 << 18  # values of noise at a time
SYMBOLS = 128  # distinct symbols at a time
OFTEN = 6  # from so many occurrences on, sorting a row pays
ROUNDS = 8  # of rejection, before what is left is drawn one after another


class RanTextConfig(Config):
    """Configuration of `rantext`; epsilon is what the paper calls so, not what is true."""

    epsilon: Epsilon
    variant: Literal["reference", "fate"] = Field("reference", description="reference: by distance; fate: by cosine.")


class RanText(Mechanism[RanTextConfig]):
    """RanText in both published forms."""

    name = "rantext"

    def __init__(self, config: RanTextConfig, space: Space) -> None:
        import numpy as np

        super().__init__(config, space)
        self._fate = config.variant == "fate"
        vectors = plain_vectors(space)
        self._exact = on_a_line(vectors, config.variant)
        self._scale = laplace_scale(vectors, config.epsilon, config.variant)
        squares = np.concatenate([np.square(part.astype(np.float64)).sum(axis=1) for part in _parts(vectors)])
        self._squares, self._norms = squares.astype(np.float32), np.sqrt(squares)
        self._base = unit_vectors(space, np.float32) if self._fate else np.asarray(vectors, dtype=np.float32)
        self._law: FateLaw | ReferenceLaw | None = None

    def log_prob(self, rows: "np.ndarray") -> "np.ndarray":
        """float64 [n, V]; an estimate unless `exact`. -inf: below the smallest double, or (fate) never seen to come out."""
        import numpy as np

        rows, v = check_rows(rows, self.space), self.space.size
        out = np.full((len(rows), v), -np.log(v))
        known = np.flatnonzero(rows < v)
        if known.size:
            if self._law is None:
                law = FateLaw if self._fate else ReferenceLaw
                self._law = law(plain_vectors(self.space), self.config.epsilon, self._scale)
            out[known] = self._law.log_prob(rows[known])
        return out

    @property
    def exact(self) -> bool:
        """In one dimension (reference: up to 512 symbols); anywhere else `log_prob` is an estimate."""
        return self._exact

    def guarantee(self) -> Guarantee:
        """Heuristic: the nominal epsilon, which does not hold."""
        return Guarantee(mechanism_class="heuristic", epsilon=self.config.epsilon, unit="token")

    def sample(self, rows: "np.ndarray", entropy: Entropy) -> "np.ndarray":
        """int64 [n]: noise for every token, then one uniform among its candidates. Holds SYMBOLS rows of V float32."""
        import numpy as np

        rows, v = check_rows(rows, self.space), self.space.size
        out = entropy.integers(v, len(rows))  # stays for the unknown symbol
        limits, draws = self._limits(np.minimum(rows, v - 1), entropy), entropy.uniform(len(rows))
        pick = self._by_cosine if self._fate else self._by_distance
        for near, at in self._groups(rows):
            out[at] = pick(near, limits[at], draws[at], entropy)
        return out

    def candidates(self, rows: "np.ndarray", entropy: Entropy) -> "np.ndarray":
        """int64 [n]: how many symbols could come out of each row, for noise drawn now; V for the unknown symbol."""
        import numpy as np

        rows, v = check_rows(rows, self.space), self.space.size
        counts, limits = np.full(len(rows), v), self._limits(np.minimum(rows, v - 1), entropy)
        for near, at in self._groups(rows):
            inside = (np.sort(near), limits[at])
            counts[at] = v - np.searchsorted(*inside) if self._fate else np.maximum(np.searchsorted(*inside), 1)
        return counts

    def _limits(self, rows: "np.ndarray", entropy: Entropy) -> "np.ndarray":
        """float32 [n]: the least cosine (fate) or the radius squared (reference), from fresh noise."""
        import numpy as np

        d, limits = len(self._scale), np.empty(len(rows), dtype=np.float32)
        step, scale = max(NOISE // d, 1), self._scale.astype(np.float32)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            noise = laplace((entropy.integers(WORD, len(part) * d) + 0.5) / WORD).reshape(-1, d)
            noise *= scale
            square = np.einsum("ij,ij->i", noise, noise).astype(np.float64)
            if self._fate:
                square = self._cosine(part, np.einsum("ij,ij->i", noise, self._base[part]), square)
            limits[start : start + step] = square
        return limits

    def _cosine(self, rows: "np.ndarray", along: "np.ndarray", square: "np.ndarray") -> "np.ndarray":
        """cos(x, x + Y), less SLACK, from Y's part along x and its squared norm: x and its twins always are candidates."""
        import numpy as np

        along = along.astype(np.float64)
        forward = self._norms[rows] + along
        aside = np.maximum(square - along * along, 0.0) * (len(self._scale) > 1)
        whole = np.sqrt(forward * forward + aside)
        cosine = np.divide(forward, whole, out=np.ones_like(whole), where=whole > 0)
        return np.asarray(np.clip(cosine, -1.0, 1.0) - SLACK)

    def _groups(self, rows: "np.ndarray") -> "Iterator[tuple[np.ndarray, np.ndarray]]":
        """(similarities or squared distances float32 [V] of a known symbol, where in `rows` it stands), one after another."""
        import numpy as np

        order = np.argsort(rows, kind="stable")
        symbols, first = np.unique(rows[order], return_index=True)
        ends, space = np.append(first[1:], len(rows)), np.empty((min(SYMBOLS, len(symbols)), self.space.size), np.float32)
        for start in range(0, int((symbols < self.space.size).sum()), SYMBOLS):
            block = symbols[start : start + SYMBOLS]
            block = block[block < self.space.size]
            near = np.matmul(self._base[block], self._base.T, out=space[: len(block)])
            if not self._fate:
                near *= -2
                near += self._squares
                near += self._squares[block][:, None]
                near[near < SLACK * self._squares[block][:, None]] = -1.0  # equal, as far as float32 can tell: always inside
            near[np.arange(len(block)), block] = 1.0 if self._fate else -1.0
            for i, row in enumerate(near, start=start):
                yield row, order[first[i] : ends[i]]

    def _by_cosine(self, near: "np.ndarray", least: "np.ndarray", draws: "np.ndarray", _: Entropy) -> "np.ndarray":
        """One draw for each limit, all of one symbol: by a sorted row where there are many, else one after another."""
        import numpy as np

        inside = np.flatnonzero(near >= least.min())
        cosine = near[inside]
        if len(least) >= OFTEN:
            order = np.argsort(-cosine)
            inside, cosine = inside[order], cosine[order]
            total = np.cumsum(self._weights(cosine), dtype=np.float64)
            count = np.searchsorted(-cosine, -least, side="right")
            return np.asarray(inside[np.minimum(np.searchsorted(total, draws * total[count - 1]), count - 1)])
        weights, out = self._weights(cosine), np.empty(len(least), dtype=np.int64)
        for i, (limit, draw) in enumerate(zip(least, draws, strict=True)):
            part, weight = (inside, weights) if len(least) == 1 else _narrowed(inside, weights, cosine >= limit)
            out[i] = part[_drawn(weight, draw)]
        return out

    def _weights(self, cosine: "np.ndarray") -> "np.ndarray":
        import numpy as np

        return np.exp((cosine - 1) * np.float32(self.config.epsilon / 2))

    def _by_distance(self, near: "np.ndarray", squares: "np.ndarray", draws: "np.ndarray", entropy: Entropy) -> "np.ndarray":
        """One draw for each squared radius, all of one symbol."""
        import numpy as np

        inside = np.flatnonzero(near < max(squares.max(), 0.0))
        distance, radii = np.sqrt(np.maximum(near[inside], 0.0)), np.maximum(np.sqrt(squares), TINY)
        distance[near[inside] < 0] = -1.0
        out, left = np.empty(len(squares), dtype=np.int64), np.arange(len(squares))
        if len(left) >= OFTEN:
            order = np.argsort(distance)
            inside, distance = inside[order], distance[order]
            left = self._by_rejection(inside, distance, radii, out, entropy)
        for i in left:
            part, away = _narrowed(inside, distance, distance < radii[i])
            rate = np.float32(-self.config.epsilon / 2 / radii[i])
            out[i] = part[_drawn(np.exp(np.maximum(away, 0.0) * rate), draws[i])]
        return out

    def _by_rejection(
        self, inside: "np.ndarray", distance: "np.ndarray", radii: "np.ndarray", out: "np.ndarray", entropy: Entropy
    ) -> "np.ndarray":
        """Fill `out`; gives the positions that are still open after ROUNDS. distance: sorted, -1 for the symbol itself.

        Proposals have the weights of the largest radius, cut at each token's own (prefix sums); accepted with the ratio of the
        two weights, at most 1: exact, and nearly always at once, because radii hardly differ in many dimensions.
        """
        import numpy as np

        away = np.maximum(distance, 0.0).astype(np.float64)
        rates = self.config.epsilon / 2 / radii.astype(np.float64)
        total = np.cumsum(np.exp(-rates.min() * away))
        count, left = np.searchsorted(distance, radii), np.arange(len(radii))
        for _ in range(ROUNDS):
            draws = entropy.uniform(2 * len(left)).reshape(2, -1)
            at = np.minimum(np.searchsorted(total, draws[0] * total[count[left] - 1]), count[left] - 1)
            taken = draws[1] <= np.exp((rates.min() - rates[left]) * away[at])
            out[left[taken]] = inside[at[taken]]
            left = left[~taken]
            if not left.size:
                break
        return left


def laplace(uniforms: "np.ndarray") -> "np.ndarray":
    """float32 Laplace(0, 1) from float64 uniforms in (0, 1), by inverse CDF; log of min(u, 1-u), so that no tail is cut."""
    import numpy as np

    least = np.minimum(uniforms, 1 - uniforms).astype(np.float32)
    least *= 2
    noise = np.log(least, out=least)
    return np.asarray(np.copysign(noise, uniforms - 0.5, out=noise))


def _narrowed(inside: "np.ndarray", values: "np.ndarray", mask: "np.ndarray") -> "tuple[np.ndarray, np.ndarray]":
    import numpy as np

    chosen = np.flatnonzero(mask)
    return inside[chosen], values[chosen]


def _drawn(weights: "np.ndarray", draw: float) -> int:
    """A position with probability proportional to its weight."""
    import numpy as np

    total = np.cumsum(weights, dtype=np.float64)
    return min(int(np.searchsorted(total, draw * total[-1])), len(total) - 1)


def _parts(vectors: "np.ndarray") -> "list[np.ndarray]":
    return [vectors[start : start + 4096] for start in range(0, len(vectors), 4096)]
