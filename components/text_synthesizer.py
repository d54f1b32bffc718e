# SPDX-License-Identifier: Apache-2.0
"""Write texts for every label with a trained generator (FDKT, arXiv 2405.14212, "synthesize").

How many texts there are, and of which label, follows from the configuration, or from released counts (label_counter): negative
ones count as 0, and if none is above it, labels are alike. A row that came out empty stays, so that the number of rows tells
nothing; synthetic_filter removes it. Ids tell a row's place. Every answer is written down as it comes: a task that was killed
asks only for what is missing. Guarantee: that of `weights` and `counts`; no private record is read. Without `weights` the model
writes as it is: the control arm, which says what the private training adds.
"""

import hashlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Self

from pydantic import Field, model_validator

from osmotic.components.matching import need_columns, unique
from osmotic.components.templates import check_slots, compile_template, slots
from osmotic.plugins.contract import (
    Answer,
    Component,
    Config,
    Context,
    DatasetName,
    Generation,
    ModelName,
    Out,
    Outputs,
    Records,
    Weights,
)
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ComponentError, ConfigError, DataError, Problem
from osmotic.schemas.records import RecordSchema, numbered
from osmotic.schemas.source import did_you_mean

COLUMNS = ("id", "label", "text")
MOST = 10**7


class TextSynthesizerConfig(Config):
    """Which texts are asked for, how many, and how they are drawn."""

    model: ModelName
    prompt: str = Field(
        description="Jinja2, the generator's control code. Slots: the label's field, `constants`, and fields with a domain, "
        "which go through their values in turn."
    )
    label_field: str = Field("label", description="The label's name in the prompt and in the records' schema.")
    data: DatasetName | None = Field(None, description="Without inputs: the data set whose public schema has the labels.")
    labels: tuple[str, ...] | None = Field(
        None, strict=False, min_length=1, description="Default: the domain of label_field, in its order."
    )
    constants: dict[str, str] = Field(default={}, description="Values of other slots of the prompt.")
    per_label: int | None = Field(None, ge=1, description="Texts of each label; with `counts`, on average.")
    total: int | None = Field(None, ge=1, le=MOST, description="Texts in all, instead of per_label.")
    max_new_tokens: int = Field(256, ge=1)
    temperature: float = Field(1.0, gt=0, strict=False, allow_inf_nan=False)
    top_k: int = Field(50, ge=0, description="Of the likeliest tokens, how many may be drawn; 0: all.")
    top_p: float = Field(0.9, gt=0, le=1, strict=False)
    stop: tuple[str, ...] = Field((), strict=False, description="Strings that end a text; not part of it.")
    batch: int = Field(32, ge=1, description="Texts asked at a time, of a model that cannot stream its answers.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.per_label is None) == (self.total is None):
            raise ValueError("give 'per_label' or 'total', and not both")
        if self.labels is not None and len(set(self.labels)) < len(self.labels):
            raise ValueError("a label stands twice in 'labels'")
        if self.label_field in self.constants:
            raise ValueError(f"'constants' gives {self.label_field!r}, which is the label")
        return self


class TextSynthesizer(Component[TextSynthesizerConfig]):
    """A generator's weights in, labelled texts out: rows of id, label, text."""

    name = "text_synthesizer"
    outputs = {"synthetic": Out(Records)}

    @classmethod
    def check(cls, config: TextSynthesizerConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Slots of the prompt, labels and constants that are outside their domains."""
        if schema is None:
            return ()
        domains = {name: spec.domain for name, spec in schema.fields.items() if spec.domain is not None}
        found = check_slots(config.prompt, {config.label_field, *config.constants, *domains}, "prompt")
        if config.labels is None and config.label_field not in domains:
            close = did_you_mean(config.label_field, domains)
            found.append(f"label_field: the records have no field {config.label_field!r} with a domain; {close}")
        given = [(f"constants.{name}", name, value) for name, value in config.constants.items()]
        given += [("labels", config.label_field, value) for value in config.labels or ()]
        for key, name, value in given:
            if name in domains and value not in domains[name]:
                found.append(f"{key}: {value!r} is outside the domain of {name!r}; {did_you_mean(value, domains[name])}")
        labels = config.labels or domains.get(config.label_field, ())
        if not found and len(labels) > 1 and config.label_field not in slots(config.prompt):
            found.append(f"prompt: has no slot {config.label_field!r}: all labels would get the same texts")
        return found

    def run(self, context: Context, weights: Weights | None = None, counts: Records | None = None) -> Outputs:
        """Write them all. weights: of a trained generator (default: the model as it is). counts: rows ``value``, ``count``.

        Raises ComponentError when the model gives no answer to a prompt; what was answered is kept.
        """
        model = context.model(self.config.model)
        if weights is not None and not hasattr(model, "with_weights"):
            what = f"the model {self.config.model!r} takes no trained weights here"
            raise ComponentError(Problem(what, path="model", fix="name a model with 'at' of this party's role"))
        asked = self._asked(context, counts)
        texts = self._answered(context, model if weights is None else model.with_weights(weights), asked)
        rows = [{"id": numbered(i), "label": one.label, "text": texts[i]} for i, one in enumerate(asked)]
        return {"synthetic": Records(rows, COLUMNS)}

    def _asked(self, context: Context, counts: Records | None) -> list["_Asked"]:
        """Every text to be written, in order: all of the first label, and so on."""
        config, schema = self.config, None
        if config.labels is None or slots(config.prompt) - {config.label_field, *config.constants}:
            schema = context.schema()
        labels = config.labels or _domain(schema, config.label_field)
        total = config.total or (config.per_label or 0) * len(labels)
        if total > MOST:
            raise ConfigError(Problem(f"{total:,} texts: at most {MOST:,} have an id", path="per_label", fix="lower it"))
        shares = _shares(counts, labels) if counts is not None else [1.0] * len(labels)
        names = sorted(slots(config.prompt) - {config.label_field, *config.constants})
        others = {name: _domain(schema, name) for name in names}
        template, rng = compile_template(config.prompt, "prompt"), context.rng("synthesis")
        asked = []
        for label, count in zip(labels, apportioned(shares, total), strict=True):
            for i in range(count):
                row = {**config.constants, **_in_turn(others, i), config.label_field: label}
                asked.append(_Asked(label, template.render(row), rng.getrandbits(31)))
        return asked

    def _answered(self, context: Context, model: Any, asked: Sequence["_Asked"]) -> dict[int, str]:
        """Index -> text; what is not in the journal is asked for, and written there as it comes."""
        journal, config = context.journal(), self.config
        keys = [one.key(i) for i, one in enumerate(asked)]
        texts = {i: str(known) for i, key in enumerate(keys) if (known := journal.get(key)) is not None}
        missing = [i for i in range(len(asked)) if i not in texts]
        how = Generation(
            config.max_new_tokens, config.temperature, config.top_p, config.stop, top_k=config.top_k,
            seeds=tuple(asked[i].seed for i in missing),
        )  # fmt: skip
        failed: dict[int, str] = {}
        context.progress(len(texts), len(asked))
        with closing(_batches(model, [asked[i].prompt for i in missing], how, config.batch)) as batches:
            for batch in batches:
                came = {missing[place]: answer for place, answer in batch}
                failed |= {i: answer.problem for i, answer in came.items() if answer.problem}
                made = {i: answer.text.strip() for i, answer in came.items() if not answer.problem}
                journal.put_many({keys[i]: text for i, text in made.items()})
                texts |= made
                context.progress(len(texts), len(asked))
        if failed or len(texts) < len(asked):
            raise ComponentError(_unanswered(asked, failed, len(asked) - len(texts)))
        return texts


@dataclass(frozen=True)
class _Asked:
    """One text to be written."""

    label: str
    prompt: str
    seed: int

    def key(self, index: int) -> str:
        """Its place in the journal."""
        return hashlib.sha256(canonical([index, self.prompt, self.seed])).hexdigest()


def apportioned(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers that sum to `total`, in proportion to the shares (largest remainders, the first of equal ones).

    Shares below 0 count as 0; where none is above 0, all are alike.

    >>> apportioned([3, -1, 1], 6), apportioned([0, -2], 3)
    ([5, 0, 1], [2, 1])
    """
    wanted = [max(0.0, share) for share in shares]
    wanted = wanted if sum(wanted) > 0 else [1.0] * len(wanted)
    exact = [total * share / sum(wanted) for share in wanted]
    parts = [int(value) for value in exact]
    order = sorted(range(len(parts)), key=lambda i: (parts[i] - exact[i], i))
    for i in order[: total - sum(parts)]:
        parts[i] += 1
    return parts


def _batches(
    model: Any, prompts: Sequence[str], how: Generation, batch: int
) -> Generator[list[tuple[int, Answer]], None, None]:
    """(index, answer) as they come, of a model that streams them; of another, `batch` at a time."""
    if hasattr(model, "stream"):
        yield from ([pair] for pair in model.stream(prompts, how))
        return
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        answers = model.generate(prompts[part], replace(how, seeds=how.seeds[part]))
        yield list(enumerate(answers, start))


def _shares(counts: Records, labels: Sequence[str]) -> list[float]:
    """Each label's count; 0 where there is none."""
    need_columns(counts, ["count"], "counts")
    found = unique(counts, "value", "counts")
    unknown = sorted(set(labels) - set(found))
    if found and len(unknown) == len(labels):
        what = "the counts are of other values than the labels"
        raise DataError(Problem(what, path="counts", fix="count the field that label_field names"))
    return [float(found[label]["count"]) if label in found else 0.0 for label in labels]


def _domain(schema: RecordSchema | None, name: str) -> tuple[str, ...]:
    spec = schema.fields.get(name) if schema else None
    if spec is None or spec.domain is None:
        fix = "name its values: labels, or constants"
        raise ConfigError(Problem(f"the field {name!r} has no domain", path="prompt", fix=fix))
    return spec.domain


def _in_turn(others: Mapping[str, Sequence[str]], number: int) -> dict[str, str]:
    """Values of fields for the text of that number: all combinations, one after another."""
    row = {}
    for name, domain in others.items():
        number, place = divmod(number, len(domain))
        row[name] = domain[place]
    return row


def _unanswered(asked: Sequence[_Asked], failed: Mapping[int, str], count: int) -> Problem:
    labels = sorted({asked[i].label for i in failed})
    shown = ", ".join(repr(label[:40]) for label in labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")
    why = f"{', '.join(sorted(set(failed.values())))}; labels: {shown}" if failed else "the model gave fewer answers than asked"
    fix = "run again: texts so far are kept; for 'too-long', lower max_new_tokens or shorten the label"
    return Problem(f"{count} of {len(asked)} texts could not be written", path="model", why=why, fix=fix)
