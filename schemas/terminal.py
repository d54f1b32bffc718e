# SPDX-License-Identifier: Apache-2.0
"""Texts that others wrote, made harmless for a terminal: escape sequences, and marks that turn the order of letters around.

A value of a data set, a file's name or a model's answer may hold codes that a terminal obeys: they clear what was said, write
over it, or make a line read as another. They are shown as what they are, ``\\x1b`` say.
"""

import re
from typing import Any, TextIO

__all__ = ["Harmless", "harmless"]

# C0 but tab and line break, DEL, C1; marks of direction; line and paragraph separators; half surrogate pairs
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)  # fmt: skip


def harmless(text: str) -> str:
    """The text with every character that a terminal would obey written as an escape.

    >>> harmless("red\\x1b[2J")
    'red\\\\x1b[2J'
    """
    return _OBEYED.sub(_written, text)


def _written(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


class Harmless:
    """A stream to a terminal that writes harmless texts only; all else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As the stream's `write`."""
        return self._stream.write(harmless(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
