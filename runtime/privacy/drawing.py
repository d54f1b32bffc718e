# SPDX-License-Identifier: Apache-2.0
"""Draw what is released: symbols of all documents of a chunk at once, or whole documents; seeded, one document at a time."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from osmotic.plugins.contract import Drawn, Entropy, Mechanism
from osmotic.plugins.entropy import SeededEntropy, SystemEntropy
from osmotic.plugins.spaces import decode, encode, indices
from osmotic.runtime.privacy.charging import SLACK, Costs, amount_of
from osmotic.runtime.privacy.preparing import Prepared
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ComponentError, Problem

if TYPE_CHECKING:
    import numpy as np

Row = dict[str, Any]


@dataclass
class Encoded:
    """Documents as symbols. flat, lengths: of each field, all documents one after another."""

    flat: "list[np.ndarray]"
    lengths: "list[np.ndarray]"

    def counts(self, i: int) -> list[int]:
        """Sampled symbols of a document, one number a field."""
        return [int(lengths[i]) for lengths in self.lengths]


def encode_rows(rows: Sequence[Row], prepared: Prepared) -> Encoded | None:
    """All rows as symbols; None for a document mechanism, which reads the texts itself."""
    import numpy as np

    if prepared.document is not None:
        return None
    made = Encoded([], [])
    for name, mechanism, text in zip(prepared.fields, prepared.mechanisms, prepared.texts, strict=True):
        values = [row[name] for row in rows]
        if text:
            flat, lengths = encode(mechanism.space, values)
        else:
            flat, lengths = indices(mechanism.space, values), np.ones(len(values), dtype=np.int64)
        made.flat.append(flat)
        made.lengths.append(lengths)
    return made


def draw(
    rows: Sequence[Row], prepared: Prepared, encoded: Encoded | None, start: int, stream: tuple[Any, ...] | None
) -> list[tuple[dict[str, str], Costs, list[int]]]:
    """(payload, costs, symbols a field) of each row; `start`: where the rows begin in `encoded`.

    stream: (seed, data set, attempt after the first) for tests; outcomes then depend on the document,
    the mechanism and the field alone.
    """
    if encoded is None:
        return _documents(rows, prepared, stream)
    columns = []
    for i, (name, mechanism, text) in enumerate(zip(prepared.fields, prepared.mechanisms, prepared.texts, strict=True)):
        offsets, lengths = _offsets(encoded.lengths[i], start), encoded.lengths[i][start : start + len(rows)]
        flat = encoded.flat[i][offsets : offsets + int(lengths.sum())]
        seeds = None if stream is None else [(*stream[:2], row["id"], prepared.parameters, name, *stream[2:]) for row in rows]
        out = _symbols(mechanism, flat, lengths, seeds)
        if text:
            columns.append(decode(mechanism.space, out, lengths))
        else:
            columns.append([mechanism.space.symbols[j] for j in out.tolist()])
    counts = [encoded.counts(start + i) for i in range(len(rows))]
    return [
        (dict(zip(prepared.fields, values, strict=True)), prepared.costs(count), count)
        for count, *values in zip(counts, *columns, strict=True)
    ]


def _offsets(lengths: "np.ndarray", start: int) -> int:
    return int(lengths[:start].sum())


def _symbols(
    mechanism: Mechanism[Any], flat: "np.ndarray", lengths: "np.ndarray", seeds: list[tuple[Any, ...]] | None
) -> "np.ndarray":
    """One outcome a symbol; unseeded, drawn together from the operating system's entropy."""
    import numpy as np

    if not len(flat):
        return np.empty(0, dtype=np.int64)
    if seeds is None:
        return mechanism.sample(flat, SystemEntropy())
    parts = np.split(flat, np.cumsum(lengths)[:-1])
    drawn = [mechanism.sample(part, entropy_of(*seed)) for part, seed in zip(parts, seeds, strict=True) if len(part)]
    return np.concatenate(drawn)


def _documents(
    rows: Sequence[Row], prepared: Prepared, stream: tuple[Any, ...] | None
) -> list[tuple[dict[str, str], Costs, list[int]]]:
    mechanism = prepared.document
    if mechanism is None:
        return []
    texts = [tuple(row[name] for name in prepared.fields) for row in rows]
    if stream is None:
        drawn = mechanism.sample(texts, SystemEntropy())
    else:
        drawn = []
        for row, text in zip(rows, texts, strict=True):
            seed = (*stream[:2], row["id"], prepared.parameters, "document", *stream[2:])
            drawn += mechanism.sample([text], entropy_of(*seed))
    _check_drawn(drawn, len(rows), prepared)
    return [
        (
            dict(zip(prepared.fields, d.texts, strict=True)),
            {prepared.units[0]: amount_of(prepared.units[0], float(d.epsilon))},
            list(d.symbols),
        )
        for d in drawn
    ]


def _check_drawn(drawn: Sequence[Drawn], count: int, prepared: Prepared) -> None:
    """Raise ComponentError unless there is one outcome a document, of its fields, within the claim."""
    claim, fields = prepared.claims[0].epsilon, len(prepared.fields)
    if len(drawn) != count or any(len(d.texts) != fields or len(d.symbols) != fields for d in drawn):
        raise ComponentError(Problem(f"the mechanism {prepared.name!r} did not give one text a field of {count} documents"))
    if any(not 0 <= d.epsilon <= claim + SLACK for d in drawn):
        why = f"claimed: {claim:g} a document"
        raise ComponentError(Problem(f"the mechanism {prepared.name!r} spent more than it claims", why=why))


def entropy_of(seed: int | None, *stream: Any) -> Entropy:
    """The operating system's, or a seeded stream of that name (JSON values)."""
    return SystemEntropy() if seed is None else SeededEntropy(canonical([seed, *stream]).decode())


def random_id(seed: int | None, *stream: Any) -> str:
    """32 hexadecimal digits."""
    if seed is None:
        return os.urandom(16).hex()
    return bytes(int(b) for b in entropy_of(seed, *stream).integers(256, 16)).hex()


def random_ids(count: int) -> list[str]:
    """As many ids of 32 hexadecimal digits, from the operating system."""
    digits = os.urandom(16 * count).hex()
    return [digits[i : i + 32] for i in range(0, len(digits), 32)]
