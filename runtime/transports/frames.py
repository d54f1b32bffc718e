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


def write(stream: BinaryIO, header: dict[str, Any], blob: bytes = b"") -> None:
    """Write one frame and flush."""
    head = canonical(header)
    stream.write(PREFIX.pack(len(head), len(blob)))
    stream.write(head)
    stream.write(blob)
    stream.flush()


def read(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """Read one frame; None when the other side has closed. Raises ProtocolFault on a damaged one: what follows is lost."""
    prefix = _exactly(stream, PREFIX.size)
    if prefix is None:
        return None
    head_size, body_size = PREFIX.unpack(prefix)
    if head_size > LIMIT or body_size > BODY_LIMIT:
        why = f"header {head_size} bytes (limit {LIMIT}), body {body_size} (limit {BODY_LIMIT})"
        raise ProtocolFault(Problem("a frame is too long", why=why))
    head = _exactly(stream, head_size)
    body = _exactly(stream, body_size)
    if head is None or body is None:
        return None
    return _header(head), body


def _header(head: bytes) -> dict[str, Any]:
    try:
        header = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise ProtocolFault(Problem("a frame's header is not JSON, or too deep")) from error
    if not isinstance(header, dict):
        raise ProtocolFault(Problem("a frame's header is not a mapping"))
    return header


def _exactly(stream: BinaryIO, size: int) -> bytes | None:
    parts = []
    while size:
        part = stream.read(min(size, 1 << 22))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
