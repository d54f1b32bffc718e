# SPDX-License-Identifier: Apache-2.0
"""list-rr and exponential: what they promise is what the certificate measures; lists are the ones that are documented."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from osmotic.plugins.certificate import certify, check_sampler, retention_bound
from osmotic.plugins.contract import Space
from osmotic.plugins.entropy import SeededEntropy, SystemEntropy
from osmotic.plugins.exact import bernoulli
from osmotic.plugins.mechanisms.exponential import Exponential, ExponentialConfig
from osmotic.plugins.mechanisms.list_rr import ListRandomisedResponse, ListRrConfig
from osmotic.schemas.errors import ComponentError, ConfigError


def space(v: int, d: int | None = 8, unknown: bool = False, seed: int = 0) -> Space:
    vectors = None if d is None else np.random.default_rng(seed).standard_normal((v, d)).astype(np.float32)
    return Space("words", tuple(f"w{i}" for i in range(v)), vectors, unknown)


def list_rr(epsilon: float, k: int, where: Space, lists: str = "nearest") -> ListRandomisedResponse:
    return ListRandomisedResponse(ListRrConfig(epsilon=epsilon, k=k, lists=lists), where)


@pytest.mark.parametrize(("epsilon", "mass"), [(3, 0.1687), (6, 0.8030), (10, 0.9955)])
def test_list_mass_is_the_published_one(epsilon: float, mass: float) -> None:
    mechanism = list_rr(epsilon, 20, space(2000, unknown=True))
    row = np.array([17])
    on_list = np.exp(mechanism.log_prob(row))[0, mechanism.lists(row)[0]].sum()
    assert on_list == pytest.approx(mass, abs=5e-5)
    card = certify(mechanism)
    assert card.holds and card.epsilon_true == pytest.approx(epsilon, abs=1e-9)
    assert card.self_retention == pytest.approx(on_list / 20)
    assert card.bayes_success == pytest.approx(on_list / 20)


@settings(max_examples=40, deadline=None)
@given(
    epsilon=st.floats(0.01, 50),
    size=st.integers(2, 40).flatmap(lambda v: st.tuples(st.just(v), st.integers(1, v - 1))),
    lists=st.sampled_from(["nearest", "order"]),
    unknown=st.booleans(),
)
def test_list_rr_attains_epsilon_exactly(epsilon: float, size: tuple[int, int], lists: str, unknown: bool) -> None:
    v, k = size
    card = certify(list_rr(epsilon, k, space(v, 3, unknown), lists), sampler=False)
    assert card.holds and card.epsilon_true == pytest.approx(epsilon, abs=1e-9)
    assert card.self_retention <= retention_bound(epsilon, v) + 1e-12
    assert (k != 1) or card.self_retention == pytest.approx(retention_bound(epsilon, v))


@settings(max_examples=40, deadline=None)
@given(epsilon=st.floats(0.01, 30), v=st.integers(2, 40), d=st.sampled_from([None, 1, 2, 5]), unknown=st.booleans())
def test_exponential_stays_below_epsilon(epsilon: float, v: int, d: int | None, unknown: bool) -> None:
    card = certify(Exponential(ExponentialConfig(epsilon=epsilon), space(v, d, unknown)))
    assert card.holds and card.epsilon_true <= epsilon + 1e-9
    assert card.self_retention <= retention_bound(epsilon, v) + 1e-12


def test_retention_bound_has_the_published_values() -> None:
    assert [retention_bound(e, 11_000) for e in (3, 6, 10)] == pytest.approx([0.0018, 0.0354, 0.667], rel=0.02)


def test_nearest_lists_are_nearest_with_ties_by_index() -> None:
    where = space(60, 4, seed=5)
    unit = where.vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    distance = np.linalg.norm(unit[:, None] - unit[None], axis=2)
    np.fill_diagonal(distance, -1)
    assert (list_rr(1, 7, where).lists(np.arange(60)) == np.argsort(distance, axis=1, kind="stable")[:, :7]).all()
    twins = Space("twins", tuple("abcdef"), np.array([[1, 0], [2, 0], [3, 0], [0, 1], [4, 0], [0, -1]], dtype=np.float32))
    assert list_rr(1, 3, twins).lists(np.array([4, 0, 3])).tolist() == [[4, 0, 1], [0, 1, 2], [3, 0, 1]]


def test_lists_do_not_depend_on_what_else_is_asked() -> None:
    where = space(3000, 48, seed=2)
    alone, together = list_rr(1, 12, where), list_rr(1, 12, where)
    some = np.array([5, 2999, 17, 5])
    together.lists(np.arange(3000))
    assert (alone.lists(some) == together.lists(some)).all()
    assert alone._neighbours.known.sum() == 3  # the others were not computed


def test_order_lists_are_a_ring() -> None:
    mechanism = list_rr(1, 4, space(7, None), "order")
    assert mechanism.lists(np.array([0, 6])).tolist() == [[0, 1, 6, 2], [6, 0, 5, 1]]
    assert (np.bincount(mechanism.lists(np.arange(7)).ravel()) == 4).all()


def test_unknown_is_uniform_and_its_index_needs_the_space_to_have_it() -> None:
    where = space(5, unknown=True)
    for mechanism in (list_rr(2, 2, where), Exponential(ExponentialConfig(epsilon=2), where)):
        assert np.exp(mechanism.log_prob(np.array([5]))) == pytest.approx(0.2)
        with pytest.raises(ComponentError, match="outside the space"):
            mechanism.log_prob(np.array([6]))
        with pytest.raises(ComponentError, match="outside the space"):
            mechanism.log_prob(np.array([-1]))
    with pytest.raises(ComponentError, match="outside the space"):
        list_rr(2, 2, space(5)).sample(np.array([5]), SystemEntropy())


@pytest.mark.parametrize(("epsilon", "k", "v"), [(0.5, 1, 2), (3, 4, 30), (6, 8, 400), (2, 29, 30)])
def test_sampler_fits_its_probabilities(epsilon: float, k: int, v: int) -> None:
    """20,000 draws a row: an event that is off by .05 is found with probability .999; false alarms 1e-9."""
    check = check_sampler(list_rr(epsilon, k, space(v, unknown=True)), SeededEntropy("fit"))
    assert check.agrees and check.detects < 0.05, check


def test_exponential_sampled_by_the_host_fits_too() -> None:
    check = check_sampler(Exponential(ExponentialConfig(epsilon=4), space(20, unknown=True)), SeededEntropy("host"))
    assert check.agrees, check


def test_samples_come_out_only_as_often_as_retention_allows() -> None:
    """Canaries outside the table are uniform; inside, they survive at the computed rate (6 deviations, n = 200,000)."""
    n, mechanism = 200_000, list_rr(3, 8, space(500, unknown=True))
    kept = (mechanism.sample(np.full(n, 42), SeededEntropy(1)) == 42).mean()
    expected = np.exp(mechanism.log_prob(np.array([42])))[0, 42]
    assert abs(kept - expected) < 6 * np.sqrt(expected / n)
    counts = np.bincount(mechanism.sample(np.full(n, 500), SeededEntropy(2)), minlength=500)
    assert counts.min() > 400 - 6 * 20 and counts.max() < 400 + 6 * 20


class Digits:
    """Entropy whose integers are told in advance."""

    def __init__(self, *rounds: list[int]) -> None:
        self.rounds = iter(rounds)

    def uniform(self, count: int) -> np.ndarray:
        raise AssertionError("not used")

    def integers(self, high: int, count: int) -> np.ndarray:
        return np.array(next(self.rounds), dtype=np.int64)[:count]


def test_coin_is_exact_for_tiny_probabilities() -> None:
    """2^-60 is the digit 0, then 2^46: decided by the second draw, where one uniform of 53 bits would always say no."""
    assert bernoulli(2.0**-60, 3, Digits([0, 0, 5], [2**46 - 1, 2**46])).tolist() == [True, False, False]
    assert bernoulli(0.0, 2, SystemEntropy()).tolist() == [False, False]
    assert bernoulli(1.0, 2, SystemEntropy()).tolist() == [True, True]
    share = bernoulli(0.3, 1_000_000, SeededEntropy("coin")).mean()
    assert abs(share - 0.3) < 6 * np.sqrt(0.21 / 1e6)


@pytest.mark.parametrize("value", [0, -1, 0.0, float("inf"), float("nan"), True, "3", None, [1], 501, 10**400])
@pytest.mark.parametrize("config", [ListRrConfig, ExponentialConfig])
def test_epsilon_is_a_positive_finite_number(config: type, value: object) -> None:
    with pytest.raises(ValidationError):
        config(epsilon=value)


@pytest.mark.parametrize("config", [ListRrConfig, ExponentialConfig])
def test_whole_numbers_are_welcome(config: type) -> None:
    assert config(epsilon=4).epsilon == 4.0 and isinstance(config(epsilon=4).epsilon, float)


@pytest.mark.parametrize("bad", [{"k": 0}, {"k": True}, {"k": 2.0}, {"lists": "far"}, {"kk": 2}])
def test_list_rr_refuses_wrong_keys_and_values(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ListRrConfig(epsilon=1, **bad)


def test_list_rr_refuses_lists_that_do_not_fit_the_space() -> None:
    with pytest.raises(ConfigError, match=r"k: k must be smaller than the number of symbols") as caught:
        list_rr(1, 5, space(5))
    assert "has 5 symbols" in str(caught.value)
    with pytest.raises(ConfigError, match="lists: order"):
        list_rr(1, 2, space(5, None))
    assert certify(list_rr(1, 1, space(5, None))).holds  # a list of one needs no neighbours


@pytest.mark.parametrize("wrong", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("cls", ["list", "exponential"])
def test_vectors_that_have_no_direction_are_refused(wrong: float, cls: str) -> None:
    vectors = np.ones((4, 2), dtype=np.float32)
    vectors[2] = wrong
    where = Space("s", tuple("abcd"), vectors)
    with pytest.raises(ConfigError, match="zero or not finite"):
        list_rr(1, 2, where) if cls == "list" else Exponential(ExponentialConfig(epsilon=1), where)
    short = Space("s", tuple("abcd"), np.ones((3, 2), dtype=np.float32))
    with pytest.raises(ConfigError, match="one vector a symbol"):
        list_rr(1, 2, short) if cls == "list" else Exponential(ExponentialConfig(epsilon=1), short)


def test_exponential_prefers_what_is_similar() -> None:
    vectors = np.array([[1, 0], [1, 1], [-1, 0], [1e-30, 0]], dtype=np.float32)
    row = np.exp(Exponential(ExponentialConfig(epsilon=4), Space("s", tuple("abcd"), vectors)).log_prob(np.array([0])))[0]
    assert row[0] == pytest.approx(row[3]) and row[0] > row[1] > row[2]
    assert np.log(row[0] / row[2]) == pytest.approx(2)
    same = Space("s", tuple("abc"), np.ones((3, 2), dtype=np.float32))
    assert np.exp(Exponential(ExponentialConfig(epsilon=4), same).log_prob(np.array([1]))) == pytest.approx(1 / 3)


def test_exponential_refuses_an_epsilon_that_sampling_would_round_away() -> None:
    with pytest.raises(ConfigError, match="epsilon: must be at most"):
        Exponential(ExponentialConfig(epsilon=100), space(10))


@pytest.mark.parametrize("epsilon", [100, 500])
def test_list_rr_keeps_large_epsilons_finite(epsilon: float) -> None:
    mechanism = list_rr(epsilon, 2, space(6))
    assert certify(mechanism).epsilon_true == pytest.approx(epsilon, abs=1e-9) and mechanism._uniform > 0


def test_every_symbol_can_come_out_of_every_row() -> None:
    mechanism = list_rr(0.5, 3, space(9, unknown=True))
    for row in range(10):
        assert set(mechanism.sample(np.full(2000, row), SeededEntropy(row)).tolist()) == set(range(9))
    assert mechanism.sample(np.array([], dtype=np.int64), SystemEntropy()).shape == (0,)
