# SPDX-License-Identifier: Apache-2.0
"""What the parts of training hand to each other: examples, steps, feeds, and what one forward computes.

The loss of a step is the weighted sum over tasks of the mean cross entropy of that task's target tokens, *over the whole
step*: all processes and all accumulated forwards together. So every forward carries, for each row, the weight of one of its
target tokens (task weight / number of that task's target tokens in the step), and the sum of all forwards' losses is the
step's loss, however the rows were shared out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Example = tuple[list[int], list[int]]  # prompt ids, target ids with the end token


@dataclass(frozen=True)
class Step:
    """What one optimiser step learns from, over all processes: task -> examples."""

    examples: Mapping[str, Sequence[Example]]


@dataclass(frozen=True)
class Micro:
    """The rows of one forward: example, its task, and the weight of each of its target tokens in the step's loss.

    smoothing: share of each target's probability that goes to all classes alike.
    """

    rows: Sequence[Example]
    tasks: Sequence[str]
    weights: Sequence[float]
    smoothing: float = 0.0


class Feed(Protocol):
    """Where steps come from, one after another; equal states give equal steps."""

    def take(self) -> Step:
        """The next step."""

    def state(self) -> Any:
        """JSON value from which `restore` goes on."""

    def restore(self, state: Any) -> None:
        """Go on where `state` was taken."""
