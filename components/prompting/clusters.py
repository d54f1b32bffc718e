# SPDX-License-Identifier: Apache-2.0
"""Which words of several clients' prompts mean the same, and which of them speaks for the others (FedDTPT, arXiv 2411.00985).

Every function takes vectors that are made here of length 1 and gives plain numbers; nothing is drawn at random but the first
centres of k-means, which are seeded. Where the paper is silent or wrong: similarities are mean cosines to the other clients'
tokens (a softmax over sums of them leaves two tokens of 150), the distance curve is one of different tokens (the same word from
two clients is at distance 0), and eps lies in a band: at least 1e-6, for DBSCAN refuses 0, and at most a share of the median
distance between different tokens, for the knee of words that have nothing to do with each other would put all of them together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from osmotic.schemas.errors import ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "LEAST", "NOISE", "Curve", "curve_of", "dbscan", "directions", "kmeans", "knee", "mean_cosines", "need_sklearn", "same",
]  # fmt: skip
LEAST = 1e-6  # of eps: equal vectors are not told apart by rounding, and DBSCAN refuses 0
NOISE = -1  # number of the cluster of a token that has none
BLOCK = 1024  # rows of a table of distances in memory at a time
SAMPLE = 512  # different tokens among which the median distance is taken
SLACK = 1e-7  # two ways to compute a distance of unit vectors differ by less


def directions(vectors: "np.ndarray") -> "np.ndarray":
    """float64 [n, d]: the vectors at length 1; one of length 0 stays as it is, at cosine 0 to all others."""
    import numpy as np

    found = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found / np.where(lengths > 0, lengths, 1.0))


def mean_cosines(prompts: "Sequence[np.ndarray]") -> "list[np.ndarray]":
    """float64 [n_k] for each client's unit vectors [n_k, d]: a token's mean cosine to all tokens of the other clients.

    O(K N d) by e . (S - S_k) / (M - n_k), with the sums S of all M tokens and S_k of the client's own. Needs two clients that
    have tokens; without other tokens a weight is 0.
    """
    import numpy as np

    sums = [np.sum(one, axis=0) for one in prompts]
    total, count = np.sum(sums, axis=0), sum(len(one) for one in prompts)
    return [np.asarray(one @ (total - own) / max(1, count - len(one))) for one, own in zip(prompts, sums, strict=True)]


def same(vectors: "np.ndarray") -> bool:
    """Whether vectors [n, d] differ in nothing but their length."""
    points = directions(vectors)
    return bool(abs(points - points[0]).max() <= LEAST)


@dataclass(frozen=True)
class Curve:
    """Distances of different tokens to their nearest other, ascending, and what was read off them.

    knee: the distance at the largest gap to the chord; None for a flat curve, or no curve. limit: the largest eps that is
    taken; infinite where there is none.
    eps: the geometric mean of the knee and the next distance on the curve. Where these are close, it is the knee; after a jump
    it lies in the gap, where the very largest distance within a cluster does not decide whether the cluster falls apart.
    """

    distances: tuple[float, ...]
    knee: float | None
    limit: float
    eps: float


def curve_of(points: "np.ndarray", reach: float | None) -> Curve:
    """The curve of different unit vectors [n, d] and the eps that follows from it.

    reach: eps is at most this share of the median distance between two of them; None: no such limit.
    """
    nearest = sorted(_nearest(points)) if len(points) > 1 else []
    found = knee(nearest)
    limit = math.inf if reach is None or len(points) < 2 else reach * _median(points)
    wanted = nearest[-1] if nearest else 0.0
    if found is not None:
        wanted = math.sqrt(nearest[found] * nearest[min(found + 1, len(nearest) - 1)])
    return Curve(tuple(nearest), None if found is None else nearest[found], limit, max(min(wanted, limit), LEAST))


def knee(ascending: Sequence[float]) -> int | None:
    """Index of the largest distance from the chord between the first and the last point; None where all are about equal.

    >>> knee([0.1, 0.1, 0.1, 0.2, 5.0])
    3
    """
    if len(ascending) < 3 or ascending[-1] - ascending[0] <= LEAST:
        return None
    low, spread, last = ascending[0], ascending[-1] - ascending[0], len(ascending) - 1
    gaps = [round(abs(i / last - (value - low) / spread), 12) for i, value in enumerate(ascending)]
    return max(range(len(gaps)), key=gaps.__getitem__)


def dbscan(points: "np.ndarray", counts: Sequence[int], eps: float, min_samples: int) -> list[int]:
    """The cluster of each different unit vector, or NOISE; counts: how often it stands in all prompts together.

    The same as clustering every token by itself, Euclidean distance, neighbours counted with the token itself.
    """
    from sklearn.cluster import DBSCAN

    found = DBSCAN(eps=eps + SLACK, min_samples=min_samples).fit_predict(points, sample_weight=list(counts))
    return [int(one) for one in found]


def kmeans(points: "np.ndarray", counts: Sequence[int], clusters: int, seed: int) -> list[int]:
    """The cluster of each different unit vector, of `clusters` or fewer (there are no more than points); seeded."""
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of points that are all but equal
        made = KMeans(min(clusters, len(points)), n_init=4, random_state=seed)
        return [int(one) for one in made.fit_predict(points, sample_weight=list(counts))]


def need_sklearn(key: str) -> None:
    """Raise ConfigError, at the key that asks for it, when scikit-learn is not installed."""
    if find_spec("sklearn") is None:
        fix = "pip install 'osmotic[eval]', or 'clustering: none'"
        raise ConfigError(Problem("clusters need scikit-learn, which is not installed", path=key, fix=fix))


def _nearest(points: "np.ndarray") -> list[float]:
    """Of each vector, the distance to the nearest other; a block of rows at a time."""
    import numpy as np

    found: list[float] = []
    for start in range(0, len(points), BLOCK):
        block = _distances(points[start : start + BLOCK], points)
        block[np.arange(len(block)), np.arange(start, start + len(block))] = np.inf
        found += block.min(axis=1).tolist()
    return found


def _median(points: "np.ndarray") -> float:
    """The median distance between two different vectors, among SAMPLE of them that are spread over all."""
    import numpy as np

    some = points[np.unique(np.linspace(0, len(points) - 1, min(SAMPLE, len(points))).astype(int))]
    return float(np.median(_distances(some, some)[np.triu_indices(len(some), 1)]))


def _distances(left: "np.ndarray", right: "np.ndarray") -> "np.ndarray":
    """float64 [n, m]: Euclidean distances of unit vectors."""
    import numpy as np

    lengths = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None, :]
    return np.asarray(np.sqrt(np.maximum(lengths - 2 * (left @ right.T), 0.0)))
