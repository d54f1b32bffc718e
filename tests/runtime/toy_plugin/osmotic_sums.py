# SPDX-License-Identifier: Apache-2.0
"""Toy trainer for the tests of secure sums: weights that follow from records by a formula, so sums can be computed apart."""

from typing import Any

import numpy as np

from osmotic.plugins.contract import Component, Config, Context, Out, Outputs, Records, Weights


class PullerConfig(Config):
    size: int = 40
    scale: float = 0.01
    empty: str = ""


def pulled(party: str, count: int, size: int, scale: float, before: dict[str, Any]) -> dict[str, Any]:
    """Name -> float32: the weights before, moved by what the party's name and number of records say."""
    rng = np.random.Generator(np.random.PCG64(sum(party.encode()) + count))
    moved = {name: before[name] + scale * rng.standard_normal(before[name].shape) for name in sorted(before)}
    return {name: tensor.astype(np.float32) for name, tensor in moved.items()}


def start(size: int) -> dict[str, Any]:
    """The weights before any round."""
    return {"a": np.zeros(size, dtype=np.float32), "b": np.zeros((2, 3), dtype=np.float32)}


class Starter(Component[PullerConfig]):
    """Weights to begin with; public."""

    name = "starter"
    outputs = {"weights": Out(Weights)}

    def run(self, context: Context) -> Outputs:
        return {"weights": Weights(start(self.config.size), {"base": "toy", "layout": "toy"})}


class Puller(Component[PullerConfig]):
    """A trainer: previous weights, moved by the records."""

    name = "puller"
    outputs = {"weights": Out(Weights)}

    def run(self, context: Context, records: Records, previous: Weights) -> Outputs:
        size = 7 if context.party == self.config.empty else self.config.size
        before = dict(previous.tensors) if size == self.config.size else start(size)
        made = pulled(context.party, len(records), size, self.config.scale, before)
        return {"weights": Weights(made, dict(previous.meta))}
