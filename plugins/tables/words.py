# SPDX-License-Identifier: Apache-2.0
"""The public rule of words: lower case, NFC, then runs of letters; every other character but white space is a token alone.

Letters are those of any script. What that means beyond English: an accent written as a combining mark becomes part of its
letter where Unicode has the two as one (NFC), else the mark is a token; the vowel signs of Indic scripts and the points of
Hebrew and Arabic are marks too, so they cut a word; Chinese, Japanese and Thai have no spaces, so a whole run of letters is one
token, which hardly any table knows (take a table with word pieces there); an emoji of several characters is several tokens;
text from right to left is cut in the order in which it is stored, and marks of direction are tokens. A token that is not in
the table is the unknown symbol: it has its own row, and never passes.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, repeat
from typing import TYPE_CHECKING

from osmotic.schemas.errors import DataError, Problem

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LIMIT", "SLICE", "batches", "decode", "encode", "lookup", "runs", "tokenize"]

TOKEN = re.compile(r"[^\W\d_]+|\S")
LIMIT = 256 * 1024 * 1024  # characters of one text; longer ones are refused
SLICE = 256 * 1024  # characters cut at a time


def tokenize(text: str) -> list[str]:
    """Text -> tokens by the public rule: lower case, NFC, then runs of letters; every other character but space is one token.

    Digits, marks, signs, emoji and characters outside any table are tokens too: nothing passes beside the mechanism.
    """
    return TOKEN.findall(unicodedata.normalize("NFC", text.lower()))


def slices(text: str) -> Iterator[str]:
    """A text in slices of at most SLICE characters: before the last space (or line end) of each, else at its very end."""
    start = 0
    while len(text) - start > SLICE:
        end = start + SLICE
        cut = text.rfind(" ", start + 1, end)
        cut = cut if cut > 0 else text.rfind("\n", start + 1, end)
        end = cut if cut > 0 else end
        yield text[start:end]
        start = end
    if start < len(text) or not text:
        yield text[start:]


def batches(texts: Sequence[str]) -> Iterator[tuple[list[str], list[int]]]:
    """(slices, the text that each belongs to), about SLICE characters and at most 4096 slices at a time, in order.

    Raises DataError, before anything is cut, for a text of more than LIMIT characters.
    """
    for number, text in enumerate(texts):
        if len(text) > LIMIT:
            why = f"it has {len(text)} characters, and at most {LIMIT} are taken"
            raise DataError(Problem("a text is too long to be cut into symbols", f"text {number + 1}", why=why, fix="split it"))
    some: list[str] = []
    owners: list[int] = []
    size = 0
    for number, text in enumerate(texts):
        for part in slices(text):
            if some and (size + len(part) > SLICE or len(some) == 4096):
                yield some, owners
                some, owners, size = [], [], 0
            some.append(part)
            owners.append(number)
            size += len(part)
    if some:
        yield some, owners


@lru_cache(maxsize=8)
def lookup(symbols: tuple[str, ...]) -> dict[str, int]:
    """Symbol -> index; the last few are kept. Read it only."""
    return {symbol: i for i, symbol in enumerate(symbols)}


def encode(symbols: tuple[str, ...], texts: Sequence[str]) -> "tuple[np.ndarray, np.ndarray]":
    """(int64 [n] indices of all texts one after another, V where unknown; int64 [texts] how many each has)."""
    import numpy as np

    known, unknown = lookup(symbols).get, len(symbols)
    lengths = np.zeros(len(texts), dtype=np.int64)
    parts = []
    for some, owners in batches(texts):
        cut = [tokenize(text) for text in some]
        counts = np.fromiter(map(len, cut), np.int64, len(cut))
        np.add.at(lengths, owners, counts)
        found = map(known, chain.from_iterable(cut), repeat(unknown))
        parts.append(np.fromiter(found, np.int32, int(counts.sum())))
    return np.concatenate(parts, dtype=np.int64) if parts else np.empty(0, np.int64), lengths


def decode(symbols: tuple[str, ...], flat: "np.ndarray", lengths: "np.ndarray") -> list[str]:
    """The text of each run of indices: its symbols with one space between them."""
    return [" ".join(run) for run in runs(array_of(symbols), flat, lengths)]


@lru_cache(maxsize=8)
def array_of(symbols: tuple[str, ...]) -> "np.ndarray":
    """The symbols as an array of objects. Read it only."""
    import numpy as np

    out = np.empty(len(symbols), dtype=object)
    out[:] = symbols
    return out


def runs(strings: "np.ndarray", flat: "np.ndarray", lengths: "np.ndarray") -> Iterator[list[str]]:
    """strings[flat], one list a run. Raises DataError when indices or lengths do not fit."""
    import numpy as np

    flat, lengths = np.asarray(flat), np.asarray(lengths)
    if lengths.sum() != len(flat) or (len(flat) and not 0 <= flat.min() <= flat.max() < len(strings)):
        why = f"{len(flat)} symbols, {lengths.sum()} by their lengths, of a table of {len(strings)}"
        raise DataError(Problem("released symbols do not fit the table", why=why))
    end = 0
    for length in lengths.tolist():
        yield strings[flat[end : end + length]].tolist()
        end += length
