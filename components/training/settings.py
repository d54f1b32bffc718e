# SPDX-License-Identifier: Apache-2.0
"""How a module is trained: what a user may say of it, and what the loop of steps is given.

`TrainSettings` is plain data (it travels to other processes as JSON): the trainer component builds it from its configuration.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from pydantic import Field

from osmotic.schemas.base import Config

EngineName = Literal["torch", "deepspeed"]
Precision = Literal["float32", "bfloat16"]
Schedule = Literal["constant", "linear", "cosine"]


class DeepspeedConfig(Config):
    """What is shared out over the processes (ZeRO), and where the optimiser's state lies."""

    stage: Literal[0, 1, 2, 3] = Field(
        0, description="0: nothing; 1: the optimiser's state; 2: gradients too; 3: parameters too."
    )
    offload: Literal["none", "cpu"] = Field("none", description="Keep the optimiser's state in main memory (stages 1 to 3).")


class HeldOutConfig(Config):
    """Early stopping: when to look at the held-out loss, and when to have seen enough."""

    every: int = Field(20, ge=1, description="Steps between two evaluations.")
    patience: int = Field(3, ge=1, description="Evaluations in a row without a new best, after which training stops.")


@dataclass(frozen=True)
class TrainSettings:
    """One training, whole.

    weights: task -> weight in the loss. kind: what `losses.kind_of` gave. accumulate: forwards a process a step. clip: largest
    L2 norm of the whole gradient, 0: not clipped. held_out: (every, patience) or None. proximal: FedProx's mu; mu * (w - start)
    is added to the (clipped) gradient, `start` being the weights that training began with. processes: on this machine; each
    takes its share of every step, so the step, and its loss, stay what they are with one. dtype: bfloat16 is autocast over
    float32 parameters. smoothing: share of each target's probability that goes to all classes alike. pooled: the loss is the
    mean over a step's target tokens, each with its task's weight, and not the weighted sum of the tasks' means.
    """

    steps: int
    learning_rate: float
    weights: Mapping[str, float]
    kind: str
    warmup: int = 0
    schedule: Schedule = "constant"
    weight_decay: float = 0.0
    clip: float = 0.0
    accumulate: int = 1
    dtype: Precision = "float32"
    seed: int = 0
    engine: EngineName = "torch"
    processes: int = 1
    stage: int = 0
    offload: Literal["none", "cpu"] = "none"
    held_out: tuple[int, int] | None = None
    proximal: float = 0.0
    smoothing: float = 0.0
    pooled: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "weights": dict(self.weights)}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        held_out = body["held_out"]
        return cls(**{**body, "held_out": tuple(held_out) if held_out else None})
