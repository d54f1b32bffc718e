# SPDX-License-Identifier: Apache-2.0
"""Give records fresh random ids and a random order, values unchanged, for crossings under a waiver.

Guarantee: none; the output stays private (benchmark data may cross when the site waives the edge). It exists because ids of
records never cross, waived or not.
"""

from collections.abc import Sequence

from pydantic import Field

from osmotic.plugins.contract import Component, Config, Context, Out, Outputs, Records
from osmotic.schemas.records import RecordSchema
from osmotic.schemas.source import did_you_mean


class RecordBlinderConfig(Config):
    """Which fields to keep."""

    fields: tuple[str, ...] = Field(strict=False, min_length=1, description="Record fields to keep, in order.")


class RecordBlinder(Component[RecordBlinderConfig]):
    """Records under random ids (`blinded`), and the way back (`key`, which stays at home)."""

    name = "record_blinder"
    outputs = {"blinded": Out(Records), "key": Out(Records)}

    @classmethod
    def mixes(cls, config: RecordBlinderConfig) -> bool:
        """A record keeps its values, and its key row is its own."""
        return False

    def run(self, context: Context, records: Records) -> Outputs:
        """Blind every record."""
        blinded, key = context.blind(records, self.config.fields)
        return {"blinded": blinded, "key": key}

    @classmethod
    def check(cls, config: RecordBlinderConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Every field must be in the schema."""
        known = schema.fields if schema else {}
        return [f"unknown field {f!r}; {did_you_mean(f, known)}" for f in config.fields if schema and f not in known]
