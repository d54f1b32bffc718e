# SPDX-License-Identifier: Apache-2.0
"""What a client's training changed: its weights less those that it began with, in float32.

For a `secure_aggregator`: a clipped sum of updates means something, a clipped sum of whole models does not.

Guarantee: none. An update descends from the records that the weights were trained on, and is as private as they are.
"""

from typing import Any

from pydantic import Field

from osmotic.components.aggregation.checks import Reference
from osmotic.components.aggregation.starts import start_of
from osmotic.plugins.contract import Component, Config, Context, Out, Outputs, OwnModelName, Weights
from osmotic.schemas.errors import ComponentError, Problem


class UpdateMakerConfig(Config):
    """What the first round's weights began with."""

    start: OwnModelName | None = Field(
        None, description="Where 'previous' is not connected, or carried and not there yet: this model, before any training."
    )


class UpdateMaker(Component[UpdateMakerConfig]):
    """Weights less previous weights."""

    name = "update_maker"
    outputs = {"update": Out(Weights)}

    def run(self, context: Context, weights: Weights, previous: Weights | None = None) -> Outputs:
        """Subtract in float64, tensor by tensor. Raises ComponentError where the two do not fit together."""
        before = previous if previous is not None else start_of(context, self.config.start)
        if before is None:
            fix = "connect 'previous', or name the first round's model in 'start'"
            raise ComponentError(Problem("an update is a difference from previous weights", path="previous", fix=fix))
        odd = Reference.of("the previous weights", before, frozen=False).misfit(weights)
        if odd:
            raise ComponentError(Problem(f"the weights {odd}", path="weights", why="compared with the previous weights"))
        names = list(weights.outline())
        made = {}
        for done, name in enumerate(names):
            made[name] = (weights.tensors[name].astype("float64") - before.tensors[name]).astype("float32")
            context.progress(done + 1, len(names))
        kept: dict[str, Any] = {key: weights.meta[key] for key in ("base", "layout", "frozen") if key in weights.meta}
        return {"update": Weights(made, {**kept, "is": "update"})}
