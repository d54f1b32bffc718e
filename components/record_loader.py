# SPDX-License-Identifier: Apache-2.0
"""Load a data set that the site binds: the only way in for a party's own records.

The pipeline knows a name; which file it is, with which label and purpose, is the site policy's business. The output is as
private as the binding says, and nothing about it crosses.
"""

from pydantic import Field

from osmotic.plugins.contract import Component, Config, Context, Out, Outputs, Records


class RecordLoaderConfig(Config):
    """Configuration of `record_loader`."""

    data: str = Field(min_length=1, description="Name of the data set, as bound in the site policy.")


class RecordLoader(Component[RecordLoaderConfig]):
    """Records of a bound data set: ``id`` and the fields of its schema, all strings."""

    name = "record_loader"
    outputs = {"records": Out(Records, label="source")}

    def run(self, context: Context) -> Outputs:
        """The records; raises RefusedError where the site binds no such data set."""
        records, _ = context.dataset(self.config.data)
        return {"records": records}
