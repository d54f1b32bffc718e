# SPDX-License-Identifier: Apache-2.0
"""Where randomness comes from: the operating system for every choice that a guarantee rests on, or a seed for tests.

Both turn 64-bit words into exact draws: integers by rejection (no modulo bias), uniforms as k / 2^53 with k in 1..2^53-1, so
that 0 and 1 never come out. Void when: a seed is used (the output must then say ``void: seeded``).
"""

import hashlib
import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    import numpy as np

__all__ = ["SeededEntropy", "SystemEntropy"]

WORD = 1 << 64
GRID = 1 << 53


class _Words(ABC):
    """Draws made of independent, uniform 64-bit words."""

    @abstractmethod
    def _words(self, count: int) -> "np.ndarray":
        """uint64 [count]."""

    def integers(self, high: int, count: int) -> "np.ndarray":
        """int64 [count], uniform in [0, high), unbiased. Raises ValueError unless 1 <= high <= 2^63."""
        import numpy as np

        if not 1 <= high <= 1 << 63:
            raise ValueError(f"high must be in 1..2^63 (got {high})")
        out = np.empty(count, dtype=np.int64)
        last = np.uint64(WORD - WORD % high - 1)  # the largest word below a multiple of high
        filled = 0
        while filled < count:
            words = self._words(count - filled)
            kept = words[words <= last] % np.uint64(high)
            out[filled : filled + len(kept)] = kept.astype(np.int64)
            filled += len(kept)
        return out

    def uniform(self, count: int) -> "np.ndarray":
        """float64 [count], uniform on the multiples of 2^-53 strictly between 0 and 1."""
        import numpy as np

        return (self.integers(GRID - 1, count) + 1).astype(np.float64) / GRID


class SystemEntropy(_Words):
    """The operating system's generator (os.urandom): the only source that a guarantee may rest on."""

    name: ClassVar[Literal["system"]] = "system"

    def _words(self, count: int) -> "np.ndarray":
        import numpy as np

        return np.frombuffer(os.urandom(8 * count), dtype="<u8").astype(np.uint64)


class SeededEntropy(_Words):
    """A reproducible stream, Philox keyed by the SHA-256 of a seed: for tests; voids every guarantee."""

    name: ClassVar[Literal["seeded"]] = "seeded"

    def __init__(self, seed: str | int) -> None:
        import numpy as np

        kind = "integer" if isinstance(seed, int) else "text"
        digest = hashlib.sha256(f"osmotic entropy, {kind}: {seed}".encode("utf-8", "surrogatepass")).digest()
        self._bits = np.random.Philox(key=int.from_bytes(digest[:16], "big"))

    def _words(self, count: int) -> "np.ndarray":
        import numpy as np

        return np.asarray(self._bits.random_raw(count), dtype=np.uint64)
