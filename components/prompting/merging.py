# SPDX-License-Identifier: Apache-2.0
"""One list of free tokens from several clients' lists: FedDTPT's server step (arXiv 2411.00985) on plain numbers.

Tokens of all clients are put into groups (clusters; a token without one is a group of its own), the token with the largest mean
cosine to the other clients' tokens speaks for its group, groups are chosen, and stand in the order of their mean relative
position. Each stays between the frozen tokens where most of its members stood, so that nothing comes between tokens that were
frozen together. Nothing here depends on the order in which clients come, or on their names but in a tie.
"""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from osmotic.components.prompting.clusters import NOISE, Curve, curve_of, dbscan, directions, kmeans, mean_cosines

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Clustering", "Group", "Merged", "NoisePolicy", "Rules", "Spot", "merged", "spots_of"]
Clustering = Literal["dbscan", "kmeans", "none"]
NoisePolicy = Literal["drop", "keep_top_m", "keep_all"]


@dataclass(frozen=True)
class Rules:
    """How tokens are put together; see the component's configuration. clusters: of k-means; None: the median length.

    max_tokens: free tokens at most; None: as many as the longest list has.
    """

    clustering: Clustering = "dbscan"
    min_samples: int = 2
    reach: float | None = 0.5
    clusters: int | None = None
    noise: NoisePolicy = "keep_top_m"
    keep: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Spot:
    """One free token of one upload. position: in the upload; gap: frozen tokens before it; relative: position / length."""

    client: str
    position: int
    number: int
    gap: int
    relative: float


@dataclass(frozen=True)
class Group:
    """Tokens that one of them, `spot`, speaks for. cluster: its number; NOISE for a token without a cluster."""

    cluster: int
    spot: Spot
    weight: float
    members: tuple[Spot, ...]

    @property
    def gap(self) -> int:
        """Where most members stand; of several such gaps, the one of `spot`, or the first."""
        counts = Counter(spot.gap for spot in self.members)
        most = max(counts.values())
        return min((gap for gap, count in counts.items() if count == most), key=lambda gap: (gap != self.spot.gap, gap))

    @property
    def relative(self) -> float:
        """The mean relative position of the members in that gap, rounded so that no order of adding shows."""
        found = [spot.relative for spot in self.members if spot.gap == self.gap]
        return round(math.fsum(found) / len(found), 12)


@dataclass(frozen=True)
class Merged:
    """The groups that are in the new prompt, in order; all groups; every token's weight; the curve; who is over the limit."""

    chosen: tuple[Group, ...]
    groups: tuple[Group, ...]
    weights: Mapping[Spot, float]
    curve: Curve | None
    over: frozenset[Spot]


def spots_of(uploads: Mapping[str, Sequence[int]]) -> list[Spot]:
    """The free tokens of all uploads, by client and position; a number below 0 is a frozen token."""
    found = []
    for client in sorted(uploads):
        numbers, gap = uploads[client], 0
        for position, number in enumerate(numbers):
            gap += number < 0
            if number >= 0:
                found.append(Spot(client, position, number, gap, position / len(numbers)))
    return found


def merged(spots: Sequence[Spot], table: "Mapping[int, np.ndarray]", rules: Rules, seed: int) -> Merged:
    """The new prompt's free tokens. table: a vector for each token number; seed: of k-means alone.

    Where all clients have the same list, or there is only one, that list is what comes out: clusters would take a word that
    stands in it twice for one. Needs a client with a token.
    """
    import numpy as np

    numbers = sorted({spot.number for spot in spots})
    points = directions(np.stack([table[number] for number in numbers]))
    weights = _weights(spots, dict(zip(numbers, points, strict=True)))
    lengths = Counter(spot.client for spot in spots)
    if (same := _alike(spots, len(lengths), weights)) is not None:
        return Merged(same, same, weights, None, frozenset())
    median = int(statistics.median_low(lengths.values()))
    times = Counter(spot.number for spot in spots)
    found, curve = _clusters(points, [times[number] for number in numbers], rules, median, seed)
    groups = _groups(spots, weights, dict(zip(numbers, found, strict=True)))
    wanted = _kept(groups, rules, median)
    limit = max(lengths.values()) if rules.max_tokens is None else rules.max_tokens
    if rules.clustering == "none":
        limit = min(limit, median)
    ranked = sorted(wanted, key=_rank)
    chosen = sorted(ranked[:limit], key=lambda group: (group.gap, group.relative, -group.weight, group.spot.number))
    return Merged(tuple(chosen), tuple(groups), weights, curve, frozenset(group.spot for group in ranked[limit:]))


def _alike(spots: Sequence[Spot], clients: int, weights: Mapping[Spot, float]) -> tuple[Group, ...] | None:
    """A group for each place, in order, where all clients have the same list; else None."""
    at: dict[tuple[int, int, int, float], list[Spot]] = {}
    for spot in spots:
        at.setdefault((spot.position, spot.gap, spot.number, spot.relative), []).append(spot)
    if any(len(several) < clients for several in at.values()):
        return None
    return tuple(Group(i, at[key][0], weights[at[key][0]], tuple(at[key])) for i, key in enumerate(sorted(at)))


def _weights(spots: Sequence[Spot], points: "Mapping[int, np.ndarray]") -> dict[Spot, float]:
    """Each token's mean cosine to the tokens of the other clients, rounded so that no order of adding shows."""
    import numpy as np

    own: dict[str, list[Spot]] = {}
    for spot in spots:
        own.setdefault(spot.client, []).append(spot)
    found = mean_cosines([np.stack([points[spot.number] for spot in several]) for several in own.values()])
    pairs = [pair for several, row in zip(own.values(), found, strict=True) for pair in zip(several, row.tolist(), strict=True)]
    return {spot: round(weight, 9) for spot, weight in pairs}


def _clusters(
    points: "np.ndarray", counts: Sequence[int], rules: Rules, median: int, seed: int
) -> tuple[list[int], Curve | None]:
    """(cluster of each different token or NOISE, the curve that eps was read off)."""
    if rules.clustering == "none":
        return list(range(len(points))), None
    if rules.clustering == "kmeans":
        return kmeans(points, counts, rules.clusters or median, seed), None
    curve = curve_of(points, rules.reach)
    return dbscan(points, counts, curve.eps, rules.min_samples), curve


def _groups(spots: Sequence[Spot], weights: Mapping[Spot, float], cluster_of: Mapping[int, int]) -> list[Group]:
    """Clusters, and every noise token (all its occurrences) by itself; each with the token that speaks for it."""
    members: dict[tuple[int, int], list[Spot]] = {}
    for spot in spots:
        cluster = cluster_of[spot.number]
        members.setdefault((cluster, spot.number if cluster == NOISE else 0), []).append(spot)
    made = []
    for (cluster, _), several in sorted(members.items()):
        best = min(several, key=lambda spot: (-weights[spot], spot.client, spot.position))
        made.append(Group(cluster, best, weights[best], tuple(several)))
    return made


def _rank(group: Group) -> tuple[bool, float, int]:
    """Clusters before noise, then the largest weight, then the smallest number; names of clients have no part in it."""
    return group.cluster == NOISE, -group.weight, group.spot.number


def _kept(groups: Sequence[Group], rules: Rules, median: int) -> list[Group]:
    """The clusters, and the noise that the policy keeps."""
    ranked = sorted(groups, key=_rank)
    clusters = [group for group in ranked if group.cluster != NOISE]
    noise = ranked[len(clusters) :]
    if rules.noise == "keep_all":
        return ranked
    room = max(0, median - len(clusters)) if rules.keep is None else rules.keep
    return clusters + (noise[:room] if rules.noise == "keep_top_m" else [])
