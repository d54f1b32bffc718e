# SPDX-License-Identifier: Apache-2.0
"""What the built-in mechanisms share: the type of epsilon, checks of rows and vectors."""

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from osmotic.plugins.kept import Same, same
from osmotic.schemas.errors import ComponentError, ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np

    from osmotic.plugins.contract import Space


def _number(value: Any) -> Any:
    """Integers are numbers too; text and true/false are not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a number greater than 0 (got {str(value)[:40]!r})")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError("must be at most 500") from error


Epsilon = Annotated[
    float,
    Field(gt=0, le=500, allow_inf_nan=False, description="Privacy loss a token (or field), natural logarithm; pure."),
    BeforeValidator(_number),
]


def check_rows(rows: "np.ndarray", space: "Space") -> "np.ndarray":
    """The rows as int64 [n]. Raises ComponentError when one is outside 0..V-1 (or V, where the space has an unknown symbol)."""
    import numpy as np

    rows = np.asarray(rows, dtype=np.int64).reshape(-1)
    if rows.size and not (rows.min() >= 0 and rows.max() < space.size + space.unknown):
        raise ComponentError(Problem(f"an input index is outside the space {space.name!r}", why=f"it has {space.size} symbols"))
    return rows


def vector_norms(space: "Space") -> "np.ndarray":
    """Lengths of the space's vectors: float64 [V]. Raises ConfigError when vectors are missing or have no direction."""
    import numpy as np

    if space.vectors is None:
        raise ConfigError(Problem(f"the space {space.name!r} has no vectors", fix="give its field a 'table: FILE#KEY'"))
    vectors = np.asarray(space.vectors)
    if vectors.ndim != 2 or len(vectors) != space.size:
        why = f"shape {vectors.shape}, {space.size} symbols"
        raise ConfigError(Problem(f"the space {space.name!r} needs one vector a symbol", why=why))
    key = same(space)
    norms = _norms(vectors) if key is None else _kept_norms(key)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if bad.size:
        why = f"{bad.size} such rows, the first is {bad[0]}"
        raise ConfigError(Problem(f"the vectors of the space {space.name!r} have rows that are zero or not finite", why=why))
    return norms


@lru_cache(maxsize=8)
def _kept_norms(key: Same) -> "np.ndarray":
    import numpy as np

    norms = _norms(np.asarray(key.space.vectors))
    norms.flags.writeable = False
    return norms


def _norms(vectors: "np.ndarray") -> "np.ndarray":
    import numpy as np

    norms = np.empty(len(vectors), dtype=np.float64)
    for start in range(0, len(vectors), 128):  # what stays in a core's cache
        part = vectors[start : start + 128].astype(np.float64)
        norms[start : start + 128] = np.sqrt(np.einsum("ij,ij->i", part, part))
    return norms


def unit_vectors(space: "Space", dtype: type[Any]) -> "np.ndarray":
    """The space's vectors at length 1: dtype [V, d], a copy. Raises ConfigError as `vector_norms` does."""
    import numpy as np

    norms, vectors = vector_norms(space), np.asarray(space.vectors)
    unit = np.empty(vectors.shape, dtype=dtype)
    for start in range(0, len(vectors), 1024):  # no float64 copy of the whole table
        unit[start : start + 1024] = vectors[start : start + 1024] / norms[start : start + 1024, None]
    return unit
