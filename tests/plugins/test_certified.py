# SPDX-License-Identifier: Apache-2.0
"""The certified mechanisms: each holds what it promises, samples what it says, and refuses what it cannot do.

Sampler checks draw from the operating system; an honest sampler fails one with probability below 1e-9.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from osmotic import testing
from osmotic.plugins.certificate import certify, retention_bound
from osmotic.plugins.contract import Guarantee, Mechanism, Space
from osmotic.plugins.entropy import SeededEntropy, SystemEntropy
from osmotic.plugins.host import build_registry
from osmotic.plugins.mechanisms import cache
from osmotic.plugins.mechanisms.calibrated import BELOW, Calibrated, CalibratedConfig
from osmotic.plugins.mechanisms.clusters import Clusters
from osmotic.plugins.mechanisms.exponential import Exponential, ExponentialConfig
from osmotic.plugins.mechanisms.hierarchical import Hierarchical, HierarchicalConfig
from osmotic.plugins.mechanisms.list_rr import ListRandomisedResponse, ListRrConfig
from osmotic.plugins.mechanisms.mixture import Mixture, MixtureConfig
from osmotic.plugins.mechanisms.rank_exponential import RankExponential, RankExponentialConfig
from osmotic.schemas.errors import ComponentError, ConfigError

STEPS = [{"ranks": 1, "utility": 1.0}, {"ranks": 3, "utility": 0.8}, {"ranks": 2, "utility": 0.9}, {"ranks": 4, "utility": 0.0}]
CONFIGS = [RankExponentialConfig, CalibratedConfig, HierarchicalConfig]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSMOTIC_CACHE", str(tmp_path / "cache"))


def space(v: int, d: int | None = 8, unknown: bool = False, seed: int = 0) -> Space:
    vectors = None if d is None else np.random.default_rng(seed).standard_normal((v, d)).astype(np.float32)
    return Space("words", tuple(f"w{i}" for i in range(v)), vectors, unknown)


def staircase(epsilon: float, where: Space, steps: list[dict[str, Any]] | None = None, **more: Any) -> RankExponential:
    config = {"epsilon": epsilon, **({"steps": steps} if steps is not None else {}), **more}
    return RankExponential(RankExponentialConfig.model_validate(config), where)


def list_rr(epsilon: float, k: int, where: Space) -> ListRandomisedResponse:
    return ListRandomisedResponse(ListRrConfig(epsilon=epsilon, k=k), where)


def calibrated(epsilon: float, where: Space) -> Calibrated:
    return Calibrated(CalibratedConfig(epsilon=epsilon), where)


def hierarchical(epsilon: float, where: Space, **more: Any) -> Hierarchical:
    return Hierarchical(HierarchicalConfig(epsilon=epsilon, **more), where)


def mixture(epsilon: float, where: Space) -> Mixture:
    inner = Exponential(ExponentialConfig(epsilon=12), where)
    return Mixture(MixtureConfig(epsilon=epsilon, inner={"name": "exponential", "epsilon": 12}), where, inner)


MAKE = {
    "list-rr": lambda e, s: list_rr(e, 5, s),
    "rank-exponential": lambda e, s: staircase(e, s, STEPS),
    "exponential": lambda e, s: Exponential(ExponentialConfig(epsilon=e), s),
    "calibrated": calibrated,
    "mixture": mixture,
    "hierarchical": hierarchical,
}


# ---- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("epsilon", [1, 3, 6, 10])
@pytest.mark.parametrize("name", MAKE)
def test_the_certificate_holds(name: str, epsilon: float, unknown: bool) -> None:
    where = space(40, 6, unknown)
    mechanism = MAKE[name](epsilon, where)
    card = certify(mechanism, sampler=False)
    assert card.holds and card.declared == Guarantee(mechanism_class="certified", epsilon=epsilon, unit="token")
    assert 0 < card.epsilon_true <= epsilon + 1e-9 and card.self_retention <= retention_bound(epsilon, 40) + 1e-12
    if unknown and name != "mixture":
        assert np.exp(mechanism.log_prob(np.array([40]))) == pytest.approx(1 / 40)


@pytest.mark.parametrize(
    ("cls", "config"),
    [
        (RankExponential, {"epsilon": 3, "steps": STEPS}),
        (RankExponential, {"epsilon": 6}),
        (Exponential, {"epsilon": 4}),
        (Calibrated, {"epsilon": 4}),
        (Hierarchical, {"epsilon": 5, "share": 0.4, "clusters": 4}),
    ],
)
def test_each_conforms(cls: type[Mechanism[Any]], config: dict[str, Any]) -> None:
    assert testing.check_mechanism(cls, config).holds


def test_all_are_registered() -> None:
    assert set(MAKE) <= set(build_registry([]).mechanisms)


@pytest.mark.parametrize("name", MAKE)
def test_nothing_in_nothing_out_and_indices_outside_are_refused(name: str) -> None:
    mechanism, nothing = MAKE[name](2.0, space(40, 3)), np.zeros(0, dtype=np.int64)
    assert mechanism.log_prob(nothing).shape == (0, 40) and mechanism.sample(nothing, SystemEntropy()).shape == (0,)
    for wrong in (-1, 40):
        with pytest.raises(ComponentError, match="outside the space"):
            mechanism.log_prob(np.array([wrong]))
        with pytest.raises(ComponentError, match="outside the space"):
            mechanism.sample(np.array([wrong]), SystemEntropy())


@pytest.mark.parametrize("name", MAKE)
def test_canaries_come_out_as_often_as_computed(name: str) -> None:
    """100,000 draws; a symbol inside and the unknown one, 6 deviations for every output."""
    mechanism, n = MAKE[name](3.0, space(40, 6, unknown=True)), 100_000
    for row in (17, 40):
        expected = np.exp(mechanism.log_prob(np.array([row])))[0]
        counts = np.bincount(mechanism.sample(np.full(n, row), SeededEntropy(f"{name} {row}")), minlength=40)
        assert (np.abs(counts / n - expected) <= 6 * np.sqrt(expected * (1 - expected) / n) + 1e-5).all()


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), True, "3", None, 501])
@pytest.mark.parametrize("config", CONFIGS)
def test_epsilon_is_a_positive_finite_number(config: type, value: object) -> None:
    with pytest.raises(ValidationError):
        config(epsilon=value)


@pytest.mark.parametrize("name", ["exponential", "calibrated", "hierarchical", "mixture"])
def test_an_epsilon_that_rounding_would_lose_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="epsilon: must be at most"):
        MAKE[name](100.0, space(40))


@pytest.mark.parametrize("name", ["rank-exponential", "exponential", "calibrated", "hierarchical"])
def test_vectors_without_a_direction_are_refused(name: str) -> None:
    vectors = np.ones((40, 2), dtype=np.float32)
    vectors[3] = 0
    with pytest.raises(ConfigError, match="zero or not finite"):
        MAKE[name](1.0, Space("s", space(40).symbols, vectors))


# ---- rank-exponential ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epsilon", "mass"), [(3, 0.1687), (6, 0.8030), (10, 0.9955)])
def test_one_step_is_list_rr(epsilon: float, mass: float) -> None:
    where, rows = space(2000, unknown=True), np.array([0, 17, 1999, 2000])
    one = staircase(epsilon, where, [{"ranks": 20, "utility": 1.0}])
    assert one.log_prob(rows) == pytest.approx(list_rr(epsilon, 20, where).log_prob(rows), abs=1e-12)
    on_list = np.exp(one.log_prob(rows[1:2]))[0, one.lists(rows[1:2])[0]].sum()
    assert on_list == pytest.approx(mass, abs=5e-5)
    assert on_list == pytest.approx(20 * np.exp(epsilon) / (20 * np.exp(epsilon) + 1980))  # the bound, attained


@settings(max_examples=25)
@given(
    epsilon=st.floats(0.01, 50),
    v=st.integers(2, 40),
    d=st.sampled_from([1, 2, 5]),
    unknown=st.booleans(),
    parts=st.lists(st.tuples(st.integers(1, 5), st.floats(0, 1)), max_size=4),
    order=st.sampled_from(["nearest", "order"]),
)
def test_staircases_use_epsilon_exactly(
    epsilon: float, v: int, d: int, unknown: bool, parts: list[tuple[int, float]], order: str
) -> None:
    steps = [{"ranks": 1, "utility": 1.0}]
    for ranks, utility in parts:
        if sum(step["ranks"] for step in steps) + ranks < v:
            steps.append({"ranks": ranks, "utility": utility})
    mechanism = staircase(epsilon, space(v, d, unknown), steps, lists=order)
    card = certify(mechanism, sampler=False)
    assert card.holds and card.epsilon_true == pytest.approx(epsilon, abs=1e-9)
    values = np.sort(mechanism.log_prob(np.arange(v)), axis=1)
    assert (values == values[0]).all()  # every row is a permutation of the same values


def test_a_staircase_that_does_not_reach_one_uses_less() -> None:
    assert certify(staircase(6, space(30), [{"ranks": 2, "utility": 0.5}])).epsilon_true == pytest.approx(3)
    flat = staircase(6, space(30, unknown=True), [{"ranks": 2, "utility": 0.0}])
    assert certify(flat).epsilon_true == pytest.approx(0, abs=1e-12) and certify(flat).holds


@pytest.mark.parametrize("epsilon", [100, 500])
def test_staircases_keep_large_epsilons_finite(epsilon: float) -> None:
    mechanism = staircase(epsilon, space(40), STEPS)
    assert certify(mechanism).epsilon_true == pytest.approx(epsilon, abs=1e-9)
    assert np.isfinite(mechanism.log_prob(np.arange(40))).all()


def test_steps_are_what_they_say() -> None:
    mechanism = staircase(4, space(12, None), STEPS, lists="order")
    row = mechanism.log_prob(np.array([0]))[0, [0, 1, 11, 2, 10, 3, 9, 4, 8, 5]]
    assert row - mechanism.log_prob(np.array([0]))[0, 6] == pytest.approx(4 * np.repeat([1, 0.8, 0.9, 0], [1, 3, 2, 4]))


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": []}, {"steps": [{"ranks": 0, "utility": 1}]}, {"steps": [{"ranks": 1, "utility": 1.1}]},
        {"steps": [{"ranks": 1, "utility": -0.1}]}, {"steps": [{"ranks": 1, "utility": float("nan")}]},
        {"steps": [{"ranks": 1}]}, {"steps": [{"ranks": 1, "utility": 1, "x": 1}]}, {"lists": "far"}, {"k": 3},
    ],
)  # fmt: skip
def test_wrong_steps_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RankExponentialConfig.model_validate({"epsilon": 1, **bad})


def test_steps_that_do_not_fit_the_space_are_refused() -> None:
    with pytest.raises(ConfigError, match="steps: steps must leave ranks") as caught:
        staircase(1, space(10), STEPS)
    assert "they hold 10 ranks" in str(caught.value) and "at most 9" in str(caught.value)
    with pytest.raises(ConfigError, match="lists: order"):
        staircase(1, space(30, None))


# ---- calibrated ------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(
    epsilon=st.floats(0.05, 12), v=st.integers(2, 60), d=st.sampled_from([None, 1, 2, 5]), unknown=st.booleans(),
    seed=st.integers(0, 5),
)  # fmt: skip
def test_calibrated_uses_epsilon_from_below(epsilon: float, v: int, d: int | None, unknown: bool, seed: int) -> None:
    card = certify(calibrated(epsilon, space(v, d, unknown, seed)))
    same = d == 1 and card.epsilon_true < 1e-9  # on a line all may point the same way
    assert card.holds and card.epsilon_true <= epsilon
    assert same or card.epsilon_true >= epsilon * (1 - BELOW)


def test_calibrated_keeps_far_more_than_exponential() -> None:
    """Mass within the 20 nearest, V = 2,000, epsilon 6: more than twice as much."""
    where, rows = space(2000, 16, unknown=True), np.arange(100)
    lists = list_rr(1, 20, where).lists(rows)
    mass = [
        np.exp(np.take_along_axis(m.log_prob(rows), lists, axis=1)).sum(axis=1).mean()
        for m in (Exponential(ExponentialConfig(epsilon=6), where), calibrated(6, where))
    ]
    assert 2 * mass[0] < mass[1]


def test_a_rough_search_comes_first_in_large_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("osmotic.plugins.mechanisms.calibrated.COARSE", 20)
    for epsilon in (0.5, 3, 9):
        mechanism = calibrated(epsilon, space(200, 8, True))
        assert (mechanism.spread([1.0], 7) <= mechanism.spread([1.0])).all()
        assert epsilon * (1 - BELOW) <= certify(mechanism).epsilon_true <= epsilon


def test_calibrated_copes_without_any_difference() -> None:
    where = Space("s", tuple("abc"), np.ones((3, 2), dtype=np.float32), True)
    assert certify(calibrated(2, where)).epsilon_true == pytest.approx(0, abs=1e-12)
    assert certify(calibrated(2, space(1, 3))).holds


def test_the_sharpness_is_found_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    where, calls = space(50, 4), []
    original = Calibrated.spread
    monkeypatch.setattr(
        Calibrated, "spread", lambda self, points, every=1: calls.append(every) or original(self, points, every)
    )
    first = calibrated(3, where)
    assert not calls  # nothing is computed when constructed
    found = first.sharpness()
    asked = len(calls)
    assert asked and first.sharpness() == found and len(calls) == asked
    assert calibrated(3, where).sharpness() == found and len(calls) == asked
    assert calibrated(3.5, where).sharpness() > found and calibrated(3, space(50, 4, seed=1)).sharpness() != found
    assert len(calls) > asked


@pytest.mark.parametrize("damage", ["", "{}", "[", '{"key": 1, "value": 2}', "\udcff", "null"])
def test_a_damaged_cache_is_computed_again(damage: str) -> None:
    found = calibrated(3, space(50, 4)).sharpness()
    (file,) = cache.folder().iterdir()
    file.write_text(damage, encoding="utf-8", errors="surrogateescape")
    assert calibrated(3, space(50, 4)).sharpness() == found
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "value": (found * 1.5).hex()}))  # changed, its check not
    assert calibrated(3, space(50, 4)).sharpness() == found


def test_the_card_names_the_sharpness_that_it_certified() -> None:
    where = space(50, 4)
    first = calibrated(3, where)
    card = certify(first)
    assert card.holds and card.derived == first.derived() == f"sharpness {first.sharpness().hex()}"
    (file,) = cache.folder().iterdir()
    key, forged = json.loads(file.read_text())["key"], first.sharpness() * 1.5
    cache.write_number(key, forged)  # with a right check: only the card tells
    again = calibrated(3, where)
    assert again.sharpness() == forged and again.derived() != card.derived and not certify(again).holds


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OSMOTIC_CACHE", str(tmp_path / "file"))
    assert certify(calibrated(3, space(50, 4))).holds
    monkeypatch.delenv("OSMOTIC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "osmotic"


# ---- hierarchical ----------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    epsilon=st.floats(0.01, 30), v=st.integers(1, 40), d=st.sampled_from([1, 2, 5]), unknown=st.booleans(),
    share=st.floats(0.01, 0.99), clusters=st.none() | st.integers(1, 40),
)  # fmt: skip
def test_hierarchical_stays_below_epsilon(
    epsilon: float, v: int, d: int, unknown: bool, share: float, clusters: int | None
) -> None:
    clusters = clusters and min(clusters, v)
    card = certify(hierarchical(epsilon, space(v, d, unknown), share=share, clusters=clusters), sampler=False)
    assert card.holds and card.epsilon_true <= epsilon + 1e-9


def test_clusters_are_a_partition_and_always_the_same() -> None:
    unit = np.random.default_rng(1).standard_normal((500, 6))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    one, two = Clusters(unit, 20), Clusters(unit, 20)
    assert (np.sort(one.order) == np.arange(500)).all() and (one.order == two.order).all() and (one.sizes > 0).all()
    assert sorted(np.concatenate([one.order[one.inside(c)] for c in range(len(one.sizes))]).tolist()) == list(range(500))
    assert (one.of(np.arange(500)) == unit).all()
    own = np.repeat(np.arange(len(one.sizes)), one.sizes)[np.argsort(one.order)]
    assert np.einsum("ij,ij->i", unit, one.centres[own]).mean() > 0.6  # by chance: about 0
    assert len(Clusters(np.repeat(unit[:2], 9, axis=0), 5).sizes) <= 2 and Clusters(np.array([[1.0], [-1.0]]), 1).sizes == [2]


def test_hierarchical_prefers_what_is_similar() -> None:
    where = space(300, 8)
    mechanism, rows = hierarchical(10, where), np.arange(300)
    nearest = list_rr(1, 10, where).lists(rows)
    mass = np.exp(np.take_along_axis(mechanism.log_prob(rows), nearest, axis=1)).sum(axis=1).mean()
    assert mass > 4 * 10 / 300  # chance: 10 / 300


def test_hierarchical_refuses_what_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="clusters: more clusters than symbols"):
        hierarchical(1, space(5), clusters=6)
    with pytest.raises(ConfigError, match="hierarchical needs vectors"):
        hierarchical(1, space(5, None))
    for bad in ({"share": 0}, {"share": 1}, {"share": float("nan")}, {"clusters": 0}, {"clusters": 1.5}):
        with pytest.raises(ValidationError):
            HierarchicalConfig.model_validate({"epsilon": 1, **bad})
