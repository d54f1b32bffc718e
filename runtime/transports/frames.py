# SPDX-License-Identifier: Apache-2.0
"""Length-prefixed frames over a pipe: 4 bytes header length, 8 bytes body length, header in JSON, body."""

import json
import struct
from typing import Any, BinaryIO

from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import Problem, ProtocolFault

LIMIT = 1 << 26
BODY_LIMIT = 1 << 34
PREFIX = struct.Struct(">IQ")


def write(stream: BinaryIO, header: dict[str, Any], *parts: bytes) -> None:
    """Write one frame, its body in parts, and flush."""
    head = canonical(header)
    stream.write(PREFIX.pack(len(head), sum(map(len, parts))))
    stream.write(head)
    for part in parts:
        stream.write(part)
    stream.flush()


def read(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """Read one frame; None when the other side has closed. Raises ProtocolFault on a damaged one: what follows is lost."""
    found = read_header(stream)
    body = None if found is None else exactly(stream, found[1])
    return None if found is None or body is None else (found[0], body)


def read_header(stream: BinaryIO) -> tuple[dict[str, Any], int] | None:
    """(header, length of the body) of the next frame, whose body is read next; else like `read`."""
    prefix = exactly(stream, PREFIX.size)
    if prefix is None:
        return None
    head_size, body_size = PREFIX.unpack(prefix)
    if head_size > LIMIT or body_size > BODY_LIMIT:
        why = f"header {head_size} bytes (limit {LIMIT}), body {body_size} (limit {BODY_LIMIT})"
        raise ProtocolFault(Problem("a frame is too long", why=why))
    head = exactly(stream, head_size)
    return None if head is None else (header_of(head), body_size)


def header_of(head: bytes) -> dict[str, Any]:
    """A header out of its bytes; raises ProtocolFault unless it is a JSON object."""
    try:
        header = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise ProtocolFault(Problem("a frame's header is not JSON, or too deep")) from error
    if not isinstance(header, dict):
        raise ProtocolFault(Problem("a frame's header is not a mapping"))
    return header


def exactly(stream: BinaryIO, size: int) -> bytes | None:
    """So many bytes, in memory once; None when the stream ends before. Raises ProtocolFault where there is no room for them."""
    try:
        found = stream.read(size)
    except MemoryError as error:
        raise ProtocolFault(Problem(f"there is no memory for a frame of {size} bytes")) from error
    return found if len(found) == size else None
