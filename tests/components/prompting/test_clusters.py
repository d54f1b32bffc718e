# SPDX-License-Identifier: Apache-2.0
"""What tokens are compared by: weights against the definition, clusters of known points."""

import math

import numpy as np
import pytest

from osmotic.components.prompting.clusters import NOISE, curve_of, dbscan, directions, kmeans, knee, mean_cosines
from osmotic.components.prompting.merging import Rules, merged, spots_of

pytest.importorskip("sklearn", reason="the extra 'eval' is not installed")


# ---- weights -----------------------------------------------------------------------------------------------------------


def test_the_weights_of_a_hand_example_in_the_plane() -> None:
    """A: east, north. B: east, diagonal. C: west. A's east: (1 + sqrt(1/2) - 1) / 3; C's west: (-1 + 0 - 1 - sqrt(1/2)) / 4."""
    half = math.sqrt(0.5)
    a, b, c = np.array([[1.0, 0], [0, 1]]), np.array([[1.0, 0], [half, half]]), np.array([[-1.0, 0]])
    found = mean_cosines([a, b, c])
    assert found[0].tolist() == pytest.approx([half / 3, half / 3])
    assert found[1].tolist() == pytest.approx([(1 + 0 - 1) / 3, (half + half - half) / 3])
    assert found[2].tolist() == pytest.approx([(-1 - 0 - 1 - half) / 4])


@pytest.mark.parametrize("seed", range(5))
def test_the_identity_is_the_double_loop(seed: int) -> None:
    rng = np.random.Generator(np.random.PCG64(seed))
    prompts = [directions(rng.standard_normal((n, 7))) for n in (3, 8, 1, 5)]
    for k, (own, found) in enumerate(zip(prompts, mean_cosines(prompts), strict=True)):
        others = [other for j, prompt in enumerate(prompts) if j != k for other in prompt]
        slow = [sum(float(token @ other) for other in others) / len(others) for token in own]
        assert found.tolist() == pytest.approx(slow, abs=1e-12)
    alone = mean_cosines(prompts[:1])
    assert alone[0].tolist() == [0.0] * 3


# ---- clusters ----------------------------------------------------------------------------------------------------------


def blobs(seed: int, dimension: int = 24) -> np.ndarray:
    """20 tight blobs of 5 points, then 10 points by themselves."""
    rng = np.random.Generator(np.random.PCG64(seed))
    centres = directions(rng.standard_normal((30, dimension)))
    near = [centre + 0.01 * directions(rng.standard_normal((5, dimension))) for centre in centres[:20]]
    return directions(np.concatenate([*near, centres[20:]]))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("reach", [0.5, None])
def test_twenty_tight_blobs_and_ten_outliers(seed: int, reach: float | None) -> None:
    points = blobs(seed)
    curve = curve_of(points, reach)
    found = dbscan(points, [1] * 110, curve.eps, 2)
    assert found.count(NOISE) == 10 and set(found[100:]) == {NOISE}
    assert [set(found[i : i + 5]) for i in range(0, 100, 5)] == [{i} for i in range(20)]


@pytest.mark.parametrize("points", [np.eye(24)[:20], directions(np.random.Generator(np.random.PCG64(3)).normal(size=(20, 32)))])
def test_five_copies_of_twenty_unlike_tokens_are_twenty_clusters(points: np.ndarray) -> None:
    """Distance 0 between copies is not in the curve; words that are far from each other stay apart, flat curve or not."""
    orders = [[(i + k) % 20 for i in range(20)] for k in range(5)]
    uploads = {f"c{k}": order for k, order in enumerate(orders)}
    found = merged(spots_of(uploads), dict(enumerate(points)), Rules(), 0)
    assert len(found.chosen) == 20 and {group.cluster for group in found.groups} == set(range(20))
    assert sorted(group.spot.number for group in found.chosen) == list(range(20))
    assert found.curve is not None and 1e-6 <= found.curve.eps < min(found.curve.distances)


def test_without_a_limit_the_knee_alone_decides_and_a_flat_curve_gives_its_maximum() -> None:
    curve = curve_of(np.eye(20), None)
    assert curve.knee is None and curve.eps == pytest.approx(math.sqrt(2)) and curve.limit == math.inf
    assert set(dbscan(np.eye(20), [1] * 20, curve.eps, 2)) == {0}


def test_all_tokens_alike_and_a_single_one_have_an_eps_that_dbscan_takes() -> None:
    for points in (np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])):
        curve = curve_of(points, 0.5)
        assert curve.eps == 1e-6
        assert set(dbscan(points, [4] * len(points), curve.eps, 2)) == {0}
    assert set(dbscan(np.zeros((3, 2)), [1, 1, 1], 1e-6, 2)) == {0}


def test_the_knee_is_where_the_chord_is_farthest() -> None:
    assert knee([0.1] * 9 + [0.11, 0.9, 1.0]) == 9
    assert knee([0.2, 0.9, 0.95, 1.0]) == 1
    assert knee([0.5] * 6) is None and knee([0.1, 0.2]) is None and knee([]) is None


def test_weights_of_points_are_as_if_every_copy_stood_there() -> None:
    points = blobs(1)[:12]
    counts = [1, 2, 3, 1, 1, 1, 2, 1, 1, 1, 1, 4]
    many = np.repeat(points, counts, axis=0)
    for least in (1, 2, 4):
        once = dbscan(points, counts, 0.015, least)
        assert dbscan(many, [1] * len(many), 0.015, least) == np.repeat(once, counts).tolist()


def test_kmeans_is_seeded_and_never_asks_for_more_clusters_than_points() -> None:
    points = blobs(2)
    assert kmeans(points, [1] * 110, 20, 5) == kmeans(points, [1] * 110, 20, 5)
    assert set(kmeans(points[:3], [1] * 3, 9, 5)) == {0, 1, 2}
