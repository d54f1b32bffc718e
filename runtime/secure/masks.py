# SPDX-License-Identifier: Apache-2.0
"""Masks of 32-bit words that cancel in the sum: AES-256 in counter mode, keyed by HKDF-SHA256.

Every key is for one purpose, one pair of names and one session (the plan's digest is the salt), and is used once, so the
counter starts at zero. Streams are added in blocks that stay in a core's cache. Held to be indistinguishable from uniform
words for whoever has not the key: AES-256, HKDF-SHA256 and X25519 being what they are held to be.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np

BLOCK = 1 << 17  # bytes at a time


def derive(secret: bytes, salt: bytes, *purpose: str, length: int = 32) -> bytes:
    """HKDF-SHA256 of a secret, for one purpose: a closed list of words and names."""
    hashes, kdf = _hkdf()
    return bytes(kdf.HKDF(algorithm=hashes.SHA256(), length=length, salt=salt, info=canonical(list(purpose))).derive(secret))


class Stream:
    """Uniform bytes from a key of 32: AES-256-CTR from counter zero. For one use of the key."""

    def __init__(self, key: bytes) -> None:
        ciphers = _ciphers()
        self._stream = ciphers.Cipher(ciphers.algorithms.AES(key), ciphers.modes.CTR(bytes(16))).encryptor()

    def into(self, zeros: Any, target: Any) -> None:
        """The next len(zeros) bytes, into a writable buffer that is 15 bytes longer at the least."""
        self._stream.update_into(zeros, target)


def add_streams(words: "np.ndarray", plus: Sequence[bytes], minus: Sequence[bytes]) -> None:
    """Add to words, uint32 [n], in place and modulo 2^32, the streams of the keys `plus`, and take away those of `minus`."""
    import numpy as np

    streams = [(Stream(key), np.add) for key in plus] + [(Stream(key), np.subtract) for key in minus]
    zeros, buffer = memoryview(bytes(BLOCK)), bytearray(BLOCK + 16)
    for start in range(0, words.size, BLOCK // 4):
        part = words[start : start + BLOCK // 4]
        drawn = np.frombuffer(buffer, dtype="<u4", count=part.size)
        for stream, into in streams:
            stream.into(zeros[: 4 * part.size], buffer)
            into(part, drawn, out=part)
    drawn = np.frombuffer(buffer, dtype=np.uint8)
    drawn[:] = 0


def _ciphers() -> Any:
    try:
        from cryptography.hazmat.primitives import ciphers
    except ImportError as error:
        raise missing(error) from error
    return ciphers


def _hkdf() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.kdf import hkdf
    except ImportError as error:
        raise missing(error) from error
    return hashes, hkdf


def missing(error: ImportError) -> ConfigError:
    """The package cryptography is not there."""
    return ConfigError(Problem("a secure sum needs the package cryptography", why=str(error), fix="pip install 'osmotic[dp]'"))
