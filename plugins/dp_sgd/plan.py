# SPDX-License-Identifier: Apache-2.0
"""One object that binds the sampler, the clip, the noise and the accountant of a differentially private training.

`ExecutionPlan.of` turns what was asked for into numbers, refuses what would void the guarantee, and is the only way to a
sampler and to noise: no batch can be drawn at another rate than the one that is charged, nor noise added at another scale. The
unit is one record; neighbours differ in one record, there or adding nothing (the number of records is public, and so are batch,
steps, clip and noise multiplier). Batches are Poisson: each record for itself, at every step, with a probability that is at
most the charged one (floor(q 2^64) of 2^64 words). Sums are divided by the public expected batch, never by the drawn one.
Epsilon is composed from privacy loss distributions (pessimistic: an upper bound), for the release of every step's noisy sum: so
for the final weights as well, and for whatever is computed from them.

Void when: the secret is known to an adversary, made from a seed, or used for two trainings on different data; hyper-parameters
or a checkpoint were chosen by looking at private results that are not charged; what `loop.train` records of the steps (drawn
batches, losses, norms) leaves the party.
"""

import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from osmotic.plugins.accounting import ADD_OR_REMOVE_ONE, calibrate, epsilon_of
from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.noise import TrainingNoise

if TYPE_CHECKING:
    from osmotic.plugins.dp_sgd.noise import StepNoise
    from osmotic.plugins.dp_sgd.sampler import PoissonSampler

WORDS = 1 << 64
SECRET = 32  # bytes
MOST_MULTIPLIER = 2000  # with more, nothing is learned from any batch, and the grid of the noise becomes too coarse


@dataclass(frozen=True)
class ExecutionPlan:
    """What is done and what it costs. records: of the data set; batch: expected; noise_multiplier: in clip norms."""

    records: int
    batch: int
    steps: int
    clip: float
    noise_multiplier: float
    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        sound = 1 <= self.batch <= self.records and self.steps >= 1 and self.clip > 0 and self.noise_multiplier > 0
        if not sound:
            raise ConfigError(Problem(f"not a plan of private training: {asdict(self)}", fix="make it by ExecutionPlan.of"))

    @classmethod
    def of(cls, noise: TrainingNoise, records: int) -> "ExecutionPlan":
        """Calibrate (or account for the multiplier that is given). Raises ConfigError for what would void the guarantee."""
        _refuse(noise, records)
        q = _probability(noise.batch, records)

        def event(multiplier: float) -> dict[str, Any]:
            return _event(multiplier, q, noise.steps)

        if noise.noise_multiplier is not None:
            multiplier = float(noise.noise_multiplier)
        else:
            _refuse_out_of_reach(noise, q)
            multiplier = float(calibrate(event, float(noise.epsilon or 0.0), float(noise.delta)))
        epsilon = epsilon_of([event(multiplier)], float(noise.delta))
        if not epsilon < float("inf"):
            what = f"noise_multiplier {multiplier:g} keeps no epsilon at delta {noise.delta:g}"
            raise ConfigError(Problem(what, path="noise_multiplier", fix="more noise, fewer steps, or a larger delta"))
        return cls(records, noise.batch, noise.steps, float(noise.clip), multiplier, epsilon, float(noise.delta))

    @property
    def sampling_probability(self) -> float:
        """Of each record at each step; what is charged."""
        return _probability(self.batch, self.records)

    @property
    def threshold(self) -> int:
        """A record is drawn when its 64-bit word is below this: at most `sampling_probability` x 2^64."""
        return int(Fraction(self.sampling_probability) * WORDS)

    def event(self) -> dict[str, Any]:
        """What the ledger charges."""
        return _event(self.noise_multiplier, self.sampling_probability, self.steps)

    def describe(self) -> dict[str, Any]:
        """JSON for the weights' meta and the report; public."""
        return {
            "mechanism": "dp-sgd",
            "unit": "record",
            "neighbours": ADD_OR_REMOVE_ONE,
            **asdict(self),
            "accountant": "PLD",
            "sampling": "poisson",
            "sampling_probability": self.sampling_probability,
            "noise": "gaussian",
            "divisor": self.batch,
        }

    def sampler(self, secret: bytes) -> "PoissonSampler":
        """The batches of this plan. secret: 32 bytes, the training's own."""
        from osmotic.plugins.dp_sgd.sampler import PoissonSampler

        return PoissonSampler(self.records, self.threshold, _checked(secret))

    def noise(self, secret: bytes) -> "StepNoise":
        """The noise of this plan's sums. secret: as for `sampler`."""
        from osmotic.plugins.dp_sgd.noise import StepNoise

        return StepNoise(self.clip, self.noise_multiplier, self.batch, _checked(secret))


def _probability(batch: int, records: int) -> float:
    return batch / records


def _event(multiplier: float, probability: float, steps: int) -> dict[str, Any]:
    parameters = {"noise_multiplier": multiplier, "sampling_probability": probability, "steps": steps}
    return {"kind": "dp-sgd", "parameters": parameters, "neighbours": ADD_OR_REMOVE_ONE}


def _refuse_out_of_reach(noise: TrainingNoise, q: float) -> None:
    """Raise ConfigError where even the most noise keeps no such epsilon; computed only where it may be so."""
    epsilon = float(noise.epsilon or 0.0)
    if q * math.sqrt(noise.steps) / MOST_MULTIPLIER < epsilon / 10:
        return
    least = epsilon_of([_event(MOST_MULTIPLIER, q, noise.steps)], float(noise.delta))
    if least > epsilon:
        what = f"no noise multiplier up to {MOST_MULTIPLIER} gives epsilon {epsilon:g}"
        why = f"with the most noise it is {least:.3g} after {noise.steps:,} steps at delta {noise.delta:g}"
        raise ConfigError(Problem(what, path="epsilon", why=why, fix="a larger epsilon, fewer steps, or a smaller batch"))


def _checked(secret: bytes) -> bytes:
    if len(secret) != SECRET:
        raise ValueError(f"the secret of a training has {SECRET} bytes (got {len(secret)})")
    return secret


def _refuse(noise: TrainingNoise, records: int) -> None:
    """Raise ConfigError, with every reason, when no such training could keep its promise."""
    problems = []
    if records < 2:
        what = f"differentially private training needs 2 records or more, the data set has {records}"
        why = "what is learned from one record alone is either noise or that record"
        raise ConfigError(Problem(what, path="batch", why=why, fix="leave this party out, or give it more data"))
    if noise.batch > records:
        what = f"batch: {noise.batch} is more than the {records} records there are"
        why = "each record is drawn with probability batch / records, which must not pass 1"
        problems.append(Problem(what, path="batch", why=why, fix=f"at most {records}"))
    if noise.noise_multiplier is not None and noise.noise_multiplier > MOST_MULTIPLIER:
        what = f"noise_multiplier: {noise.noise_multiplier:g} is more than {MOST_MULTIPLIER}"
        problems.append(Problem(what, path="noise_multiplier", why="nothing can be learned under it", fix="less noise"))
    if noise.delta >= 1 / records:
        what = f"delta: {noise.delta:g} is not below 1 / {records} records = {1 / records:.3g}"
        why = "such a delta allows that some record is published outright"
        problems.append(Problem(what, path="delta", why=why, fix=f"delta: {0.1 / records:.1g}, or smaller"))
    if problems:
        raise ConfigError(*problems)
