# SPDX-License-Identifier: Apache-2.0
"""What the built-in mechanisms share: the type of epsilon, checks of rows and vectors, exact coin tosses."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from osmotic.schemas.errors import ComponentError, ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np

    from osmotic.plugins.contract import Entropy, Space

DIGITS = 1 << 53


def _number(value: Any) -> Any:
    """Integers are numbers too; text and true/false are not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number greater than 0")
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


def unit_vectors(space: "Space", dtype: type[Any]) -> "np.ndarray":
    """The space's vectors at length 1: dtype [V, d]. Raises ConfigError when they are missing or cannot be normalised."""
    import numpy as np

    if space.vectors is None:
        raise ConfigError(Problem(f"the space {space.name!r} has no vectors", fix="give its field a 'table: FILE#KEY'"))
    vectors = np.asarray(space.vectors)
    if vectors.ndim != 2 or len(vectors) != space.size:
        why = f"shape {vectors.shape}, {space.size} symbols"
        raise ConfigError(Problem(f"the space {space.name!r} needs one vector a symbol", why=why))
    norms = np.empty(len(vectors), dtype=np.float64)
    for start in range(0, len(vectors), 1024):
        norms[start : start + 1024] = np.sqrt(np.square(vectors[start : start + 1024].astype(np.float64)).sum(axis=1))
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if bad.size:
        why = f"{bad.size} such rows, the first is {bad[0]}"
        raise ConfigError(Problem(f"the vectors of the space {space.name!r} have rows that are zero or not finite", why=why))
    return np.asarray(vectors / norms[:, None], dtype=dtype)


def bernoulli(probability: float, count: int, entropy: "Entropy") -> "np.ndarray":
    """bool [count], true with exactly the float64 `probability`, however small: compared digit by digit, base 2^53."""
    import numpy as np

    result = np.zeros(count, dtype=bool)
    open_ = np.arange(count)
    rest = probability
    while open_.size and rest > 0:
        digit = int(rest * DIGITS)
        rest = rest * DIGITS - digit
        draws = entropy.integers(DIGITS, open_.size)
        result[open_[draws < digit]] = True
        open_ = open_[draws == digit]
    return result
