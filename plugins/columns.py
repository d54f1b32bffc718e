# SPDX-License-Identifier: Apache-2.0
"""Column maxima and minima of a mechanism's log-probabilities, streamed in blocks of rows: O(V) kept, O(V^2) time.

Every row counts, the unknown symbol's too. Rows may be streamed by two threads (numpy lets go of the interpreter's lock): the
result is the same, since maxima and minima do not depend on order and sums are added exactly. Void when: `log_prob` keeps
state between calls; strangers' mechanisms are therefore given to one thread only.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from osmotic.plugins.contract import Mechanism
from osmotic.plugins.sampler import checked_log_prob
from osmotic.schemas.errors import ComponentError, Problem

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Columns", "Progress", "block_rows", "spread", "stream", "stream_cells", "threads_for", "work"]

SUM_TOLERANCE = 1e-9  # on the sum of a row
ENTRIES = 1 << 21  # of a block, at most (16 MiB of float64)
SLICE = 1 << 16  # entries looked at together: they stay in the processor's cache
THREADS, LARGE = 2, 1024  # threads at most, from so many symbols on
OWN = "osmotic.plugins.mechanisms."
Progress = Callable[[int, int], None]
T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Columns:
    """What is kept while rows stream by. prior: log of the prior, float64 [V], or None.

    best, guessed: maxima over the known symbols' rows, uniform and weighted by the prior: what a Bayes-optimal guess uses.
    """

    highest: "np.ndarray"
    lowest: "np.ndarray"
    best: "np.ndarray"
    prior: "np.ndarray | None" = None
    guessed: "np.ndarray | None" = None
    retained: list[float] = field(default_factory=list)
    worst: float = 0.0
    proper: bool = True
    within: float = 0.0  # for cells: the largest epsilon inside one
    success: float = 0.0  # for cells: summed over them, uniform
    prior_success: float = 0.0
    smallest: float = 0.0  # log of the smallest probability above 0 (for cells: of outputs that a whole cell can give)

    @classmethod
    def empty(cls, v: int, prior: "np.ndarray | None") -> "Columns":
        """Before any row."""
        import numpy as np

        guessed = None if prior is None else np.full(v, -np.inf)
        return cls(np.full(v, -np.inf), np.full(v, np.inf), np.full(v, -np.inf), prior, guessed)

    def merge(self, other: "Columns") -> None:
        """Take in what another thread saw."""
        import numpy as np

        np.maximum(self.highest, other.highest, out=self.highest)
        np.minimum(self.lowest, other.lowest, out=self.lowest)
        np.maximum(self.best, other.best, out=self.best)
        if self.guessed is not None and other.guessed is not None:
            np.maximum(self.guessed, other.guessed, out=self.guessed)
        self.retained += other.retained
        self.worst = max(self.worst, other.worst)
        self.proper = self.proper and other.proper

    def add(self, rows: "np.ndarray", values: "np.ndarray") -> None:
        """Take one block of rows in. NaN spreads through maximum and minimum, so that it is never lost."""
        import numpy as np

        step = max(SLICE // values.shape[1], 1)
        buffer = np.empty((min(step, len(rows)), values.shape[1]))
        for start in range(0, len(rows), step):
            part, some = values[start : start + step], rows[start : start + step]
            self._slice(some, part, buffer[: len(some)])

    def _slice(self, rows: "np.ndarray", values: "np.ndarray", probabilities: "np.ndarray") -> None:
        import numpy as np

        v = values.shape[1]
        with np.errstate(over="ignore", under="ignore"):  # a value above 0 is no log-probability: its row's sum says so
            np.exp(values, out=probabilities)
        self.proper = self.proper and bool((np.abs(probabilities.sum(axis=1) - 1.0) <= SUM_TOLERANCE).all())
        top = values.max(axis=0)
        np.maximum(self.highest, top, out=self.highest)
        np.minimum(self.lowest, values.min(axis=0), out=self.lowest)
        known = np.flatnonzero(rows < v)
        if not known.size:
            return
        kept = probabilities[known, rows[known]]
        self.retained.append(float(kept.sum()))
        self.worst = max(self.worst, float(kept.max()))
        np.maximum(self.best, top if len(known) == len(rows) else values[known].max(axis=0), out=self.best)
        if self.prior is not None and self.guessed is not None:
            weighted = values[known] + self.prior[rows[known]][:, None]
            np.maximum(self.guessed, weighted.max(axis=0), out=self.guessed)


def spread(highest: "np.ndarray", lowest: "np.ndarray", *, unreached: bool = False) -> float:
    """max(highest - lowest); infinite when one is not finite. unreached: outputs that nothing here can give count as 0."""
    import numpy as np

    with np.errstate(invalid="ignore"):
        apart = highest - lowest
    if unreached:
        apart = np.where(np.isneginf(highest) & np.isneginf(lowest), 0.0, apart)
    largest = float(apart.max())
    return largest if np.isfinite(largest) else float("inf")


def threads_for(mechanism: Mechanism[Any]) -> int:
    """2 for built-in mechanisms over a large space, if this process may use two cores; else 1."""
    inside: Mechanism[Any] | None = mechanism
    while inside is not None:
        if not type(inside).__module__.startswith(OWN):
            return 1
        inside = inside.inner
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(THREADS, cores) if mechanism.space.size >= LARGE else 1


def block_rows(symbols: int) -> int:
    """How many rows of log-probabilities are held at a time."""
    return max(1, min(512, ENTRIES // max(symbols, 1)))


def work(function: Callable[[T], R], items: Sequence[T], threads: int) -> list[R]:
    """function(item) for each, in order; by a pool where there is more than one thread."""
    if threads == 1 or len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


def stream(
    mechanism: Mechanism[Any], prior: "np.ndarray | None" = None, block: int | None = None, progress: Progress | None = None
) -> Columns:
    """All rows, in blocks. prior: float64 [V], log. progress(done, total) is called once a block, by one thread at a time."""
    import numpy as np

    v, total = mechanism.space.size, mechanism.space.size + mechanism.space.unknown
    step, threads = block or block_rows(v), threads_for(mechanism)
    lock, done = threading.Lock(), [0]

    def share(first: int) -> Columns:
        columns = Columns.empty(v, prior)
        for start in range(first * step, total, threads * step):
            rows = np.arange(start, min(start + step, total), dtype=np.int64)
            columns.add(rows, checked_log_prob(mechanism, rows))
            with lock:
                done[0] += len(rows)
                if progress is not None:
                    progress(done[0], total)
        return columns

    first, *others = work(share, range(threads), threads)
    for other in others:
        first.merge(other)
    first.smallest = _smallest(first.lowest)
    return first


def stream_cells(
    mechanism: Mechanism[Any], cells: "np.ndarray", prior: "np.ndarray | None" = None, block: int | None = None,
    progress: Progress | None = None,
) -> Columns:  # fmt: skip
    """All rows, cell by cell: `within` is the largest epsilon inside a cell; the attacker of `success` knows the cell."""
    import numpy as np

    v, total = mechanism.space.size, mechanism.space.size + mechanism.space.unknown
    cells = np.asarray(cells)
    if cells.shape != (total,) or cells.dtype != np.int64:
        what = f"mechanism {mechanism.name!r}: cells must give int64 [{total}]"
        raise ComponentError(Problem(what, why=f"it gave {cells.dtype} {list(cells.shape)}"))
    columns, order, step = Columns.empty(v, prior), np.argsort(cells, kind="stable"), block or block_rows(v)
    cell = Columns.empty(v, prior)
    for start in range(0, total, step):
        rows = order[start : start + step]
        values = checked_log_prob(mechanism, rows)
        for part in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(cells[rows])) + 1):
            cell.add(rows[part], values[part[0] : part[-1] + 1])
            at = start + int(part[-1])
            if at + 1 == total or cells[order[at + 1]] != cells[order[at]]:
                _close(columns, cell)
                cell = Columns.empty(v, prior)
        if progress is not None:
            progress(start + len(rows), total)
    return columns


def _smallest(lowest: "np.ndarray") -> float:
    import numpy as np

    return float(lowest[np.isfinite(lowest)].min(initial=0.0))


def _close(columns: Columns, cell: Columns) -> None:
    """A cell is complete: count it, then take its rows into the whole."""
    import numpy as np

    columns.within = max(columns.within, spread(cell.highest, cell.lowest, unreached=True))
    columns.smallest = min(columns.smallest, _smallest(cell.lowest))
    columns.success += float(np.exp(np.minimum(cell.best, 0.0)).sum())
    if cell.guessed is not None:
        columns.prior_success += float(np.exp(np.minimum(cell.guessed, 0.0)).sum())
    columns.merge(cell)
