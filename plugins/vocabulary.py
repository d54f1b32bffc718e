# SPDX-License-Identifier: Apache-2.0
"""Vocabularies: files with one token a line, the rows of a table that are taken, and the checks that every table passes."""

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.source import did_you_mean

if TYPE_CHECKING:
    import numpy as np

__all__ = ["argument_of", "check_symbols", "check_vectors", "read_lines", "rows_of"]

BLOCK = 8192  # rows looked at at a time


def argument_of(name: str, argument: str, known: Iterable[str]) -> str:
    """The argument of a table reference; raises ConfigError with did-you-mean when the table has none of that name."""
    known = list(known)
    if argument not in known:
        fix = did_you_mean(f"{name}:{argument}", [f"{name}:{k}" for k in known])
        raise ConfigError(Problem(f"the table {name!r} has no {argument[:80]!a}", path="table", fix=fix))
    return argument


def rows_of(vectors: "np.ndarray", numbers: Sequence[int], shown: str) -> "np.ndarray":
    """Rows `numbers` of a mapped table: a view where they follow one another, else a copy. Raises ConfigError: too few rows."""
    import numpy as np

    chosen = np.asarray(numbers, dtype=np.int64)
    if vectors.ndim != 2 or (chosen.size and chosen.max() >= len(vectors)):
        why = f"the vectors have shape {list(vectors.shape)}, the last entry is number {chosen.max(initial=-1)}"
        raise ConfigError(Problem(f"the table {shown!a} must have one vector an entry", path="table", why=why))
    if chosen.size and (np.diff(chosen) == 1).all():
        return vectors[int(chosen[0]) : int(chosen[-1]) + 1]
    return np.ascontiguousarray(vectors[chosen])


def read_lines(path: Path, shown: str) -> tuple[str, ...]:
    """A vocabulary: UTF-8, one token a line. Raises ConfigError naming the lines of empty, padded or repeated tokens."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(Problem("the vocabulary cannot be read as UTF-8", shown, why=str(error)[:200])) from error
    if not text.strip():
        raise ConfigError(Problem("the vocabulary is empty", f"{shown}:1", fix="one token a line"))
    seen: dict[str, int] = {}
    tokens, problems = [], []
    for number, token in enumerate(text.removesuffix("\n").split("\n"), start=1):
        form = token if token.isascii() else unicodedata.normalize("NFC", token)
        if not token or token != token.strip():
            problems.append(Problem("an empty token, or one with spaces around it", f"{shown}:{number}", fix="mend the line"))
        elif form in seen:
            why = f"first on line {seen[form]}"
            problems.append(Problem(f"the token {token!r} stands twice", f"{shown}:{number}", why=why, fix="delete one line"))
        else:
            seen[form] = number
            tokens.append(token)
    if problems:
        raise ConfigError(*problems[:20])
    return tuple(tokens)


def check_symbols(symbols: Any, shown: str) -> tuple[str, ...]:
    """A table's symbols: a tuple of strings, at least two, no empty one, none twice. Raises ConfigError naming the row."""
    if not isinstance(symbols, tuple) or not all(isinstance(symbol, str) for symbol in symbols):
        raise ConfigError(Problem(f"the symbols of the table {shown!a} must be a tuple of strings", path="table"))
    if len(symbols) < 2:
        why = f"it has {len(symbols)}"
        raise ConfigError(Problem(f"the table {shown!a} needs at least two symbols", path="table", why=why))
    if len(set(symbols)) != len(symbols) or "" in symbols:
        seen: dict[str, int] = {"": -1}
        row = next(i for i, symbol in enumerate(symbols) if seen.setdefault(symbol, i) != i)
        why = f"{symbols[row]!r} in row {row}" + (f", first in row {seen[symbols[row]]}" if symbols[row] else "")
        raise ConfigError(Problem(f"the table {shown!a} has an empty symbol, or one twice", path="table", why=why))
    return symbols


def check_vectors(vectors: "np.ndarray", count: int, name: str, shown: str) -> "np.ndarray":
    """float32 [count, d], finite, no row of zeros; read a block at a time. Raises ConfigError naming the row."""
    import numpy as np

    if not isinstance(vectors, np.ndarray) or vectors.dtype != np.dtype("<f4"):
        why = f"it is {getattr(vectors, 'dtype', type(vectors).__name__)}"
        raise ConfigError(Problem(f"the table {shown!a} must be float32", path="table", why=why))
    if vectors.ndim != 2 or vectors.shape[0] != count or not vectors.shape[1]:
        why = f"it has shape {list(vectors.shape)}; {name!r} has {count} symbols"
        raise ConfigError(Problem(f"the table {shown!a} must have one vector a symbol", path="table", why=why))
    for start in range(0, count, BLOCK):
        block = vectors[start : start + BLOCK]
        for what, bad in (
            ("values that are not finite", ~np.isfinite(block).all(axis=1)),
            ("a vector of zeros", ~block.any(axis=1)),
        ):
            if bad.any():
                why = f"in row {start + int(np.flatnonzero(bad)[0])}"
                raise ConfigError(Problem(f"the table {shown!a} has {what}", path="table", why=why, fix="mend or drop the row"))
    return vectors
