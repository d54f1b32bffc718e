# SPDX-License-Identifier: Apache-2.0
"""How well scores tell members from others: rates with bootstrap intervals, exposure of canaries, what a guarantee allows.

A record is called a member where its score is above a threshold. AUC: the chance that a member's score is above another's, ties
by half. The true positive rate at a false positive rate (Carlini et al. 2022, "Membership inference attacks from first
principles") uses the lowest threshold that no more than that share of the others exceeds: exact on these others, and never too
high. Exposure (Carlini et al. 2019, "The secret sharer"): log2(number of controls + 1) - log2(rank of a canary among them).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

RATES = {"tpr_at_1": 0.01, "tpr_at_10": 0.10}  # metric -> false positive rate
NAMES = ("auc", *RATES, "gap", "advantage")
Measured = Callable[["np.ndarray", "np.ndarray"], dict[str, float]]


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95% bootstrap interval."""

    value: float
    low: float
    high: float


def measures(members: "np.ndarray", others: "np.ndarray") -> dict[str, float]:
    """Every name of `NAMES`. gap: mean score of members - of others. advantage: largest true - false positive rate.

    members, others: float64 [n], [m], neither empty; larger: rather a member.
    """
    import numpy as np

    ordered = np.sort(others)
    below = np.searchsorted(ordered, members, side="left")
    equal = np.searchsorted(ordered, members, side="right") - below
    found = {"auc": float((below + 0.5 * equal).mean() / len(ordered))}
    for name, rate in RATES.items():
        threshold = ordered[len(ordered) - 1 - math.floor(rate * len(ordered) + 1e-9)]
        found[name] = float((members > threshold).mean())
    found["gap"] = float(members.mean() - others.mean())
    points = np.unique(np.concatenate([members, others]))
    rates = [1 - np.searchsorted(np.sort(one), points, side="right") / len(one) for one in (members, others)]
    found["advantage"] = float(max(0.0, (rates[0] - rates[1]).max()))
    return found


def bootstrap(
    members: "np.ndarray", others: "np.ndarray", draws: int, seed: int, measured: Measured = measures
) -> dict[str, Interval]:
    """`measures` with percentile intervals over `draws` samples of members and of others, each with replacement.

    measured: what is measured instead; members and others may then have columns, [n, c] and [m, c]. The advantage is a maximum
    over thresholds: on few records it and its interval lie above the truth.
    """
    import numpy as np

    rng = np.random.Generator(np.random.PCG64(seed))
    values, rows = measured(members, others), list[dict[str, float]]()
    for _ in range(draws):
        again = (one[rng.integers(len(one), size=len(one))] for one in (members, others))
        rows.append(measured(*again))
    limits = {name: np.quantile([row[name] for row in rows], (0.025, 0.975)).tolist() for name in values}
    return {name: Interval(values[name], *limits[name]) for name in values}


def exposures(canaries: "np.ndarray", controls: "np.ndarray") -> list[float]:
    """Bits of each canary, 0 to log2(controls + 1): by its rank among the controls, ties by half."""
    import numpy as np

    ordered = np.sort(controls)
    above = len(ordered) - np.searchsorted(ordered, canaries, side="right")
    equal = len(ordered) - above - np.searchsorted(ordered, canaries, side="left")
    rank = 1 + above + 0.5 * equal
    return [float(bits) for bits in np.log2(len(ordered) + 1) - np.log2(rank)]


def allowed(epsilon: float, delta: float, copies: int = 1) -> dict[str, float]:
    """The most that any attack on one record can have under (epsilon, delta): of each rate, the AUC and the advantage.

    copies: how often it is there; k of them are (k eps, delta (1 + e^eps + ... + e^((k-1) eps))) together.

    The rates: e^eps * false + delta, and 1 - e^-eps * (1 - delta - false); Kairouz et al. 2015. AUC: the area under those.
    """
    spent = [min(i * epsilon, 700.0) for i in range(copies)]
    epsilon, delta = copies * epsilon, min(1.0, delta * sum(map(math.exp, spent)))
    grown = math.exp(min(epsilon, 700.0))
    found = {name: min(1.0, grown * rate + delta, 1 - (1 - delta - rate) / grown) for name, rate in RATES.items()}
    found = {name: max(RATES[name], value) for name, value in found.items()}
    found["auc"] = 1 - (1 - delta) ** 2 / (1 + grown)
    found["advantage"] = (grown - 1 + 2 * delta) / (grown + 1)
    return found


def told(found: dict[str, Interval]) -> dict[str, Any]:
    """Intervals as JSON."""
    return {name: asdict(interval) for name, interval in found.items()}


def as_array(scores: Sequence[float] | Sequence[Sequence[float]]) -> "np.ndarray":
    """float64 [n], or [n, c] of rows."""
    import numpy as np

    return np.asarray(scores, dtype=np.float64)
