# SPDX-License-Identifier: Apache-2.0
"""Intervals of means and of differences over test records *and* seeds, paired, with parties (and other axes) as strata.

Records: resampled with replacement (4,000 draws), a record with all its outcomes at once: both arms, every seed, every stratum
that has as many records (parties that share a test set share the draw; of others a joint draw is as good as one each). What is
drawn of n records is as much wider as Student's t with n - 1 degrees of freedom is than the normal law: of five records the
plain resample holds in 85 of 100 cases. One record has no interval.
Seeds: the mean of S seeds is wrong by t * s / sqrt(S), t from Student's distribution with S - 1 degrees of freedom (five draws
for each draw of records). They are not resampled: of three values a resample shows too little of the spread, and intervals that
are said to hold in 95 of 100 cases hold in about 75. What seeds do differently from record to record is in their spread
already, so it is taken out of the records' part (two-way analysis of variance) and counted once.
With one seed nothing is said about others. Intervals of proportions: Wilson (1927).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

DRAWS = 4000  # of records
SEED_DRAWS = 5  # of the seeds' error, for each draw of records
CELLS = 2_000_000  # record picks in memory at a time
FEW = 50  # distinct values
Z = 1.959964
Outcomes = Mapping[str, Mapping[str, Sequence[float]]]  # seed -> stratum -> one value a record, in the test set's order


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% interval, over so many seeds."""

    mean: float
    low: float
    high: float
    seeds: int


def interval(found: Outcomes) -> Interval | None:
    """The 95% interval of the mean over seeds of the mean over strata of the mean over records.

    Strata that are not there, or have another number of records, for every seed are left out; None when no values are left, or
    when a stratum has one record: that says nothing about others.
    """
    import numpy as np

    strata = _complete(found)
    if not strata or any(len(found[seed][name]) < 2 for seed in found for name in strata):
        return None
    layers = [np.array([list(found[seed][name]) for seed in found], dtype=float) for name in strata]
    means = np.mean([layer.mean(axis=1) for layer in layers], axis=0)
    mean = float(means.mean())
    rng = np.random.default_rng(0)
    total = np.zeros(DRAWS)
    for size in sorted({layer.shape[1] for layer in layers}):
        joint = sum(layer for layer in layers if layer.shape[1] == size) / len(layers)
        total += _records(np.asarray(joint), rng)
    if len(means) > 1:
        spread = float(means.std(ddof=1)) / math.sqrt(len(means))
        total = np.repeat(total, SEED_DRAWS) + spread * rng.standard_t(len(means) - 1, DRAWS * SEED_DRAWS)
    low, high = np.percentile(total, [2.5, 97.5]) + mean
    return Interval(mean, min(float(low), mean), max(float(high), mean), len(means))


def difference(left: Outcomes, right: Outcomes) -> Interval | None:
    """The 95% interval of left - right, paired by seed, stratum and record; None when nothing pairs."""
    paired: dict[str, dict[str, list[float]]] = {}
    shares = True  # every outcome lies between 0 and 1, so that no difference of means is beyond 1
    for seed in (seed for seed in left if seed in right):
        for name, values in left[seed].items():
            other = right[seed].get(name, ())
            if len(values) == len(other):
                pairs = zip(values, other, strict=True)
                paired.setdefault(seed, {})[name] = [a - b for a, b in pairs]
                shares &= all(0 <= value <= 1 for value in (*values, *other))
    found = interval(paired)
    return within(found, -1.0, 1.0) if found and shares else found


def within(found: Interval, low: float, high: float) -> Interval:
    """The interval, cut where no mean can be."""
    return Interval(found.mean, max(found.low, low), min(found.high, high), found.seeds)


def wilson(right: int, of: int) -> tuple[float, float]:
    """The 95% score interval of a proportion; (0, 1) where there is nothing to count."""
    if not of:
        return 0.0, 1.0
    share, wide = right / of, Z * Z / of
    middle = (share + wide / 2) / (1 + wide)
    half = Z * math.sqrt(share * (1 - share) / of + wide / (4 * of)) / (1 + wide)
    return max(0.0, middle - half), min(1.0, middle + half)


def _complete(found: Outcomes) -> list[str]:
    """Strata with values, as many for every seed."""
    sizes: dict[str, set[int]] = {}
    for strata in found.values():
        for name, values in strata.items():
            sizes.setdefault(name, set()).add(len(values))
    everywhere = [name for name in sizes if all(name in strata for strata in found.values())]
    return sorted(name for name in everywhere if len(sizes[name]) == 1 and 0 not in sizes[name])


def _records(values: "np.ndarray", rng: "np.random.Generator") -> "np.ndarray":
    """Errors of the mean by the choice of records: float [DRAWS]. values: [seeds, records], two records or more."""
    import numpy as np

    records = values.shape[1]
    each = values.mean(axis=0) - values.mean()
    each = each * math.sqrt(_own_share(values) * records / (records - 1))
    wider = np.sqrt((records - 1) / rng.chisquare(records - 1, DRAWS))
    distinct, counts = np.unique(np.round(each, 12), return_counts=True)
    if len(distinct) <= FEW:  # rights and wrongs: how often each value is picked is the same draw, and faster
        return np.asarray(rng.multinomial(records, counts / records, DRAWS) @ distinct / records * wider)
    found, step = np.empty(DRAWS), max(1, CELLS // records)
    for start in range(0, DRAWS, step):
        count = min(step, DRAWS - start)
        found[start : start + count] = each[rng.integers(0, records, (count, records))].mean(axis=1)
    return np.asarray(found * wider)


def _own_share(values: "np.ndarray") -> float:
    """The share of the records' variance that is theirs, not the seeds' doing; 1 with one seed. values: [seeds, records]."""
    import numpy as np

    seeds, records = values.shape
    each = values.mean(axis=0) - values.mean()
    between = seeds * float(np.square(each).sum()) / (records - 1)
    if seeds < 2 or between <= 0:
        return 1.0
    rest = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    within_seeds = float(np.square(rest).sum()) / ((seeds - 1) * (records - 1))
    return max(0.0, float(1 - within_seeds / between))
