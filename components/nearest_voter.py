# SPDX-License-Identifier: Apache-2.0
"""Each private record votes for the candidate text that is nearest to it (private evolution: Aug-PE, arXiv 2403.01749).

Nearest is by the cosine of an embedding model at the party, among the candidates of the record's own label; a record whose
label has no candidate votes among all of them, so that every record votes exactly once. Records are embedded one at a time:
in a padded batch the rounding of one record's vector would depend on its neighbours, and with it, in a near tie, a vote.

Guarantee: the counts are released by the host with Gaussian noise. One record changes one vote, so the counts' L2 sensitivity
is 1 for neighbours that differ in one record (there, or without a vote); rounds of votes are composed by the ledger, and
(epsilon, delta) of all of them together follows from `noise`. It holds against everybody who sees the counts. Void when the
noise is seeded. Candidates must be public or released things; the plan knows their label.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from osmotic.components.vectors import vectors
from osmotic.plugins.contract import Component, Config, Context, Embedder, ModelName, Out, Outputs, Records
from osmotic.schemas.errors import ComponentError, DataError, Problem
from osmotic.schemas.noise import VoteNoise
from osmotic.schemas.records import RecordSchema
from osmotic.schemas.source import did_you_mean

if TYPE_CHECKING:
    import numpy as np


class NearestVoterConfig(Config):
    """Configuration of `nearest_voter`."""

    embedder: ModelName
    noise: VoteNoise = Field(description="{noise_multiplier}, or {epsilon, delta, rounds} for all rounds of votes together.")
    label_field: str = Field("label", description="The records' label; a candidate's is always 'label'.")
    text_field: str = Field("text", description="The records' text; a candidate's is always 'text'.")


class NearestVoter(Component[NearestVoterConfig]):
    """Private records and public candidates in, noisy counts of the records' votes out."""

    name = "nearest_voter"
    outputs = {"votes": Out(Records, label="release")}

    @classmethod
    def check(cls, config: NearestVoterConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Fields that the schema does not have."""
        fields = {"label_field": config.label_field, "text_field": config.text_field}
        return () if schema is None else [
            f"{key}: the records have no field {name!r}; {did_you_mean(name, schema.fields)}"
            for key, name in fields.items() if name not in schema.fields
        ]  # fmt: skip

    def run(self, context: Context, records: Records, candidates: Records) -> Outputs:
        """Rows ``value`` (the number of a candidate, from "0", in the order of `candidates`) and ``count`` (may be negative).

        Raises ComponentError without candidates, DataError for records without the fields, BudgetError when the cap is reached.
        """
        if not len(candidates):
            raise ComponentError(Problem("there are no candidates to vote for", path="candidates"))
        for row in candidates:
            if not isinstance(row.get("label"), str) or not isinstance(row.get("text"), str):
                raise DataError(Problem("a candidate needs a 'label' and a 'text'", path="candidates"))
        votes = self._votes(context, records, candidates)
        noise = self.config.noise.model_dump(exclude_none=True)
        return {"votes": context.noisy_votes(records, votes, len(candidates), noise)}

    def _votes(self, context: Context, records: Records, candidates: Records) -> dict[str, int]:
        """Record id -> the number of its candidate; each depends on its own record and on the candidates alone."""
        import numpy as np

        model = context.model(self.config.embedder)
        table = _directions(model, [row["text"] for row in candidates])
        own: dict[str, list[int]] = {}
        for number, row in enumerate(candidates):
            own.setdefault(row["label"], []).append(number)
        choices = {label: np.array(numbers) for label, numbers in own.items()}
        everything, votes = np.arange(len(candidates)), dict[str, int]()
        for done, row in enumerate(records):
            label, text = _field(row, self.config.label_field), _field(row, self.config.text_field)
            among = choices.get(label, everything)
            votes[row["id"]] = int(among[np.argmax(table[among] @ _directions(model, [text])[0])])
            if done % 64 == 0:
                context.progress(done, len(records), "records that have voted")
        context.progress(len(records), len(records), "records that have voted")
        return votes


def _directions(model: Embedder, texts: list[str]) -> "np.ndarray":
    """float64 [n, d]: what the model says, of length 1; a vector that is no direction is 0, and near to nothing."""
    import numpy as np

    found = np.nan_to_num(vectors(model, texts, finite=False), nan=0.0, posinf=0.0, neginf=0.0)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found / np.where(lengths > 0, lengths, 1.0))


def _field(row: Mapping[str, Any], name: str) -> str:
    """A field as text; nothing is the empty text. Raises DataError for a record without the field."""
    if name not in row:
        fix = did_you_mean(name, row)
        raise DataError(Problem(f"the records have no field {name!r}", fix=fix))
    return "" if row[name] is None else str(row[name])
