# SPDX-License-Identifier: Apache-2.0
"""santext and tem: no pair of symbols, the unknown one included, has a log ratio above epsilon times its distance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osmotic.plugins.contract import Mechanism, Space
from osmotic.plugins.entropy import SeededEntropy
from osmotic.plugins.mechanisms.geometry import Points
from osmotic.plugins.mechanisms.santext import SanText, SanTextConfig
from osmotic.plugins.mechanisms.tem import Tem, TemConfig
from osmotic.plugins.sampler import check_sampler
from osmotic.schemas.errors import ConfigError


def space(v: int, d: int = 4, unknown: bool = True, seed: int = 0, size: float = 1.0) -> Space:
    vectors = (size * np.random.default_rng(seed).standard_normal((v, d))).astype(np.float32)
    return Space("words", tuple(f"w{i}" for i in range(v)), vectors, unknown)


def santext(epsilon: float, where: Space) -> SanText:
    return SanText(SanTextConfig(epsilon=epsilon), where)


def tem(epsilon: float, where: Space, beta: float = 1e-3) -> Tem:
    return Tem(TemConfig(epsilon=epsilon, beta=beta), where)


def worst(mechanism: Mechanism, cut: float = np.inf) -> float:
    """The largest |log ratio| / (epsilon min(d, cut)) over all pairs; distances computed here, not by the mechanism."""
    where = mechanism.space
    points = where.vectors.astype(np.float64)
    if where.unknown:
        points = np.vstack([points, points.mean(axis=0)])
    table = mechanism.log_prob(np.arange(len(points)))
    assert np.exp(table).sum(axis=1) == pytest.approx(1, abs=1e-9)
    ratio = 0.0
    for x in range(len(points)):
        for other in range(x):
            distance = float(np.linalg.norm(points[x] - points[other]))
            spread = float(np.abs(table[x] - table[other]).max())
            ratio = max(ratio, (spread - 1e-9) / (mechanism.config.epsilon * min(distance, cut)) if distance else spread)
    return ratio


@settings(max_examples=40, deadline=None)
@given(
    epsilon=st.floats(0.01, 50),
    v=st.integers(1, 25),
    d=st.integers(1, 5),
    size=st.sampled_from([1e-3, 1.0, 10.0]),
    beta=st.sampled_from([1e-3, 0.1, 0.49]),
    unknown=st.booleans(),
    seed=st.integers(0, 50),
)
def test_no_ratio_is_above_epsilon_times_distance(
    epsilon: float, v: int, d: int, size: float, beta: float, unknown: bool, seed: int
) -> None:
    where = space(v, d, unknown, seed, size)
    assert worst(santext(epsilon, where)) <= 1
    cut = tem(epsilon, where, beta)
    assert worst(cut) <= 1 and worst(cut, cut.gamma) <= 1


def test_the_claim_is_used_up_and_would_be_exceeded_without_the_half() -> None:
    """Two symbols and a far crowd: santext attains almost all of eps d; the same without 1/2 breaks it."""
    where = Space("line", tuple(f"w{i}" for i in range(102)), np.array([[0.0], [1.0]] + [[0.0]] * 100, dtype=np.float32))
    table = santext(6, where).log_prob(np.arange(2))
    assert 0.9 < np.abs(table[0] - table[1]).max() / 6 <= 1
    sharp = santext(12, where).log_prob(np.arange(2))  # what exp(-eps d) without the half would be
    assert np.abs(sharp[0] - sharp[1]).max() > 1.7 * 6


def test_distances_are_a_metric_and_right_near_zero() -> None:
    where = space(40, 16, seed=3)
    near = where.vectors.copy() + 100  # far from the origin: squares lose what differences keep
    near[1] = near[0] + np.float32(1e-4)
    near[2] = near[0]
    table = Points(Space("near", where.symbols, near, True)).distances(np.arange(41))
    points = np.vstack([near.astype(np.float64), near.astype(np.float64).mean(axis=0)])
    exact = np.linalg.norm(points[:, None] - points[None], axis=2)
    assert table == pytest.approx(exact, rel=1e-6, abs=0)
    assert (np.diag(table) == 0).all() and table[0, 2] == 0
    assert (table[:, None, :] <= table[:, :, None] + table[None] + 1e-9).all()


def test_the_unknown_symbol_is_the_mean_point() -> None:
    where = space(9)
    mechanism = santext(3, where)
    away = np.linalg.norm(where.vectors.astype(np.float64) - where.vectors.astype(np.float64).mean(axis=0), axis=1)
    assert mechanism.distances(np.array([9]))[0, :9] == pytest.approx(away)
    weights = np.exp(-1.5 * away)
    assert np.exp(mechanism.log_prob(np.array([9])))[0] == pytest.approx(weights / weights.sum())


@pytest.mark.parametrize("size", [0.1, 5.0, 100.0])
def test_tem_is_its_two_stage_form(size: float) -> None:
    """log P against softmax over near symbols and one outside item, for radii with none, some and nearly all outside."""
    where = space(30, 3, unknown=False, size=size)
    epsilon, mechanism = 2.0, tem(2.0, where)
    points = where.vectors.astype(np.float64)
    for x in range(30):
        away = np.linalg.norm(points - points[x], axis=1)
        near = away <= mechanism.gamma
        outside = int((~near).sum())
        scores = -away[near]
        if outside:
            scores = np.append(scores, -mechanism.gamma + 2 * np.log(outside) / epsilon)
        chances = np.exp(epsilon / 2 * scores)
        chances /= chances.sum()
        expected = np.full(30, chances[-1] / max(outside, 1))
        expected[near] = chances[: int(near.sum())]
        assert np.exp(mechanism.log_prob(np.array([x])))[0] == pytest.approx(expected)
        assert outside == 0 or chances[-1] <= mechanism.config.beta + 1e-12


def test_tem_by_gumbel_noise_comes_out_as_often() -> None:
    """100,000 arg-max draws of the published form; each of 8 symbols within 6 standard deviations."""
    where, n = space(8, 2, unknown=False, size=1.5, seed=1), 100_000
    mechanism, rng = tem(2.0, where, 0.4), np.random.default_rng(5)
    away = np.linalg.norm(where.vectors.astype(np.float64) - where.vectors[0], axis=1)
    far = np.flatnonzero(away > mechanism.gamma)
    near = np.flatnonzero(away <= mechanism.gamma)
    assert len(far) and len(near) > 1
    scores = np.append(-away[near], -mechanism.gamma + 2 * np.log(len(far)) / 2.0)
    best = (scores + rng.gumbel(scale=2 / 2.0, size=(n, len(scores)))).argmax(axis=1)
    drawn = np.append(near, -1)[best]
    drawn[drawn < 0] = rng.choice(far, int((drawn < 0).sum()))
    p = np.exp(mechanism.log_prob(np.array([0])))[0]
    counts = np.bincount(drawn, minlength=8)
    assert (np.abs(counts - n * p) <= 6 * np.sqrt(n * p * (1 - p)) + 1).all()


def test_guarantees_are_per_distance_and_the_host_samples() -> None:
    for mechanism in (santext(2, space(12)), tem(2, space(12))):
        claim = mechanism.guarantee()
        assert (claim.mechanism_class, claim.epsilon, claim.unit) == ("metric", 2.0, "distance")
        assert check_sampler(mechanism, SeededEntropy("metric"), 5_000).agrees


def test_tables_that_give_no_distance_are_refused() -> None:
    for build in (santext, tem):
        with pytest.raises(ConfigError, match="no vectors"):
            build(1, Space("s", ("a", "b")))
        with pytest.raises(ConfigError, match="one vector a symbol"):
            build(1, Space("s", ("a", "b"), np.ones((3, 2), dtype=np.float32)))
        with pytest.raises(ConfigError, match="not finite"):
            build(1, Space("s", ("a", "b"), np.array([[0.0], [np.nan]], dtype=np.float32)))
    assert np.exp(tem(1, space(1, unknown=False)).log_prob(np.array([0]))) == pytest.approx(1)
