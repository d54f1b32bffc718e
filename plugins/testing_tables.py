# SPDX-License-Identifier: Apache-2.0
"""The part of the conformance kit for table plugins: `check_table`. Import it from ``osmotic.testing``."""

from collections.abc import Sequence
from pathlib import Path

from osmotic.plugins.contract import Space, Table, TablePlugin
from osmotic.schemas.errors import OsmoticError, Problem

__all__ = ["check_table"]

TEXTS = (
    "",
    " ",
    "The house, 42 steps!",
    "caf\u00e9 cafe\u0301",
    "\u65e5\u672c\u8a9e \U0001f600",
    "a\0b",
    "\ud800x",
    "x" * 5000,
)


def check_table(cls: type[TablePlugin], argument: str, base: Path = Path()) -> Space:
    """Check that a table plugin fits, and return its space.

    Symbols (at least two, none empty or twice), vectors (float32, one finite row a symbol, none of zeros), files (there, the
    same twice), digests (the same for two loads), text (odd ones do not fail, symbols are in range, lengths add up; a text
    that was decoded encodes to the same again), a light import. Raises ConformanceError, or ConfigError for an argument that
    the table does not have.
    """
    from osmotic.plugins.testing_checks import ConformanceError, check_imports
    from osmotic.plugins.vocabulary import check_symbols, check_vectors

    shown = f"{cls.name}:{argument}"
    first, second = cls().load(argument, base), cls().load(argument, base)
    try:
        check_symbols(first.symbols, shown)
        if first.vectors is not None:
            check_vectors(first.vectors, len(first.symbols), shown, shown)
    except OsmoticError as error:
        raise ConformanceError(*error.problems) from error
    files = [list(cls().files(argument, base)) for _ in range(2)]
    wrong = (
        [] if files[0] == files[1] and all(file.is_file() for file in files[0]) else ["files: existing ones, the same twice"]
    )
    spaces = [_space(cls, table) for table in (first, second)]
    wrong += _check_same(*spaces)
    wrong += _check_text(spaces[0])
    if wrong:
        raise ConformanceError(*(Problem(f"{shown}: {text}") for text in wrong))
    check_imports(cls)
    return spaces[0]


def _space(cls: type[TablePlugin], table: Table) -> Space:
    return Space(cls.name, table.symbols, table.vectors, unknown=True, tokenizer=table.tokenizer)


def _check_same(first: Space, second: Space) -> list[str]:
    from osmotic.plugins.certificate import space_digest

    rule = first.tokenizer
    wrong = [] if space_digest(first) == space_digest(second) else ["load: two loads must give the same table"]
    if rule is not None and (len(rule.digest) != 64 or set(rule.digest) - set("0123456789abcdef")):
        wrong.append("tokenizer.digest: a SHA-256 in 64 hexadecimal digits")
    return wrong


def _check_text(space: Space) -> list[str]:
    """Encode odd texts; decode known symbols; a decoded text encodes to the same again."""
    import numpy as np

    from osmotic.plugins.spaces import decode, encode

    if not _fits(space, TEXTS):
        return ["encode: int64 indices from 0 to V, one length a text, none for an empty text"]
    some = np.arange(min(space.size, 50), dtype=np.int64)
    once = decode(space, np.concatenate([some, some]), np.array([len(some), 0, len(some)]))
    if len(once) != 3 or once[0] != once[2] or once[1].strip():
        return ["decode: one text a length, equal ones for equal symbols"]
    flat, lengths = encode(space, once)
    if (flat == space.size).all():
        return ["encode: what its own symbols decode to must not be all unknown"]
    text = decode(space, flat[flat < space.size], np.array([int((flat < space.size).sum())]))
    first, lengths = encode(space, text)
    if (first == space.size).any():
        return []
    settled = np.array_equal(encode(space, decode(space, first, lengths))[0], first)
    return [] if settled else ["decode: a text that was decoded must encode to the same symbols again"]


def _fits(space: Space, texts: Sequence[str]) -> bool:
    from osmotic.plugins.spaces import encode

    flat, lengths = encode(space, texts)
    typed = flat.dtype == lengths.dtype == "int64" and len(lengths) == len(texts) and int(lengths.sum()) == len(flat)
    return bool(typed and (not len(flat) or 0 <= flat.min() <= flat.max() <= space.size) and lengths[0] == 0)
