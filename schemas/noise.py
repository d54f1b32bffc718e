# SPDX-License-Identifier: Apache-2.0
"""Noise for counts over a whole data set: which, and how much privacy a record loses."""

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
