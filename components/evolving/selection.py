# SPDX-License-Identifier: Apache-2.0
"""Which candidates of a population survive, given noisy votes (private evolution: Lin et al. 2023, Xie et al. 2024).

Reads candidates and released counts alone, so whatever is chosen here keeps the guarantee of the votes.
"""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from osmotic.plugins.contract import Gathered, Records
from osmotic.schemas.errors import DataError, Problem

Selection = Literal["rank", "sample"]
FIX = "connect the votes that were cast on these very candidates"


def summed(votes: Gathered[Records], size: int) -> list[float]:
    """The counts of each of `size` candidates over all parties, added in party order. Raises DataError for votes that are not
    about so many candidates, or no numbers."""
    columns = [_counts(party, votes[party], size) for party in votes]
    return [math.fsum(column[i] for column in columns) for i in range(size)]


def _counts(party: str, votes: Records, size: int) -> list[float]:
    """One party's counts, in the candidates' order."""
    found = {row.get("value"): row.get("count") for row in votes}
    if len(found) != len(votes) or found.keys() != {str(i) for i in range(size)}:
        what = f"the votes of {party} are about {len(votes)} candidates, and there are {size}"
        raise DataError(Problem(what, path="votes", fix=FIX))
    counts = [found[str(i)] for i in range(size)]
    if not all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in counts):
        raise DataError(Problem(f"a count among the votes of {party} is no number", path="votes", fix=FIX))
    return [float(one) for one in counts if one is not None]


def by_label(rows: Iterable[Mapping[str, str]], labels: Sequence[str]) -> dict[str, list[int]]:
    """label -> numbers of its rows; every label of the list, and no other (DataError)."""
    found: dict[str, list[int]] = {label: [] for label in labels}
    for number, row in enumerate(rows):
        if row["label"] not in found:
            what = f"a candidate has the label {row['label'][:80]!r}, which is not one of {len(labels)}"
            raise DataError(Problem(what, path="labels", fix="list every label that the candidates have"))
        found[row["label"]].append(number)
    return found


def survivors(
    numbers: Sequence[int], counts: Sequence[float], keep: int, threshold: float, selection: Selection, rng: random.Random
) -> list[int]:
    """Which of the candidates `numbers` survive: `keep` of them, or all where there are fewer.

    A count at or below the threshold is no vote at all. rank: the most votes first; those without any follow in random order,
    so where nothing passes the threshold chance decides. sample: drawn with replacement, in proportion to the votes above the
    threshold; one that is drawn twice stands twice, and if nothing passes all are equally likely.
    """
    if not numbers:
        return []
    weights = {i: max(counts[i] - threshold, 0.0) for i in numbers}
    if selection == "sample":
        drawn = list(weights.values()) if any(weights.values()) else [1.0] * len(numbers)
        return sorted(rng.choices(list(weights), drawn, k=keep))
    order = list(weights)
    rng.shuffle(order)
    return sorted(order, key=lambda i: -weights[i])[:keep]  # sorted is stable: ties stay in random order
