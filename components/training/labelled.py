# SPDX-License-Identifier: Apache-2.0
"""Labelled texts as examples of a task: to write the target (generation), or to name the class (head)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from osmotic.components.templates import Template, slots
from osmotic.components.training.batches import Encoder, cue_of
from osmotic.components.training.heads import HeadEncoder, Pooling
from osmotic.components.training.parts import Example
from osmotic.plugins.contract import Config, Context, OwnModelName, Records
from osmotic.schemas.errors import ComponentError, ConfigError, Problem
from osmotic.schemas.records import RecordSchema


class TaskConfig(Config):
    """Keys of whoever trains a model for a task, with privacy or without."""

    model: OwnModelName
    mode: Literal["head", "generation"] = Field("head", description="Name the class by a head, or write the target.")
    prompt: str = Field(description="Jinja2 over the records' fields; head: the text that is classified.")
    target: str | None = Field(None, description="generation: Jinja2 over the records' fields. Default: the label.")
    label_field: str = Field("label", description="The field that holds the label; generation with `target` needs none.")
    labels: tuple[str, ...] | None = Field(None, strict=False, description="Public. Default: the domain of label_field.")
    pooling: Pooling = Field("last", description="head: the state of the last token, or the mean over all tokens.")


@dataclass
class Counts:
    """What did not go into the examples as it was."""

    unknown: int = 0  # labels that are not on the list
    empty: int = 0  # texts without tokens
    cut: int = 0


@dataclass
class Labelled:
    """Rows to examples. labels: those that may occur; empty: any may, and none is needed. target: None for a head of classes.

    Raises ConfigError for a template that is wrong.
    """

    label_field: str
    labels: Sequence[str]
    encoder: Encoder | HeadEncoder
    prompt: Template
    target: Template | None = None
    counts: dict[str, Counts] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._numbers = {label: number for number, label in enumerate(self.labels)}
        cue = cue_of(self.prompt.source)
        self.cue = len(self.encoder.encode_prompts([cue])[0]) if cue else 0

    def examples(self, rows: Sequence[Mapping[str, Any]], source: str) -> list[Example | None]:
        """One a row; None where its label is not on the list or its text has no tokens. Counts them under the source's name."""
        counts = self.counts.setdefault(source, Counts())
        known = [i for i, row in enumerate(rows) if not self.labels or str(row[self.label_field]) in self._numbers]
        counts.unknown += len(rows) - len(known)
        found: list[Example | None] = [None] * len(rows)
        for i, example in zip(known, self._encoded([rows[i] for i in known], known, counts), strict=True):
            found[i] = example
        return found

    def _encoded(self, rows: Sequence[Mapping[str, Any]], places: Sequence[int], counts: Counts) -> list[Example | None]:
        prompts = [self.prompt.render(row) for row in rows]
        if isinstance(self.encoder, HeadEncoder):
            heads, cut = self.encoder.texts(prompts, self.cue)
            counts.cut += cut
            counts.empty += sum(not head for head in heads)
            numbers = [self._numbers[str(row[self.label_field])] for row in rows]
            return [(head, [number]) if head else None for head, number in zip(heads, numbers, strict=True)]
        targets = [self.target.render(row) if self.target else "" for row in rows]
        made, cut = self.encoder.pairs(prompts, targets, places, self.cue)
        counts.cut += cut
        return list(made)


def labels_of(schema: RecordSchema | None, label_field: str, given: Sequence[str] | None) -> tuple[str, ...]:
    """The public list of labels: as given, else the field's domain; empty where there is neither."""
    if given is not None:
        return tuple(given)
    spec = schema.fields.get(label_field) if schema else None
    return tuple(spec.domain or ()) if spec else ()


def need_labels(context: Context, label_field: str, given: Sequence[str] | None) -> tuple[str, ...]:
    """The same. Raises ConfigError unless there are two or more, all different."""
    found = labels_of(None if given is not None else context.schema(), label_field, given)
    if len(set(found)) != len(found) or len(found) < 2:
        why = f"{len(found)} found" + (", some of them twice" if len(set(found)) != len(found) else "")
        fix = "give the field a domain in the schema, or list the labels: labels: [...]"
        raise ConfigError(Problem("a head needs a public list of two labels or more", path="labels", why=why, fix=fix))
    return found


def need_slots(records: Records, templates: Sequence[str], label_field: str | None, what: str) -> None:
    """Raises ComponentError when records lack a column that the templates name. label_field: None where none is looked at."""
    wanted = {name for name in (label_field,) if name is not None}.union(*(slots(text) for text in templates))
    missing = sorted(wanted - set(records.columns)) if len(records) else []
    if missing:
        fix = "use templates over the fields that both inputs have"
        raise ComponentError(Problem(f"the {what} lack {', '.join(map(repr, missing))}", path="prompt", fix=fix))
