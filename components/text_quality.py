# SPDX-License-Identifier: Apache-2.0
"""How near a set of texts is to real ones: distances of embeddings, distinct n-grams, copies. numpy alone.

Frechet distance (Heusel et al. 2017) between normal laws fitted to the embeddings, with each covariance shrunk towards a
multiple of the identity by the rule of Ledoit and Wolf (2004), so that few texts in many dimensions have one at all. It is
biased upwards for few texts: `frechet_floor` is what real texts score against other real ones. `mauve_like` is the area under
the divergence curve of Pillutla et al. (2021) over k-means clusters; another embedder, number of clusters and smoothing than
theirs, so only to be compared with itself.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SCALE = 5.0  # of the divergences in `mauve_like`, as published
POINTS = 99  # of its curve
CLUSTERINGS = 5  # one alone moves the area more than most texts do
ITERATIONS = 50  # of k-means, at most


def frechet(left: "np.ndarray", right: "np.ndarray") -> float:
    """The squared distance of two normal laws fitted to [n, d] and [m, d]; n, m at least 2."""
    import numpy as np

    (mean, cov), (other, shape) = _fitted(left), _fitted(right)
    values, vectors = np.linalg.eigh(cov)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ shape @ root), 0, None)).sum()
    return max(0.0, float(((mean - other) ** 2).sum() + np.trace(cov) + np.trace(shape) - 2 * cross))


def _fitted(points: "np.ndarray") -> "tuple[np.ndarray, np.ndarray]":
    """(mean, shrunk covariance)."""
    import numpy as np

    n, d = points.shape
    mean = points.mean(axis=0)
    off = points - mean
    plain = off.T @ off / n
    level = float(np.trace(plain)) / d
    spread = float(((plain - level * np.eye(d)) ** 2).sum())
    noise = (float(((off**2).sum(axis=1) ** 2).sum()) / n - float((plain**2).sum())) / n
    share = min(max(noise, 0.0), spread) / spread if spread > 0 else 1.0
    return mean, (1 - share) * plain + share * level * np.eye(d)


def frechet_interval(
    left: "np.ndarray", right: "np.ndarray", rng: "np.random.Generator", resamples: int
) -> tuple[float, float]:
    """A 95% interval of `frechet` by the basic bootstrap: resampling raises the distance, so its quantiles are turned around
    the estimate. At least 0."""
    import numpy as np

    estimate = frechet(left, right)
    drawn = [
        frechet(left[rng.integers(0, len(left), len(left))], right[rng.integers(0, len(right), len(right))])
        for _ in range(resamples)
    ]
    low, high = (float(value) for value in np.percentile(drawn, [2.5, 97.5]))
    return max(0.0, min(2 * estimate - high, estimate)), max(2 * estimate - low, estimate)


def mauve_like(texts: "np.ndarray", real: "np.ndarray", clusters: int, rng: "np.random.Generator") -> float:
    """Area under the divergence curve, 0 (nothing shared) to 1 (alike): the mean over `CLUSTERINGS` of both sets together."""
    points = [_area(texts, real, clusters, rng) for _ in range(CLUSTERINGS)]
    return min(1.0, sum(points) / CLUSTERINGS)


def _area(texts: "np.ndarray", real: "np.ndarray", clusters: int, rng: "np.random.Generator") -> float:
    import numpy as np

    where = kmeans(np.concatenate([texts, real]), clusters, rng)
    shares = []
    for part in (where[: len(texts)], where[len(texts) :]):
        counts = np.bincount(part, minlength=clusters) + 0.5  # a cluster that one side lacks is no infinite divergence
        shares.append(counts / counts.sum())
    q, p = shares
    x, y = [0.0], [1.0]
    for weight in np.arange(1, POINTS + 1) / (POINTS + 1):
        mixed = weight * p + (1 - weight) * q
        x.append(math.exp(-SCALE * float((q * np.log(q / mixed)).sum())))
        y.append(math.exp(-SCALE * float((p * np.log(p / mixed)).sum())))
    points = sorted(zip([*x, 1.0], [*y, 0.0], strict=True), key=lambda point: (point[0], -point[1]))
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))


def kmeans(points: "np.ndarray", clusters: int, rng: "np.random.Generator") -> "np.ndarray":
    """int [n]: the cluster of each point (Lloyd, begun by k-means++)."""
    import numpy as np

    centres = [points[rng.integers(len(points))]]
    nearest = ((points - centres[0]) ** 2).sum(axis=1)
    while len(centres) < clusters:
        total = nearest.sum()
        chance = nearest / total if total > 0 else None
        centres.append(points[rng.choice(len(points), p=chance)])
        nearest = np.minimum(nearest, ((points - centres[-1]) ** 2).sum(axis=1))
    table, where = np.array(centres), np.full(len(points), -1)
    for _ in range(ITERATIONS):
        distances = (table**2).sum(axis=1) - 2 * points @ table.T
        found = distances.argmin(axis=1)
        if (found == where).all():
            break
        where = found
        for number in range(clusters):
            if (where == number).any():
                table[number] = points[where == number].mean(axis=0)
    return where


def distinct(texts: Iterable[Sequence[str]], size: int) -> float:
    """Distinct n-grams of words over all n-grams; 0 where there are none. Falls with the number of texts."""
    grams = [tuple(text[i : i + size]) for text in texts for i in range(len(text) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


class Copies:
    """The longest run of items that a sequence shares with any of some others: a suffix automaton, linear in all lengths."""

    def __init__(self, sequences: Iterable[Sequence[Hashable]]) -> None:
        self._next: list[dict[Hashable, int]] = [{}]
        self._link, self._length, self._last = [-1], [0], 0
        for number, sequence in enumerate(sequences):
            for item in sequence:
                self._extend(item)
            self._extend((number, None))  # an item of its own: no run goes over an end

    def longest(self, sequence: Sequence[Hashable]) -> int:
        """Items of the longest run that stands in one of the others, too."""
        state = length = best = 0
        for item in sequence:
            while state and item not in self._next[state]:
                state = self._link[state]
                length = self._length[state]
            if item in self._next[state]:
                state, length = self._next[state][item], length + 1
            best = max(best, length)
        return best

    def _extend(self, item: Hashable) -> None:
        made, state = self._add(self._length[self._last] + 1, {}, 0), self._last
        while state != -1 and item not in self._next[state]:
            self._next[state][item] = made
            state = self._link[state]
        if state != -1:
            target = self._next[state][item]
            if self._length[target] != self._length[state] + 1:
                target = self._split(state, item, target)
            self._link[made] = target
        self._last = made

    def _split(self, state: int, item: Hashable, target: int) -> int:
        copy = self._add(self._length[state] + 1, dict(self._next[target]), self._link[target])
        while state != -1 and self._next[state].get(item) == target:
            self._next[state][item] = copy
            state = self._link[state]
        self._link[target] = copy
        return copy

    def _add(self, length: int, following: dict[Hashable, int], link: int) -> int:
        self._next.append(following)
        self._length.append(length)
        self._link.append(link)
        return len(self._length) - 1


def largest_gap(left: Sequence[float], right: Sequence[float]) -> float:
    """The largest difference of two empirical distribution functions (Kolmogorov and Smirnov), 0..1."""
    import numpy as np

    values = np.array(sorted({*left, *right}))
    shares = [np.searchsorted(np.sort(np.array(side)), values, side="right") / len(side) for side in (left, right)]
    return float(np.abs(shares[0] - shares[1]).max())
