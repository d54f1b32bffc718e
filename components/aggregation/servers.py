# SPDX-License-Identifier: Apache-2.0
"""Optimisers at the server: the clients' mean update is taken for a gradient (FedOpt, Reddi et al. 2021, arXiv 2003.00295).

With x the previous global weights and D the mean of the clients' differences from them: momentum m = beta1 m + D,
x + rate m (FedAvgM, Hsu et al. 2019); the others m = beta1 m + (1 - beta1) D, x + rate m / (sqrt v + tau), with v, from tau^2
on: adagrad v + D^2; yogi v - (1 - beta2) D^2 sign(v - D^2); adam beta2 v + (1 - beta2) D^2 (algorithm 2; no bias correction).
The state is an artifact, carried from round to round in float32: a resumed run goes on with the same numbers.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from osmotic.components.aggregation.checks import Outline
from osmotic.components.aggregation.means import Arrays
from osmotic.plugins.contract import Config, Weights
from osmotic.schemas.errors import ComponentError, Problem

if TYPE_CHECKING:
    import numpy as np


class ServerConfig(Config):
    """What the server does with the mean."""

    optimizer: Literal["none", "momentum", "adam", "yogi", "adagrad"] = Field(
        "none",
        description="none: the mean is the new model. The others need the inputs 'previous' and 'state' from round 2 on.",
    )
    learning_rate: float | None = Field(None, gt=0, strict=False, description="Default: 1 with momentum, 0.01 with the others.")
    beta1: float = Field(0.9, ge=0, lt=1, strict=False)
    beta2: float = Field(0.99, ge=0, lt=1, strict=False)
    tau: float = Field(1e-3, gt=0, strict=False, description="Added to the square root of v: the less, the more adaptive.")

    @property
    def rate(self) -> float:
        """The learning rate that is used."""
        return self.learning_rate or (1.0 if self.optimizer == "momentum" else 0.01)


Second = Callable[["np.ndarray", "np.ndarray", float], "np.ndarray"]


def _yogi(v: "np.ndarray", square: "np.ndarray", beta: float) -> "np.ndarray":
    import numpy as np

    return np.asarray(v - (1 - beta) * square * np.sign(v - square))


SECOND: Mapping[str, Second] = {
    "adagrad": lambda v, square, beta: v + square,
    "yogi": _yogi,
    "adam": lambda v, square, beta: beta * v + (1 - beta) * square,
}


def fresh(config: ServerConfig, outline: Outline, meta: Mapping[str, object]) -> Weights:
    """The state before the first update; empty tensors without an optimiser."""
    import numpy as np

    if config.optimizer == "none":
        return Weights({}, {"optimizer": "none", "updates": 0})
    made = {f"m/{name}": np.zeros(shape, dtype=np.float32) for name, (shape, _) in outline.items()}
    if config.optimizer in SECOND:
        made |= {f"v/{name}": np.full(shape, config.tau**2, dtype=np.float32) for name, (shape, _) in outline.items()}
    kept = {key: meta[key] for key in ("base", "layout") if key in meta}
    return Weights(made, {"optimizer": config.optimizer, "updates": 0, **kept})


def step(config: ServerConfig, previous: Arrays, update: Arrays, state: Weights) -> tuple[Arrays, Weights]:
    """(new weights, new state), float64 and float32. previous: float64; update: the mean difference from it."""
    import numpy as np

    made: Arrays = {}
    kept: Arrays = {}
    for name, x in previous.items():
        m, d = state.tensors[f"m/{name}"].astype(np.float64), update[name]
        if config.optimizer == "momentum":
            m = config.beta1 * m + d
            made[name] = x + config.rate * m
        else:
            m = config.beta1 * m + (1 - config.beta1) * d
            v = SECOND[config.optimizer](state.tensors[f"v/{name}"].astype(np.float64), d * d, config.beta2)
            made[name] = x + config.rate * m / (np.sqrt(v) + config.tau)
            kept[f"v/{name}"] = _narrow(v)
        kept[f"m/{name}"] = _narrow(m)
    if not all(bool(np.isfinite(tensor).all()) for tensor in kept.values()):
        fix = "a robust aggregation, or smaller updates"
        raise ComponentError(Problem("the server's state has values that are not finite numbers", path="state", fix=fix))
    return made, Weights(kept, {**state.meta, "updates": state.meta.get("updates", 0) + 1})


def _narrow(tensor: "np.ndarray") -> "np.ndarray":
    """float32; infinite where it is too large, which is noticed later."""
    import numpy as np

    with np.errstate(over="ignore"):
        return tensor.astype(np.float32)


def check_state(config: ServerConfig, state: Weights, wanted: Weights) -> None:
    """Raise ComponentError when a carried state is of another optimiser, model or shape."""
    for key in ("optimizer", "base", "layout"):
        if state.meta.get(key) != wanted.meta.get(key):
            what = f"'state' is of another {key}"
            raise ComponentError(Problem(what, path="state", fix="carry the output 'state' of this same task"))
    if state.outline() != wanted.outline():
        raise ComponentError(Problem("'state' has other tensors than the model", path="state", fix="begin without it"))
