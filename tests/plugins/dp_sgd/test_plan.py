# SPDX-License-Identifier: Apache-2.0
"""The plan: calibration, what it refuses with which number, and that its parts cannot be of another rate or scale."""

import json
import math

import pytest

from osmotic.plugins.accounting import epsilon_of
from osmotic.plugins.dp_sgd.plan import ExecutionPlan
from osmotic.schemas.errors import ConfigError
from osmotic.schemas.noise import TrainingNoise


def test_epsilon_is_reached_and_not_passed():
    plan = ExecutionPlan.of(TrainingNoise(epsilon=3.0, delta=1e-5, batch=50, steps=100), records=1000)
    assert 2.97 < plan.epsilon <= 3.0
    assert plan.sampling_probability == 0.05 and plan.clip == 1.0
    assert plan.event() == {
        "kind": "dp-sgd",
        "parameters": {"noise_multiplier": plan.noise_multiplier, "sampling_probability": 0.05, "steps": 100},
        "neighbours": "add-or-remove-one",
    }
    assert epsilon_of([plan.event()], 1e-5) == plan.epsilon


def test_a_given_multiplier_is_accounted_for():
    plan = ExecutionPlan.of(TrainingNoise(noise_multiplier=1.0, delta=1e-5, batch=10, steps=1000), records=1000)
    assert plan.noise_multiplier == 1.0 and plan.epsilon == pytest.approx(1.828, rel=0.002)
    told = plan.describe()
    assert json.loads(json.dumps(told)) == told
    assert told["unit"] == "record" and told["neighbours"] == "add-or-remove-one" and told["sampling"] == "poisson"


@pytest.mark.parametrize("sigma,batch,steps", [(0.7, 5, 300), (1.0, 50, 200), (2.0, 250, 60)])
def test_two_independent_accountants_agree(sigma: float, batch: int, steps: int):
    """Opacus's PRV within 2%; its RDP above."""
    from opacus.accountants import PRVAccountant, RDPAccountant

    plan = ExecutionPlan.of(TrainingNoise(noise_multiplier=sigma, delta=1e-5, batch=batch, steps=steps), records=1000)
    prv, rdp = PRVAccountant(), RDPAccountant()
    prv.history = rdp.history = [(sigma, batch / 1000, steps)]
    assert plan.epsilon == pytest.approx(prv.get_epsilon(1e-5, eps_error=0.005), rel=0.02)
    assert plan.epsilon < rdp.get_epsilon(1e-5)


@pytest.mark.parametrize(
    "noise,records,said",
    [
        ({"epsilon": 3, "batch": 4, "delta": 1e-3}, 1000, "delta: 0.001 is not below 1 / 1000 records = 0.001"),
        ({"epsilon": 3, "batch": 11}, 10, "batch: 11 is more than the 10 records"),
        ({"epsilon": 3, "batch": 1}, 1, "2 records or more, the data set has 1"),
        ({"epsilon": 3, "batch": 1}, 0, "2 records or more, the data set has 0"),
        ({"epsilon": 0.05, "batch": 1000, "steps": 1_000_000}, 1000, "no noise multiplier up to 2000 gives epsilon 0.05"),
        ({"noise_multiplier": 5000, "batch": 2}, 1000, "noise_multiplier: 5000 is more than 2000"),
    ],
)
def test_what_would_void_the_guarantee_is_refused(noise: dict, records: int, said: str):
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")) as raised:
        ExecutionPlan.of(TrainingNoise(**{"steps": 10, **noise}), records)
    assert all(problem.fix for problem in raised.value.problems)


def test_both_problems_are_told_at_once():
    with pytest.raises(ConfigError) as raised:
        ExecutionPlan.of(TrainingNoise(epsilon=1, delta=0.5, batch=20, steps=1), records=10)
    assert {problem.path for problem in raised.value.problems} == {"batch", "delta"}


def test_nonsense_is_no_plan():
    with pytest.raises(ConfigError, match="not a plan"):
        ExecutionPlan(records=10, batch=11, steps=1, clip=1.0, noise_multiplier=1.0, epsilon=1.0, delta=1e-5)


@pytest.mark.parametrize("batch,records", [(1, 3), (1, 7), (2, 3), (5, 9), (999, 1000), (1, 2**40 + 1), (7, 7)])
def test_the_coin_is_never_more_likely_than_what_is_charged(batch: int, records: int):
    from fractions import Fraction

    plan = ExecutionPlan(records, batch, 1, 1.0, 1.0, 1.0, 1e-20)
    real, charged = Fraction(plan.threshold, 1 << 64), Fraction(plan.sampling_probability)
    assert 0 <= charged - real < Fraction(1, 1 << 64)
    assert math.isclose(float(real), batch / records, rel_tol=1e-7)


def test_a_secret_has_32_bytes():
    plan = ExecutionPlan(10, 2, 1, 1.0, 1.0, 1.0, 1e-5)
    for part in (plan.sampler, plan.noise):
        with pytest.raises(ValueError, match="32 bytes"):
            part(b"short")
