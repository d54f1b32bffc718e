# SPDX-License-Identifier: Apache-2.0
"""Keep the rationales that help: each rule is a switch, each rejected one carries the first reason that applied.

FedCoT, step "filter"; usefulness is FedPIT's instruction-following score, consistency the majority of several samples (Wang et
al. 2023, self-consistency), all of which come from one release. It looks at private records and at answers that are public or
released, at home, and costs no privacy budget; but what it keeps depends on private data, so its outputs are private again.
Rejected records still train the label task.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from osmotic.components.decoding_strategies import DECODED, TOO_LONG
from osmotic.components.languages import COMMON, Language, is_foreign
from osmotic.components.matching import need_columns, same_keys, shown, unique
from osmotic.components.near_duplicates import near_duplicates
from osmotic.components.patterns import sound
from osmotic.components.rationale_rules import REFUSALS, answer_key, format_reason, leaked, mentioned
from osmotic.components.scoring import likeliest, scored
from osmotic.components.templates import Template, check_slots, compile_template
from osmotic.plugins.contract import PROBLEMS, Component, Config, Context, Document, Metrics, ModelName, Out, Outputs, Records
from osmotic.schemas.errors import DataError, Problem
from osmotic.schemas.records import RecordSchema

Rule = Literal["count", "format", "language", "leakage", "consistency", "answer", "prediction", "duplicates", "usefulness"]
Row = dict[str, Any]
BATCH = 32  # pairs of prompt and target that are scored at a time


@dataclass(frozen=True)
class Given:
    """One rationale: its record's id, which sample it is ("" where there is one a record), the row as it came."""

    id: Any
    sample: Any
    row: Row = field(compare=False)

    @property
    def text(self) -> str:
        """The rationale itself."""
        return str(self.row["rationale"])


Reasons = dict[Given, str]


class RationaleFilterConfig(Config):
    """Configuration of `rationale_filter`."""

    rules: list[Rule] = Field(default=["count", "format", "language", "answer"], description="Rules, applied in this order.")
    answer_pattern: str | None = Field(
        None, description="answer, consistency: regular expression with one group; its last match is the answer."
    )
    gold: str | None = Field(
        None, description="answer, prediction, usefulness: template of the right answer over the record's fields."
    )
    choices: dict[str, str] | None = Field(
        None, min_length=2, description="answer, consistency: label -> template of its text; where no pattern matches, the "
        "choice that is named last is the answer. prediction: what to choose among.",
    )  # fmt: skip
    min_words: int = Field(3, ge=0, description="format: fewest words.")
    max_words: int = Field(200, ge=1, description="format: most words.")
    refusals: list[str] = Field(default=list(REFUSALS), description="format: phrases that make an opening a refusal.")
    require_finished: bool = Field(True, description="format: reject what ended by the length limit.")
    language: Language | None = Field(None, description="language: the right one; default: that of the row's prompt.")
    released: list[str] = Field(
        default=[], description="leakage: the fields that were released; only words that the prompt has may be in a rationale."
    )
    leaked_words: int = Field(2, ge=1, description="leakage: reject from so many of them on.")
    agreement: float = Field(
        0.5, ge=0, lt=1, strict=False, description="consistency: more than this share of a record's answers must be the same."
    )
    near_duplicate: float = Field(
        0.9, gt=0, le=1, strict=False, description="duplicates: Jaccard similarity of word 3-grams from which on two are one."
    )
    model: ModelName | None = Field(None, description="prediction, usefulness: a scorer at this party.")
    label_prompt: str | None = Field(
        None, description="prediction, usefulness: template of the question; slots: the fields and rationale (empty for the "
        "comparison).",
    )  # fmt: skip
    label_target: str | None = Field(
        None, description="prediction, usefulness: template of what the model scores; slots: the fields, label (the right one "
        "or a choice's) and text (of that choice). Default: the label.",
    )  # fmt: skip

    @field_validator("answer_pattern")
    @classmethod
    def _one_group(cls, value: str | None) -> str | None:
        try:
            groups = sound(value).groups if value is not None else 1
        except re.error as error:
            raise ValueError(f"not a valid regular expression: {error}") from error
        if groups != 1:
            raise ValueError(f"must have exactly one group, (...) around the answer (it has {groups}; (?:...) does not count)")
        return value

    @model_validator(mode="after")
    def _complete(self) -> "RationaleFilterConfig":
        read = "choices" if self.choices else "answer_pattern"
        needed = {
            "answer": (read, "gold"), "consistency": (read,), "prediction": ("gold", "model", "label_prompt", "choices"),
            "usefulness": ("gold", "model", "label_prompt"), "leakage": ("released",),
        }  # fmt: skip
        lacking = [(rule, key) for rule in self.rules for key in needed.get(rule, ()) if not getattr(self, key)]
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
    version = 2
    outputs = {"kept": Out(Records), "rejected": Out(Records), "report": Out(Document), "metrics": Out(Metrics)}

    @classmethod
    def mixes(cls, config: RationaleFilterConfig) -> bool:
        """Near-duplicates depend on one another, and scores on their batch by rounding; other rules look at one record."""
        return bool({"duplicates", "prediction", "usefulness"} & set(config.rules))

    @classmethod
    def check(cls, config: RationaleFilterConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Slots of the templates that the records do not have, and released fields that they do not have."""
        if schema is None:
            return ()
        found = check_slots(config.gold or "", schema.fields, "gold")
        for label, text in (config.choices or {}).items():
            found += check_slots(text, schema.fields, f"choices.{label}")
        found += check_slots(config.label_prompt or "", [*schema.fields, "rationale"], "label_prompt")
        found += check_slots(config.label_target or "", [*schema.fields, "label", "text"], "label_target")
        return [*found, *(f"released: the records have no field {n!r}" for n in config.released if n not in schema.fields)]

    def run(self, context: Context, records: Records, rationales: Records) -> Outputs:
        """Sort the rationales: rows of ``id``, ``rationale``; maybe ``prompt`` (as asked), ``finished``, ``problem`` (why there
        is no answer) and, with the rule consistency, ``sample`` where there are several a record.

        Raises DataError for unknown or doubled ids, and for missing ones under the rule count.
        Metrics: ``survival``, the share of records whose rationale was kept; outcomes 0 or 1 a record.
        """
        given, several = self._matched(records, rationales)
        reasons: Reasons = {one: reason for one in given if (reason := _problem(one))}
        rules: dict[str, Callable[[Context, Records, list[Given]], Reasons]] = {
            "format": self._format, "language": self._language, "leakage": self._leakage, "consistency": self._consistency,
            "answer": self._answer, "prediction": self._prediction, "duplicates": self._duplicates,
            "usefulness": self._usefulness,
        }  # fmt: skip
        for rule in self.config.rules:
            if rule in rules:
                reasons |= rules[rule](context, records, [one for one in given if one not in reasons])
        kept = [one for one in given if one not in reasons]
        columns = ["id", *(["sample"] if several else []), "rationale"]
        return {
            "kept": Records([{"id": one.id, "rationale": one.text} for one in kept], ["id", "rationale"]),
            "rejected": Records(
                [{name: one.row[name] for name in columns} | {"reason": why} for one, why in _sorted(given, reasons)],
                [*columns, "reason"],
            ),
            "report": Document(_report(len(records), given, kept, reasons)),
            "metrics": _survival(records, {one.id for one in kept}),
        }

    def _matched(self, records: Records, rationales: Records) -> tuple[list[Given], bool]:
        """The rationales in the order of the records (and of their samples), and whether they are samples."""
        need_columns(rationales, ["id", "rationale"], "rationales")
        own, counted = unique(records, "id", "records"), "count" in self.config.rules
        several = "sample" in rationales.columns and "consistency" in self.config.rules
        if several:
            need_columns(rationales, ["sample"], "rationales")
        else:
            unique(rationales, "id", "rationales")
        found: dict[Any, dict[Any, Row]] = {}
        for row in rationales:
            samples = found.setdefault(row["id"], {})
            if several and row["sample"] in samples:
                raise DataError(Problem(f"a sample of a record came more than once: {shown([row['id']])}", path="sample"))
            samples[row["sample"] if several else ""] = row | {"rationale": row["rationale"] or ""}
        wanted = list(own) if counted else [identity for identity in own if identity in found]
        same_keys(found, wanted, "rationales", "records")
        if counted and len({frozenset(samples) for samples in found.values()}) > 1:
            why = "the rule 'count' wants as many for each"
            raise DataError(Problem("records have different samples of rationales", path="sample", why=why))
        return [Given(i, sample, found[i][sample]) for i in wanted for sample in sorted(found[i], key=_in_order)], several

    def _format(self, context: Context, records: Records, given: list[Given]) -> Reasons:
        c = self.config
        found = {one: format_reason(one.row, c.min_words, c.max_words, c.refusals, c.require_finished) for one in given}
        return {one: reason for one, reason in found.items() if reason is not None}

    def _language(self, context: Context, records: Records, given: list[Given]) -> Reasons:
        chosen = self.config.language
        return {one: "language" for one in given if is_foreign(one.text, str(one.row.get("prompt") or ""), chosen)}

    def _leakage(self, context: Context, records: Records, given: list[Given]) -> Reasons:
        """Reject what has words of the record that its prompt does not have: chance, or the sanitizer was not there."""
        need_columns(Records([one.row for one in given]), ["prompt"], "rationales")
        fields, own, reasons = context.schema().fields, records.by_id(), Reasons()
        symbols = [name for name in self.config.released if name in fields and fields[name].domain]
        texts = [name for name in self.config.released if name not in symbols]
        for one in given:
            record, prompt = own[one.id], str(one.row["prompt"])
            free, whole = ([str(record[name]) for name in names if name in record] for names in (texts, symbols))
            if len(leaked(free, whole, one.text, prompt, COMMON)) >= self.config.leaked_words:
                reasons[one] = "leakage"
        return reasons

    def _answers(self, records: Records, given: list[Given]) -> dict[Given, str | None]:
        """The answer that each rationale comes to; None where there is none."""
        pattern = re.compile(self.config.answer_pattern) if self.config.answer_pattern is not None else None
        texts, found = self._texts(records), dict[Given, str | None]()
        for one in given:
            matches = pattern.findall(one.text) if pattern is not None else []
            answer = matches[-1] if matches else mentioned(one.text, texts[one.id]) if texts else None
            found[one] = (answer_key(answer) or None) if answer is not None else None  # an empty one has no vote
        return found

    def _texts(self, records: Records) -> dict[Any, dict[str, str]]:
        """id -> label -> text of the choice; empty without choices."""
        if not self.config.choices:
            return {}
        templates = {label: compile_template(text, f"choices.{label}") for label, text in self.config.choices.items()}
        return {row["id"]: {label: template.render(row) for label, template in templates.items()} for row in records}

    def _consistency(self, context: Context, records: Records, given: list[Given]) -> Reasons:
        """Of each record's samples, keep the first with the answer that most of them come to."""
        answers, votes = self._answers(records, given), dict[Any, Counter[str]]()
        for one, answer in answers.items():
            if answer is not None:
                votes.setdefault(one.id, Counter())[answer] += 1
        reasons: Reasons = {}
        taken = set()
        for one, answer in answers.items():
            if answer is None:
                reasons[one] = "no-answer"
                continue
            (best, most), *others = votes[one.id].most_common(2)
            tie = any(count == most for _, count in others)
            if tie or most <= self.config.agreement * votes[one.id].total():
                reasons[one] = "no-majority"
            elif answer != best:
                reasons[one] = "minority"
            elif one.id in taken:
                reasons[one] = "another-sample"
            else:
                taken.add(one.id)
        return reasons

    def _answer(self, context: Context, records: Records, given: list[Given]) -> Reasons:
        gold, reasons = self._gold(records), Reasons()
        for one, answer in self._answers(records, given).items():
            if answer is None:
                reasons[one] = "no-answer"
            elif answer != answer_key(gold[one.id]):
                reasons[one] = "wrong-answer"
        return reasons

    def _gold(self, records: Records) -> dict[Any, str]:
        """id -> the right answer; an empty one is an error in the data or in the template."""
        template = compile_template(self.config.gold or "", "gold")
        gold = {row["id"]: template.render(row).strip() for row in records}
        empty = sum(not answer_key(value) for value in gold.values())
        if empty:
            raise DataError(Problem(f"the right answer is empty for {empty} of {len(gold)} records", path="gold"))
        return gold

    def _duplicates(self, context: Context, records: Records, given: list[Given]) -> Reasons:
        return {given[i]: "duplicate" for i in near_duplicates([one.text for one in given], self.config.near_duplicate)}

    def _prediction(self, context: Context, records: Records, given: list[Given]) -> Reasons:
        """Reject where the local model, with the rationale before it, holds another choice for the likeliest."""
        gold, own, texts = self._gold(records), records.by_id(), self._texts(records)
        keys = {answer_key(label): label for label in self.config.choices or {}}
        lost = sum(answer_key(value) not in keys for value in gold.values())
        if lost:
            raise DataError(Problem(f"the right answer of {lost} of {len(gold)} records is not among the choices", path="gold"))
        asked, target = self._prompt(), self._target()
        pairs = [
            (asked.render(own[one.id] | {"rationale": one.text}), target(own[one.id], label, text))
            for one in given for label, text in texts[one.id].items()
        ]  # fmt: skip
        scores = iter(scored(context, context.model(self.config.model or ""), pairs, BATCH, "predicting from rationales"))
        chosen = {one: list(texts[one.id])[likeliest([next(scores) for _ in texts[one.id]], salt=one.text)] for one in given}
        return {one: "wrong-prediction" for one in given if chosen[one] != keys[answer_key(gold[one.id])]}

    def _usefulness(self, context: Context, records: Records, given: list[Given]) -> Reasons:
        """Reject where the right answer is no likelier with the rationale than without it."""
        gold, own, texts = self._gold(records), records.by_id(), self._texts(records)
        asked, target = self._prompt(), self._target()
        keys = {answer_key(label): label for label in self.config.choices or {}}
        pairs = []
        for one in given:
            right = keys.get(answer_key(gold[one.id]), gold[one.id])  # "(A)" is the choice A, as for the other rules
            answer = target(own[one.id], right, texts.get(one.id, {}).get(right, right))
            pairs += [(asked.render(own[one.id] | {"rationale": text}), answer) for text in (one.text, "")]
        scores = scored(context, context.model(self.config.model or ""), pairs, BATCH, "scoring rationales")
        gains = [scores[2 * i][0] - scores[2 * i + 1][0] for i in range(len(given))]
        return {one: "not-useful" for one, gain in zip(given, gains, strict=True) if not gain > 0}

    def _prompt(self) -> Template:
        return compile_template(self.config.label_prompt or "", "label_prompt")

    def _target(self) -> Callable[[Row, str, str], str]:
        """(record, label, text of that choice) -> what the model scores."""
        if self.config.label_target is None:
            return lambda record, label, text: label
        template = compile_template(self.config.label_target, "label_target")
        return lambda record, label, text: template.render(record | {"label": label, "text": text})


def _in_order(sample: Any) -> tuple[bool, float, str]:
    """Numbers by size, before texts: sample 2 comes before sample 10."""
    number = isinstance(sample, (int, float))
    return not number, float(sample) if number else 0.0, str(sample)


def _problem(one: Given) -> str:
    """Why teacher or decoder gave none, of a closed list, for a teacher's words come from elsewhere; "" where there is one.

    What was cut by the length limit is one: the rule format may reject it.
    """
    word = one.row.get("problem")
    if not word or (word == TOO_LONG and one.text):
        return ""
    return str(word) if word in DECODED else f"teacher-{word}" if word in PROBLEMS else "teacher-problem"


def _survival(records: Records, kept: set[Any]) -> Metrics:
    outcomes = [float(row["id"] in kept) for row in records]
    values = {"survival": sum(outcomes) / len(outcomes) if outcomes else 0.0, "records": float(len(outcomes))}
    return Metrics(values, {"survival": outcomes})


def _sorted(given: list[Given], reasons: Reasons) -> list[tuple[Given, str]]:
    return [(one, reasons[one]) for one in given if one in reasons]


def _report(records: int, given: list[Given], kept: list[Given], reasons: Reasons) -> dict[str, Any]:
    there = len({one.id for one in given})
    report: dict[str, Any] = {
        "records": records,
        "kept": len(kept),
        "rejected": dict(sorted(Counter(reasons.values()).items())),
        "share": len(kept) / there if there else 0.0,
    }
    if there < records:
        report["missing"] = records - there
    if len(given) > there:
        report["samples"] = len(given)
    if not kept:
        report["warning"] = "no rationale was kept: the student will train on labels alone"
    return report
