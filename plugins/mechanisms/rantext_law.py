# SPDX-License-Identifier: Apache-2.0
"""What RanText does on average: its output's law with the noise integrated out.

One dimension: exact but for quadrature (two symbols: relative error below 1e-5). Reference: R is exponential, and the
integrand is smooth between the distances of the other symbols: Gauss-Legendre on each such piece (cut to at most one mean
length), Gauss-Laguerre on the last. Fate: the cosine is 1 or -1, P(1) = 1 - exp(-|x|/b)/2 at Laplace scale b.

More dimensions (and reference tables of more than 512 symbols in one): a numerical estimate, the same every time. The noise is
Y = G u: G is Gamma(d) and independent of u, which has Laplace directions (signs times a uniform point of the simplex, times the
scales). Only u is simulated, seeded, public and independent of all data; the law of G is used as it is, tails included.

- Reference: ||Y|| = G ||u||, the same for all x: P(R > r) is a mean over 2^12 to 2^18 lengths ||u||. R's range is cut into
  cells: equal shares, then steps of -log P(R > r) that grow in proportion up to 700. Which symbols are candidates is exact in
  each cell (the share of its mass beyond their distances), the rest of the weight is taken at the middle of its mass.
- Fate, up to 512 symbols: cos(x, x + G u) falls with G, so that for each u the G at which a symbol becomes a candidate is
  known: its probability is a mean of Gamma tails over 2^9 to 2^14 directions. More symbols: 4,096 noise vectors, a node each.

Y is unbounded, so that no two symbols of the reference form have disjoint supports, nor of the fate form but for vectors that
are opposite: true probabilities are above 0, though they may be below the smallest double. Zero (-inf) means here: below that,
or (fate) that no simulated direction, or node, has it. Far tails are as good as the largest ||u|| that was simulated. Outside
one dimension no number from here is a bound.
"""

from typing import TYPE_CHECKING

from osmotic.plugins.mechanisms.geometry import Points

if TYPE_CHECKING:
    import numpy as np

A, B, C, D = 0.01658160142016071, 19.064721649556482, -38.1294334077209, 9.311083811697406  # of the published code
EXACT = 512  # symbols: up to here one dimension is integrated exactly
NODES, TAIL = 16, 48  # of quadrature in one dimension
VALUES, LENGTHS = 1 << 23, (1 << 12, 1 << 18)  # values simulated for the law of ||u||; how many lengths, at least and at most
BINS, RADII = 1 << 10, 1 << 12  # of lengths, and of radii at which P(R > r) is tabulated
WORK, CELLS = 1 << 19, (32, 1 << 12)  # entries a row (reference); equal shares of R, at least and at most
PAIRS, DIRECTIONS = 1 << 18, (1 << 9, 1 << 14)  # entries a row (fate); directions: where fewer fit, nodes are used
NOISES = 1 << 12  # nodes of fate for large tables
GAMMA, FAR = 1 << 15, 700.0  # points of the Gamma tail; the largest -log P(R > r) that is looked at
SLACK = 1e-6  # of cosines, and of squared distances relative to squared norms: what rounding may not decide


def z(epsilon: float) -> float:
    """The rate of the reference form's noise."""
    import math

    return epsilon if epsilon < 2 else A * math.log(B * epsilon + C) + D


def laplace_scale(vectors: "np.ndarray", epsilon: float, variant: str) -> "np.ndarray":
    """float64 [d]: the scale of each coordinate's noise."""
    import numpy as np

    ranges = (vectors.max(axis=0) - vectors.min(axis=0)).astype(np.float64)
    return np.asarray(ranges / (epsilon / 2 if variant == "fate" else z(epsilon)))


# ---- the noise -------------------------------------------------------------------------------------------------------


class GammaTail:
    """log P(G > g) for G ~ Gamma(d), d a whole number, from a table of 2^15 points (relative error below 1e-4)."""

    def __init__(self, d: int) -> None:
        import numpy as np

        self._at = (2.0 * d + 1500.0) * np.square(np.linspace(0.0, 1.0, GAMMA))
        with np.errstate(divide="ignore"):
            rate = np.log(self._at)
        term, total = np.zeros(GAMMA), np.zeros(GAMMA)  # log g^j / j!, and the log of their sum
        for j in range(1, d):
            term = term + rate - np.log(j)
            total = np.logaddexp(total, term)
        self._log = np.minimum(total - self._at, 0.0)

    def log(self, at: "np.ndarray") -> "np.ndarray":
        """For g of any shape; below the smallest double beyond the table."""
        import numpy as np

        return np.asarray(np.interp(at, self._at, self._log, right=-np.inf))


def directions(count: int, scale: "np.ndarray", seed: int) -> "np.ndarray":
    """float64 [count, d]: u, Laplace noise divided by its L1 norm before scaling."""
    import numpy as np

    noise = np.random.default_rng(seed).laplace(size=(count, len(scale)))
    return np.asarray(noise / np.abs(noise).sum(axis=1, keepdims=True) * scale)


class Radius:
    """The law of R = G ||u||: P(R > r) as a mean over simulated ||u||, tabulated; scales not all zero."""

    def __init__(self, scale: "np.ndarray") -> None:
        import numpy as np

        d = len(scale)
        count, found = int(np.clip(VALUES // d, *LENGTHS)), []
        for start in range(0, count, 4096):
            found.append(np.linalg.norm(directions(min(4096, count - start), scale, 20230 + start), axis=1))
        length = np.log(np.concatenate(found))
        mass, ends = np.histogram(length, bins=np.linspace(length.min(), length.max() + 1e-9, BINS + 1))
        kept = mass > 0
        share, log_u = np.log(mass[kept] / count), (ends[:-1] + ends[1:])[kept] / 2
        tail = GammaTail(d)
        self._at = np.exp(np.linspace(log_u[0] + np.log(1e-6), log_u[-1] + np.log(2.0 * d + 1500.0), RADII))
        log = np.array([np.logaddexp.reduce(share + tail.log(r / np.exp(log_u))) for r in self._at])
        self._minus = np.maximum.accumulate(-np.maximum(log, -2 * FAR))

    def beyond(self, radii: "np.ndarray") -> "np.ndarray":
        """P(R > r); 1 at 0."""
        import numpy as np

        return np.asarray(np.exp(-np.interp(radii, np.append(0.0, self._at), np.append(0.0, self._minus))))

    def radii(self, minus_log: "np.ndarray") -> "np.ndarray":
        """r at which -log P(R > r) has these values."""
        import numpy as np

        return np.asarray(np.interp(minus_log, np.append(0.0, self._minus), np.append(0.0, self._at)))

    def cells(self, shares: int) -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
        """(P(R > .) at the ends of cells, falling from 1 to 0; [cells] their upper ends; [cells] radii at mid-mass)."""
        import numpy as np

        body = -np.log1p(-np.arange(shares) / shares)
        tail = np.geomspace(np.log(shares), FAR, max(shares // 2, 12) + 1)[1:]
        ends = np.concatenate([body, tail])
        beyond = np.append(np.exp(-ends), 0.0)
        middle = self.radii(-np.log((beyond[:-1] + beyond[1:]) / 2))
        return beyond, np.append(self.radii(ends[1:]), np.inf), middle


# ---- the two forms ---------------------------------------------------------------------------------------------------


class ReferenceLaw:
    """log P(y|x) of the reference form."""

    def __init__(self, vectors: "np.ndarray", epsilon: float, scale: "np.ndarray") -> None:
        import numpy as np

        from osmotic.plugins.contract import Space

        self._points = Points(Space("points", ("",) * len(vectors), vectors))
        self._epsilon, self._scale = epsilon, scale
        line = on_a_line(vectors, "reference")
        self._radius = None if line or not scale.any() else Radius(scale)
        if self._radius is not None:
            self._cells = self._radius.cells(int(np.clip(WORK // len(vectors), *CELLS)))

    def log_prob(self, rows: "np.ndarray") -> "np.ndarray":
        """float64 [n, V]."""
        import numpy as np

        out = np.empty((len(rows), self._points.count))
        for i, distance in enumerate(self._points.distances(rows)):
            order = np.argsort(distance, kind="stable")
            with np.errstate(divide="ignore"):
                out[i, order] = np.log(self._row(distance[order]))
        return out

    def _row(self, near: "np.ndarray") -> "np.ndarray":
        """Probabilities of one row, by rising distance."""
        import numpy as np

        if self._radius is not None:
            return self._mean_over_cells(near, self._radius)
        if self._scale.any():
            return self._mean_over_nodes(near, *exponential_nodes(np.unique(near), 1 / float(self._scale[0])))
        return np.asarray((near == near[0]) / np.count_nonzero(near == near[0]))  # R = 0: the symbol itself and its twins

    def _mean_over_nodes(self, near: "np.ndarray", at: "np.ndarray", weight: "np.ndarray") -> "np.ndarray":
        import numpy as np

        least = int(np.searchsorted(near, near[0], side="right"))  # the symbol itself and its twins always are candidates
        row = np.zeros(len(near))
        for radius, share in zip(at, weight, strict=True):
            count = max(int(np.searchsorted(near, radius)), least)
            chances = np.exp(near[:count] * (-self._epsilon / 2 / radius))
            row[:count] += chances * (share / chances.sum())
        return row

    def _mean_over_cells(self, near: "np.ndarray", law: Radius) -> "np.ndarray":
        """A cell costs its candidates only; cells are taken together where the table is small."""
        import numpy as np

        ends, upper, middle = self._cells
        inside, row = law.beyond(near), np.zeros(len(near))
        step = max((1 << 18) // len(near), 1)
        for start in range(0, len(middle), step):
            part = slice(start, start + step)
            count = int(np.searchsorted(near, upper[part][-1]))
            low, mass = ends[1:][part, None], -np.diff(ends)[part, None]
            chances = np.clip((inside[:count] - low) / mass, 0.0, 1.0)  # of being a candidate
            chances *= np.exp(near[:count] * (-self._epsilon / 2 / middle[part, None]))
            row[:count] += (mass[:, 0] / chances.sum(axis=1)) @ chances
        return row


class FateLaw:
    """log P(y|x) of the fate form."""

    def __init__(self, vectors: "np.ndarray", epsilon: float, scale: "np.ndarray") -> None:
        import numpy as np

        self._norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
        self._unit = vectors / self._norms[:, None]
        self._epsilon, self._scale = epsilon, scale
        self._line = on_a_line(vectors, "fate")
        many = min(PAIRS // len(vectors), DIRECTIONS[1])
        self._tail = None if self._line or many < DIRECTIONS[0] else GammaTail(len(scale))
        if self._tail is not None:
            self._noise = directions(many, scale, 20231)
        else:
            rng = np.random.default_rng(20231)
            self._noise = rng.laplace(size=(1 if self._line else NOISES, len(scale))) * self._scale
        self._squares = np.square(self._noise).sum(axis=1)

    def log_prob(self, rows: "np.ndarray") -> "np.ndarray":
        """float64 [n, V]."""
        import numpy as np

        cosines = self._unit[rows] @ self._unit.T
        cosines[np.arange(len(rows)), rows] = 1.0
        out = np.empty_like(cosines)
        for i, (row, cosine) in enumerate(zip(rows, cosines, strict=True)):
            order = np.argsort(-cosine)
            score = self._epsilon / 2 * (cosine[order] - 1)
            ends = self._ends(int(row), cosine[order]) / np.cumsum(np.exp(score))
            with np.errstate(divide="ignore"):
                out[i, order] = score + np.log(np.cumsum(ends[::-1])[::-1])
        return np.asarray(out)

    def _ends(self, row: int, cosine: "np.ndarray") -> "np.ndarray":
        """float64 [V]: the probability that the k + 1 nearest symbols are the candidates. cosine: falling."""
        import numpy as np

        if self._tail is not None:
            inside = np.minimum.accumulate(self._candidate(row, np.minimum(cosine + SLACK, 1.0), self._tail))
            return np.asarray(-np.diff(np.append(inside, 0.0)))
        limit, weight = self._nodes(row)
        count = np.searchsorted(-cosine, -limit, side="right")  # candidates at each node
        return np.bincount(count - 1, weight, len(cosine))

    def _candidate(self, row: int, cosine: "np.ndarray", tail: GammaTail) -> "np.ndarray":
        """float64 [V]: P(cos(x, x + G u) <= cosine), a mean over u; the angle at x + G u gives G by the law of sines."""
        import numpy as np

        norm, size = self._norms[row], np.sqrt(self._squares)
        along, sine = self._noise @ self._unit[row], np.sqrt(np.maximum(1 - cosine * cosine, 0.0))
        aside = np.sqrt(np.maximum(self._squares - along * along, 0.0))
        total, step = np.zeros(len(cosine)), max((1 << 18) // len(cosine), 1)
        for start in range(0, len(size), step):
            part = slice(start, start + step)
            under = aside[part, None] * cosine - along[part, None] * sine
            reach = np.full(under.shape, np.inf)
            np.divide(np.broadcast_to(norm * sine, under.shape), under, out=reach, where=under > 0)
            reach[:, sine == 0] = np.where(cosine[sine == 0] > 0, 0.0, np.inf)
            total += np.exp(tail.log(reach)).sum(axis=0)
        return np.asarray(total / len(size))

    def _nodes(self, row: int) -> "tuple[np.ndarray, np.ndarray]":
        """(cosines [nodes], weights [nodes])."""
        import numpy as np

        norm, tiny = self._norms[row], np.finfo(np.float64).tiny
        if self._line:
            back = np.exp(-norm / max(float(self._scale[0]), tiny)) / 2
            return np.array([1 - SLACK, -1 - SLACK]), np.array([1 - back, back])
        along = self._noise @ self._unit[row]
        whole = np.sqrt(np.maximum(norm * (norm + 2 * along) + self._squares, tiny))
        return np.clip((norm + along) / whole, -1.0, 1.0) - SLACK, np.full(NOISES, 1 / NOISES)


def on_a_line(vectors: "np.ndarray", variant: str) -> bool:
    """Whether the law is the mechanism's own, up to rounding and quadrature: one dimension, few symbols for reference."""
    return vectors.shape[1] == 1 and (variant == "fate" or len(vectors) <= EXACT)


def exponential_nodes(distances: "np.ndarray", rate: float) -> "tuple[np.ndarray, np.ndarray]":
    """(nodes, weights that sum to 1) for an exponential variable, for functions smooth between `distances` (sorted)."""
    import numpy as np

    ends = np.unique(np.concatenate([np.arange(0, distances[-1], 1 / rate), distances, [0.0]]))
    point, share = np.polynomial.legendre.leggauss(NODES)
    lengths = np.diff(ends)
    inside = ends[:-1, None] + lengths[:, None] * (point + 1) / 2
    mass = np.exp(-rate * ends[:-1]) - np.exp(-rate * ends[1:])
    density = share * np.exp(-rate * (inside - ends[:-1, None]))
    weights = mass[:, None] * density / density.sum(axis=1, keepdims=True)
    tail, shares = np.polynomial.laguerre.laggauss(TAIL)
    last = float(np.exp(-rate * ends[-1]))
    nodes = np.concatenate([inside.ravel(), ends[-1] + tail / rate])
    return nodes, np.concatenate([weights.ravel(), last * shares / shares.sum()])
