# SPDX-License-Identifier: Apache-2.0
"""Discrete Gaussian noise whose standard deviation is a power of two, added to 32-bit words: a client's share of a sum's noise.

Every integer k has a chance in proportion to exp(-k^2 / 2 s^2), s = 2^bits, to a factor 1 +- 2^-46 (float64's error in the
exponential); beyond 14 s (2^-146 of the whole) nothing comes. Drawn by rejection like `plugins.gaussian_noise`, with its table:
a cell of width s / 16 from 2^16 slots, a place in it, kept by an exact coin whose first 16 bits mostly decide. The bits are
AES-256-CTR's under a key that serves nothing else, so a session that is taken up again draws the same. Time depends on how many
are rejected.
"""

import functools
from typing import TYPE_CHECKING

from osmotic.plugins.entropy import CipherEntropy
from osmotic.plugins.exact import coins
from osmotic.plugins.gaussian_noise import WIDTH_BITS, cells
from osmotic.runtime.secure.masks import Stream, derive

if TYPE_CHECKING:
    import numpy as np

DRAWS = 1 << 15  # at a time
BYTES = 8  # of a proposal: slot 2, coin 2, place and sign 4
COIN = 1 << 16
LEAST, MOST = 8, 26  # bits


def add_noise(words: "np.ndarray", bits: int, secret: bytes) -> None:
    """Add to words, uint32 [n], in place and modulo 2^32, a draw each, of standard deviation 2^bits. secret: 32 bytes.

    Raises ValueError unless bits is in 8..26.
    """
    import numpy as np

    if not LEAST <= bits <= MOST:
        raise ValueError(f"bits must be in {LEAST}..{MOST} (got {bits})")
    tied = CipherEntropy(secret, "secure sum: noise, tied coins")
    stream, buffer = Stream(derive(secret, b"", "noise")), bytearray(BYTES * DRAWS + 16)
    zeros, again = memoryview(bytes(BYTES * DRAWS)), []
    for start in range(0, words.size, DRAWS):
        part = words[start : start + DRAWS]
        stream.into(zeros[: BYTES * part.size], buffer)
        drawn, refused = _proposed(buffer, part.size, bits, tied)
        np.add(part, drawn.view(np.uint32), out=part)
        again.append(start + refused)
    places = np.concatenate(again) if again else np.zeros(0, dtype=np.int64)
    while places.size:  # those that were refused, drawn again
        now = places[:DRAWS]
        stream.into(zeros[: BYTES * now.size], buffer)
        drawn, refused = _proposed(buffer, now.size, bits, tied)
        words[now] += drawn.view(np.uint32)
        places = np.concatenate([now[refused], places[DRAWS:]])


def _proposed(buffer: bytearray, count: int, bits: int, entropy: CipherEntropy) -> "tuple[np.ndarray, np.ndarray]":
    """(int32 [count] draws, 0 where refused; indices of the refused). The buffer holds slots, then coins, then places."""
    import numpy as np

    slots = np.frombuffer(buffer, dtype="<u2", count=count).astype(np.intp)
    first = np.frombuffer(buffer, dtype="<u2", count=count, offset=2 * count)
    place = np.frombuffer(buffer, dtype="<i4", count=count, offset=4 * count)
    packed, heights = _tables()
    found = packed.take(slots)
    cell = found & np.int32(0xFF)
    sizes = cell << np.int32(bits - WIDTH_BITS)
    sizes |= place & np.int32((1 << (bits - WIDTH_BITS)) - 1)
    negative = place >> 31  # 0 or -1
    found >>= 8
    open_ = np.flatnonzero(first >= found)
    x = sizes[open_] / (1 << bits)
    scaled = np.exp(-0.5 * x * x) * heights[cell[open_]] * COIN
    digits = np.floor(scaled).astype(np.int64)
    kept = first[open_] < digits
    tied = np.flatnonzero(first[open_] == digits)
    if tied.size:
        kept[tied] = coins((scaled - digits)[tied], entropy)
    refused = open_[~kept]
    if not sizes.all():  # zero has one sign
        refused = np.union1d(refused, np.flatnonzero((sizes == 0) & (negative < 0)))
    sizes ^= negative
    sizes -= negative
    sizes[refused] = 0
    return sizes, refused


@functools.lru_cache(maxsize=1)
def _tables() -> "tuple[np.ndarray, np.ndarray]":
    """(int32 [65536] a slot's cell in the low byte, above it the coin below which all of the cell is kept; float64 heights)."""
    import numpy as np

    of_slot, heights = cells()
    ends = (np.arange(len(heights)) + 1) / (1 << WIDTH_BITS)
    sure = np.floor(np.exp(-0.5 * ends * ends) * heights * (1 - 2.0**-30) * COIN).astype(np.int64)
    return (sure << 8 | np.arange(len(heights)))[of_slot].astype(np.int32), heights
