# SPDX-License-Identifier: Apache-2.0
"""Noise that is charged a record (private training, votes): what is asked for, as the event that the ledger charges.

Neighbours differ in one record: there, or adding nothing (add-or-remove-one; how many records there are is public).
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from osmotic.plugins.accounting import ADD_OR_REMOVE_ONE, calibrate
from osmotic.plugins.dp_sgd.plan import ExecutionPlan
from osmotic.schemas.base import Config
from osmotic.schemas.errors import ConfigError, Problem, RefusedError
from osmotic.schemas.noise import TrainingNoise, VoteNoise
from osmotic.schemas.policy import RecordBudget

N = TypeVar("N", bound=Config)
GRID = 1e4  # noise multipliers of votes are multiples of its inverse


def validated(model: type[N], noise: Mapping[str, Any], path: str) -> N:
    """The validated noise; raises ConfigError with every problem under `path`."""
    try:
        return model.model_validate(dict(noise))
    except ValidationError as error:
        problems = [
            Problem(str(one["msg"]).removeprefix("Value error, "), path=".".join([path, *map(str, one["loc"])]))
            for one in error.errors(include_url=False)
        ]
        raise ConfigError(*problems) from error


def check_delta(cap: RecordBudget | None, records: int, dataset: str) -> None:
    """Raise RefusedError for a cap whose delta allows that a record is given out: what is charged is told at that delta."""
    if cap is not None and cap.delta * records >= 1:
        what = f"the cap's delta {cap.delta:g} is not below 1 / {records} records = {1 / records:.3g}"
        why = "with that delta, one record might be given out as it is"
        fix = f"delta: {0.1 / records:.1g}, or less, in 'budget: {{{dataset}: {{per_record: ...}}}}' of the site's policy"
        raise RefusedError(Problem(what, path=f"budget.{dataset}.per_record.delta", why=why, fix=fix))


@functools.lru_cache(maxsize=256)
def plan_of(noise: TrainingNoise, records: int) -> ExecutionPlan:
    """`ExecutionPlan.of`, once for equal arguments: to calibrate takes seconds. Raises ConfigError."""
    return ExecutionPlan.of(noise, records)


def training_event(plan: ExecutionPlan) -> dict[str, Any]:
    """The event that a whole training is charged as; `delta`: at which it was asked for, where no cap says another."""
    return {**plan.event(), "delta": plan.delta}


def vote_event(noise: VoteNoise, records: int | None) -> dict[str, Any]:
    """The event that one round of votes is charged as. Raises ConfigError for a delta of 1 / records or more, or no noise."""
    if records is not None and noise.delta is not None and noise.delta * records >= 1:
        what = f"delta {noise.delta:g} is not below 1 / {records} records = {1 / records:.3g}"
        why = "with that delta, one record might be given out as it is"
        raise ConfigError(Problem(what, path="noise.delta", why=why, fix=f"delta: {0.1 / records:.1g}, or less"))
    event = _votes(_multiplier(noise))
    return event if noise.delta is None else {**event, "delta": noise.delta}


@functools.lru_cache(maxsize=256)
def _multiplier(noise: VoteNoise) -> float:
    """The multiplier given, or the least that the accountant confirms for all rounds."""
    if noise.noise_multiplier is not None:
        return noise.noise_multiplier
    found = calibrate(_votes, noise.epsilon or 0.0, noise.delta or 0.0, noise.rounds or 1)
    return math.ceil(GRID * found) / GRID


def _votes(multiplier: float) -> dict[str, Any]:
    return {"kind": "gaussian", "parameters": {"noise_multiplier": multiplier}, "neighbours": ADD_OR_REMOVE_ONE}
