# SPDX-License-Identifier: Apache-2.0
"""The fixed-point grid of a secure sum in 32-bit words, and a client's vector put on it: clipped, rounded, never overflowing.

Without noise the step is the least power of two with which n clients' numbers of absolute value <= range add up to at most
2^31 - 1; numbers are rounded to the nearest step. With noise a client's share has a standard deviation of exactly 2^b steps,
b the largest for which n ranges and 14 standard deviations of all noise together fit: the sum wraps around with a chance below
2^-139 a number, and if it does, what was learned is still a function of the noisy sum: a wrong result, no lost privacy. Numbers
are then rounded towards zero, which lengthens no vector, and the squares of the integers themselves are added up and held
against the clip norm before anything is used. That sum is in float64, whose relative error is below 2^-21 for 2^31 numbers;
MARGIN keeps 1e-4 of the norm free, so that the integers' exact norm is below the clip norm on the grid.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from osmotic.schemas.errors import ComponentError, ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np

LARGEST = (1 << 31) - 1
MARGIN = 1e-4  # of the clip norm, kept free where there is noise
FURTHEST = 14  # standard deviations of the sum's noise that there is room for
LEAST_BITS, LEAST_DEVIATION = 8, float(1 << 21)  # of a share; of the honest clients' noise together: see `noise`
BLOCK = 1 << 15  # numbers at a time: what stays in a core's cache


@dataclass(frozen=True)
class Grid:
    """step: what one unit is worth. limit: largest integer of one client's number. bits: log2 of a noise share's deviation."""

    step: float
    limit: int
    clip: float | None
    bits: int | None

    @classmethod
    def of(
        cls, clients: int, reach: float, clip: float | None, multiplier: float | None, honest: int
    ) -> "Grid":  # fmt: skip
        """The finest grid that holds n clients' numbers up to `reach`, and noise. Raises ConfigError where it is too coarse."""
        if multiplier is None or clip is None:
            limit = LARGEST // clients
            mantissa, exponent = math.frexp(reach / limit)
            step = math.ldexp(1.0, exponent - (mantissa == 0.5))
            step = step if reach <= limit * step else 2 * step
            return cls(step, math.floor(reach / step + 0.5), clip, None)
        for bits in range(26, LEAST_BITS - 1, -1):
            step = multiplier * clip / math.sqrt(honest) / (1 << bits)
            limit = math.ceil(reach / step)
            if clients * limit + math.ceil(FURTHEST * math.sqrt(clients) * (1 << bits)) <= LARGEST:
                if math.sqrt(honest) * (1 << bits) < LEAST_DEVIATION:
                    break
                return cls(step, limit, clip, bits)
        what = (
            f"the sum of {clients} clients' numbers up to {reach:g} leaves too little room for noise of {multiplier:g} x clip"
        )
        fix = "a smaller 'range' (largest absolute value of a number; 'clip' if not given), or more noise"
        raise ConfigError(Problem(what, path="range", why="32-bit words; the noise must span 2^21 steps", fix=fix))

    def encode(self, vector: "Mapping[str, np.ndarray]", shapes: Mapping[str, tuple[int, ...]]) -> "np.ndarray":
        """uint32 [size]: the vector in steps, clipped, in the shapes' order; it is read twice. Raises ComponentError."""
        import numpy as np

        if set(vector) != set(shapes):
            raise ComponentError(Problem("a vector to be added does not have the tensors that were agreed on"))
        factor = self._factor(vector, shapes)
        out = np.empty(sum(math.prod(shape) for shape in shapes.values()), dtype=np.int32)
        at, square = 0, 0.0
        for block in _blocks(vector, shapes):
            scaled = block.astype(np.float64) * factor
            np.rint(scaled, out=scaled) if self.bits is None else np.trunc(scaled, out=scaled)
            self._held(scaled)
            square += float(np.dot(scaled, scaled))
            with np.errstate(invalid="ignore"):  # NaN: found below
                out[at : at + len(block)] = scaled
            at += len(block)
        most = math.inf if self.bits is None or self.clip is None else ((1 - MARGIN / 2) * self.clip / self.step) ** 2
        if not (math.isfinite(square) and square <= most):
            raise ComponentError(Problem("a vector changed while it was added"))
        return out.view(np.uint32)

    def _held(self, scaled: "np.ndarray") -> None:
        """Hold integers to the limit: cut where vectors are clipped, else refused."""
        import numpy as np

        if self.clip is None and not float(np.abs(scaled).max()) <= self.limit:
            what, fix = "a vector has a number beyond the agreed range, or no number", "a larger 'range', or 'clip'"
            raise ComponentError(Problem(what, path="range", fix=fix))
        np.clip(scaled, -self.limit, self.limit, out=scaled)

    def _factor(self, vector: "Mapping[str, np.ndarray]", shapes: Mapping[str, tuple[int, ...]]) -> float:
        """What every number is multiplied with: 1 / step, less where the vector is longer than the clip norm."""
        import numpy as np

        if self.clip is None:
            return 1 / self.step
        square = 0.0
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is looked at below
            for block in _blocks(vector, shapes):
                wide = block.astype(np.float64)
                square += float(np.dot(wide, wide))
        if not math.isfinite(square):
            raise ComponentError(Problem("a vector to be added is too long, or has what is no number"))
        limit, norm = self.clip * (1 - MARGIN if self.bits is not None else 1), math.sqrt(square)
        return (limit / norm if norm > limit else 1.0) / self.step

    def decode(self, total: "np.ndarray", shapes: Mapping[str, tuple[int, ...]]) -> "dict[str, np.ndarray]":
        """Name -> float64: a sum of words, uint32 [size], as numbers of the clients' own unit."""
        import numpy as np

        found, at = {}, 0
        for name, shape in shapes.items():
            count = math.prod(shape)
            found[name] = (total[at : at + count].view(np.int32) * self.step).reshape(shape)
            at += count
        return found


def _blocks(vector: "Mapping[str, np.ndarray]", shapes: Mapping[str, tuple[int, ...]]) -> "Iterator[np.ndarray]":
    import numpy as np

    for name, shape in shapes.items():
        tensor = vector[name]
        if tuple(tensor.shape) != shape or tensor.dtype.kind not in "fiu":
            raise ComponentError(Problem(f"the tensor {name!r} of a vector to be added has not the shape that was agreed on"))
        flat = np.ascontiguousarray(tensor).reshape(-1)
        for start in range(0, flat.size, BLOCK):
            yield flat[start : start + BLOCK]
