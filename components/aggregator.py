# SPDX-License-Identifier: Apache-2.0
"""Average the parties' weights (federated averaging, every party counts the same).

The sum is kept in float64 in party-name order, one party's weights in memory at a time; so the result depends neither on the
order of arrival nor, beyond one rounding to the tensors' own type, on the number of parties. Adapters are averaged factor by
factor: the mean of A times the mean of B is not the mean of the products, and is close to it only while the parties are.

Guarantee: none. Plain averages of weights trained on raw records are unprotected, whatever protected the prompts.
"""

from typing import Any, Literal

from pydantic import Field

from osmotic.plugins.contract import Component, Config, Context, Gathered, Out, Outputs, Weights
from osmotic.schemas.errors import ComponentError, Problem

KEPT = ("base", "layout", "steps")


class AggregatorConfig(Config):
    """How weights become one."""

    aggregation: Literal["none", "plain"] = Field(
        "plain", description="plain: the uniform mean. none: the model of the only party that takes part is passed on."
    )


class Aggregator(Component[AggregatorConfig]):
    """One model of each party in, their mean out."""

    name = "aggregator"
    outputs = {"weights": Out(Weights)}

    def run(self, context: Context, models: Gathered[Weights]) -> Outputs:
        """Raises ComponentError, naming the party, when weights do not have the first party's keys, shapes, types and base."""
        if not models:
            raise ComponentError(Problem("no party sent weights"))
        if self.config.aggregation == "none" and len(models) > 1:
            raise ComponentError(Problem(f"{len(models)} parties sent weights", fix="aggregation: plain"))
        total: dict[str, Any] = {}
        first: tuple[str, dict[str, Any], dict[str, Any]] | None = None
        for done, party in enumerate(models):
            weights = models[party]
            shown = {name: (tensor.shape, tensor.dtype) for name, tensor in weights.tensors.items()}
            if first is None:
                first = party, shown, {key: weights.meta[key] for key in KEPT if key in weights.meta}
                total = {name: tensor.astype("float64") for name, tensor in weights.tensors.items()}
            else:
                _compare(first, party, shown, weights.meta)
                for name, tensor in weights.tensors.items():
                    total[name] += tensor
            context.progress(done + 1, len(models))
        return {"weights": _mean(total, len(models), first)}


def _compare(
    first: tuple[str, dict[str, Any], dict[str, Any]], party: str, shown: dict[str, Any], meta: dict[str, Any]
) -> None:
    """Everything must fit the first party's weights; 'steps' that differ are dropped from the description."""
    reference, tensors, kept = first
    fix = "use one model everywhere"
    against = f"compared with {reference!r}"
    for key in ("base", "layout"):
        if meta.get(key) != kept.get(key):
            raise ComponentError(
                Problem(f"the weights of {party!r} have another {key}", why=against, fix="use one model everywhere")
            )
    odd = sorted(name for name in {*tensors, *shown} if tensors.get(name) != shown.get(name))
    if odd:
        why = f"{len(odd)} tensors are missing, unknown or of another shape or type, first {odd[0]!r}; {against}"
        raise ComponentError(Problem(f"the weights of {party!r} do not fit", why=why, fix=fix))
    if meta.get("steps") != kept.get("steps"):
        kept.pop("steps", None)


def _mean(total: dict[str, Any], count: int, first: tuple[str, dict[str, Any], dict[str, Any]] | None) -> Weights:
    _, shown, kept = first or ("", {}, {})
    return Weights({name: (tensor / count).astype(shown[name][1]) for name, tensor in total.items()}, kept)
