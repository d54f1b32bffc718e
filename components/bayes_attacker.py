# SPDX-License-Identifier: Apache-2.0
"""The best attack there is on one released symbol, computed from the mechanism alone: guess the likeliest input.

Who sees y and knows the mechanism P and the prior pi guesses argmax_x pi(x) P(y|x), and is right with probability
sum_y max_x pi(x) P(y|x): exact, no attack on that symbol alone does better (a mechanism that changes nothing: 1; one that
ignores its input: max pi). It reads no record, only public things (the schema, the mechanism, the prior if that is public), so
its numbers are public and may be demanded of a run (`require`). What it does not cover: what other fields, other releases of
the same document and a language model's knowledge of its context add. Streamed over blocks of inputs: O(V) memory.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from osmotic.components.matching import need_columns
from osmotic.components.mechanism_config import MechanismConfig, unknown_fields
from osmotic.plugins.analysis import Columns, allowed_epsilon, encode, spread
from osmotic.plugins.contract import (
    Component,
    Context,
    DatasetName,
    Guarantee,
    Mechanism,
    Metrics,
    Out,
    Outputs,
    Records,
    Space,
)  # fmt: skip
from osmotic.schemas.errors import DataError, Problem
from osmotic.schemas.records import RecordSchema

if TYPE_CHECKING:
    import numpy as np


class BayesAttackerConfig(MechanismConfig):
    """Configuration of `bayes_attacker`."""

    data: DatasetName
    block: int = Field(256, ge=1, description="Rows of the mechanism's matrix at a time.")
    smoothing: float = Field(0.5, gt=0, strict=False, description="With a prior: added to the count of every symbol.")


@dataclass(frozen=True)
class Attacked:
    """One field's numbers. epsilon: the true one, infinite where a probability is zero; proper: rows sum to 1.

    exact: the mechanism's probabilities are no estimate.
    """

    success: float
    blind: float
    retention: float
    epsilon: float
    proper: bool
    claim: Guarantee
    exact: bool = True


class BayesAttacker(Component[BayesAttackerConfig]):
    """How often the best guess of a released symbol is right: exact, from the mechanism, no private data read."""

    name = "bayes_attacker"
    outputs = {"metrics": Out(Metrics)}

    @classmethod
    def check(cls, config: BayesAttackerConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Fields that the schema does not have."""
        return unknown_fields(config, schema)

    def run(self, context: Context, prior: Records | None = None) -> Outputs:
        """Metrics, all over the fields: ``bayes_success`` (mean), ``blind_success`` (without any output), ``self_retention``
        (mean P(x|x)), ``epsilon_true`` (largest), ``epsilon_claimed``; of each field ``bayes_success_FIELD``; if no field is
        text, ``record_success``: all fields of a record at once, as if they were independent. Notes: ``class``, and
        ``epsilon_true`` in place of the number where it is infinite or estimated.

        prior: records whose values say how likely each symbol is; without them all V symbols are equally likely.
        """
        schema, found = context.schema(), {}
        for done, field in enumerate(self.config.fields):
            mechanism = context.mechanism(self.config.mechanism, field)
            context.progress(done, len(self.config.fields), field)
            found[field] = self._attack(mechanism, self._prior(mechanism.space, field, prior))
        text = [field for field in self.config.fields if schema.fields[field].text]
        return {"metrics": _metrics(found, whole=not text)}

    def _prior(self, space: Space, field: str, records: Records | None) -> "np.ndarray":
        """float64 [V + unknown]: how likely each input is. Uniform over the V symbols without records."""
        import numpy as np

        if records is None:
            return np.concatenate([np.full(space.size, 1.0 / space.size), np.zeros(int(space.unknown))])
        need_columns(records, [field], "records of the prior")
        if not len(records):
            raise DataError(Problem("the prior has no records"))
        flat, _ = encode(space, [str(row[field]) for row in records])
        counts = np.bincount(flat, minlength=space.size + space.unknown) + self.config.smoothing
        return np.asarray(counts / counts.sum())

    def _attack(self, mechanism: Mechanism[Any], prior: "np.ndarray") -> Attacked:
        import numpy as np

        v, total = mechanism.space.size, len(prior)
        best, columns = np.full(v, -np.inf), Columns.empty(v, None)
        with np.errstate(divide="ignore"):
            weight = np.log(prior)
        for start in range(0, total, self.config.block):
            rows = np.arange(start, min(start + self.config.block, total), dtype=np.int64)
            values = mechanism.log_prob(rows)
            np.maximum(best, (values + weight[rows, None]).max(axis=0), out=best)  # the unknown symbol's row, too
            columns.add(rows, values)
        return Attacked(
            success=float(np.exp(best).sum()),
            blind=float(prior.max()),
            retention=math.fsum(columns.retained) / v,
            epsilon=spread(columns.highest, columns.lowest),
            proper=columns.proper,
            claim=mechanism.guarantee(),
            exact=mechanism.exact,
        )


def _metrics(found: dict[str, Attacked], whole: bool) -> Metrics:
    """The numbers over all fields and of each."""
    many = list(found.values())
    values = {
        "bayes_success": sum(one.success for one in many) / len(many),
        "blind_success": sum(one.blind for one in many) / len(many),
        "self_retention": sum(one.retention for one in many) / len(many),
        "epsilon_claimed": max(one.claim.epsilon for one in many),
    }
    notes = {"class": "; ".join(sorted({class_of(one) for one in many}))}
    largest = max(one.epsilon for one in many)
    if not all(one.exact for one in many):
        found_any = math.isfinite(largest)
        notes["epsilon_true"] = f"about {largest:.3g} (estimated)" if found_any else "no finite number found (estimated)"
    elif math.isfinite(largest):
        values["epsilon_true"] = largest
    else:
        notes["epsilon_true"] = "infinite"
    if whole:
        values["record_success"] = math.prod(one.success for one in many)
    return Metrics({**values, **{f"bayes_success_{field}": one.success for field, one in found.items()}}, notes=notes)


def class_of(one: Attacked) -> str:
    """The class of a claim in words that say no more than was computed here."""
    kind, unit = one.claim.mechanism_class, one.claim.unit
    if kind != "certified":
        more = {"metric": f"epsilon a unit of {unit}", "partition": "inside a cell", "heuristic": "no guarantee"}
        return f"{kind}: {more.get(kind, f'a {unit}')}"
    holds = one.proper and one.epsilon <= allowed_epsilon(one.claim.epsilon)
    return "certified" if holds else "claims to be certified, is not"
