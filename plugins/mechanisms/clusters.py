# SPDX-License-Identifier: Apache-2.0
"""Public clusters of vectors: spherical k-means (Dhillon, Modha 2001, "Concept decompositions for large sparse text data").

Seeded by a constant and computed in float64, with centres rounded in each round, so that the same vectors give the same
clusters whatever order a product is summed in (but for ties closer than rounding). No guarantee rests on which clusters come
out.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Clusters"]

ROUNDS = 12
DIGITS = 7  # of a centre's coordinates
BLOCK = 2048


class Clusters:
    """At most `count` clusters of vectors of length 1 (float64 [V, d]), none empty.

    order: int64 [V], symbols cluster by cluster, by index inside; place: int64 [V], where each symbol is in it; unit: float64
    [V, d], the vectors in that order; starts, sizes: int64 [C]; centres: float64 [C, d], length 1.
    """

    def __init__(self, unit: "np.ndarray", count: int) -> None:
        import numpy as np

        chosen = np.random.Generator(np.random.PCG64(0)).choice(len(unit), size=min(count, len(unit)), replace=False)
        centres = unit[np.sort(chosen)]
        for _ in range(ROUNDS):
            order, starts, sizes = _grouped(_nearest(unit, centres))
            centres = _centres(unit, order, starts)
        self.order, self.starts, self.sizes, self.centres = order, starts, sizes, centres
        self.place, self.unit = np.argsort(order), unit[order]

    def inside(self, cluster: int) -> slice:
        """Where in `order` and `unit` the symbols of one cluster are."""
        return slice(int(self.starts[cluster]), int(self.starts[cluster] + self.sizes[cluster]))

    def of(self, rows: "np.ndarray") -> "np.ndarray":
        """float64 [n, d]: the vectors of symbols."""
        import numpy as np

        return np.asarray(self.unit[self.place[rows]])


def _nearest(unit: "np.ndarray", centres: "np.ndarray") -> "np.ndarray":
    """int64 [V]: the centre of the largest cosine, ties to the first."""
    import numpy as np

    parts = [(unit[start : start + BLOCK] @ centres.T).argmax(axis=1) for start in range(0, len(unit), BLOCK)]
    return np.concatenate(parts)


def _grouped(labels: "np.ndarray") -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
    """(order, starts, sizes); labels that nothing has are left out."""
    import numpy as np

    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    return order, starts, sizes


def _centres(unit: "np.ndarray", order: "np.ndarray", starts: "np.ndarray") -> "np.ndarray":
    """float64 [C, d]: means of the groups at length 1; a group whose mean is 0 has its first vector."""
    import numpy as np

    sums = np.add.reduceat(unit[order], starts, axis=0)
    lengths = np.sqrt(np.square(sums).sum(axis=1, keepdims=True))
    small = lengths[:, 0] < 1e-6
    sums[small], lengths[small] = unit[order[starts[small]]], 1.0
    return np.asarray(np.round(sums / lengths, DIGITS))
