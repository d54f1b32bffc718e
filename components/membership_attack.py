# SPDX-License-Identifier: Apache-2.0
"""Does a trained model know which records it was trained on? A likelihood attack, calibrated by the model before training.

Each record's score is its target's log-likelihood given its prompt (Yeom et al. 2018), and, `calibrated`, the difference to a
reference: other weights, or the model as it was (Carlini et al. 2021). For weights with a head of classes: the log-probability
of the right class. `others` must be like the members but for not having been trained on: else the attack tells two kinds of
records apart, and not membership. With `exposure`, members are canaries, others are controls made by the same pattern and not
planted (benchmarks/plant_canaries.py writes such data).

A measurement, not a bound: it shows what this attack finds; a stronger one may find more. Where the weights were trained with
differential privacy, what their (epsilon, delta) allows any attack to find on a record is told beside it. Both inputs are
private, so the metrics are private, too: they stay at the party.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from osmotic.components.membership import NAMES, Interval, allowed, as_array, bootstrap, exposures, told
from osmotic.components.scoring import scored
from osmotic.components.templates import check_slots, compile_template
from osmotic.components.training.heads import META, HeadModel
from osmotic.plugins.contract import Component, Config, Context, Document, Metrics, ModelName, Out, Outputs, Records, Weights
from osmotic.schemas.errors import ComponentError, DataError, Problem
from osmotic.schemas.records import RecordSchema

if TYPE_CHECKING:
    import numpy as np

ALLOWED = "'allowed' counts these weights' own training; what they were started from adds to it if it knew the same records"


class MembershipAttackConfig(Config):
    """Which model, and the prompts and targets that it was trained on."""

    model: ModelName
    prompt: str = Field(description="Jinja2 over the record's fields, as in training.")
    target: str = Field(description="Jinja2 over the record's fields, as in training; of a head: the label.")
    per_token: bool = Field(True, description="Score by the mean log-likelihood a token instead of the sum.")
    exposure: bool = Field(False, description="Members are canaries, others their controls: tell the exposure, too.")
    copies: int = Field(1, ge=1, description="How often each member stands in the training data; for `allowed_` alone.")
    draws: int = Field(1000, ge=100, le=100_000, description="Bootstrap samples of the 95% intervals.")
    batch: int = Field(128, ge=1, description="Records scored at a time.")


class MembershipAttack(Component[MembershipAttackConfig]):
    """Members and others in, how well the model's likelihoods tell them apart out."""

    name = "membership_attack"
    outputs = {"metrics": Out(Metrics), "intervals": Out(Document)}

    @classmethod
    def check(cls, config: MembershipAttackConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Slots of the templates."""
        if schema is None:
            return ()
        return [*check_slots(config.prompt, schema.fields, "prompt"), *check_slots(config.target, schema.fields, "target")]

    def run(
        self,
        context: Context,
        members: Records,
        others: Records,
        weights: Weights | None = None,
        reference: Weights | None = None,
    ) -> Outputs:
        """Metrics ``auc``, ``tpr_at_1``, ``tpr_at_10`` (percent false positives), ``gap`` (nats), ``advantage``, each with
        ``_low`` and ``_high``; the same with ``calibrated_`` where there is a reference; ``exposure``: mean bits of a canary,
        ``exposure_max``, the largest, and ``exposure_most``, what they can be; ``allowed_NAME``: what the weights' guarantee
        allows. Raises DataError where there are fewer than two members or others.

        weights: of the model that is attacked (default: the model as it is). reference: weights to compare with (default: the
        model as it is, where `weights` are given; of a head there is none).
        """
        both = self._both(members, others)
        headed = _headed(weights, reference)
        model = context.model(self.config.model)
        scores = self._scores(context, model, weights, both, "attacked")
        views = {"": scores}
        if reference is not None or (weights is not None and not headed):
            views["calibrated_"] = scores - self._scores(context, model, reference, both, "reference")
        values, document = self._measured(context, views, len(members))
        values |= {"members": float(len(members)), "others": float(len(others))}
        notes = self._notes(both, len(members), weights)
        guarantee = _guarantee(weights)
        if guarantee is not None:
            limits = allowed(*guarantee, self.config.copies)
            values |= {f"allowed_{name}": limit for name, limit in limits.items()}
            document["allowed"] = {"epsilon": guarantee[0], "delta": guarantee[1], "copies": self.config.copies, **limits}
            notes.append(ALLOWED)
        return {"metrics": Metrics(values), "intervals": Document({**document, "notes": notes})}

    def _both(self, members: Records, others: Records) -> list[dict[str, Any]]:
        """Members, then others."""
        if len(members) < 2 or len(others) < 2:
            why = f"{len(members)} members, {len(others)} others"
            raise DataError(Problem("an attack needs two members and two others at least", why=why, fix="give more records"))
        return [*members.rows, *others.rows]

    def _notes(self, both: Sequence[Mapping[str, Any]], count: int, weights: Weights | None) -> list[str]:
        """What makes the figures weaker than they look."""
        notes, others = [], len(both) - count
        head = weights.meta.get(META) if weights is not None else None
        if isinstance(head, Mapping) and head.get("prompt") != self.config.prompt:
            notes.append("asked with another prompt than the head was trained on")
        if others < 100:
            notes.append(f"{others} others: 1% of them is less than one, so tpr_at_1 allows no false positive")
        prompt, target = compile_template(self.config.prompt, "prompt"), compile_template(self.config.target, "target")
        told_of = [(prompt.render(row), target.render(row)) for row in both]
        same = len(set(told_of[:count]) & set(told_of[count:]))
        return [*notes, f"{same} texts are members and others at once"] if same else notes

    def _measured(
        self, context: Context, views: "Mapping[str, np.ndarray]", count: int
    ) -> tuple[dict[str, float], dict[str, Any]]:
        values, document = dict[str, float](), dict[str, Any]()
        for prefix, view in views.items():
            seed = context.rng(f"bootstrap {prefix}").getrandbits(63)
            found = bootstrap(view[:count], view[count:], self.config.draws, seed)
            values |= _flat(prefix, found)
            part: dict[str, Any] = told(found)
            if self.config.exposure:
                bits = exposures(view[:count], view[count:])
                values |= {f"{prefix}exposure": sum(bits) / len(bits), f"{prefix}exposure_max": max(bits)}
                part["exposure"] = bits
            document[f"{prefix}scores".removesuffix("_scores") or "scores"] = part
        if self.config.exposure:
            from math import log2

            values["exposure_most"] = log2(len(next(iter(views.values()))) - count + 1)
        return values, document

    def _scores(
        self, context: Context, model: Any, weights: Weights | None, rows: Sequence[Mapping[str, Any]], journal: str
    ) -> "np.ndarray":
        """float64 [n]: larger for what the model knows."""
        prompt, target = compile_template(self.config.prompt, "prompt"), compile_template(self.config.target, "target")
        pairs = [(prompt.render(row), target.render(row)) for row in rows]
        if weights is not None and META in weights.meta:
            return self._class_scores(HeadModel.of(model, weights), pairs)
        if weights is not None:
            if not hasattr(model, "with_weights"):
                what = f"the model {self.config.model!r} cannot take weights"
                raise ComponentError(Problem(what, path="model", fix="name a local model"))
            model = model.with_weights(weights)
        found = scored(context, model, pairs, self.config.batch, journal, journal)
        return as_array([total / tokens if self.config.per_token else total for total, tokens in found])

    def _class_scores(self, head: HeadModel, pairs: Sequence[tuple[str, str]]) -> "np.ndarray":
        """float64 [n]: log-probability of each right class."""
        numbers = {label: number for number, label in enumerate(head.labels)}
        odd = sum(label not in numbers for _, label in pairs)
        if odd:
            what = f"the targets of {odd} of {len(pairs)} records are no labels of the head"
            raise DataError(Problem(what, path="target", fix="write the label alone, as in '{{ label }}'"))
        table = head.log_probabilities([prompt for prompt, _ in pairs], self.config.batch)
        return as_array([row[numbers[label]] for row, (_, label) in zip(table, pairs, strict=True)])


def _headed(weights: Weights | None, reference: Weights | None) -> bool:
    """Whether scores are those of classes. Raises ComponentError where the reference's would be of another kind."""
    headed = weights is not None and META in weights.meta
    if reference is not None and (META in reference.meta) != headed:
        what = "'weights' and 'reference' are not of one kind: one has a head of classes, the other writes"
        raise ComponentError(Problem(what, path="reference", fix="compare with weights of the same trainer and mode"))
    return headed


def _flat(prefix: str, found: Mapping[str, Interval]) -> dict[str, float]:
    """Metrics of one view."""
    values = {f"{prefix}{name}": found[name].value for name in NAMES}
    values |= {f"{prefix}{name}_low": found[name].low for name in NAMES}
    return values | {f"{prefix}{name}_high": found[name].high for name in NAMES}


def _guarantee(weights: Weights | None) -> tuple[float, float] | None:
    """(epsilon, delta) that the weights' description says they were trained with."""
    said = weights.meta.get("privacy") if weights is not None else None
    if not isinstance(said, Mapping):
        return None
    epsilon, delta = said.get("epsilon"), said.get("delta")
    good = all(isinstance(one, int | float) and not isinstance(one, bool) and one >= 0 for one in (epsilon, delta))
    return (float(epsilon), float(delta)) if good and epsilon is not None and delta is not None else None
