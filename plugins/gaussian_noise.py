# SPDX-License-Identifier: Apache-2.0
"""Gaussian noise as integers on a fine grid, and vectors put on that grid within an L2 norm: nothing is left to floating point.

The grid has 2^30 steps a standard deviation. A clipped vector is rounded towards zero, which never lengthens it; sums of such
vectors, and the noise, are exact integers, so the low bits of what is given out tell nothing about the sum (Mironov 2012).
`rounded_gaussian` draws round(2^30 N), N standard normal: k + round(2^30 N) = round(k + 2^30 N), so adding it to integers is
the continuous Gaussian mechanism and then a rounding, and costs exactly what that costs. It is drawn by rejection: a cell of
width 1/16 from a table of 2^16 slots, a place in it from 26 bits, kept by an exact coin. The probability of every integer is
right to a factor 1 +- 2^-46 (the error of exp(-x^2/2) in float64; the density stands for the integral over a step, within
2^-57), and integers beyond 14 standard deviations, 2^-146 of the whole, never come. So d coordinates add less than
d 2^-44 to the epsilon of a sum: 6e-7 for 10 million. Void when: the entropy is not the operating system's.
"""

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from osmotic.plugins.exact import coins
from osmotic.schemas.errors import ComponentError, Problem

if TYPE_CHECKING:
    import numpy as np

    from osmotic.plugins.contract import Entropy

STEPS = 1 << 30  # of the grid, a standard deviation
MARGIN = 1e-6  # of the clip norm, kept free: more than what rounding in float64 can add, up to 2^31 coordinates
FURTHEST, WIDTH_BITS = 14, 4  # standard deviations; cells of 2^-4 of one
PLACES = STEPS >> WIDTH_BITS
PLACE_BITS = PLACES.bit_length() - 1
COIN = 1 << 20
DRAWS = 1 << 13  # at a time: what stays in a core's cache, and is not mapped anew each time
LEAST_CLIP = 1e-30  # a vector whose squares vanish in float64 is shorter by far; what is given out is float32


def rounded_gaussian(count: int, entropy: "Entropy") -> "np.ndarray":
    """int64 [count]: independent draws of round(2^30 N), N standard normal."""
    import numpy as np

    slots, heights = cells()
    out, filled = np.empty(count, dtype=np.int64), 0
    while filled < count:
        wanted = min(DRAWS, count - filled + (count - filled) // 8 + 64)
        drawn = _tried(wanted, slots, heights, entropy)[: count - filled]
        out[filled : filled + len(drawn)] = drawn
        filled += len(drawn)
    return out


def _tried(count: int, slots: "np.ndarray", heights: "np.ndarray", entropy: "Entropy") -> "np.ndarray":
    """Those of `count` proposals that are kept: a word of 63 bits a proposal: slot, place, sign, the coin's first 20 bits.

    A coin below what the cell's rarest place is kept with decides at once; the others, one in 20, are compared with the
    place's own chance, and draw further bits where these 20 are tied with it.
    """
    import numpy as np

    words = entropy.integers(1 << 63, count)
    cells = slots[words & 0xFFFF]
    sizes = (cells << PLACE_BITS) | ((words >> 16) & (PLACES - 1))
    negative = (words >> 42) & 1
    first = words >> 43
    kept = first < _sure()[cells]
    open_ = np.flatnonzero(~kept)
    x = sizes[open_] / STEPS
    scaled = np.exp(-0.5 * x * x) * heights[cells[open_]] * COIN
    digits = np.floor(scaled).astype(np.int64)
    kept[open_] = first[open_] < digits
    tied = first[open_] == digits
    kept[open_[tied]] = coins((scaled - digits)[tied], entropy)
    if not sizes.all():
        kept &= (sizes > 0) | (negative == 0)  # zero has one sign
    return np.asarray(((sizes ^ -negative) + negative)[kept])


@functools.lru_cache(maxsize=1)
def cells() -> "tuple[np.ndarray, np.ndarray]":
    """(int64 [65536] the cell of each slot, float64 [cells] that brings exp(-x^2/2) to the chance of being kept, at most 1)."""
    import numpy as np

    tops = np.exp(-0.5 * (np.arange(FURTHEST << WIDTH_BITS) / (1 << WIDTH_BITS)) ** 2)
    shares = np.floor(tops / tops.sum() * (65536 - len(tops))).astype(np.int64) + 1
    shares[0] += 65536 - shares.sum()
    heights = (1 - 2.0**-40) / (shares * np.max(tops / shares))  # a little less, so that no chance passes 1 by rounding
    return np.repeat(np.arange(len(tops)), shares), heights


@functools.lru_cache(maxsize=1)
def _sure() -> "np.ndarray":
    """int64 [cells]: the coin's first 20 bits below which any place of the cell is kept."""
    import numpy as np

    heights = cells()[1]
    ends = (np.arange(len(heights)) + 1) / (1 << WIDTH_BITS)
    return np.asarray(np.floor(np.exp(-0.5 * ends * ends) * heights * (1 - 2.0**-30) * COIN).astype(np.int64))


class GridSum:
    """The integer sum of vectors, each held to an L2 norm. A vector is named tensors of the shapes given.

    clip: the norm, in the tensors' own unit, 1e-30 to 1e30. noise_multiplier: standard deviation of the noise over `clip`;
    fixes the grid.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], clip: float, noise_multiplier: float) -> None:
        import numpy as np

        self._shapes = {name: tuple(shape) for name, shape in sorted(shapes.items())}
        self._clip, self.step = clip, clip * noise_multiplier / STEPS
        if not (LEAST_CLIP <= clip <= 1 / LEAST_CLIP):  # also where it is no number
            why = "squares of what is smaller vanish, and sums of what is larger are no float32"
            what = f"clip must be in {LEAST_CLIP:g}..{1 / LEAST_CLIP:g}"
            raise ComponentError(Problem(what, path="clip", why=why, fix="scale the vectors"))
        if not (self.step > 0 and clip / self.step < 2**62):
            raise ComponentError(Problem("noise_multiplier must be above 0, and not as small as this"))
        self._room = 2**62 / (clip / self.step)
        self.count, self._total = 0, {name: np.zeros(shape, dtype=np.int64) for name, shape in self._shapes.items()}

    def add(self, vector: "Mapping[str, np.ndarray]") -> None:
        """Clip a vector and add it. It is read twice, tensor by tensor. Raises ComponentError when it does not fit."""
        import numpy as np

        norm = self._norm(vector)
        if self.count + 1 > self._room:
            raise ComponentError(Problem("more vectors than whole numbers have room for", fix="a larger noise_multiplier"))
        limit = self._clip * (1 - MARGIN)
        factor = (limit / norm if norm > limit else 1.0) / self.step
        square = 0.0
        for name, total in self._total.items():
            tensor = vector[name].astype(np.float64)
            square += float(np.sum(np.square(tensor)))
            total += np.trunc(tensor * factor).astype(np.int64)
        if math.sqrt(square) != norm:  # half of it is in the sum: the sum is of no use
            self._total = {}
            raise ComponentError(Problem("a vector changed while it was added"))
        self.count += 1

    def _norm(self, vector: "Mapping[str, np.ndarray]") -> float:
        import numpy as np

        square = 0.0
        for name, shape in self._shapes.items():
            if name not in vector or tuple(vector[name].shape) != shape:
                raise ComponentError(Problem(f"a vector to be added does not have the tensor {name!r} in its shape"))
            with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is looked at below
                square += float(np.sum(np.square(vector[name].astype(np.float64))))
        if set(vector) != set(self._shapes) or not math.isfinite(square):
            raise ComponentError(Problem("a vector to be added has unknown tensors, or is too long or no number"))
        return math.sqrt(square)

    def noisy(self, entropy: "Entropy") -> "dict[str, np.ndarray]":
        """Name -> float32: the sum with its noise, in the tensors' own unit."""
        return {
            name: ((total + rounded_gaussian(total.size, entropy).reshape(total.shape)) * self.step).astype("float32")
            for name, total in self._total.items()
        }

    def integers(self) -> "dict[str, Any]":
        """The exact sum on the grid, without noise: secret; for look-up keys and tests."""
        return self._total
