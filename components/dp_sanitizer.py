# SPDX-License-Identifier: Apache-2.0
"""Release the fields of records through a token mechanism: what a server may see of a prompt (FedCoT, step "sanitize").

Guarantee: that of the mechanism, per field or token, added up over a record's fields to the document's. The host samples,
charges the ledger and stores the release; a document that was released before under the same mechanism comes back as it was.
Void when the noise is seeded. The released records have fresh random ids in a random order; the key stays at home. With the
bits of `feedback_sanitizer`, exactly the documents whose released bit is "yes" are released once more (attempt 2), charged in
full.
"""

from collections.abc import Sequence

from pydantic import Field

from osmotic.components.mechanism_config import MechanismConfig, unknown_fields
from osmotic.plugins.contract import Component, Context, Out, Outputs, Records
from osmotic.schemas.errors import DataError, Problem
from osmotic.schemas.records import RecordSchema
from osmotic.schemas.source import did_you_mean


class DpSanitizerConfig(MechanismConfig):
    """Configuration of `dp_sanitizer`."""

    attempt: int = Field(
        1, ge=1, description="Another number is another release of the same documents, charged in full (2: with bits)."
    )


class DpSanitizer(Component[DpSanitizerConfig]):
    """Release fields of records through a mechanism: `sanitized` under fresh random ids; `key` maps them home and stays."""

    name = "dp_sanitizer"
    outputs = {"sanitized": Out(Records, label="release"), "key": Out(Records)}

    @classmethod
    def mixes(cls, config: DpSanitizerConfig) -> bool:
        """A document is released by itself, and its key row is its own."""
        return False

    @classmethod
    def check(cls, config: DpSanitizerConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Fields that the schema does not have."""
        return unknown_fields(config, schema)

    def run(self, context: Context, records: Records, bits: Records | None = None, bits_key: Records | None = None) -> Outputs:
        """Release every record once; with `bits` (of `feedback_sanitizer`), exactly those whose released bit is "yes".

        Raises DataError when a record lacks a field or the key of the bits is missing, BudgetError when the cap is reached.
        """
        for name in self.config.fields:
            lacking = sum(name not in row for row in records)
            if lacking:
                fix = did_you_mean(name, records.columns)
                raise DataError(Problem(f"{lacking} of {len(records)} records lack the field {name!r}", path="fields", fix=fix))
        attempt = self.config.attempt
        if bits is None and bits_key is None:
            released, key = context.release(records, self.config.fields, self.config.mechanism, attempt=attempt)
            return {"sanitized": released, "key": key}
        if bits is None or bits_key is None:
            absent = "bits" if bits is None else "bits_key"
            what = f"the input {absent!r} is not connected"
            raise DataError(Problem(what, path=absent, fix="connect both outputs of feedback_sanitizer: bits, key"))
        wanted = _chosen(bits, bits_key)
        some = Records([row for row in records if row["id"] in wanted], records.columns)
        chosen = (bits, bits_key)
        released, key = context.release(some, self.config.fields, self.config.mechanism, attempt=attempt, chosen=chosen)
        return {"sanitized": released, "key": key}


def _chosen(bits: Records, key: Records) -> set[str]:
    """Ids of the records whose released bit is "yes"."""
    home = {row["released"]: row["id"] for row in key}
    yes = [row["id"] for row in bits if row["bit"] == "yes"]
    if any(identity not in home for identity in yes):
        fix = "connect bits and key of the same feedback_sanitizer"
        raise DataError(Problem("the bits and their key do not belong together", path="bits_key", fix=fix))
    return {home[identity] for identity in yes}
