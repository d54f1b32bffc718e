# SPDX-License-Identifier: Apache-2.0
"""Each private record casts one vote on public candidate prompts: what federated prompt search needs to know, and no more.

The answers to every candidate come from `prompt_answerer`: asked here of a local model about the private records, or elsewhere
about sanitized rows, which `key` leads back to the records. The class of a record is read here alone. How a vote is chosen, and
why, is in `components.prompting.votes`; a missing answer is a wrong one.

Guarantee: the counts are released by the host with Gaussian noise. A vote depends on its record, on that record's own answers,
and on public or released things (candidates, a seeded choice of the record's own), so one record changes one count by 1: L2
sensitivity 1 for neighbours that differ in one record (there, or without a vote). Rounds are composed by the ledger, and
(epsilon, delta) of all of them follows from `noise`; as the next candidates are made of released counts alone, this covers the
whole trajectory of prompts. What a sanitized row tells is charged to the release that made it, beside the votes. Void when the
noise is seeded, or when an answer depends on other records than its own (a batch whose rounding they share: the plan refuses
answers of a component that says so of itself).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from osmotic.components.prompting.candidates import Candidates, column
from osmotic.components.prompting.votes import size, vote
from osmotic.plugins.contract import Component, Config, Context, Document, Out, Outputs, Records
from osmotic.schemas.errors import DataError, Problem
from osmotic.schemas.noise import VoteNoise
from osmotic.schemas.records import RecordSchema
from osmotic.schemas.source import did_you_mean

Rows = Mapping[str, Mapping[str, Any]]


class PromptVoterConfig(Config):
    """Configuration of `prompt_voter`."""

    noise: VoteNoise = Field(description="{noise_multiplier}, or {epsilon, delta, rounds} for all rounds of votes together.")
    label_field: str = Field("label", description="The records' class; answers are classes too.")


class PromptVoter(Component[PromptVoterConfig]):
    """Private records, candidates and answers in, noisy counts of the records' votes out."""

    name = "prompt_voter"
    outputs = {"votes": Out(Records, label="release")}

    @classmethod
    def check(cls, config: PromptVoterConfig, schema: RecordSchema | None) -> Sequence[str]:
        """A class field that the schema does not have."""
        name = config.label_field
        if schema is None or name in schema.fields:
            return ()
        return [f"label_field: the records have no field {name!r}; {did_you_mean(name, schema.fields)}"]

    def run(
        self, context: Context, records: Records, candidates: Document, answers: Records, key: Records | None = None
    ) -> Outputs:
        """Rows ``value``, ``count`` (may be negative): as many as the rule of the candidates has counts.

        key: maps ``released``, the ids of the answers, to ``id``, the records' own. Raises DataError for answers that are not
        about these candidates or these records, BudgetError when the cap is reached.
        """
        offered = Candidates.of_json(candidates.data)
        own = _own(answers, key, len(offered.prompts))
        if len(records) and not any(row["id"] in own for row in records):
            fix = "connect the answers about these records, with 'key' where they were asked under released ids"
            raise DataError(Problem("none of the answers is about one of the records", path="answers", fix=fix))
        votes = {row["id"]: self._vote(context, row, own, offered) for row in records}
        noise = self.config.noise.model_dump(exclude_none=True)
        return {"votes": context.noisy_votes(records, votes, size(offered.vote, len(offered.prompts)), noise)}

    def _vote(self, context: Context, row: Mapping[str, Any], own: Rows, offered: Candidates) -> int:
        """The count that a record adds one to; no other record has a part in it."""
        if self.config.label_field not in row:
            fix = did_you_mean(self.config.label_field, row)
            raise DataError(Problem(f"the records have no field {self.config.label_field!r}", path="label_field", fix=fix))
        truth, given = str(row[self.config.label_field]).strip(), own.get(row["id"], {})
        right = [given.get(column(number)) == truth != "" for number in range(len(offered.prompts))]
        return vote(offered.vote, right, context.rng(f"vote {offered.digest} {row['id']}"))


def _own(answers: Records, key: Records | None, candidates: int) -> Rows:
    """Record id -> its answers. Raises DataError for columns that are not `candidates` answers under an id."""
    wanted = {"id", *map(column, range(candidates))}
    if set(answers.columns) != wanted:
        what = f"the answers have the columns {', '.join(sorted(answers.columns))[:80]}, and there are {candidates} candidates"
        fix = "connect the answers that prompt_answerer gave to these very candidates"
        raise DataError(Problem(what, path="answers", fix=fix))
    if key is None:
        return answers.by_id()
    if not {"released", "id"} <= set(key.columns):
        raise DataError(Problem("the key does not lead from 'released' to 'id'", path="key", fix="connect dp_sanitizer.key"))
    home = {row["released"]: row["id"] for row in key}
    return {home[row["id"]]: row for row in answers if row["id"] in home}
