# SPDX-License-Identifier: Apache-2.0
"""The linear utility of similar symbols, and rows of probabilities that are exponential in a utility.

u(x, y) is the cosine similarity of x and y, rescaled to [0, 1] within each row: 1 for x itself, 0 for the least similar symbol.
Without vectors it is 1 for x itself and 0 else. Computed in float64 for the rows asked for; nothing of size V x V is kept.
"""

from typing import TYPE_CHECKING

from osmotic.plugins.mechanisms.shared import unit_vectors
from osmotic.schemas.errors import ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np

    from osmotic.plugins.contract import Space

RESOLUTION = 1e-10  # sampling resolves 2^-53: a smallest probability above this is drawn with a relative error below 1e-5
ROUNDING = 1e-9  # similarities closer than this to 1 are no difference


class LinearUtility:
    """u(x, y) in [0, 1] for the known symbols of a space. Raises ConfigError for vectors without a direction."""

    def __init__(self, space: "Space") -> None:
        import numpy as np

        self.size = space.size
        self._unit = None if space.vectors is None else unit_vectors(space, np.float64)

    def rows(self, rows: "np.ndarray") -> "np.ndarray":
        """float64 [n, V]; the symbol itself has 1. Rows without any difference have 1 everywhere."""
        import numpy as np

        at = (np.arange(len(rows)), rows)
        if self._unit is None:
            flat = np.zeros((len(rows), self.size))
            flat[at] = 1.0
            return flat
        near = self._unit[rows] @ self._unit.T
        near[at] = 1.0
        low = near.min(axis=1, keepdims=True)
        width = 1.0 - low
        near -= low
        near /= np.maximum(width, ROUNDING)
        np.clip(near, 0.0, 1.0, out=near)
        near[width[:, 0] <= ROUNDING] = 1.0
        return np.asarray(near)


def exponential_rows(scores: "np.ndarray") -> "np.ndarray":
    """log of exp(scores) / their sum, row by row, written over `scores`: float64 [n, V]."""
    import numpy as np

    scores -= scores.max(axis=1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return scores


def check_resolution(space: "Space", epsilon: float, largest: float, fix: str = "use list-rr") -> None:
    """Raise ConfigError when epsilon is above the largest at which every probability is at least RESOLUTION."""
    if epsilon > largest:
        why = f"with {space.size} symbols the smallest probabilities would be lost in rounding"
        raise ConfigError(Problem(f"must be at most {largest:.1f} here", path="epsilon", why=why, fix=fix))
