# SPDX-License-Identifier: Apache-2.0
"""A hash of what a variable holds, for the conformance kit, however deep or round that is; no `repr` is asked.

Containers of Python, `Records` and dataclasses are looked into, `DEEP` levels down; any other object, and what lies deeper,
counts as the object that it is.
"""

import dataclasses
import hashlib
from collections import deque
from collections.abc import Iterable
from typing import Any

from osmotic.plugins.contract import Records

__all__ = ["DEEP", "HOLDERS", "content_hash"]

HOLDERS = (str, bytes, bytearray, int, float, list, tuple, dict, set, deque, Records)  # what can hold a record or a part of it
DEEP = 24
_CONTAINERS = (list, tuple, deque, dict, set, frozenset, Records)


def content_hash(value: Any) -> str:
    """SHA-256 of what a value holds, the same as long as nothing in it changes."""
    return _Hash().of(value, DEEP).hex()


class _Hash:
    """Remembers what it has seen at which depth, so that a value in many places is walked once for each depth at most."""

    def __init__(self) -> None:
        self.seen: dict[tuple[int, int], tuple[Any, bytes]] = {}  # with the object: while it lives, nobody else has its id

    def of(self, value: Any, deep: int) -> bytes:
        """Digest of a value that may be looked into for so many levels."""
        plain = _plain(value)
        if plain is not None:
            return _digest(value, [plain])
        key = (id(value), deep)
        if key not in self.seen:
            self.seen[key] = (value, self._inside(value, deep - 1))
        return self.seen[key][1]

    def _inside(self, value: Any, deep: int) -> bytes:
        fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else ()
        if deep < 0 or not (fields or isinstance(value, _CONTAINERS)):
            return _digest(value, [str(id(value)).encode()])
        parts = [self.of(getattr(value, field.name, None), deep) for field in fields]
        if isinstance(value, dict):
            parts += [self.of(part, deep) for pair in list(dict.items(value)) for part in pair]
        elif isinstance(value, _CONTAINERS):
            held = [self.of(part, deep) for part in list(value)]
            parts += sorted(held) if isinstance(value, (set, frozenset)) else held
        return _digest(value, parts)


def _plain(value: Any) -> bytes | None:
    """The bytes of a value that holds no others; None for others."""
    if isinstance(value, str):
        return str.encode(value, "utf-8", "surrogatepass")
    if isinstance(value, (bytes, bytearray)):
        return bytes(memoryview(value))
    if isinstance(value, int):
        return b"%x" % int.__int__(value)
    if isinstance(value, float):
        return float.hex(value).encode()
    return b"" if value is None else None


def _digest(value: Any, parts: Iterable[bytes]) -> bytes:
    whole = hashlib.sha256(type(value).__qualname__.encode())
    for part in parts:
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.digest()
