# SPDX-License-Identifier: Apache-2.0
"""Make one model of the clients' weights: mean, median, trimmed mean, Krum, or a mean with noise; then a server optimiser.

Sources: federated averaging (McMahan et al. 2017), robust rules (`aggregation.robust`), products of adapters
(`aggregation.lowrank`), server optimisers (`aggregation.servers`), central differential privacy (`aggregation.noisy`).
Sums are kept in float64 in party-name order: the result does not depend on the order of arrival, and memory does not grow with
the number of clients. `report` names who was used and who was left out, and why.

Guarantee: none, but with ``aggregation: dp``: then of each client, towards whoever sees the averaged weights alone, as the
ledger of this party says (unit client). This party has seen the updates themselves; towards it there is none. `report` is not
covered, nor is the fact that a run stopped.
"""

from functools import partial
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from osmotic.components.aggregation import lowrank, means, noisy, robust, servers
from osmotic.components.aggregation.checks import LORA_A, LORA_B, Reference, Roll
from osmotic.components.aggregation.starts import start_of
from osmotic.plugins.contract import (
    Component,
    Config,
    Context,
    Document,
    Gathered,
    Out,
    Outputs,
    OwnModelName,
    Weights,
)
from osmotic.schemas.errors import ComponentError, Problem
from osmotic.schemas.noise import ClientNoise


class QuorumConfig(Config):
    """How many clients' weights must be usable."""

    at_least: int | float = Field(gt=0, description="A number of clients (3), or a share of them above 0 (0.8).")

    @model_validator(mode="after")
    def _share(self) -> Self:
        if isinstance(self.at_least, float) and self.at_least > 1:
            raise ValueError("a share is at most 1.0; write a number of clients without a point")
        return self


class KrumConfig(Config):
    """How Krum chooses."""

    faulty: int | None = Field(
        None, ge=0, description="Bad clients to be borne; default: as many as there can be, (n - 3) / 2."
    )
    keep: int = Field(1, ge=1, description="How many clients' weights are averaged (more than 1: multi-Krum).")


class AggregatorConfig(Config):
    """How weights become one."""

    aggregation: Literal["none", "plain", "median", "trimmed-mean", "krum", "dp"] = Field(
        "plain",
        description="plain: the mean. none: the model of the only party that takes part is passed on. "
        "median, trimmed-mean, krum: bear some bad clients. dp: clipped updates, their sum with noise.",
    )
    weights: Literal["uniform", "examples"] = Field(
        "uniform", description="examples: by the number of examples that each client declares (plain only)."
    )
    adapters: Literal["factors", "product", "frozen-a"] = Field(
        "factors",
        description="Of LoRA weights: A and B each by itself; the products B A, back to their rank (plain only); "
        "B alone, where A is equal everywhere, or in no upload (the model's lora.freeze_a): exact.",
    )
    trim: float = Field(0.1, ge=0, lt=0.5, strict=False, description="trimmed-mean: share cut at each end, rounded up.")
    krum: KrumConfig = Field(default_factory=KrumConfig)
    dp: ClientNoise | None = Field(None, description="Clipping and noise of aggregation: dp.")
    server: servers.ServerConfig = Field(default_factory=servers.ServerConfig)
    quorum: QuorumConfig | None = Field(None, description="Default: every client's weights must be usable.")
    start: OwnModelName | None = Field(
        None, description="Previous weights of the first round: those of this model, at this party, before any training."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.aggregation == "dp") != (self.dp is not None):
            raise ValueError("'aggregation: dp' and the key 'dp' go together")
        if self.aggregation != "plain" and (self.weights == "examples" or self.adapters == "product"):
            raise ValueError("'weights: examples' and 'adapters: product' need 'aggregation: plain'")
        if self.adapters == "product" and self.server.optimizer != "none":
            raise ValueError(
                "'adapters: product' needs 'server: {optimizer: none}': factors of unlike rounds have no difference"
            )
        if self.aggregation == "none" and self.server.optimizer != "none":
            raise ValueError("'aggregation: none' passes a model on as it is, without 'server'")
        return self


class Aggregator(Component[AggregatorConfig]):
    """One model of each party in, one model out, with a report and the server's state."""

    name = "aggregator"
    outputs = {"weights": Out(Weights), "report": Out(Document), "state": Out(Weights)}

    def run(
        self, context: Context, models: Gathered[Weights], previous: Weights | None = None, state: Weights | None = None
    ) -> Outputs:
        """Aggregate. `previous`: the global weights that the clients began with. `state`: of the server, a round before.

        Raises ComponentError, naming parties and reasons, when fewer than the quorum sent weights that can be used.
        """
        if not models:
            raise ComponentError(Problem("no party sent weights"))
        if self.config.aggregation == "none" and len(models) > 1:
            raise ComponentError(Problem(f"{len(models)} parties sent weights", fix="aggregation: plain"))
        previous = previous if previous is not None else start_of(context, self.config.start)
        if self.config.aggregation == "dp" and previous is None:
            why, fix = "an update is a difference from them", "connect 'previous', and name the first round's model in 'start'"
            raise ComponentError(Problem("aggregation: dp needs the previous weights", path="previous", why=why, fix=fix))
        roll = self._roll(models, previous)
        said: dict[str, Any] = {"aggregation": self.config.aggregation}
        if self.config.aggregation == "dp" and previous is not None and self.config.dp is not None:
            before = means.wide(previous.tensors)
            self._check_adapters(roll)
            update, said["dp"] = noisy.mean_update(context, roll, before, self.config.dp, self._at_least)
            made = {name: before[name] + update[name] for name in before}
        else:
            made = self._combined(context, roll, said)
        weights, kept = self._served(roll, made, previous, state)
        if self.config.server.optimizer != "none":  # an input that is not carried would begin anew in silence
            said["server"] = {"optimizer": self.config.server.optimizer, "updates": kept.meta["updates"]}
        report = {"used": roll.used, "left_out": dict(sorted(roll.left_out.items())), **said}
        return {"weights": weights, "report": Document(report), "state": kept}

    @property
    def _at_least(self) -> int | float | None:
        return self.config.quorum.at_least if self.config.quorum else None

    def _roll(self, models: Gathered[Weights], previous: Weights | None) -> Roll:
        frozen = self.config.adapters == "frozen-a"
        reference = None if previous is None else Reference.of("the previous weights", previous, frozen)
        if reference is not None:
            reference.meta.pop("steps", None)  # of an earlier round
        roll = Roll(models, reference, frozen, self.config.weights == "examples")
        if reference is None and self.config.quorum is not None:
            roll.survey()
        return roll

    def _combined(self, context: Context, roll: Roll, said: dict[str, Any]) -> means.Arrays:
        """float64 tensors of everybody who can be used; adds to `said` what the report should have."""
        if self.config.aggregation in ("none", "plain") and self.config.adapters != "product":
            mean = means.Mean()
            for done, (_, weights) in enumerate(roll.good()):
                mean.add(weights.tensors, self._weight(weights))
                context.progress(done + 1, len(roll.models))
            roll.check(self._at_least)
            self._check_adapters(roll)
            return mean.result()
        clients = [weights for _, weights in roll.good(whole=False)]
        roll.check(self._at_least)
        self._check_adapters(roll)
        if self.config.adapters == "product":
            return self._products(context, roll, clients, said)
        return self._robust(context, roll, clients, said)

    def _check_adapters(self, roll: Roll) -> None:
        if self.config.adapters != "frozen-a":
            return
        names = [name for name in _reference(roll).outline if "lora_" in name]
        if not any(LORA_B in name for name in names):
            raise ComponentError(Problem("the weights have no adapters", path="adapters", fix="adapters: factors"))
        if not any(LORA_A in name for name in names) and "frozen" not in _reference(roll).meta:
            what, why = "the weights have B alone and do not say beside which A", "the A of one may be another's"
            raise ComponentError(Problem(what, path="adapters", why=why, fix="train a model with 'lora: {freeze_a: true}'"))
        other = sorted(name for name in names if LORA_A not in name and LORA_B not in name)
        if other:
            what, why = f"{other[0]!r} is neither lora_A nor lora_B", "with it, the mean of B is not the mean of the adapters"
            raise ComponentError(Problem(what, path="adapters", why=why, fix="adapters: factors"))

    def _weight(self, weights: Weights) -> float:
        return float(weights.meta["examples"]) if self.config.weights == "examples" else 1.0

    def _products(self, context: Context, roll: Roll, clients: list[Weights], said: dict[str, Any]) -> means.Arrays:
        """Adapters by their products, one module of all clients after another; what is no adapter by its mean."""
        outline, worst = _reference(roll).outline, 0.0
        made: means.Arrays = {}
        found = lowrank.pairs(outline)
        for done, (a, b) in enumerate(found):
            factors = ((one.tensors[a], one.tensors[b], self._weight(one)) for one in clients)
            made[a], made[b], lost = lowrank.mean_product(factors)
            worst = max(worst, lost)
            context.progress(done + 1, len(found))
        for name in sorted(set(outline) - set(made)):
            mean = means.Mean()
            for one in clients:
                mean.add({name: one.tensors[name]}, self._weight(one))
            made |= mean.result()
        said["product_error"] = worst
        return made

    def _robust(self, context: Context, roll: Roll, clients: list[Weights], said: dict[str, Any]) -> means.Arrays:
        outline, report = _reference(roll).outline, partial(context.progress)
        if self.config.aggregation == "krum":
            chosen = robust.krum(clients, outline, self.config.krum.faulty, self.config.krum.keep, report)
            said["chosen"] = [roll.used[i] for i in chosen]
            mean = means.Mean()
            for i in chosen:
                mean.add(clients[i].tensors)
            return mean.result()
        median = self.config.aggregation == "median"
        rule = robust.median if median else robust.trimmed(self.config.trim, len(clients))
        return robust.combine(clients, outline, rule, report)

    def _served(
        self, roll: Roll, made: means.Arrays, previous: Weights | None, state: Weights | None
    ) -> tuple[Weights, Weights]:  # fmt: skip
        """(new global weights, state): as the mean says, or one step of the server's optimiser towards it."""
        reference, server = _reference(roll), self.config.server
        kept = servers.fresh(server, reference.outline, reference.meta)
        if server.optimizer != "none":
            if state is not None:
                servers.check_state(server, state, kept)
                kept = state
            if previous is None and state is not None:
                raise ComponentError(Problem("a server optimiser needs the previous weights", path="previous"))
            if previous is not None:
                before = means.wide(previous.tensors)
                made, kept = servers.step(server, before, {name: made[name] - before[name] for name in before}, kept)
        return Weights(means.rounded(made, reference.outline), reference.meta), kept


def _reference(roll: Roll) -> Reference:
    """What the weights that are used are like; there is one as soon as a quorum was found."""
    if roll.reference is None:
        raise ComponentError(Problem("no party sent weights that can be used"))
    return roll.reference
