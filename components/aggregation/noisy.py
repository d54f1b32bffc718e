# SPDX-License-Identifier: Apache-2.0
"""Clients' updates for a noisy sum, and the mean that follows from it: the sum over the *declared* number of clients.

A client that is left out counts as a zero update, so that the divisor is public. The noise, the clipping and the charge are
the host's (`Context.noisy_sum`).
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from osmotic.components.aggregation.checks import LORA_A, Roll
from osmotic.components.aggregation.means import Arrays
from osmotic.plugins.contract import Context, Weights
from osmotic.schemas.errors import ComponentError, Problem
from osmotic.schemas.noise import ClientNoise

if TYPE_CHECKING:
    import numpy as np


class Update(Mapping[str, "np.ndarray"]):
    """The difference of a client's weights from the previous global ones, float64, one tensor at a time."""

    def __init__(self, weights: Weights, previous: Arrays, names: tuple[str, ...]) -> None:
        self._weights, self._previous, self._names = weights, previous, names

    def __getitem__(self, name: str) -> "np.ndarray":
        if name not in self._names:
            raise KeyError(name)
        return self._weights.tensors[name].astype("float64") - self._previous[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def mean_update(
    context: Context, roll: Roll, previous: Arrays, noise: ClientNoise, at_least: int | float | None
) -> tuple[Arrays, dict[str, float]]:
    """(float64 mean update, {clip, noise_multiplier}). Raises, before anything is drawn, when fewer than the quorum are good.

    Where A is frozen it is no part of an update: it gets no noise.
    """
    names = tuple(name for name in previous if not (roll.frozen and LORA_A in name))
    if not names:
        raise ComponentError(Problem("there is nothing to add up: the weights have no tensor that is trained"))
    count = len(roll.models)

    def updates() -> Iterator[Update]:
        for done, (_, weights) in enumerate(roll.good()):
            yield Update(weights, previous, names)
            context.progress(done + 1, count)
        roll.check(at_least)

    total = context.noisy_sum(updates(), {name: previous[name].shape for name in names}, noise.model_dump(exclude_none=True))
    import numpy as np

    made = {name: np.zeros(previous[name].shape) for name in previous}
    made |= {name: total.tensors[name].astype(np.float64) / count for name in names}
    return made, {key: float(total.meta[key]) for key in ("clip", "noise_multiplier")}
