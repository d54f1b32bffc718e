# SPDX-License-Identifier: Apache-2.0
"""Exact draws, whatever the probabilities: coins with a probability each, and one symbol of many from unnormalised weights.

An inverse CDF resolves 2^-53: symbols that are rarer never come out, and a pure guarantee is lost. Here a symbol is found by
going down a binary tree of sums, one exact coin a level, each with the smaller of two probabilities: every probability has a
relative error near 2^-50, however small it is.
"""

from typing import TYPE_CHECKING

from osmotic.schemas.errors import ComponentError, Problem

if TYPE_CHECKING:
    import numpy as np

    from osmotic.plugins.contract import Entropy

DIGITS = 1 << 53


def coins(probabilities: "np.ndarray", entropy: "Entropy") -> "np.ndarray":
    """bool [n], true with exactly the float64 probability of each: compared digit by digit, base 2^53."""
    import numpy as np

    rest = np.minimum(np.asarray(probabilities, dtype=np.float64), 1.0)
    result = rest >= 1.0
    open_ = np.flatnonzero((rest > 0) & ~result)
    rest = rest[open_]
    while open_.size:
        scaled = rest * DIGITS
        digits = np.floor(scaled).astype(np.int64)
        draws = entropy.integers(DIGITS, open_.size)
        result[open_[draws < digits]] = True
        tied = (draws == digits) & (scaled > digits)
        open_, rest = open_[tied], (scaled - digits)[tied]
    return np.asarray(result)


def bernoulli(probability: float, count: int, entropy: "Entropy") -> "np.ndarray":
    """bool [count], true with exactly the float64 `probability`, however small."""
    import numpy as np

    return coins(np.full(count, probability), entropy)


def choose(weights: "np.ndarray", entropy: "Entropy", which: "np.ndarray | None" = None) -> "np.ndarray":
    """int64 [n]: one column of each row of `weights` (float64 [n, V], >= 0, not all 0), in proportion to them.

    which: int64 [draws], the row of each draw, where there is not one a row; then int64 [draws]. Raises ComponentError when the
    weights of a row have no finite sum above 0.
    """
    import numpy as np

    level = _even(weights)
    levels = [level]
    with np.errstate(over="ignore", invalid="ignore"):
        while level.shape[1] > 2:
            level = _even(level[:, 0::2] + level[:, 1::2])
            levels.append(level)
        total = level.sum(axis=1)  # NaN or infinite if any weight is
    if not bool((np.isfinite(total) & (total > 0)).all()):
        raise ComponentError(Problem("no symbol can be drawn: the weights of a row have no finite sum above 0"))
    rows = np.arange(len(weights)) if which is None else which
    at = np.zeros(len(rows), dtype=np.int64)
    for level in reversed(levels):
        left, right = level[rows, 2 * at], level[rows, 2 * at + 1]
        total = left + right
        rarer = np.minimum(left, right) / total
        at = 2 * at + (coins(rarer, entropy) ^ (right > left))
    return at


def _even(level: "np.ndarray") -> "np.ndarray":
    """The same with a column of zeros more where the number of columns is odd."""
    import numpy as np

    return np.pad(level, ((0, 0), (0, 1))) if level.shape[1] % 2 else level
