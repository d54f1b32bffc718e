# SPDX-License-Identifier: Apache-2.0
"""The mean of products B A of low-rank adapters (LoRA, Hu et al. 2021), brought back to their rank; no full matrix is formed.

mean(B) mean(A) is not mean(B A). The sum of products is [B1 .. Bn] [A1; ..; An]: both sides are stacked, and whenever they are
wider than 2 x `LIMIT`, brought back to `LIMIT` by QR of each side and an SVD of the small core. So it is exact, to rounding,
while clients x rank <= 2 x `LIMIT` or a side of the matrix is at most `LIMIT`; beyond that the largest `LIMIT` singular values
are kept, and the Frobenius norm of what was dropped, summed, bounds the error: it is returned, and the distance of the result
from the mean is at most the best possible one plus twice that. Memory does not grow with the number of clients.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from osmotic.components.aggregation.checks import LORA_A, LORA_B, Outline
from osmotic.schemas.errors import ComponentError, Problem

if TYPE_CHECKING:
    import numpy as np

LIMIT = 128


def pairs(outline: Outline) -> list[tuple[str, str]]:
    """(name of A, name of B) of every adapter. Raises ComponentError where there is none, or one is not two matrices."""
    found: list[tuple[str, str]] = []
    names = sorted(name for name in outline if "lora_" in name)
    if names and all(LORA_B in name for name in names):
        what, why = "the weights have no A: it does not train", "the mean of B is the mean of the products then"
        raise ComponentError(Problem(what, path="adapters", why=why, fix="adapters: frozen-a"))
    for name in names:
        other = name.replace(LORA_A, LORA_B) if LORA_A in name else name.replace(LORA_B, LORA_A)
        shape, partner = outline[name][0], outline[other][0] if other in outline else ()
        if other == name or len(shape) != 2 or len(partner) != 2:
            raise ComponentError(Problem(f"{name!r} is no matrix of a pair lora_A, lora_B", fix="adapters: factors"))
        if LORA_A in name:
            if shape[0] != partner[1]:
                raise ComponentError(Problem(f"{name!r} and its B are not of one rank", fix="adapters: factors"))
            found.append((name, other))
    if not found:
        raise ComponentError(Problem("the weights have no adapters", path="adapters", fix="adapters: factors"))
    return found


class ProductSum:
    """A running sum of products left [m, r] x right [r, k]. lost: bound of the Frobenius norm of what was dropped."""

    def __init__(self) -> None:
        self._left: list[np.ndarray] = []
        self._right: list[np.ndarray] = []
        self._width = 0
        self.lost = 0.0

    def add(self, left: "np.ndarray", right: "np.ndarray") -> None:
        """Add one product."""
        self._left.append(left.astype("float64"))
        self._right.append(right.astype("float64"))
        self._width += left.shape[1]
        if self._width > 2 * LIMIT:
            kept, values, others = self.parts()
            self.lost += float((values[LIMIT:] ** 2).sum() ** 0.5)
            self._left, self._right = [kept[:, :LIMIT] * values[:LIMIT]], [others[:LIMIT]]
            self._width = len(values[:LIMIT])

    def parts(self) -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
        """(U [m, w], singular values [w] descending, V^T [w, k]) of the sum; each column of U has its largest entry above 0."""
        import numpy as np

        left, left_core = np.linalg.qr(np.hstack(self._left))
        right, right_core = np.linalg.qr(np.vstack(self._right).T)
        u, values, v = np.linalg.svd(left_core @ right_core.T, full_matrices=False)
        u, v = left @ u, v @ right.T
        largest = u[np.argmax(np.abs(u), axis=0), np.arange(u.shape[1])]
        signs = np.where(largest < 0, -1.0, 1.0)
        return u * signs, values, v * signs[:, None]


def mean_product(factors: "Iterable[tuple[np.ndarray, np.ndarray, float]]") -> "tuple[np.ndarray, np.ndarray, float]":
    """(A [r, k], B [m, r], bound of the error over the norm) of the weighted mean of (A, B, weight), of their rank.

    A's rows are of equal length, the clients' mean one, so that a direction where B is zero can still be learned.
    """
    import numpy as np

    total, weights, size, rank, shapes = ProductSum(), 0.0, 0.0, 0, (0, 0)
    for a, b, weight in factors:
        total.add(b * np.float64(weight), a)
        weights += weight
        size += weight * float(np.square(a.astype(np.float64)).sum())
        rank, shapes = a.shape[0], (b.shape[0], a.shape[1])
    u, values, v = total.parts()
    norm = float(np.sqrt(np.square(values).sum()))
    length = (size / weights / rank) ** 0.5 or 1.0
    a, b = np.zeros((rank, shapes[1])), np.zeros((shapes[0], rank))
    kept = min(rank, len(values))
    a[:kept], b[:, :kept] = v[:kept] * length, u[:, :kept] * (values[:kept] / weights / length)
    return a, b, total.lost / norm if norm else 0.0
