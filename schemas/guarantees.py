# SPDX-License-Identifier: Apache-2.0
"""What a mechanism promises (guarantee) and what was computed about it (privacy card). epsilon always names its unit."""

from typing import Literal

from pydantic import ConfigDict, Field

from osmotic.schemas.base import Config

MechanismClass = Literal["certified", "metric", "partition", "heuristic"]
Unit = Literal["token", "field", "document", "record", "client"]


class Guarantee(Config):
    """A claim: `epsilon` per `unit` (pure, unless delta > 0), of a class, and what voids it."""

    mechanism_class: MechanismClass
    epsilon: float = Field(description="Privacy loss per unit, natural logarithm.")
    unit: Unit = "token"
    delta: float = 0.0
    void: tuple[str, ...] = Field((), description="What makes the claim void, e.g. 'seeded'.")

    def __str__(self) -> str:
        text = f"{self.mechanism_class}, epsilon {self.epsilon:g} a {self.unit}"
        return text + (f" (void: {', '.join(self.void)})" if self.void else "")


class Card(Config):
    """Privacy card of one mechanism over one space, computed, never declared.

    epsilon_true = max_y [max_x log P(y|x) - min_x log P(y|x)]; holds: epsilon_true <= declared + 1e-6 and rows sum to 1.
    bayes_success: exact success of guessing the input from the output under a uniform prior. self_retention: mean P(x|x).
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")  # an infinite epsilon_true must survive, and never as null

    mechanism: str
    code: str = Field(description="SHA-256 of the Python files that the mechanism comes from.")
    parameters: str = Field(description="Canonical JSON of its configuration.")
    space: str = Field(description="Name of the field or table.")
    space_digest: str
    symbols: int = Field(description="V, the number of output symbols.")
    declared: Guarantee
    epsilon_true: float
    holds: bool
    self_retention: float
    bayes_success: float
    cleartext: tuple[str, ...] = Field((), description="Classes of input that pass unchanged, declared.")
    version: int = 1
