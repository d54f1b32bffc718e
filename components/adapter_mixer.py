# SPDX-License-Identifier: Apache-2.0
"""Mix two trained adapters of one base model: beta * first + (1 - beta) * second (FedPIT, arXiv 2403.06131, the upload).

`mix: factors` mixes tensor by tensor, in float64, rounded once. `mix: product` mixes what the adapters do, the products B A,
and brings the result back to their rank (the nearest one, by SVD). With a frozen A both are the same, and `factors` is exact.
At beta 1 the result is `first` and at beta 0 `second`, bit for bit, and the other input is not read.

Guarantee: none of its own. A mixture is as private as the more private input, and beta is no protection: of two uploads with
known `second` parts, `first` follows by a subtraction. The runtime labels the result by all inputs that are *wired*, read or
not: a pipeline that shares only what was trained on synthetic records (beta 0) leaves the port of the local adapter unwired,
or the plan refuses the upload like that of the local adapter itself.
"""

from typing import Literal

from pydantic import Field

from osmotic.components.aggregation import lowrank, means
from osmotic.components.aggregation.checks import LORA_A, Reference, not_finite
from osmotic.plugins.contract import Component, Config, Context, Out, Outputs, Weights
from osmotic.schemas.errors import ComponentError, Problem

KEPT = ("base", "layout", "rank", "alpha", "frozen", "head")  # of a mixture's description
TRAINERS = "train both from the same model, with the same lora settings"


class AdapterMixerConfig(Config):
    """How much of each, and of what."""

    beta: float = Field(0.5, ge=0, le=1, strict=False, allow_inf_nan=False, description="Share of `first`.")
    mix: Literal["factors", "product"] = Field(
        "factors", description="factors: A and B each by itself; product: the products B A, back to their rank."
    )
    declare_examples: bool = Field(
        False, description="Keep the number of records in the description: that of `first`, at beta 0 that of `second`."
    )


class AdapterMixer(Component[AdapterMixerConfig]):
    """Two sets of weights in, their mixture out."""

    name = "adapter_mixer"
    outputs = {"weights": Out(Weights)}

    def run(self, context: Context, first: Weights | None = None, second: Weights | None = None) -> Outputs:
        """Mix; see the module. An input whose share is 0 may be left out, and is not read.

        Raises ComponentError, naming the port, for an input that is missing or holds what are no finite numbers, and for two
        that do not fit: another base model, layout, rank or frozen A, other names or shapes.
        """
        beta = self.config.beta
        if beta in (0, 1):
            return {"weights": self._alone(first if beta else second, "first" if beta else "second")}
        one, other = _need(first, "first", beta), _need(second, "second", beta)
        _check(one, other)
        mixed = self._products(one, other) if self.config.mix == "product" else means.Arrays()
        for done, (name, tensor) in enumerate(sorted(one.tensors.items())):
            if name not in mixed:
                mixed[name] = beta * tensor.astype("float64") + (1 - beta) * other.tensors[name].astype("float64")
            context.progress(done + 1, len(one.tensors))
        meta = {key: one.meta[key] for key in KEPT if key in one.meta}
        return {"weights": Weights(means.rounded(mixed, one.outline()), meta | self._examples(one, "first"))}

    def _alone(self, weights: Weights | None, port: str) -> Weights:
        """An input as it is, but for what its description declares."""
        found = _need(weights, port, self.config.beta)
        meta = {key: value for key, value in found.meta.items() if key != "examples"}
        return Weights(found.tensors, meta | self._examples(found, port))

    def _examples(self, weights: Weights, port: str) -> dict[str, int]:
        if not self.config.declare_examples:
            return {}
        if "examples" not in weights.meta:
            fix = "'declare_examples: true' in its trainer, or 'declare_examples: false' here"
            raise ComponentError(Problem(f"{port!r} does not say how many records it saw", path="declare_examples", fix=fix))
        return {"examples": weights.meta["examples"]}

    def _products(self, one: Weights, other: Weights) -> means.Arrays:
        """A and B of every adapter, float64."""
        names = [name for name in one.outline() if "lora_" in name]
        if not any(LORA_A in name for name in names):
            why = "A is frozen, and mixing B is exact" if names else "these weights have no adapters"
            raise ComponentError(Problem("there is no product to mix", path="mix", why=why, fix="mix: factors"))
        found: means.Arrays = {}
        for a, b in lowrank.pairs(one.outline()):
            factors = [(w.tensors[a], w.tensors[b], share) for w, share in self._shares(one, other)]
            found[a], found[b], _ = lowrank.mean_product(factors)
        return found

    def _shares(self, one: Weights, other: Weights) -> list[tuple[Weights, float]]:
        return [(one, self.config.beta), (other, 1 - self.config.beta)]


def _need(weights: Weights | None, port: str, beta: float) -> Weights:
    if weights is None:
        what = f"beta {beta:g} needs the input {port!r}, and it is not wired"
        raise ComponentError(Problem(what, path=port, fix="wire it, or give the beta that leaves it out: 1 or 0"))
    return weights


def _check(one: Weights, other: Weights) -> None:
    """Raise ComponentError unless the two can be mixed."""
    for key in ("rank", "alpha"):
        if key in one.meta and key in other.meta and one.meta[key] != other.meta[key]:
            why = f"'first' has {key} {one.meta[key]!r}, 'second' {other.meta[key]!r}"
            raise ComponentError(Problem(f"adapters of another {key} cannot be mixed", path="second", why=why, fix=TRAINERS))
    reason = Reference.of("'first'", one, frozen=False).misfit(other)
    if reason:
        raise ComponentError(
            Problem(f"'second' cannot be mixed with 'first': its weights {reason}", path="second", fix=TRAINERS)
        )
    for port, weights in (("first", one), ("second", other)):
        if odd := not_finite(weights):
            raise ComponentError(Problem(f"the weights of {port!r} {odd}", path=port, fix="lower the learning_rate"))
