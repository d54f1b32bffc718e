# SPDX-License-Identifier: Apache-2.0
"""Symbols as points: vectors as they are given, Euclidean distances that are right near zero, and the public order of words."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from osmotic.schemas.errors import ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np

    from osmotic.plugins.contract import Space

NEAR = 1e-6  # squared distances below this share of |a|^2 + |b|^2 are computed again, from differences
STEP = 1 << 14  # pairs at a time


def plain_vectors(space: "Space") -> "np.ndarray":
    """The space's vectors as given: [V, d], finite. Raises ConfigError when they are missing or do not fit."""
    import numpy as np

    if space.vectors is None:
        raise ConfigError(Problem(f"the space {space.name!r} has no vectors", fix="give its field a 'table: FILE#KEY'"))
    vectors = np.asarray(space.vectors)
    if vectors.ndim != 2 or len(vectors) != space.size or not space.size:
        why = f"shape {vectors.shape}, {space.size} symbols"
        raise ConfigError(Problem(f"the space {space.name!r} needs one vector a symbol", why=why))
    for start in range(0, len(vectors), 4096):
        bad = np.flatnonzero(~np.isfinite(vectors[start : start + 4096]).all(axis=1))
        if bad.size:
            raise ConfigError(
                Problem(f"the vectors of the space {space.name!r} are not finite", why=f"the first is row {start + bad[0]}")
            )
    return vectors


class Points:
    """Symbols as points of a Euclidean space, in float64; the unknown symbol, if there is one, is the mean of all others."""

    def __init__(self, space: "Space") -> None:
        import numpy as np

        vectors = plain_vectors(space)
        self._at = np.empty((space.size + space.unknown, vectors.shape[1]))
        self._at[: space.size] = vectors
        if space.unknown:
            self._at[-1] = self._at[:-1].mean(axis=0)
        self._squares = np.square(self._at).sum(axis=1)

    @property
    def count(self) -> int:
        """V, and one more where the unknown symbol is a point."""
        return len(self._at)

    def distances(self, rows: "np.ndarray") -> "np.ndarray":
        """float64 [n, V + unknown]: 0 from a point to itself; small ones from differences, not from squares."""
        import numpy as np

        total = self._squares[rows][:, None] + self._squares
        squares = total - 2 * (self._at[rows] @ self._at.T)
        which, other = np.nonzero(squares < NEAR * total)
        for start in range(0, len(which), STEP):
            i, j = which[start : start + STEP], other[start : start + STEP]
            squares[i, j] = np.square(self._at[rows[i]] - self._at[j]).sum(axis=1)
        return np.asarray(np.sqrt(np.maximum(squares, 0.0, out=squares), out=squares))


def log_softmax(scores: "np.ndarray") -> "np.ndarray":
    """Rows of scores -> rows of log-probabilities, float64 [n, V]."""
    import numpy as np

    shifted = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def public_order(space: "Space", frequencies: str | None, sha256: str | None) -> "np.ndarray":
    """int64 [V]: the symbols, most frequent first. Without a file: the table's own order, which is by rank in most tables.

    frequencies: a public UTF-8 file, ``SYMBOL<tab>COUNT`` a line; absent symbols count 0, ties go by index. sha256: its digest,
    so that the configuration, and with it the card, says which file it was. Raises ConfigError.
    """
    import numpy as np

    if frequencies is None:
        return np.arange(space.size)
    try:
        content = Path(frequencies).read_bytes()
        lines = content.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(Problem("the frequencies cannot be read", path="frequencies", why=str(error)[:200])) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        why = f"the file has {found}"
        raise ConfigError(Problem("not the digest of the file of frequencies", path="sha256", why=why, fix=f"sha256: {found}"))
    place, counts = {symbol: i for i, symbol in enumerate(space.symbols)}, np.zeros(space.size)
    for number, line in enumerate(lines, start=1):
        symbol, tab, count = line.rpartition("\t")
        if not tab or not count.isdecimal() or len(count) > 15:
            raise ConfigError(Problem("not SYMBOL<tab>COUNT", f"{frequencies}:{number}", path="frequencies"))
        if symbol in place:
            counts[place[symbol]] = int(count)
    return np.argsort(-counts, kind="stable")
