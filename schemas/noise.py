# SPDX-License-Identifier: Apache-2.0
"""Noise for counts over a whole data set, and for sums of clients' updates: which, and how much privacy is lost."""

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
        given = [self.epsilon, self.delta, self.rounds]
        if self.noise_multiplier is not None and any(value is not None for value in given):
            raise ValueError("give 'noise_multiplier', or 'epsilon', 'delta' and 'rounds', not both")
        if self.noise_multiplier is None and any(value is None for value in given):
            raise ValueError("give 'noise_multiplier', or all of 'epsilon', 'delta' and 'rounds'")
        return self
