# SPDX-License-Identifier: Apache-2.0
"""The worker's frames, seen from the bridge: sizes of header and body (``>IQ``), a JSON header, then the body.

Bodies are not collected: whoever reads a header reads the body in pieces, so that a large one never lies here whole.
"""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO, Dict, Iterator

SIZES = struct.Struct(">IQ")
LONGEST_HEADER = 1 << 26
LONGEST_BODY = 1 << 34
Header = Dict[str, Any]


class DamagedError(Exception):
    """Not a frame of ours, or one that ends before its end: where the next begins is not known."""


def pack(header: Header, size: int) -> bytes:
    """What stands before a body of `size` bytes. The order of mappings is kept: a matrix names its tasks by it."""
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    return SIZES.pack(len(text), size) + text


def next_header(stream: BinaryIO) -> tuple[Header, int] | None:
    """The next frame's header and the size of its body; None at the end of the stream. Raises DamagedError."""
    first = stream.read(SIZES.size)
    if not first:
        return None
    if len(first) < SIZES.size:
        raise DamagedError("the stream ends within a frame")
    length, size = SIZES.unpack(first)
    if length > LONGEST_HEADER or size > LONGEST_BODY:
        raise DamagedError(f"a frame is too long: header {length}, body {size} bytes")
    text = stream.read(length)
    if len(text) < length:
        raise DamagedError("the stream ends within a header")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise DamagedError("a frame's header is not JSON") from None
    if not isinstance(header, dict):
        raise DamagedError("a frame's header is not a mapping")
    return header, size


def pieces(stream: BinaryIO, size: int, most: int) -> Iterator[bytes]:
    """A body of `size` bytes in pieces of at most `most`. Raises DamagedError when the stream ends before."""
    while size:
        piece = stream.read(min(size, most))
        if not piece:
            raise DamagedError("the stream ends within a body")
        size -= len(piece)
        yield piece
