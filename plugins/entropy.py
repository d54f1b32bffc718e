# SPDX-License-Identifier: Apache-2.0
"""Where randomness comes from: the operating system for every choice that a guarantee rests on, or a seed for tests.

A long training stretches 32 bytes of the operating system by a cipher (`CipherEntropy`), so that it can be taken up again. All
turn 64-bit words into exact draws: integers by rejection (no modulo bias; a range up to 2^32 takes half a word), uniforms
as k / 2^53 with k in 1..2^53-1, so that 0 and 1 never come out. Void when: a seed is used (the output must then say ``void:
seeded``), or a cipher's secret is known, or one (secret, purpose, step) serves two releases.
"""

import hashlib
import hmac
import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from osmotic.schemas.errors import ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CipherEntropy", "SeededEntropy", "SystemEntropy"]

GRID = 1 << 53
CHUNK = 1 << 14  # words at a time: what stays in a core's cache


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
        bits = 32 if high <= 1 << 32 else 64
        last = (1 << bits) - (1 << bits) % high - 1  # the largest word below a multiple of high
        filled = 0
        while filled < count:
            words = self._taken(min(count - filled, CHUNK), bits)
            words = words if last == (1 << bits) - 1 else words[words <= words.dtype.type(last)]
            out[filled : filled + len(words)] = _remainders(words, high)
            filled += len(words)
        return out

    def _taken(self, count: int, bits: int) -> "np.ndarray":
        """uint32 or uint64 [count]; two halves of a word are two draws, the lower one first."""
        import numpy as np

        if bits == 64:
            return self._words(count)
        return np.asarray(self._words((count + 1) // 2), dtype="<u8").view("<u4")[:count]

    def uniform(self, count: int) -> "np.ndarray":
        """float64 [count], uniform on the multiples of 2^-53 strictly between 0 and 1."""
        import numpy as np

        return (self.integers(GRID - 1, count) + 1).astype(np.float64) / GRID


def _remainders(words: "np.ndarray", high: int) -> "np.ndarray":
    """words modulo high: by quotient and product, which numpy does several times faster than by remainder."""
    import numpy as np

    if high == 1 << 32:
        return words
    if not high & (high - 1):
        return np.asarray(words & words.dtype.type(high - 1))
    one = words.dtype.type(high)
    return np.asarray(words - words // one * one)


class SystemEntropy(_Words):
    """The operating system's generator (os.urandom): the only source that a guarantee may rest on."""

    name: ClassVar[Literal["system"]] = "system"

    def _words(self, count: int) -> "np.ndarray":
        import numpy as np

        return np.frombuffer(os.urandom(8 * count), dtype="<u8").astype(np.uint64, copy=False)


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


class CipherEntropy(_Words):
    """AES-256 in counter mode, keyed by HMAC-SHA256(secret, purpose and step): the same words again for the same three.

    secret: 32 bytes from the operating system, kept until nothing is to be drawn again; streams of other purposes or steps are
    independent as long as AES and HMAC are what they are held to be. Raises ConfigError without the package cryptography.
    """

    name: ClassVar[Literal["cipher"]] = "cipher"

    def __init__(self, secret: bytes, purpose: str, step: int = 0) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
        except ImportError as error:
            what = "noise from a cipher stream needs the package cryptography"
            raise ConfigError(Problem(what, why=str(error), fix="pip install 'osmotic[dp]'")) from error
        named = purpose.encode()
        message = len(named).to_bytes(8, "big") + named + step.to_bytes(8, "big")
        key = hmac.new(secret, message, hashlib.sha256).digest()
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def words(self, count: int) -> "np.ndarray":
        """uint64 [count], uniform and independent: the next ones of the stream."""
        return self._words(count)

    def _words(self, count: int) -> "np.ndarray":
        import numpy as np

        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8").astype(np.uint64, copy=False)
