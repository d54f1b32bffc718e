# SPDX-License-Identifier: Apache-2.0
"""mixture: whatever is inside, even the symbol itself, comes out certified; the cap holds, the share is the computed one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from osmotic import testing
from osmotic.plugins.building import build_token
from osmotic.plugins.certificate import certify, check_sampler
from osmotic.plugins.contract import Config, Guarantee, Mechanism, Space
from osmotic.plugins.entropy import SystemEntropy
from osmotic.plugins.host import build_registry
from osmotic.plugins.mechanisms.exponential import Exponential
from osmotic.plugins.mechanisms.mixture import Mixture, MixtureConfig, capped
from osmotic.schemas.errors import ComponentError, ConfigError


def space(v: int, d: int | None = 8, unknown: bool = False, seed: int = 0) -> Space:
    vectors = None if d is None else np.random.default_rng(seed).standard_normal((v, d)).astype(np.float32)
    return Space("words", tuple(f"w{i}" for i in range(v)), vectors, unknown)


class NoConfig(Config):
    """Nothing."""


class Anything(Mechanism[NoConfig]):
    """A row of probabilities for each input, given from outside; by default the symbol itself: no privacy at all."""

    name = "anything"
    matrix: np.ndarray | None = None

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        total = self.space.size + self.space.unknown
        matrix = np.eye(total, self.space.size) if self.matrix is None else self.matrix
        if self.matrix is None and self.space.unknown:
            matrix[-1] = 1 / self.space.size
        with np.errstate(divide="ignore"):
            return np.log(matrix[rows])

    def guarantee(self) -> Guarantee:
        return Guarantee(mechanism_class="heuristic", epsilon=0.0)


def mixture(epsilon: float, where: Space, matrix: np.ndarray | None = None, t_max: float = 0.3) -> Mixture:
    inner = Anything(NoConfig(), where)
    inner.matrix = matrix
    return Mixture(MixtureConfig(epsilon=epsilon, t_max=t_max, inner={"name": "anything"}), where, inner)


def test_the_mixture_conforms_around_another_mechanism() -> None:
    inner = {"name": "exponential", "epsilon": 20}
    mechanism = build_token(build_registry([]), {"name": "mixture", "epsilon": 4, "inner": inner}, testing.small_space())
    assert certify(mechanism).holds and isinstance(mechanism.inner, Exponential)
    assert check_sampler(mechanism, SystemEntropy(), 5_000).agrees


def test_the_share_is_the_published_one() -> None:
    assert mixture(6, space(11_000, None)).share == pytest.approx(0.89, abs=0.005)


@settings(max_examples=25)
@given(
    epsilon=st.floats(0.01, 15), v=st.integers(2, 30), t_max=st.floats(0.05, 1), seed=st.integers(0, 50),
    sharp=st.sampled_from([0.1, 3.0, 300.0]), unknown=st.booleans(),
)  # fmt: skip
def test_mixture_certifies_whatever_is_inside(
    epsilon: float, v: int, t_max: float, seed: int, sharp: float, unknown: bool
) -> None:
    t_max = max(t_max, 1 / v)
    scores = sharp * np.random.default_rng(seed).standard_normal((v + unknown, v))
    rows = np.exp(scores - scores.max(axis=1, keepdims=True))
    rows = np.where(rows < 1e-3, 0.0, rows)
    rows /= rows.sum(axis=1, keepdims=True)
    card = certify(mixture(epsilon, space(v, None, unknown), rows, t_max), sampler=False)
    assert card.holds and card.epsilon_true <= epsilon + 1e-6


def test_mixture_attains_epsilon_where_the_cap_is_reached() -> None:
    where = space(30, None)
    rows = sum(share * np.roll(np.eye(30), shift, axis=1) for shift, share in enumerate((0.7, 0.1, 0.1, 0.1)))
    inner = Anything(NoConfig(), where)
    inner.matrix = np.asarray(rows)
    assert certify(inner).epsilon_true == float("inf")
    card = certify(mixture(5, where, rows))
    assert card.holds and card.epsilon_true == pytest.approx(5, abs=1e-9)
    assert card.self_retention == pytest.approx(0.3 * (1 - mixture(5, where).share) + mixture(5, where).share / 30)


@pytest.mark.parametrize(
    ("row", "cap", "expected"),
    [
        ([1, 0, 0, 0, 0], 0.3, [0.3, 0.175, 0.175, 0.175, 0.175]),  # the support cannot take it: evenly to the rest
        ([0.8, 0.1, 0.1], 0.5, [0.5, 0.25, 0.25]),
        ([0.7, 0.2, 0.1, 0], 0.4, [0.4, 0.4, 0.2, 0]),  # the second reaches the cap when renormalised
        ([0.5, 0.5, 0], 0.5, [0.5, 0.5, 0]),
        ([0.9, 0.1, 0, 0], 0.25, [0.25] * 4),
        ([1 - 2e-300, 2e-300, 5e-324], 0.6, [0.6, 0.4, 1e-24]),
    ],
)
def test_the_cap_holds_after_renormalising(row: list[float], cap: float, expected: list[float]) -> None:
    found = capped(np.array(row, dtype=np.float64), cap)
    assert found == pytest.approx(expected, abs=1e-12) and found.max() <= cap and found.sum() == pytest.approx(1, abs=1e-12)


def test_mixture_refuses_what_cannot_work() -> None:
    where = space(5, None)
    with pytest.raises(ConfigError, match="t_max: t_max is too small"):
        mixture(1, where, t_max=0.1)
    with pytest.raises(ConfigError, match="inner: mixture needs"):
        Mixture(MixtureConfig(epsilon=1, inner={}), where)
    with pytest.raises(ConfigError, match="other symbols"):
        Mixture(MixtureConfig(epsilon=1, inner={}), where, Anything(NoConfig(), space(6, None)))
    for rows in (np.full((5, 5), 0.3), np.full((5, 5), np.nan), np.full((5, 4), 0.25)):
        with pytest.raises(ComponentError, match="mechanism inside gave rows"):
            mixture(1, where, rows).log_prob(np.array([0]))
    for bad in ({"t_max": 0}, {"t_max": 1.5}, {"t_max": float("nan")}, {"inner": "rantext"}, {"epsilon": True}):
        with pytest.raises(ValidationError):
            MixtureConfig.model_validate({"epsilon": 1, "inner": {}, **bad})
