# SPDX-License-Identifier: Apache-2.0
"""What is computed from a public table once, not once a call: keyed by the very objects that a space is made of, never by name.

A key holds its objects, so they stay alive and no other object can be taken for them. Only what nobody can change has a key:
tuples, tokenizers, and arrays that are read-only down to the memory that they show (a file mapped for reading; a file that was
replaced is mapped again, as another object).
"""

from typing import TYPE_CHECKING, Any

from osmotic.plugins.contract import Space

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Same", "same"]


class Same:
    """Equal to another only if both were made of the same objects."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self._parts: tuple[Any, ...] = (space.symbols, space.vectors, space.tokenizer)

    def __hash__(self) -> int:
        return hash((*map(id, self._parts), self.space.unknown))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Same) or self.space.unknown != other.space.unknown:
            return False
        return all(a is b for a, b in zip(self._parts, other._parts, strict=True))


def same(space: Space) -> Same | None:
    """The key of a space's content (not of its name); None when its vectors can be changed, or are not a plain array."""
    return Same(space) if space.vectors is None or _read_only(space.vectors) else None


def _read_only(vectors: "np.ndarray") -> bool:
    import numpy as np

    part: Any = vectors
    while isinstance(part, np.ndarray):
        if part.flags.writeable:
            return False
        part = part.base
    return part is not None and memoryview(part).readonly  # memory of its own can be made writable again
