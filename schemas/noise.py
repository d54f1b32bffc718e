# SPDX-License-Identifier: Apache-2.0
"""Noise for counts over a data set, sums of clients' updates, votes and private training: which, and how much is lost."""

from typing import Literal, Self

from pydantic import Field, model_validator

from osmotic.schemas.base import Config

LEAST_EPSILON = 0.01  # of gaussian noise
LEAST_DELTA = 1e-12


class CountNoise(Config):
    """{name: laplace, epsilon} (pure) or {name: gaussian, epsilon, delta}; neighbours differ in one record's value."""

    name: Literal["laplace", "gaussian"]
    epsilon: float = Field(gt=0, strict=False, allow_inf_nan=False, description="Privacy loss a record, natural logarithm.")
    delta: float = Field(0.0, ge=0, lt=1, strict=False, description="gaussian: at least 1e-12; laplace: 0.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.name == "gaussian" and not self.delta:
            raise ValueError("gaussian noise needs 'delta' above 0, e.g. 1e-6")
        if self.name == "gaussian" and (self.delta < LEAST_DELTA or self.epsilon < LEAST_EPSILON):
            least = f"'epsilon' of {LEAST_EPSILON:g} or more and 'delta' of {LEAST_DELTA:g} or more"
            raise ValueError(f"gaussian noise needs {least}: with less, the accountant confirms no sigma")
        if self.name == "laplace" and self.delta:
            raise ValueError("laplace noise is pure: leave 'delta' out")
        return self


class ClientNoise(Config):
    """Gaussian noise on a sum to which every client adds one clipped update; neighbours differ in one client more or less.

    Either noise_multiplier, or (epsilon, delta, rounds): the least multiplier with which that many sums are (epsilon, delta).
    """

    clip: float = Field(ge=1e-30, le=1e30, strict=False, description="L2 norm that each client's update is held to.")
    noise_multiplier: float | None = Field(
        None, ge=0.001, le=1e6, strict=False, description="Standard deviation of the sum's noise over `clip`."
    )
    epsilon: float | None = Field(
        None, ge=LEAST_EPSILON, strict=False, allow_inf_nan=False, description="Of all rounds together, a client."
    )
    delta: float | None = Field(None, ge=LEAST_DELTA, lt=1, strict=False)
    rounds: int | None = Field(None, ge=1, description="How many sums epsilon is to last for.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        _multiplier_or_rounds(self.noise_multiplier, [self.epsilon, self.delta, self.rounds])
        return self


class TrainingNoise(Config):
    """Differentially private training (DP-SGD): Poisson batches, per-record clipping, Gaussian noise on every step's sum.

    Neighbours differ in one record: there, or adding nothing (how many records there are is public). Either epsilon, from which
    the noise follows, or noise_multiplier. What is charged follows from the number of records, batch, steps, multiplier.
    """

    epsilon: float | None = Field(
        None, ge=LEAST_EPSILON, strict=False, allow_inf_nan=False, description="Of the whole training, a record."
    )
    delta: float = Field(1e-5, ge=LEAST_DELTA, lt=1, strict=False, description="Must be below 1 / number of records.")
    noise_multiplier: float | None = Field(
        None, ge=0.1, le=1e6, strict=False, description="Standard deviation of the noise over `clip`, instead of epsilon."
    )
    clip: float = Field(1.0, ge=1e-6, le=1e6, strict=False, description="L2 norm that each record's gradient is held to.")
    batch: int = Field(ge=1, description="Records a step on average: each is drawn with probability batch / records.")
    steps: int = Field(ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give 'epsilon' or 'noise_multiplier', and not both")
        return self


class VoteNoise(Config):
    """Gaussian noise on counts to which every record adds one vote; neighbours differ in one record: there, or without a vote.

    Either noise_multiplier (the standard deviation, in votes), or (epsilon, delta, rounds): the least with which that many
    rounds of votes are (epsilon, delta) together.
    """

    noise_multiplier: float | None = Field(None, ge=0.1, le=1e6, strict=False, description="Standard deviation, in votes.")
    epsilon: float | None = Field(
        None, ge=LEAST_EPSILON, strict=False, allow_inf_nan=False, description="Of all rounds together, a record."
    )
    delta: float | None = Field(None, ge=LEAST_DELTA, lt=1, strict=False, description="Must be below 1 / number of records.")
    rounds: int | None = Field(None, ge=1, description="How many rounds of votes epsilon is to last for.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        _multiplier_or_rounds(self.noise_multiplier, [self.epsilon, self.delta, self.rounds])
        return self


def _multiplier_or_rounds(noise_multiplier: float | None, given: list[float | int | None]) -> None:
    if noise_multiplier is not None and any(value is not None for value in given):
        raise ValueError("give 'noise_multiplier', or 'epsilon', 'delta' and 'rounds', not both")
    if noise_multiplier is None and any(value is None for value in given):
        raise ValueError("give 'noise_multiplier', or all of 'epsilon', 'delta' and 'rounds'")
