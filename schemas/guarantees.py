# SPDX-License-Identifier: Apache-2.0
"""What a mechanism promises (guarantee) and what was computed about it (privacy card). epsilon always names its unit."""

import math
from typing import Literal

from pydantic import ConfigDict, Field, ValidationError

from osmotic.schemas.base import Config

MechanismClass = Literal["certified", "metric", "partition", "heuristic", "gaussian", "laplace-histogram", "dp-sgd"]
Unit = Literal["token", "distance", "field", "document", "record", "client"]


class Guarantee(Config):
    """A claim: `epsilon` per `unit` (pure, unless delta > 0), of a class, and what voids it."""

    model_config = ConfigDict(ser_json_inf_nan="constants")  # an infinite epsilon must survive, and never as null

    mechanism_class: MechanismClass
    epsilon: float = Field(description="Privacy loss per unit, natural logarithm; 'distance': a token and unit of distance.")
    unit: Unit = "token"
    delta: float = 0.0
    void: tuple[str, ...] = Field(default=(), description="What makes the claim void, e.g. 'seeded'.")

    def __str__(self) -> str:
        text = f"{self.mechanism_class}, epsilon {self.epsilon:g} a {self.unit}"
        return text + (f" (void: {', '.join(self.void)})" if self.void else "")


class Card(Config):
    """Privacy card of one mechanism over one space, computed, never declared.

    epsilon_true = max_y [max_x log P(y|x) - min_x log P(y|x)]. holds: by class. certified: epsilon_true <= declared (rounding:
    1e-6, relative below 1), no delta, no cleartext; partition: the same in every cell (epsilon_within), a cell of one symbol
    declared as cleartext; metric: metric_ratio <= 1 + 1e-9 on the pairs checked; always: a finite epsilon above 0, per token or
    field (metric: distance), rows that sum to 1, no probability below e^-700, and a sampler that fits; any other class, or one
    that is estimated, never holds. A document's card holds if its class is certified, per document, it has parts, all hold,
    none has more than is declared, and draws do not refute it; its epsilon_true is then the declared one, which the mechanism's
    own proof of composition gives, else infinite.
    self_retention: mean P(x|x). bayes_success: exact success of the best guess of the input from the output under a uniform
    prior (for partition: from output and cell). Both are 1 where nothing could be computed.
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
    why: str = Field("", description="Why it does not hold; empty if it does.")
    estimated: bool = Field(False, description="The numbers rest on estimated probabilities; it never holds.")
    worst_retention: float = Field(1.0, description="The largest P(x|x).")
    retention_bound: float | None = Field(
        None, description="Largest self-retention possible at the declared epsilon (certified, partition, heuristic)."
    )
    breaks_bound: bool = Field(False, description="Self-retention is above retention_bound: the declared epsilon is false.")
    prior_success: float | None = Field(None, description="Success of the best guess under the prior that was given.")
    epsilon_within: float | None = Field(None, description="Partition: the largest true epsilon inside a cell.")
    metric_ratio: float | None = Field(None, description="Metric: largest |log ratio| / (epsilon d) of the pairs checked.")
    metric_pairs: int = Field(0, description="Metric: pairs of inputs that were checked.")
    inner: str = Field("", description="Card key of the mechanism inside, for wrappers.")
    derived: str = Field("", description="What the mechanism computed from configuration and space and keeps elsewhere.")
    parts: tuple[str, ...] = Field((), description="Documents: each part, and whether its own certificate holds.")
    made: str = Field("", description="When it was made, UTC, ISO 8601.")
    osmotic: str = Field("", description="Version of osmotic that made it.")
    seconds: float = Field(0.0, description="How long it took.")
    version: Literal[2] = 2

    def true_text(self, digits: int = 6) -> str:
        """epsilon_true in words, with so many digits (an estimate: three)."""
        if math.isfinite(self.epsilon_true):
            return f"about {self.epsilon_true:.3g} (estimated)" if self.estimated else f"{self.epsilon_true:.{digits}g}"
        return "no finite number found (estimated)" if self.estimated else "infinite"

    @classmethod
    def stored(cls, text: str) -> "Card | None":
        """A card as it was stored (JSON); None for one of another version, or damaged: it must be made anew."""
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            return None
