# SPDX-License-Identifier: Apache-2.0
"""Rules that a few bad clients cannot pull far: coordinate-wise median, trimmed mean, Krum.

Sources: Yin et al. 2018, arXiv 1803.01498 (median, trimmed mean); Blanchard et al. 2017, arXiv 1703.02757 (Krum, multi-Krum).
All clients' weights are opened, not read; `BUDGET` bytes of them are in memory at a time: a range of coordinates of everybody.
Bounds hold coordinate by coordinate (median, trimmed mean) and say nothing of many clients that lie together.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from osmotic.components.aggregation.checks import Outline
from osmotic.components.aggregation.means import Arrays
from osmotic.plugins.contract import Weights
from osmotic.schemas.errors import ComponentError, Problem

if TYPE_CHECKING:
    import numpy as np

BUDGET = 1 << 25
Rule = Callable[["np.ndarray"], "np.ndarray"]
Report = Callable[[int, int], None]


def ranges(outline: Outline, clients: int) -> list[tuple[str, int, int]]:
    """(tensor, start, stop) of ranges that, in float64 and of all clients, take at most `BUDGET` bytes (at least one)."""
    most = max(1, BUDGET // (8 * max(1, clients)))
    found = []
    for name, (shape, _) in outline.items():
        size = math.prod(shape)
        found += [(name, start, min(start + most, size)) for start in range(0, size, most)]
    return found


def _blocks(clients: Sequence[Weights], outline: Outline, report: Report) -> "Iterator[tuple[str, int, int, np.ndarray]]":
    """(tensor, start, stop, [stop - start, clients]) one range after another."""
    import numpy as np

    parts = ranges(outline, len(clients))
    for i, (name, start, stop) in enumerate(parts):
        block = np.empty((stop - start, len(clients)), dtype=outline[name][1])
        for column, weights in enumerate(clients):
            block[:, column] = weights.part(name, start, stop)
        yield name, start, stop, block
        report(i + 1, len(parts))


def combine(clients: Sequence[Weights], outline: Outline, rule: Rule, report: Report) -> Arrays:
    """float64 tensors: `rule` ([coordinates, clients] -> [coordinates]) over all clients, coordinate by coordinate."""
    import numpy as np

    made = {name: np.zeros(math.prod(shape), dtype=np.float64) for name, (shape, _) in outline.items()}
    for name, start, stop, block in _blocks(clients, outline, report):
        made[name][start:stop] = rule(block)
    return {name: made[name].reshape(shape) for name, (shape, _) in outline.items()}


def median(block: "np.ndarray") -> "np.ndarray":
    """Of an even number the mean of the two in the middle. Overwrites the block."""
    count = block.shape[1]
    low, high = (count - 1) // 2, count // 2
    block.partition([low, high], axis=1)
    middle = block[:, [low, high]].astype("float64")
    return middle[:, 0] / 2 + middle[:, 1] / 2


def trimmed(share: float, clients: int) -> Rule:
    """The mean without the `share` (rounded up) of largest and of smallest values. ComponentError when nobody is left."""
    import numpy as np

    cut = math.ceil(share * clients - 1e-9)
    if 2 * cut >= clients:
        what = f"trimming {cut} of {clients} clients at each end leaves nobody"
        raise ComponentError(Problem(what, path="trim", fix="a smaller trim, or more clients"))

    def rule(block: "np.ndarray") -> "np.ndarray":
        block.sort(axis=1)
        return np.asarray(block[:, cut : clients - cut].mean(axis=1, dtype=np.float64))

    return rule


def krum(clients: Sequence[Weights], outline: Outline, faulty: int | None, keep: int, report: Report) -> list[int]:
    """Indices, ascending, of the `keep` clients whose nearest others are nearest. faulty: None for as many as can be borne.

    Raises ComponentError unless clients >= 2 faulty + 3 and keep <= clients - faulty.
    """
    import numpy as np

    count = len(clients)
    bad = max(0, (count - 3) // 2) if faulty is None else faulty
    if count < 2 * bad + 3 or keep > count - bad:
        what = f"krum with {bad} faulty clients and keep {keep} needs {max(2 * bad + 3, keep + bad)} (got {count})"
        raise ComponentError(Problem(what, path="krum", fix="fewer faulty ones, or aggregation: median"))
    distances = _distances(clients, outline, report)
    np.fill_diagonal(distances, np.inf)
    distances.sort(axis=1)
    scores = distances[:, : count - bad - 2].sum(axis=1)
    return sorted(np.argsort(scores, kind="stable")[:keep].tolist())


def _distances(clients: Sequence[Weights], outline: Outline, report: Report) -> "np.ndarray":
    """float64 [clients, clients]: squared distances; infinite where they are beyond what a float holds.

    Taken from the coordinate-wise median: near it, nothing is lost to cancellation, and a far client spoils its own row alone.
    """
    import numpy as np

    products = np.zeros((len(clients), len(clients)))
    with np.errstate(over="ignore", invalid="ignore"):
        for _, _, _, block in _blocks(clients, outline, report):
            centred = block.astype(np.float64)
            centred -= median(block)[:, None]
            products += centred.T @ centred
        squares = np.diagonal(products)
        found = squares[:, None] + squares[None, :] - 2 * products
    return np.where(np.isnan(found), np.inf, np.maximum(found, 0.0))
