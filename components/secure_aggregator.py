# SPDX-License-Identifier: Apache-2.0
"""New global weights from a secure sum of the clients' updates: previous + sum / clients, or a server optimiser's step.

Source: secure aggregation (Bonawitz et al. 2017); how the sum is made is the runtime's (``secure_sum`` of the input `total`).
Here nobody's update is seen: none can be left out for what it is, and robust rules cannot be had. Clients are counted by who
is in the sum, which is public and recorded; with `divide: plan` by who should have been, so a lost client counts as no change.

Guarantee: that of the sum. With noise: (epsilon, delta) a client, towards this party too, as each client's ledger says.
"""

from typing import Literal

from pydantic import Field

from osmotic.components.aggregation import means, servers
from osmotic.components.aggregation.checks import Reference
from osmotic.components.aggregation.starts import start_of
from osmotic.plugins.contract import Component, Config, Context, Document, Out, Outputs, OwnModelName, Weights
from osmotic.schemas.errors import ComponentError, Problem


class SecureAggregatorConfig(Config):
    """How a sum of updates becomes new weights."""

    divide: Literal["used", "plan"] = Field(
        "used", description="used: by the number of clients in the sum. plan: by the number that the plan has."
    )
    server: servers.ServerConfig = Field(default_factory=servers.ServerConfig)
    start: OwnModelName | None = Field(
        None, description="Previous weights of the first round: those of this model, at this party, before any training."
    )


class SecureAggregator(Component[SecureAggregatorConfig]):
    """A sum of updates in, one model out, with a report and the server's state."""

    name = "secure_aggregator"
    outputs = {"weights": Out(Weights), "report": Out(Document), "state": Out(Weights)}

    def run(self, context: Context, total: Weights, previous: Weights | None = None, state: Weights | None = None) -> Outputs:
        """total: a secure sum. previous: what every client's update is a difference from. state: of the server, a round before.

        Raises ComponentError for weights that are no secure sum, or do not fit the previous ones.
        """
        count, of, parties = (total.meta.get(key) for key in ("count", "of", "parties"))
        if not isinstance(count, int) or not isinstance(of, int) or not 1 <= count <= of:
            fix = "total: {from: update_maker's task, secure_sum: {...}}"
            raise ComponentError(Problem("'total' is no secure sum: it does not say of how many", path="total", fix=fix))
        before = previous if previous is not None else start_of(context, self.config.start)
        if before is None:
            fix = "connect 'previous', and name the first round's model in 'start'"
            raise ComponentError(Problem("an update is a difference from the previous weights", path="previous", fix=fix))
        reference = Reference.of("the previous weights", before, frozen=False)
        self._check(total, reference)
        divisor = count if self.config.divide == "used" else of
        update = {name: tensor.astype("float64") / divisor for name, tensor in total.tensors.items()}
        old = means.wide(before.tensors)
        kept = servers.fresh(self.config.server, reference.outline, reference.meta)
        if self.config.server.optimizer == "none":
            made = {name: old[name] + update[name] for name in old}
        else:
            if state is not None:
                servers.check_state(self.config.server, state, kept)
                kept = state
            made, kept = servers.step(self.config.server, old, update, kept)
        report = {"used": parties, "of": of, "divided_by": divisor}
        report |= {key: total.meta[key] for key in ("clip", "noise_multiplier") if key in total.meta}
        if self.config.server.optimizer != "none":
            report["server"] = {"optimizer": self.config.server.optimizer, "updates": kept.meta["updates"]}
        weights = Weights(means.rounded(made, reference.outline), reference.meta)
        return {"weights": weights, "report": Document(report), "state": kept}

    def _check(self, total: Weights, reference: Reference) -> None:
        shapes = {name: shape for name, (shape, _) in reference.outline.items()}
        odd = total.misfits(shapes)
        if odd:
            what = f"the sum does not fit the previous weights: {len(odd)} tensors differ, first {odd[0]!r}"
            raise ComponentError(Problem(what, path="total"))
