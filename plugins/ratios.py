# SPDX-License-Identifier: Apache-2.0
"""The check of a metric claim: |log P(y|x) - log P(y|x')| <= epsilon d(x, x') for pairs of inputs and every output y.

All pairs of a small space. Of a large one a sample that nobody can know beforehand: 2,048 input symbols chosen by the operating
system (the unknown one always), each with its four nearest and with every other of its block of 48. A ratio of at most 1 on
these pairs is evidence about the others, not proof; by the triangle inequality it is proof only where all pairs are checked.
Void when: `distances` is not the distance that epsilon is stated for.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from osmotic.plugins.columns import Progress, threads_for, work
from osmotic.plugins.contract import Entropy, Mechanism
from osmotic.plugins.sampler import checked_log_prob
from osmotic.schemas.errors import ComponentError, Problem

if TYPE_CHECKING:
    import numpy as np

__all__ = ["metric_ratio"]

ALL = 1_500  # so many symbols or fewer: every pair
ROWS, BLOCK, NEAREST = 2048, 48, 4
ROUNDING = 1e-7  # of a distance, relative
SLACK = 1e-9  # rounding of a difference of log-probabilities
CHUNK = 1 << 16  # entries compared together


def metric_ratio(
    mechanism: Mechanism[Any], epsilon: float, entropy: Entropy, progress: Progress | None = None
) -> tuple[float, int]:
    """(the largest (|log ratio| - 1e-9) / (epsilon d), pairs checked). Infinite when a probability is zero or not a number.

    Pairs at distance 0 must have equal rows. Raises ComponentError when `distances` is missing, has the wrong shape, or is not
    finite or not symmetric where it is looked at.
    """
    import numpy as np

    total = mechanism.space.size + mechanism.space.unknown
    if mechanism.space.size <= ALL:
        rows = np.arange(total, dtype=np.int64)
        apart = _distances(mechanism, rows)
        return _among(_logs(mechanism, rows), _symmetric(mechanism, apart, apart.T), epsilon)
    order = np.argsort(entropy.integers(1 << 62, total), kind="stable")
    if mechanism.space.unknown:
        order = np.concatenate([[total - 1], order[order != total - 1]])
    chosen = order[:ROWS]
    blocks = [chosen[start : start + BLOCK] for start in range(0, len(chosen), BLOCK)]
    done: list[int] = []

    def one(block: "np.ndarray") -> tuple[float, int]:
        found = _block(mechanism, block, epsilon)
        done.append(len(block))
        if progress is not None:
            progress(sum(done), len(chosen))
        return found

    return _largest(work(one, blocks, threads_for(mechanism)))


def _largest(found: Iterable[tuple[float, int]]) -> tuple[float, int]:
    ratios, pairs = zip(*found, strict=True)
    return max(ratios), sum(pairs)


def _block(mechanism: Mechanism[Any], rows: "np.ndarray", epsilon: float) -> tuple[float, int]:
    """All pairs of a block, and each row with its nearest."""
    import numpy as np

    apart = _distances(mechanism, rows)
    logs = _logs(mechanism, rows)
    found = [_among(logs, _symmetric(mechanism, apart[:, rows], apart[:, rows].T), epsilon)]
    apart[np.arange(len(rows)), rows] = np.inf
    near = np.argpartition(apart, NEAREST, axis=1)[:, :NEAREST]
    at = np.arange(len(rows))
    _symmetric(mechanism, apart[at, near[:, 0]], _distances(mechanism, near[:, 0])[at, rows])
    others = _logs(mechanism, near.reshape(-1)).reshape(len(rows), NEAREST, -1)
    for i in range(len(rows)):
        found.append(_against(logs[i], others[i], apart[i, near[i]], epsilon))
    return _largest(found)


def _among(logs: "np.ndarray", apart: "np.ndarray", epsilon: float) -> tuple[float, int]:
    """All pairs of some rows: logs [n, V], apart [n, n]."""
    found = [_against(logs[i], logs[i + 1 :], apart[i, i + 1 :], epsilon) for i in range(len(logs) - 1)]
    return _largest([(0.0, 0), *found])


def _against(one: "np.ndarray", others: "np.ndarray", apart: "np.ndarray", epsilon: float) -> tuple[float, int]:
    """The largest ratio of one row with others: one [V], others [n, V], apart [n]."""
    import numpy as np

    if not (np.isfinite(one).all()):
        return float("inf"), len(others)
    differ, step = np.empty(len(others)), max(CHUNK // len(one), 1)
    buffer = np.empty((min(step, len(others)), len(one)))
    for start in range(0, len(others), step):
        part = others[start : start + step]
        gap = np.subtract(part, one, out=buffer[: len(part)])
        differ[start : start + step] = np.maximum(gap.max(axis=1), -gap.min(axis=1))
    if not np.isfinite(differ).all():
        return float("inf"), len(others)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.maximum(differ - SLACK, 0.0) / (epsilon * apart)
    ratio = np.where(differ <= SLACK, 0.0, ratio)  # 0 / 0: equal rows at distance 0
    return float(ratio.max(initial=0.0)), len(others)


def _logs(mechanism: Mechanism[Any], rows: "np.ndarray") -> "np.ndarray":
    """float64 [n, V], asked for in blocks."""
    import numpy as np

    return np.concatenate([checked_log_prob(mechanism, rows[i : i + 256]) for i in range(0, len(rows), 256)])


def _symmetric(mechanism: Mechanism[Any], there: "np.ndarray", back: "np.ndarray") -> "np.ndarray":
    """The smaller of the distances there and back. Raises ComponentError when they differ."""
    import numpy as np

    if (np.abs(there - back) > ROUNDING * (there + back) + SLACK).any():
        raise ComponentError(Problem(f"mechanism {mechanism.name!r}: distances are not symmetric"))
    return np.asarray(np.minimum(there, back))


def _distances(mechanism: Mechanism[Any], rows: "np.ndarray") -> "np.ndarray":
    """float64 [n, V + unknown], a copy. Raises ComponentError for anything else."""
    import numpy as np

    given = mechanism.distances(rows)
    expected = (len(rows), mechanism.space.size + mechanism.space.unknown)
    found = None if given is None else np.array(given)
    fits = found is not None and found.shape == expected and found.dtype == np.float64
    if found is None or not fits or not bool(((found >= 0) & np.isfinite(found)).all()):
        what = f"mechanism {mechanism.name!r}: class metric needs distances: float64 {list(expected)}, finite, none below 0"
        raise ComponentError(Problem(what))
    return found
