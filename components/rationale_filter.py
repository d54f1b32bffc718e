# SPDX-License-Identifier: Apache-2.0
"""Keep the rationales that help: each rule is a switch, each rejected one carries the first reason that applied.

FedCoT, step "filter"; usefulness is FedPIT's instruction-following score. It looks at private records and at answers that are
public or released, at home, and costs no privacy budget; but what it keeps depends on private data, so its outputs are private
again. Rejected records still train the label task.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from osmotic.components.matching import need_columns, same_keys, unique
from osmotic.components.rationale_rules import REFUSALS, answer_key, format_reason, near_duplicates
from osmotic.components.templates import check_slots, compile_template
from osmotic.plugins.contract import Component, Config, Context, Document, Metrics, ModelName, Out, Outputs, Records
from osmotic.schemas.errors import ComponentError, DataError, Problem
from osmotic.schemas.records import RecordSchema

Rule = Literal["count", "format", "answer", "duplicates", "usefulness"]
Row = dict[str, Any]
BATCH = 16


class RationaleFilterConfig(Config):
    """Configuration of `rationale_filter`."""

    rules: list[Rule] = Field(default=["count", "format", "answer"], description="Rules, applied in this order.")
    answer_pattern: str | None = Field(
        None, description="answer: regular expression with one group; its last match in the rationale is the answer."
    )
    gold: str | None = Field(None, description="answer, usefulness: template of the right answer over the record's fields.")
    min_words: int = Field(3, ge=0, description="format: fewest words.")
    max_words: int = Field(200, ge=1, description="format: most words.")
    refusals: list[str] = Field(default=list(REFUSALS), description="format: phrases that make an opening a refusal.")
    require_finished: bool = Field(True, description="format: reject what ended by the length limit.")
    near_duplicate: float = Field(
        0.9, gt=0, le=1, strict=False, description="duplicates: Jaccard similarity of word 3-grams from which on two are one."
    )
    model: ModelName | None = Field(None, description="usefulness: a scorer at this party.")
    label_prompt: str | None = Field(
        None, description="usefulness: template of the question; slots: the fields and rationale (empty for the comparison)."
    )

    @field_validator("answer_pattern")
    @classmethod
    def _one_group(cls, value: str | None) -> str | None:
        try:
            groups = re.compile(value).groups if value is not None else 1
        except re.error as error:
            raise ValueError(f"not a valid regular expression: {error}") from error
        if groups != 1:
            raise ValueError(f"must have exactly one group, (...) around the answer (it has {groups}; (?:...) does not count)")
        return value

    @model_validator(mode="after")
    def _complete(self) -> "RationaleFilterConfig":
        needed = {"answer": ("answer_pattern", "gold"), "usefulness": ("gold", "model", "label_prompt")}
        lacking = [(rule, key) for rule in self.rules for key in needed.get(rule, ()) if getattr(self, key) is None]
        if lacking:
            raise ValueError("; ".join(f"the rule {rule!r} needs {key!r}" for rule, key in lacking))
        if len(set(self.rules)) < len(self.rules):
            raise ValueError("a rule stands twice in 'rules'")
        if self.min_words > self.max_words:
            raise ValueError(f"min_words {self.min_words} is more than max_words {self.max_words}")
        return self


class RationaleFilter(Component[RationaleFilterConfig]):
    """Keep the rationales that help: `kept`, `rejected` with reasons, a `report`, `metrics`. All of it stays private."""

    name = "rationale_filter"
    outputs = {"kept": Out(Records), "rejected": Out(Records), "report": Out(Document), "metrics": Out(Metrics)}

    @classmethod
    def mixes(cls, config: RationaleFilterConfig) -> bool:
        """Near-duplicates depend on one another, and scores on their batch by rounding; other rules look at one record."""
        return bool({"duplicates", "usefulness"} & set(config.rules))

    @classmethod
    def check(cls, config: RationaleFilterConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Slots of the templates that the records do not have."""
        if schema is None:
            return ()
        gold = check_slots(config.gold or "", schema.fields, "gold")
        return [*gold, *check_slots(config.label_prompt or "", [*schema.fields, "rationale"], "label_prompt")]

    def run(self, context: Context, records: Records, rationales: Records) -> Outputs:
        """Sort the rationales. Raises DataError for unknown or doubled ids, and for missing ones under the rule count.

        Metrics: ``survival``, the share of records whose rationale was kept; outcomes 0 or 1 a record.
        """
        rows = self._matched(records, rationales)
        reasons: dict[str, str] = {}
        rules: dict[str, Callable[[Context, Records, list[Row]], dict[str, str]]] = {
            "format": self._format, "answer": self._answer, "duplicates": self._duplicates, "usefulness": self._usefulness,
        }  # fmt: skip
        for rule in self.config.rules:
            if rule in rules:
                reasons |= rules[rule](context, records, [row for row in rows if row["id"] not in reasons])
        kept = [_slim(row) for row in rows if row["id"] not in reasons]
        rejected = [_slim(row) | {"reason": reasons[row["id"]]} for row in rows if row["id"] in reasons]
        return {
            "kept": Records(kept, ["id", "rationale"]),
            "rejected": Records(rejected, ["id", "rationale", "reason"]),
            "report": Document(_report(len(records), kept, rejected)),
            "metrics": _survival(records, {row["id"] for row in kept}),
        }

    def _matched(self, records: Records, rationales: Records) -> list[Row]:
        """The rationales in the order of the records."""
        need_columns(rationales, ["id", "rationale"], "rationales")
        given, own = unique(rationales, "id", "rationales"), unique(records, "id", "records")
        wanted = own if "count" in self.config.rules else [identity for identity in own if identity in given]
        same_keys(given, wanted, "rationales", "records")
        return [given[identity] for identity in wanted]

    def _format(self, context: Context, records: Records, rows: list[Row]) -> dict[str, str]:
        c = self.config
        found = {row["id"]: format_reason(row, c.min_words, c.max_words, c.refusals, c.require_finished) for row in rows}
        return {identity: reason for identity, reason in found.items() if reason is not None}

    def _answer(self, context: Context, records: Records, rows: list[Row]) -> dict[str, str]:
        pattern = re.compile(self.config.answer_pattern or "()")
        gold = self._gold(records)
        reasons = {}
        for row in rows:
            answers = pattern.findall(row["rationale"])
            if not answers:
                reasons[row["id"]] = "no-answer"
            elif answer_key(answers[-1]) != answer_key(gold[row["id"]]):
                reasons[row["id"]] = "wrong-answer"
        return reasons

    def _gold(self, records: Records) -> dict[str, str]:
        """id -> the right answer; an empty one is an error in the data or in the template."""
        template = compile_template(self.config.gold or "", "gold")
        gold = {row["id"]: template.render(row).strip() for row in records}
        empty = sum(not answer_key(value) for value in gold.values())
        if empty:
            raise DataError(Problem(f"the right answer is empty for {empty} of {len(gold)} records", path="gold"))
        return gold

    def _duplicates(self, context: Context, records: Records, rows: list[Row]) -> dict[str, str]:
        found = near_duplicates([row["rationale"] for row in rows], self.config.near_duplicate)
        return {rows[i]["id"]: "duplicate" for i in found}

    def _usefulness(self, context: Context, records: Records, rows: list[Row]) -> dict[str, str]:
        """Reject where the right answer is no likelier with the rationale than without it."""
        template = compile_template(self.config.label_prompt or "", "label_prompt")
        gold, own = self._gold(records), records.by_id()
        model = context.model(self.config.model or "")
        reasons = {}
        for start in range(0, len(rows), BATCH):
            context.progress(start, len(rows), "scoring rationales")
            batch = rows[start : start + BATCH]
            with_it = [template.render(own[r["id"]] | {"rationale": r["rationale"]}) for r in batch]
            without = [template.render(own[r["id"]] | {"rationale": ""}) for r in batch]
            targets = [gold[r["id"]] for r in batch] * 2
            scores = _score(model, list(zip([*with_it, *without], targets, strict=True)))
            for i, row in enumerate(batch):
                if not scores[i] > scores[len(batch) + i]:
                    reasons[row["id"]] = "not-useful"
        context.progress(len(rows), len(rows), "scoring rationales")
        return reasons


def _score(model: Any, pairs: list[tuple[str, str]]) -> list[float]:
    scores = [float(total) for total, _ in model.log_likelihood(pairs)]
    if len(scores) != len(pairs):
        raise ComponentError(Problem(f"the model gave {len(scores)} scores to {len(pairs)} pairs", path="model"))
    return scores


def _survival(records: Records, kept: set[Any]) -> Metrics:
    outcomes = [float(row["id"] in kept) for row in records]
    values = {"survival": sum(outcomes) / len(outcomes) if outcomes else 0.0, "records": float(len(outcomes))}
    return Metrics(values, {"survival": outcomes})


def _slim(row: Row) -> Row:
    return {"id": row["id"], "rationale": row["rationale"]}


def _report(records: int, kept: list[Row], rejected: list[Row]) -> dict[str, Any]:
    total = len(kept) + len(rejected)
    report: dict[str, Any] = {
        "records": records,
        "kept": len(kept),
        "rejected": dict(sorted(Counter(row["reason"] for row in rejected).items())),
        "share": len(kept) / total if total else 0.0,
    }
    if total < records:
        report["missing"] = records - total
    if not kept:
        report["warning"] = "no rationale was kept: the student will train on labels alone"
    return report
