# SPDX-License-Identifier: Apache-2.0
"""One list of free tokens from several clients' lists: FedDTPT's server step (arXiv 2411.00985) on plain numbers.

Tokens of all clients are put into groups (clusters; a token without one is a group of its own), the token with the largest mean
cosine to the other clients' tokens speaks for its group, groups are chosen, and stand in the order of their mean relative
position. Each stays between the frozen tokens where most of its members stood, so that nothing comes between tokens that were
frozen together. Nothing here depends on the order in which clients come, or on their names but in a tie.

What one client alone says is no cluster, however often it says it: two copies of a word would otherwise pass for agreement.

`prefer: all` is the paper's rule. All clients begin with one prompt, and each changes a few words of it. The word that stood at
such a place is still at all other clients, so it is a cluster; the new one is noise, and clusters leave it hardly any room.
`prefer: changed`: who leaves a word alone does not vote for it, but has found nothing better. At a place that a client changed,
the old word gives way (it is in no group), and the best new one of each place comes before the second of any; all other places
stay as they are.
The price: one client changes a prompt by itself, so where clients are not trusted it wants the aggregator's guard.
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

__all__ = ["STILL", "Clustering", "Group", "Merged", "NoisePolicy", "Prefer", "Rules", "Spot", "merged", "spots_of"]
STILL = -2  # number of the cluster of what no client changed
Clustering = Literal["dbscan", "kmeans", "none"]
NoisePolicy = Literal["drop", "keep_top_m", "keep_all"]
Prefer = Literal["all", "changed"]


@dataclass(frozen=True)
class Rules:
    """How tokens are put together; see the component's configuration. clusters: of k-means; None: as many as there is room for.

    max_tokens: free tokens at most; None: as many as the median list has.
    """

    clustering: Clustering = "dbscan"
    min_samples: int = 2
    reach: float | None = 0.5
    clusters: int | None = None
    noise: NoisePolicy = "keep_top_m"
    keep: int | None = None
    max_tokens: int | None = None
    prefer: Prefer = "all"


@dataclass(frozen=True)
class Spot:
    """One free token of one upload. position: in the upload; gap: frozen tokens before it; relative: position / length.

    place: its position in the previous prompt, where the upload has that prompt's places; changed: it is not what stood there.
    """

    client: str
    position: int
    number: int
    gap: int
    relative: float
    place: int | None = None
    changed: bool = True


@dataclass(frozen=True)
class Group:
    """Tokens that one of them, `spot`, speaks for. cluster: its number; NOISE: none; STILL: of a place that nobody changed."""

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
    """The groups that are in the new prompt, in order; all groups; every token's weight; the curve; who is over the limit.

    yielded: tokens in no group, which gave way to what other clients changed.
    """

    chosen: tuple[Group, ...]
    groups: tuple[Group, ...]
    weights: Mapping[Spot, float]
    curve: Curve | None
    over: frozenset[Spot]
    yielded: frozenset[Spot] = frozenset()


def spots_of(uploads: Mapping[str, Sequence[int]], before: Sequence[int | None] = ()) -> list[Spot]:
    """The free tokens of all uploads, by client and position; a number below 0 is a frozen token.

    before: the previous prompt's numbers; None for a word that has none.
    """
    found, fixed = [], [number is not None and number < 0 for number in before]
    for client in sorted(uploads):
        numbers, gap = uploads[client], 0
        aligned = [number < 0 for number in numbers] == fixed
        for position, number in enumerate(numbers):
            gap += number < 0
            if number >= 0:
                changed = number != before[position] if aligned else number not in before
                place = position if aligned else None
                found.append(Spot(client, position, number, gap, position / len(numbers), place, changed))
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
    stays, yielded = _unmoved(spots, weights) if rules.prefer == "changed" else ([], frozenset[Spot]())
    settled = yielded.union(*(group.members for group in stays))
    heard = [spot for spot in spots if spot not in settled]
    room = max(0, median - len(stays))
    found, curve = _clustered(heard, table, rules, room, seed)
    groups = _groups(heard, weights, found)
    wanted = stays + _kept(groups, rules, room)
    limit = median if rules.max_tokens is None else rules.max_tokens
    if rules.clustering == "none":
        limit = min(limit, median)
    chosen = sorted(wanted[:limit], key=lambda group: (group.gap, group.relative, -group.weight, group.spot.number))
    over = frozenset(group.spot for group in wanted[limit:])
    return Merged(tuple(chosen), (*stays, *groups), weights, curve, over, yielded)


def _unmoved(spots: Sequence[Spot], weights: Mapping[Spot, float]) -> tuple[list[Group], frozenset[Spot]]:
    """(a group for each place that no client changed, the unchanged tokens of the others)."""
    moved = {spot.place for spot in spots if spot.changed}
    still = [spot for spot in spots if not spot.changed and spot.place is not None]
    at: dict[int, list[Spot]] = {}
    for spot in still:
        if spot.place not in moved:
            at.setdefault(spot.place or 0, []).append(spot)
    best = {place: min(several, key=lambda spot: (-weights[spot], spot.client)) for place, several in at.items()}
    made = [Group(STILL, best[place], weights[best[place]], tuple(several)) for place, several in sorted(at.items())]
    return made, frozenset(spot for spot in still if spot.place in moved)


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


def _clustered(
    spots: Sequence[Spot], table: "Mapping[int, np.ndarray]", rules: Rules, room: int, seed: int
) -> tuple[dict[int, int], Curve | None]:
    """(different token -> its cluster or NOISE, the curve that eps was read off)."""
    import numpy as np

    times = Counter(spot.number for spot in spots)
    numbers = sorted(times)
    counts = [times[number] for number in numbers]
    if rules.clustering == "none" or not numbers:
        return {number: i for i, number in enumerate(numbers)}, None
    points = directions(np.stack([table[number] for number in numbers]))
    if rules.clustering == "kmeans":
        return dict(zip(numbers, kmeans(points, counts, rules.clusters or max(1, room), seed), strict=True)), None
    curve = curve_of(points, rules.reach)
    found = dict(zip(numbers, dbscan(points, counts, curve.eps, rules.min_samples), strict=True))
    return (_shared(spots, found) if rules.min_samples > 1 else found), curve


def _shared(spots: Sequence[Spot], cluster_of: Mapping[int, int]) -> dict[int, int]:
    """The same without clusters of one client's tokens alone."""
    clients: dict[int, set[str]] = {}
    for spot in spots:
        clients.setdefault(cluster_of[spot.number], set()).add(spot.client)
    return {number: cluster if len(clients[cluster]) > 1 else NOISE for number, cluster in cluster_of.items()}


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


def _kept(groups: Sequence[Group], rules: Rules, room: int) -> list[Group]:
    """The clusters, and the noise that the policy keeps, best first. room: tokens that there are places for."""
    ranked = sorted(groups, key=_rank)
    if rules.prefer == "changed":
        ranked = _by_place(ranked)
    if rules.noise == "keep_all":
        return ranked
    noise = [group for group in ranked if group.cluster == NOISE]
    most = max(0, room - (len(ranked) - len(noise))) if rules.keep is None else rules.keep
    kept = set[Spot]() if rules.noise == "drop" else {group.spot for group in noise[:most]}
    return [group for group in ranked if group.cluster != NOISE or group.spot in kept]


def _by_place(ranked: Sequence[Group]) -> list[Group]:
    """The best of each place before the second of any; in any case the cluster that is the best of its place."""
    taken, turn = Counter[int | None](), dict[Spot, int]()
    for group in ranked:
        turn[group.spot] = taken[group.spot.place]
        taken[group.spot.place] += 1
    return sorted(ranked, key=lambda group: turn[group.spot])
