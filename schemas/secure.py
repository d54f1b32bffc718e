# SPDX-License-Identifier: Apache-2.0
"""A gather of weights of which only the sum arrives: how it is clipped, how few may take part, how much noise is in it."""

from typing import Self

from pydantic import Field, model_validator

from osmotic.schemas.base import Config
from osmotic.schemas.noise import LEAST_DELTA, LEAST_EPSILON, ClientNoise

LEAST, LARGEST = 1e-30, 1e30  # of clip and range


class SecureSum(Config):
    """A sum that arrives without what it is the sum of. With noise each client adds a share of it before anything leaves.

    Either noise_multiplier, or (epsilon, delta, rounds): the least multiplier with which that many sums are (epsilon, delta)
    together, a client; or neither: the sum itself is then seen as it is.
    """

    clip: float | None = Field(
        None, ge=LEAST, le=LARGEST, strict=False, description="L2 norm that each client's vector is held to; needed with noise."
    )
    range: float | None = Field(
        None, ge=LEAST, le=LARGEST, strict=False,
        description="Largest size of one number of a client's vector, what is beyond is cut; default: clip.",
    )  # fmt: skip
    at_least: int = Field(ge=2, description="Fewest clients whose sum may be seen; each client refuses fewer.")
    colluding: int = Field(
        0, ge=0, description="Clients that may be in league with the server: their noise and masks count as known to it."
    )
    noise_multiplier: float | None = Field(
        None, ge=0.1, le=1e6, strict=False, description="Standard deviation of the sum's noise over `clip`."
    )
    epsilon: float | None = Field(
        None, ge=LEAST_EPSILON, strict=False, allow_inf_nan=False, description="Of all rounds together, a client."
    )
    delta: float | None = Field(None, ge=LEAST_DELTA, lt=1, strict=False)
    rounds: int | None = Field(None, ge=1, description="How many sums epsilon is to last for.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.clip is None and self.range is None:
            raise ValueError("give 'range', 'clip' or both: whole numbers modulo 2^32 have room for a stated range only")
        if self.clip is not None and self.range is not None and self.range > self.clip:
            raise ValueError(f"range {self.range:g} is more than clip {self.clip:g}: no number of a clipped vector is larger")
        if self.noisy and self.clip is None:
            raise ValueError("noise needs 'clip': without it a client may move the sum by any amount")
        if self.noisy:
            self.noise()
        return self

    @property
    def noisy(self) -> bool:
        """Whether each client's share of the noise makes the sum differentially private."""
        return any(v is not None for v in (self.noise_multiplier, self.epsilon, self.delta, self.rounds))

    def fewest(self, clients: int) -> int:
        """How many of so many clients must be in the sum: at_least, and more than half of them and of those in league."""
        return max(self.at_least, (clients + self.colluding) // 2 + 1)

    def noise(self) -> ClientNoise:
        """Clip and noise as the accountant's side has them; raises ValueError where they do not fit together."""
        return ClientNoise(
            clip=self.clip or 0.0, noise_multiplier=self.noise_multiplier, epsilon=self.epsilon, delta=self.delta,
            rounds=self.rounds,
        )  # fmt: skip


class SumRules(Config):
    """What a site asks of secure sums of its data."""

    at_least: int = Field(2, ge=2, description="Fewest clients whose sum may be seen, whatever a plan says.")
    colluding: int = Field(0, ge=0, description="Fewest clients that a plan must take to be in league with the server.")
