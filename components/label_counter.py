# SPDX-License-Identifier: Apache-2.0
"""Release how often each value of a field occurs, with noise: label counts are data, too (a prior for training, say).

Guarantee: epsilon (laplace, pure) or (epsilon, delta) (gaussian) a record, for neighbours that differ in one record's value,
against everybody outside the party: the host adds exact discrete noise from the operating system and charges the ledger before
this returns. Counts are given as they fall: they may be negative and do not sum to the number of records. Void when the noise
is seeded.
"""

from collections.abc import Sequence

from pydantic import Field

from osmotic.plugins.contract import Component, Config, Context, Out, Outputs, Records
from osmotic.schemas.noise import CountNoise
from osmotic.schemas.records import RecordSchema
from osmotic.schemas.source import did_you_mean


class LabelCounterConfig(Config):
    """Configuration of `label_counter`."""

    field: str = Field(description="Record field with a domain, whose values are counted.")
    mechanism: CountNoise = Field(description="{name: laplace, epsilon} or {name: gaussian, epsilon, delta}, a record.")


class LabelCounter(Component[LabelCounterConfig]):
    """Noisy counts of a field's values over all records: `counts`, with the columns value and count."""

    name = "label_counter"
    outputs = {"counts": Out(Records, label="release")}

    @classmethod
    def check(cls, config: LabelCounterConfig, schema: RecordSchema | None) -> Sequence[str]:
        """A field that the schema does not have, or that is free text."""
        if schema is None:
            return ()
        if config.field not in schema.fields:
            return (f"field: the records have no field {config.field!r}; {did_you_mean(config.field, schema.fields)}",)
        return ("field: it is free text; count a field with a domain",) if schema.fields[config.field].text else ()

    def run(self, context: Context, records: Records) -> Outputs:
        """Count once. Raises DataError for a record without the field, BudgetError when the cap is reached."""
        return {"counts": context.histogram(records, self.config.field, self.config.mechanism.model_dump())}
