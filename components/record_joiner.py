# SPDX-License-Identifier: Apache-2.0
"""Give records columns of another table, by id, under names of their own: what a two-task training reads beside the fields.

For FedCoT's encoder-decoder (section 4 of its code): public records with the perturbed prompt and its rationale beside them.
Guarantee: none, and none is voided. The output has the labels of both inputs; a row depends on the rows of its own id alone.
"""

from collections.abc import Sequence

from pydantic import Field

from osmotic.components.matching import need_columns, same_keys, unique
from osmotic.plugins.contract import Component, Config, Context, Out, Outputs, Records
from osmotic.schemas.errors import DataError, Problem
from osmotic.schemas.records import RecordSchema


class RecordJoinerConfig(Config):
    """Which columns are joined, and what they are called."""

    columns: dict[str, str] = Field(min_length=1, description="New column -> column of the input 'other'.")


class RecordJoiner(Component[RecordJoinerConfig]):
    """Every record with columns of the row of `other` that has its id."""

    name = "record_joiner"
    outputs = {"joined": Out(Records)}

    @classmethod
    def mixes(cls, config: RecordJoinerConfig) -> bool:
        """A row is made of two rows of one id."""
        return False

    @classmethod
    def check(cls, config: RecordJoinerConfig, schema: RecordSchema | None) -> Sequence[str]:
        """New columns that would hide a field or the id."""
        taken = [name for name in config.columns if name == "id" or (schema is not None and name in schema.fields)]
        return [f"columns: {name!r} is a field of the records; call the new column something else" for name in taken]

    def run(self, context: Context, records: Records, other: Records) -> Outputs:
        """The records, in their order. Raises DataError unless `other` has exactly one row for each, with those columns."""
        need_columns(other, self.config.columns.values(), "rows of the input 'other'")
        rows, theirs = unique(records, "id", "records"), unique(other, "id", "rows of the input 'other'")
        same_keys(theirs, rows, "joined rows", "records")
        hidden = sorted(set(self.config.columns) & set(records.columns))
        if hidden:
            raise DataError(Problem(f"the records have a column {hidden[0]!r} already", path="columns", fix="rename it"))
        more = {identity: {new: row[old] for new, old in self.config.columns.items()} for identity, row in theirs.items()}
        joined = [{**row, **more[identity]} for identity, row in rows.items()]
        return {"joined": Records(joined, [*records.columns, *self.config.columns])}
