# SPDX-License-Identifier: Apache-2.0
"""Several named byte strings as one: how messages of a secure sum go together in one request.

Layout: 4 bytes header length (big endian), a JSON object {name: length} in the order of the names, the contents.
"""

import json
import struct
from collections.abc import Mapping
from typing import Any

from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import Problem, ProtocolError

LONGEST = 1 << 22  # of a header: 100,000 names


def pack(parts: Mapping[str, bytes]) -> bytes:
    """The parts as one."""
    head = canonical({name: len(content) for name, content in parts.items()})
    return b"".join([struct.pack(">I", len(head)), head, *(bytes(parts[name]) for name in sorted(parts))])


def unpack(blob: bytes) -> dict[str, bytes]:
    """The inverse of `pack`; raises ProtocolError for anything else."""
    size = struct.unpack(">I", blob[:4])[0] if len(blob) >= 4 else LONGEST + 1
    sizes: Any = None
    try:
        sizes = json.loads(blob[4 : 4 + size]) if size <= LONGEST else None
    except (ValueError, RecursionError) as error:
        raise ProtocolError(Problem("a message of a secure sum is damaged")) from error
    right = isinstance(sizes, dict) and all(type(n) is int and n >= 0 for n in sizes.values())
    if not right or 4 + size + sum(sizes.values()) != len(blob):
        raise ProtocolError(Problem("a message of a secure sum is damaged", why="it is not as long as it says"))
    found, at = {}, 4 + size
    for name in sorted(sizes):
        found[name] = blob[at : at + sizes[name]]
        at += sizes[name]
    return found
