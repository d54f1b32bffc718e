# SPDX-License-Identifier: Apache-2.0
"""Keep the synthetic texts that are of use: long enough, no duplicates, of their label as far as public means tell (FDKT).

Source: FDKT, arXiv 2405.14212, "synthesize": after stripping, fewer than 10 words is no text. There is one input, the texts,
and no port through which private records could come: had a text been left out because a private record reads alike, then its
absence would tell that this record is there. So a near-copy of a record is not filtered here; `copy_checker` counts such copies
at home, and its answer stays there. What is kept is computed from the texts, the schema, and a model: post-processing of the
generator's release, of the same guarantee, as long as the model has seen no private record.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from osmotic.components.matching import need_columns, unique
from osmotic.components.near_duplicates import near_duplicates
from osmotic.components.rationale_rules import fold, words
from osmotic.components.scoring import scored
from osmotic.components.templates import check_slots, compile_template
from osmotic.plugins.contract import Component, Config, Context, DatasetName, Metrics, ModelName, Out, Outputs, Records
from osmotic.schemas.errors import ComponentError, Problem
from osmotic.schemas.records import RecordSchema
from osmotic.schemas.source import did_you_mean

BARE = " -._~/\\*|#\t\r\n"  # what a text may be made of without saying anything
COLUMNS = ("id", "label", "text")
BATCH = 32  # pairs of prompt and label that are scored at a time
SAMPLES = 3
SHOWN = 60  # characters of a sample
Row = Mapping[str, Any]
Reasons = dict[int, str]  # index of a text -> why it is rejected


class SyntheticFilterConfig(Config):
    """What makes a text one of use."""

    label_field: str = Field("label", description="The schema's field whose domain the labels come from.")
    data: DatasetName | None = Field(None, description="Where no data set stands before: the one whose public schema it is.")
    labels: tuple[str, ...] | None = Field(None, strict=False, min_length=1, description="Default: the domain of label_field.")
    min_words: int = Field(10, ge=1)
    max_words: int | None = Field(None, ge=1)
    near_duplicate: float | None = Field(
        0.9,
        gt=0,
        le=1,
        strict=False,
        description="Jaccard similarity of word 3-grams from which on two are one; null: no rule.",
    )
    label_words: dict[str, list[str]] = Field(
        default={}, description="Label -> words or phrases, one of which its texts must have; labels without a list pass."
    )
    scorer: ModelName | None = Field(None, description="A public model: a text's label must be the likeliest one, see margin.")
    prompt: str = Field("{{ text }}\nLabel:", description="scorer: Jinja2 over `text`.")
    target: str = Field(" {{ label }}", description="scorer: Jinja2 over `label`: what is scored.")
    margin: float = Field(
        0.0, ge=0, strict=False, description="scorer: by how many nats the label may be less likely than the likeliest one."
    )
    label_score: Literal["sum", "token_mean"] = Field(
        "sum", description="scorer: log-likelihood of a label, or its mean a token (labels of unequal length)."
    )
    max_share: float | None = Field(
        None, gt=0, le=1, strict=False, description="Of the valid texts, how many may have one label; later ones are left out."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_words is not None and self.max_words < self.min_words:
            raise ValueError(f"min_words {self.min_words} is more than max_words {self.max_words}")
        return self


class SyntheticFilter(Component[SyntheticFilterConfig]):
    """Texts in; `valid` ones, `rejected` ones with the first reason that applied, and a `report` out."""

    name = "synthetic_filter"
    outputs = {"valid": Out(Records), "rejected": Out(Records), "report": Out(Metrics)}

    @classmethod
    def check(cls, config: SyntheticFilterConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Slots of the templates, and labels that there are not."""
        found = [*check_slots(config.prompt, ["text"], "prompt"), *check_slots(config.target, ["label"], "target")]
        spec = schema.fields.get(config.label_field) if schema else None
        if config.labels is None and schema is not None and (spec is None or spec.domain is None):
            close = did_you_mean(config.label_field, schema.fields)
            return [*found, f"label_field: the records have no field {config.label_field!r} with a domain; {close}"]
        known = config.labels or (spec.domain if spec else None)
        unknown = [label for label in config.label_words if known is not None and label not in known]
        return [*found, *(f"label_words: {label!r} is no label; {did_you_mean(label, known or ())}" for label in unknown)]

    def run(self, context: Context, texts: Records) -> Outputs:
        """Sort the texts: rows of ``id``, ``label``, ``text``; ids and order stay.

        Raises ComponentError when none is valid, with samples of each label (they are released), DataError for doubled ids.
        """
        need_columns(texts, COLUMNS, "texts")
        unique(texts, "id", "texts")
        labels = self._labels(context)
        rows = [{**{name: row[name] for name in COLUMNS}, "text": str(row["text"] or "")} for row in texts]
        reasons = self._reasons(context, rows, labels)
        kept = [row for i, row in enumerate(rows) if i not in reasons]
        notes = _silent(rows, reasons, labels)
        if not kept:
            raise ComponentError(
                Problem(f"none of {len(rows)} synthetic texts is valid", why="; ".join(notes.values())[:2000], fix=FIX)
            )
        rejected = [{**row, "reason": reasons[i]} for i, row in enumerate(rows) if i in reasons]
        return {
            "valid": Records(kept, COLUMNS),
            "rejected": Records(rejected, [*COLUMNS, "reason"]),
            "report": Metrics(_values(rows, kept, reasons, notes), notes=notes),
        }

    def _labels(self, context: Context) -> Sequence[str]:
        if self.config.labels is not None:
            return self.config.labels
        spec = context.schema().fields.get(self.config.label_field)
        if spec is None or spec.domain is None:
            what = f"the field {self.config.label_field!r} has no domain"
            raise ComponentError(Problem(what, path="label_field", fix="name the labels: labels: [...]"))
        return spec.domain

    def _reasons(self, context: Context, rows: Sequence[Row], labels: Sequence[str]) -> Reasons:
        """Rule by rule; a rule sees what the rules before it have left."""
        reasons = {i: reason for i, row in enumerate(rows) if (reason := self._alone(row, labels))}
        if self.config.near_duplicate is not None:
            left = _left(rows, reasons)
            same = near_duplicates([rows[i]["text"] for i in left], self.config.near_duplicate)
            reasons |= {left[place]: "duplicate" for place in same}
        if self.config.scorer is not None:
            reasons |= self._inconsistent(context, rows, _left(rows, reasons), labels)
        if self.config.max_share is not None:
            reasons |= _beyond(rows, _left(rows, reasons), self.config.max_share)
        return reasons

    def _alone(self, row: Row, labels: Sequence[str]) -> str:
        """What is wrong with a text by itself; "" if nothing."""
        config, count = self.config, len(words(row["text"].strip(BARE)))
        if row["label"] not in labels:
            return "unknown-label"
        if not count:
            return "empty"
        if count < config.min_words:
            return "too-short"
        if config.max_words is not None and count > config.max_words:
            return "too-long"
        wanted = config.label_words.get(row["label"])
        return "label-words" if wanted is not None and not _has_one(row["text"], wanted) else ""

    def _inconsistent(self, context: Context, rows: Sequence[Row], left: Sequence[int], labels: Sequence[str]) -> Reasons:
        """Texts whose label the scorer holds for less likely than the likeliest, by more than the margin."""
        config = self.config
        prompt, target = compile_template(config.prompt, "prompt"), compile_template(config.target, "target")
        names = [target.render({"label": label}) for label in labels]
        pairs = [(prompt.render({"text": rows[i]["text"]}), name) for i in left for name in names]
        scores = iter(scored(context, context.model(config.scorer or ""), pairs, BATCH, "scoring labels"))
        reasons: Reasons = {}
        for i in left:
            each = [
                total / count if config.label_score == "token_mean" else total for total, count in (next(scores) for _ in names)
            ]
            if each[list(labels).index(rows[i]["label"])] < max(each) - config.margin:
                reasons[i] = "inconsistent"
        return reasons


FIX = (
    "train the generator for longer or with less noise, lower temperature, or relax the rules (min_words, label_words, scorer)"
)


def _left(rows: Sequence[Row], reasons: Reasons) -> list[int]:
    return [i for i in range(len(rows)) if i not in reasons]


def _has_one(text: str, wanted: Sequence[str]) -> bool:
    """Whether one of the words or phrases stands in a text, whole."""
    folded = fold(text)
    return any(re.search(rf"(?<!\w){re.escape(fold(word))}(?!\w)", folded) for word in wanted)


def _beyond(rows: Sequence[Row], left: Sequence[int], share: float) -> Reasons:
    """What is to go for no label to have more than its share of what is kept; if that cannot be, labels become alike."""
    counts = Counter(rows[i]["label"] for i in left)
    most = max(counts.values(), default=0)
    least = min(counts.values(), default=0)
    while most > least and most > share * sum(min(count, most) for count in counts.values()):
        most -= 1
    seen, reasons = Counter[str](), Reasons()
    for i in left:
        seen[rows[i]["label"]] += 1
        if seen[rows[i]["label"]] > most:
            reasons[i] = "share"
    return reasons


def _silent(rows: Sequence[Row], reasons: Reasons, labels: Sequence[str]) -> dict[str, str]:
    """Label without a valid text -> why, with samples; and labels that are none, together."""
    notes: dict[str, str] = {}
    places: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        places.setdefault(row["label"], []).append(i)
    for label in labels:
        mine = places.get(label, [])
        if all(i in reasons for i in mine):
            said = ", ".join(f"{n} {word}" for word, n in Counter(reasons[i] for i in mine).most_common()) or "no text came"
            samples = ", ".join(repr(rows[i]["text"][:SHOWN]) for i in mine[:SAMPLES])
            notes[f"silent label {len(notes) + 1}"] = f"label {label[:SHOWN]!r}: {said}" + (f", e.g. {samples}" if mine else "")
    unknown = sorted({str(row["label"]) for row in rows} - set(labels))
    if unknown:
        notes["unknown labels"] = f"not a label: {', '.join(repr(label[:SHOWN]) for label in unknown[:SAMPLES])}"
    return notes


def _values(rows: Sequence[Row], kept: Sequence[Row], reasons: Reasons, notes: Mapping[str, str]) -> dict[str, float]:
    values = {"texts": float(len(rows)), "valid": float(len(kept)), "valid_share": len(kept) / len(rows)}
    values["silent_labels"] = float(sum(name.startswith("silent") for name in notes))
    values["distinct_2"] = _distinct([row["text"] for row in kept])
    return values | {f"rejected_{reason}": float(count) for reason, count in sorted(Counter(reasons.values()).items())}


def _distinct(texts: Sequence[str]) -> float:
    """Share of different word pairs among all word pairs (distinct-2, Li et al. 2016)."""
    pairs = [pair for text in texts if (found := words(text)) for pair in pairwise(found)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0
