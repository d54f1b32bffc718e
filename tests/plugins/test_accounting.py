# SPDX-License-Identifier: Apache-2.0
"""Calibration: the least noise, confirmed; grids of losses that stay affordable and are upper bounds."""

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import pytest

from osmotic.plugins import accounting
from osmotic.plugins.accounting import calibrate, compose, epsilon_of
from osmotic.schemas.errors import ConfigError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("dp_accounting") is None, reason="needs the extra osmotic[dp]")


def gaussian(multiplier: float) -> dict[str, Any]:
    return {"kind": "gaussian", "parameters": {"noise_multiplier": multiplier}, "neighbours": "add-or-remove-one"}


def dp_sgd(q: float, steps: int) -> Callable[[float], dict[str, Any]]:
    def event(multiplier: float) -> dict[str, Any]:
        given = {"noise_multiplier": multiplier, "sampling_probability": q, "steps": steps}
        return {"kind": "dp-sgd", "parameters": given, "neighbours": "add-or-remove-one"}

    return event


def exact(mu: float, delta: float) -> float:
    """Epsilon of mu-Gaussian privacy, by bisection."""
    tail = lambda x: 0.5 * math.erfc(x / math.sqrt(2.0))  # noqa: E731
    low, high = 0.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        beyond = tail(middle / mu + mu / 2)
        lost = tail(middle / mu - mu / 2) - (math.exp(min(middle, 700)) * beyond if beyond else 0.0)
        low, high = (middle, high) if lost > delta else (low, middle)
    return high


@pytest.mark.parametrize(("q", "steps", "epsilon", "delta"), [(0.128, 80, 3.0, 1e-5), (1.0, 1, 0.3, 1e-6)])
def test_the_least_multiplier_is_found_and_confirmed(q: float, steps: int, epsilon: float, delta: float) -> None:
    event = dp_sgd(q, steps)
    found = calibrate(event, epsilon, delta)
    assert epsilon_of([event(found)], delta) <= epsilon < epsilon_of([event(found / 1.003)], delta)


def test_several_rounds_are_counted_together() -> None:
    found = calibrate(gaussian, 1.0, 1e-6, count=10)
    assert epsilon_of([gaussian(found)] * 10, 1e-6) <= 1.0
    assert exact(math.sqrt(10) / (found / 1.003), 1e-6) > 1.0 >= exact(math.sqrt(10) / found, 1e-6)


def test_what_needs_no_more_than_the_least_noise_gets_that_and_what_needs_too_much_is_refused() -> None:
    assert calibrate(gaussian, 200.0, 1e-5) == 0.1
    with pytest.raises(ConfigError, match="no noise multiplier up to 1e"):
        calibrate(lambda multiplier: gaussian(1.0), 0.01, 1e-6)


def test_losses_of_many_small_steps_are_not_overstated() -> None:
    """A grid of 1e-4 alone would say 0.106 for 1,000 sums of noise 1,000 at .1; the Gaussian limit is 0.097."""
    epsilon = epsilon_of([dp_sgd(1.0, 1000)(1000.0)], 1e-5)
    assert exact(math.sqrt(1000) / 1000, 1e-5) <= epsilon <= 1.01 * exact(math.sqrt(1000) / 1000, 1e-5)


def test_a_hostile_plan_fills_no_memory() -> None:
    """A million steps of the least noise would take a grid of 5e11 cells."""
    with pytest.raises(ConfigError, match="too little noise"):
        compose([dp_sgd(1.0, 1_000_000)(0.1)], 1e-5)
    assert compose([gaussian(0.1)] * 20, 1e-5)["add-or-remove-one"] == pytest.approx(exact(math.sqrt(20) / 0.1, 1e-5), rel=1e-2)


@pytest.mark.parametrize(("q", "sigma"), [(0.01, 0.6), (0.2, 1.0), (0.5, 2.0), (1.0, 3.0)])
def test_a_step_is_what_both_directions_lose_by_integration(q: float, sigma: float) -> None:
    """A record removed, and one added: the mixture (1-q) N(0) + q N(1) against N(0), both ways; the worse one is charged."""
    import numpy as np

    x, width = np.linspace(-12 * sigma, 1 + 12 * sigma, 40_001, retstep=True)
    without, alone = (np.exp(-0.5 * ((x - at) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi)) for at in (0.0, 1.0))
    mixed, found = (1 - q) * without + q * alone, []
    for one, other in ((mixed, without), (without, mixed)):
        low, high = 0.0, 60.0
        for _ in range(50):
            middle = (low + high) / 2
            lost = float(np.maximum(one - math.exp(middle) * other, 0.0).sum() * width)
            low, high = (middle, high) if lost > 1e-6 else (low, middle)
        found.append(high)
    charged = epsilon_of([dp_sgd(q, 1)(sigma)], 1e-6)
    assert max(found) - 1e-6 <= charged <= 1.002 * max(found) + 1e-3
    assert q == 1.0 or found[0] > 1.05 * found[1]  # removing is worse: who forgets it, undercharges the other way


def test_events_of_two_relations_have_no_one_epsilon() -> None:
    pure = {"kind": "laplace", "parameters": {"epsilon": 1.0}, "neighbours": "replace-one"}
    with pytest.raises(ConfigError, match="no epsilon together"):
        epsilon_of([pure, gaussian(1.0)], 1e-5)
    assert epsilon_of([], 1e-5) == 0.0 and epsilon_of([pure, pure], 0.0) == 2.0


def test_the_grid_never_lowers_what_is_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The coarse grid of the search says at least what the fine one says."""
    for event in (dp_sgd(0.01, 1000)(1.0), dp_sgd(0.5, 10)(0.8), gaussian(3.0)):
        (fine,) = accounting._composed([event], 1e-5, accounting.FINE).values()
        (coarse,) = accounting._composed([event], 1e-5, accounting.COARSE).values()
        assert fine <= coarse + 1e-9
