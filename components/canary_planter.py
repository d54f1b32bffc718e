# SPDX-License-Identifier: Apache-2.0
"""Plant canaries among the records of a trainer that is attacked afterwards (Carlini et al. 2019; FedPIT, arXiv 2403.06131).

A canary says a pattern: a beginning like other records', words of public lists in its slots, and a random end that no model can
guess. Each is planted `repeats` times; `controls` are made by the same pattern and planted nowhere. Wire `planted` to the
trainer, and `canaries` and `controls` to membership_attack (as members and others, with `exposure: true`) or to
extraction_attack.

The records keep their ids. Every copy of a canary is a row of its own that stands for no record, so it has a number for an id;
fields that the pattern does not name are those of a random record. Controls are numbered on from the canaries.

Not for training with differential privacy, nor for releases: those take the records of a data set as they were loaded, all of
them, and refuse others. There, plant the canaries in the data file (benchmarks/plant_canaries.py), the same ones for all arms.
All outputs are as private as the records. Deterministic under a seed: which canaries are planted does not depend on the arm.
"""

from collections.abc import Sequence
from typing import Self

from pydantic import Field, model_validator

from osmotic.components.canaries import DIGITS, Pattern, Row
from osmotic.components.matching import need_columns
from osmotic.plugins.contract import Component, Config, Context, Out, Outputs, Records
from osmotic.schemas.errors import DataError, Problem
from osmotic.schemas.records import NUMBERED, RecordSchema, numbered
from osmotic.schemas.source import did_you_mean

MOST = 1_000_000  # rows that are planted


class CanaryPlanterConfig(Config):
    """What a canary says, and how many there are."""

    fields: dict[str, str] = Field(
        min_length=1, description="Field -> Jinja2 over the slots of `words` and `suffix`; the others are a random record's."
    )
    words: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, strict=False, description="Slot -> public words, one of which is drawn for each canary."
    )
    suffix_words: tuple[str, ...] = Field(DIGITS, strict=False, description="Public words that the random end is drawn from.")
    suffix_length: int = Field(6, ge=1, le=100, description="Words of the random end.")
    canaries: int = Field(20, ge=2)
    repeats: int = Field(1, ge=1, description="How often each canary is planted.")
    controls: int = Field(200, ge=2, description="Made alike and planted nowhere; exposure goes up to log2(controls + 1) bits.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.canaries * self.repeats > MOST or self.controls > MOST:
            raise ValueError(f"at most {MOST:,} canaries, copies included, and as many controls")
        return self

    def pattern(self) -> Pattern:
        """How canaries are made."""
        return Pattern(self.fields, self.words, self.suffix_words, self.suffix_length)


class CanaryPlanter(Component[CanaryPlanterConfig]):
    """Records in; the same with canaries among them, the canaries, and their controls out."""

    name = "canary_planter"
    outputs = {"planted": Out(Records), "canaries": Out(Records), "controls": Out(Records)}

    @classmethod
    def check(cls, config: CanaryPlanterConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Slots, fields that the records do not have or that take no free text, suffixes that are too few."""
        found = config.pattern().problems(config.canaries + config.controls)
        for name in config.fields if schema is not None else ():
            spec = schema.fields.get(name) if schema is not None else None
            if spec is None:
                close = did_you_mean(name, schema.fields) if schema is not None else ""
                found.append(f"fields.{name}: the records have no field {name!r}; {close}")
            elif not spec.text:
                found.append(f"fields.{name}: has a domain, and a canary's text is not in it; name a text field")
        return found

    def run(self, context: Context, records: Records) -> Outputs:
        """Plant them, at random places. Raises DataError where there are no records, or they lack a field of the pattern."""
        config = self.config
        if not len(records):
            raise DataError(Problem("there are no records to plant canaries among", path="records"))
        need_columns(records, ["id", *config.fields], "records")
        rng, count = context.rng("canaries"), config.canaries
        made = list(config.pattern().made(records.rows, count + config.controls, rng))
        first = _free(records, count * config.repeats + config.controls)
        copies = _numbered([row for row in made[:count] for _ in range(config.repeats)], first)
        canaries = copies[:: config.repeats]
        controls = _numbered(made[count:], first + len(copies))
        planted = [*records.rows, *copies]
        rng.shuffle(planted)
        columns = records.columns
        return {
            "planted": Records(planted, columns),
            "canaries": Records(canaries, columns),
            "controls": Records(controls, columns),
        }


def _free(records: Records, count: int) -> int:
    """The first number beyond those of the records' ids: synthetic rows have such ids, too. count: how many are needed."""
    taken = [int(row["id"][1:]) for row in records if isinstance(row["id"], str) and NUMBERED.fullmatch(row["id"])]
    first = max(taken, default=-1) + 1
    if first + count > 10**7:
        what = f"the records' ids go up to n{first - 1:07d}, which leaves no numbers for {count} canaries and controls"
        raise DataError(Problem(what, path="records", fix="give the records ids of their own"))
    return first


def _numbered(rows: Sequence[Row], first: int) -> list[Row]:
    return [{**row, "id": numbered(first + i)} for i, row in enumerate(rows)]
