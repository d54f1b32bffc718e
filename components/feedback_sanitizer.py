# SPDX-License-Identifier: Apache-2.0
"""Ask for another try, privately: one bit a document, "its rationale was not kept", through randomised response.

Source: Warner 1965, "Randomized response". Every document sends a bit, whatever the filter said, so that neither which
documents nor how many were rejected is known exactly. Guarantee: epsilon a document, pure, charged like any release; the bit is
right with probability e^eps / (e^eps + 1). What the bits choose (`dp_sanitizer`, attempt 2) is a function of what was released,
and a second release is charged in full. Void when: the noise is seeded, or bits depend on other documents than their own (the
filter's rule `duplicates` does: leave it out before this component).
"""

from pydantic import Field

from osmotic.plugins.contract import Component, Config, Context, Out, Outputs, Records
from osmotic.schemas.errors import DataError, Problem


class FeedbackSanitizerConfig(Config):
    """Configuration of `feedback_sanitizer`."""

    epsilon: float = Field(
        gt=0, le=30, strict=False, allow_inf_nan=False, description="Privacy loss of a document for its bit.",
        json_schema_extra={"osmotic": "feedback"},
    )  # fmt: skip


class FeedbackSanitizer(Component[FeedbackSanitizerConfig]):
    """A noisy bit a document: `bits` ("yes": not among the kept, try again) under fresh random ids; `key` maps them home."""

    name = "feedback_sanitizer"
    outputs = {"bits": Out(Records, label="release"), "key": Out(Records)}

    def run(self, context: Context, records: Records, kept: Records) -> Outputs:
        """Release one bit of every record. Raises DataError when a kept id is none of the records'."""
        own = {row["id"] for row in records}
        there = {row.get("id") for row in kept}
        if there - own:
            what = f"{len(there - own)} kept rationales belong to no record"
            raise DataError(Problem(what, path="kept", fix="give the filter's output 'kept' and the records that it was given"))
        bits, key = context.feedback(records, {identity: identity not in there for identity in own}, self.config.epsilon)
        return {"bits": bits, "key": key}
