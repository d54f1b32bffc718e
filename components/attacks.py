# SPDX-License-Identifier: Apache-2.0
"""What the attack components share: spaces of fields, released rows beside true ones."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from osmotic.components.matching import need_columns, same_keys, unique
from osmotic.components.mechanism_config import FieldsConfig
from osmotic.plugins.analysis import encode
from osmotic.plugins.contract import Context, Records, Space
from osmotic.schemas.errors import DataError, Problem

if TYPE_CHECKING:
    import numpy as np

Pair = tuple[dict[str, Any], dict[str, Any]]
SPACE_ONLY = {"name": "list-rr", "epsilon": 1.0, "k": 1, "lists": "order"}  # fits every space: only its space is used


def attacked(config: FieldsConfig, sanitized: Records) -> list[str]:
    """The fields that are attacked: those named, or every released one. Raises DataError when there are none."""
    found = config.fields or [name for name in sanitized.columns if name != "id"]
    if not found:
        raise DataError(Problem("no field was released", path="fields"))
    return found


def space_of(context: Context, field: str) -> Space:
    """The space of a field: its domain, or the table that its text is released over. Raises ConfigError."""
    return context.mechanism(SPACE_ONLY, field).space


def paired(records: Records, sanitized: Records, key: Records, fields: Sequence[str]) -> list[Pair]:
    """(record, what was released of it), in the order of the records. Raises DataError when they do not belong together."""
    need_columns(records, ["id", *fields], "records")
    need_columns(sanitized, ["id", *fields], "released records")
    need_columns(key, ["released", "id"], "rows of the key")
    own, released = unique(records, "id", "records"), unique(sanitized, "id", "released records")
    home = unique(key, "released", "rows of the key")
    same_keys(home, released, "row of the key", "released records")
    back = {home[identity]["id"]: row for identity, row in released.items()}
    same_keys(back, own, "released record", "records")
    if not own:
        raise DataError(Problem("there are no records to attack"))
    return [(row, back[identity]) for identity, row in own.items()]


def symbols(space: Space, field: str, pairs: Sequence[Pair]) -> "Iterator[tuple[np.ndarray, np.ndarray] | None]":
    """(true, released) symbol indices of each pair, int64 [n]; None where the two are of different length.

    An index of V is the unknown symbol: a true word that is not in the table.
    """
    sides = []
    for side in (0, 1):
        flat, lengths = encode(space, [str(pair[side][field]) for pair in pairs])
        ends = lengths.cumsum()
        sides.append([flat[end - count : end] for end, count in zip(ends.tolist(), lengths.tolist(), strict=True)])
    for true, released in zip(*sides, strict=True):
        yield (true, released) if len(true) == len(released) else None
