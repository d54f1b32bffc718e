# SPDX-License-Identifier: Apache-2.0
"""Keep the synthetic instructions and responses that are of use (FedPIT, arXiv 2403.06131): form, repeats, near-copies.

Refused are texts that are empty, short or refusing, that open as a persona or hold a `marker` of their format, and instructions
that stand there twice. With `against`, local records, also examples of which the instruction, the response, or both together
have a ROUGE-L with a local one that is strictly above 0.7.

What the output depends on: without `against`, on `synthetic` alone, so that it keeps the guarantee with which that was made
(post-processing). With `against`, on those records too, whatever made `synthetic`: what is missing tells that a record reads
alike. The output is then as private as they are; a path with a guarantee must leave the port open, and a plan that lets the
output cross without a waiver is refused. And ROUGE-L sees whole texts: what passes may hold a name.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from osmotic.components.instructing.demonstrations import examples_of
from osmotic.components.instructing.forms import form_reason, plain
from osmotic.components.instructing.nearness import Known
from osmotic.components.instructing.rounds import COPY, REPEAT, listed
from osmotic.components.instructing.settings import TextRules
from osmotic.components.matching import need_columns, unique
from osmotic.components.patterns import sound
from osmotic.plugins.contract import Component, Context, Document, Out, Outputs, Records
from osmotic.schemas.errors import ComponentError, DataError, Problem

COLUMNS = ("id", "instruction", "response")
PARTS = ("instruction", "response")
UNSPLIT, MARKER = "unsplit", "marker"
FIX = "train the generator for longer, or relax the rules: min_words, min_response_words, markers, pattern, rouge_l"
Example = Mapping[str, str]


class InstructionFilterConfig(TextRules):
    """What makes an example one of use."""

    pattern: str | None = Field(
        None, description="Regular expression with the named groups (?P<instruction>...) and (?P<response>...), for rows with "
        "one ``text``: its first match splits it. null: rows have both columns.",
    )  # fmt: skip
    min_words: int = Field(3, ge=1, description="Of an instruction.")
    min_response_words: int = Field(1, ge=1)
    max_words: int | None = Field(None, ge=1, description="Of instruction and response, each.")
    markers: tuple[str, ...] = Field(
        ("### Instruction:", "### Response:"), strict=False, description="Strings of the format that no text may hold."
    )
    instruction_field: str = Field("instruction", description="The field of `against` with the instruction.")
    response_field: str = Field("response", description="The field of `against` with the response.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_words is not None and self.max_words < max(self.min_words, self.min_response_words):
            raise ValueError("max_words is less than min_words or min_response_words")
        if self.pattern is None:
            return self
        try:
            groups = sound(self.pattern).groupindex
        except re.error as error:
            raise ValueError(f"pattern: not a regular expression: {error}") from error
        if set(groups) != set(PARTS):
            raise ValueError("pattern: must have the named groups (?P<instruction>...) and (?P<response>...), and no others")
        return self


class InstructionFilter(Component[InstructionFilterConfig]):
    """Synthetic examples, and local records or none, in; `kept` and `rejected` ones and a `report` out."""

    name = "instruction_filter"
    outputs = {"kept": Out(Records), "rejected": Out(Records), "report": Out(Document)}

    def run(self, context: Context, synthetic: Records, against: Records | None = None) -> Outputs:
        """`kept`: rows of id, instruction, response; `rejected`: with the first reason that applied; ids and order stay.

        synthetic: rows of ``id`` and either ``instruction`` and ``response``, or ``text``, which `pattern` splits. against:
        local records; without them nothing else is read. The report: rows, kept, rejected by reason, whether a comparison was
        made, and a note where something is rejected. Raises ComponentError when none is kept, with the counts.
        """
        unique(synthetic, "id", "synthetic")
        rows = self._rows(synthetic)
        known = self._known(against) if against is not None else {}
        reasons: list[str] = []
        there: set[str] = set()
        for row in rows:
            reason = row["reason"] or self._reason(row, there, known)
            reasons.append(reason)
            if not reason:
                there.add(plain(row["instruction"]))
        counts = Counter(reason for reason in reasons if reason)
        if counts.total() == len(rows):
            what = f"none of {len(rows)} synthetic examples is of use: {listed(counts) or 'there are none'}"
            raise ComponentError(Problem(what, path="synthetic", fix=FIX))
        pairs = list(zip(rows, reasons, strict=True))
        kept = [{name: row[name] for name in COLUMNS} for row, reason in pairs if not reason]
        left = [{**{name: row[name] for name in COLUMNS}, "reason": reason} for row, reason in pairs if reason]
        return {
            "kept": Records(kept, COLUMNS),
            "rejected": Records(left, [*COLUMNS, "reason"]),
            "report": Document(_report(len(rows), counts, against is not None)),
        }

    def _rows(self, synthetic: Records) -> list[dict[str, Any]]:
        """id, instruction, response, reason (where a text could not be split)."""
        columns = PARTS if self.config.pattern is None else ("text",)
        if self.config.pattern is None and "text" in synthetic.columns and not set(PARTS) <= set(synthetic.columns):
            fix = "give 'pattern', with the groups (?P<instruction>...) and (?P<response>...)"
            raise DataError(Problem("the synthetic rows have one text, not two", path="pattern", fix=fix))
        need_columns(synthetic, columns, "synthetic rows")
        wrong = sum(not isinstance(row[name] or "", str) for row in synthetic for name in columns)
        if wrong:
            raise DataError(Problem(f"{wrong} values of the synthetic rows are no text", path="synthetic"))
        return [{"id": row["id"], **self._split({name: row[name] or "" for name in columns})} for row in synthetic]

    def _split(self, row: Example) -> dict[str, str]:
        if self.config.pattern is None:
            return {**{name: row[name].strip() for name in PARTS}, "reason": ""}
        match = re.search(self.config.pattern, row["text"])
        if match is None:
            return {"instruction": "", "response": row["text"].strip(), "reason": UNSPLIT}
        return {**{name: (match[name] or "").strip() for name in PARTS}, "reason": ""}

    def _known(self, against: Records) -> dict[str, Known]:
        """What nothing may be too near to: instructions, responses, and both as one text."""
        config = self.config
        local = examples_of(against, {"instruction": config.instruction_field, "response": config.response_field}, "records")
        texts = {name: [row[name] for row in local] for name in PARTS} | {"both": [_both(row) for row in local]}
        return {name: Known(several, config.rouge_l, config.longest_run) for name, several in texts.items()}

    def _reason(self, row: Example, there: set[str], known: Mapping[str, Known]) -> str:
        """Why an example will not do; "" where it will."""
        config = self.config
        for name, least in zip(PARTS, (config.min_words, config.min_response_words), strict=True):
            reason = form_reason(row[name], least, config.refusals, config.personas, config.max_words)
            if reason:
                return f"{name}-{reason}"
        if any(marker in row[name] for marker in config.markers for name in PARTS):
            return MARKER
        if plain(row["instruction"]) in there:
            return REPEAT
        texts = {**{name: row[name] for name in PARTS}, "both": _both(row)}
        return COPY if any(one.has(texts[name]) for name, one in known.items()) else ""


def _both(row: Example) -> str:
    return f"{row['instruction']}\n{row['response']}"


def _report(rows: int, counts: Counter[str], compared: bool) -> dict[str, Any]:
    kept = rows - counts.total()
    notes = [f"{kept} of {rows} examples were kept; rejected: {listed(counts)}"] if counts else []
    return {"rows": rows, "kept": kept, "rejected": dict(sorted(counts.items())), "compared": compared, "notes": notes}
