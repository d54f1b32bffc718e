# SPDX-License-Identifier: Apache-2.0
"""Checks of prompts before any model is loaded: every template is rendered, shows what it has to show, and is read back.

Published pipelines of this kind were broken by templates alone: a filter prompt without the samples, labels with a full stop,
blocks that the parser of their own format loses (FDKT, arXiv 2405.14212). So: components call `check_formats` in `check`, with
public stand-ins of the schema, and again in `run` with the rows at hand, before they ask for a model.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from osmotic.plugins.labelled.formats import FormatError, Parsed, Sample, SampleFormat, label_problems
from osmotic.plugins.labelled.template import single_braces
from osmotic.plugins.sandbox import check_slots, compile_template
from osmotic.schemas.errors import ConfigError, DataError
from osmotic.schemas.records import RecordSchema

STAND_IN = "An example of a text, with a comma and two numbers: 7 and 12."


@dataclass(frozen=True)
class Prompt:
    """A template to check. what: its configuration key. values: slot -> what fills it. shows: texts that it must contain."""

    what: str
    template: str
    values: Mapping[str, Any]
    shows: Sequence[str] = field(default_factory=tuple)


def stand_ins(schema: RecordSchema | None, label: str = "label", labels: Sequence[str] = ()) -> list[Sample]:
    """Public rows to try templates on: one for each label (given, else the domain of the field, else two made up)."""
    spec = schema.fields.get(label) if schema is not None else None
    known = tuple(labels) or (spec.domain if spec is not None and spec.domain else ("one", "two"))
    return [Sample(name, f"{STAND_IN} Number {i}.") for i, name in enumerate(known)]


def check_formats(
    samples: Iterable[Sample], labels: Sequence[str], template: str | None = None, prompts: Iterable[Prompt] = (),
    what: str = "format",
) -> list[str]:  # fmt: skip
    """Problems, as components' `check` gives them ("key: what is wrong"); none where every round trip is exact.

    template: of a `SampleFormat`, tried on every sample. prompts: rendered and searched. Nothing of a sample is quoted but its
    label. Samples of the format are also read back all together, as a prompt shows them.
    """
    found: list[str] = []
    form: SampleFormat | None = None
    if template is not None:
        try:
            form = SampleFormat(template, what)
        except ConfigError as error:
            found += [f"{what}: {p.what}" + "".join(f"; {line}" for line in (p.why, p.fix) if line) for p in error.problems]
    found += label_problems(form, labels)
    if form is not None and not found:
        found += _read_back(form, list(samples), labels, what)
    for prompt in prompts:
        found += prompt_problems(prompt)
    return found


def prompt_problems(prompt: Prompt) -> list[str]:
    """Slots that are unknown or written with single braces; texts that the rendered prompt lacks."""
    found = check_slots(prompt.template, prompt.values, prompt.what)
    for name in single_braces(prompt.template, prompt.values):
        found.append(f"{prompt.what}: '{{{name}}}' has single braces and is not filled in; write {{{{ {name} }}}}")
    if found:
        return found
    try:
        text = compile_template(prompt.template, prompt.what).render(prompt.values)
    except DataError as error:
        return [f"{prompt.what}: {problem.what}" for problem in error.problems]
    lost = sum(shown not in text for shown in prompt.shows)
    if not lost:
        return []
    slots = ", ".join(f"{{{{ {name} }}}}" for name in prompt.values)
    return [f"{prompt.what}: the prompt lacks {lost} of {len(prompt.shows)} texts that it has to show; its slots are {slots}"]


def _read_back(form: SampleFormat, samples: list[Sample], labels: Sequence[str], what: str) -> list[str]:
    """Samples that cannot be written, and a few-shot example of all of them that is not read back as it is."""
    blocks: list[str] = []
    wanted: list[Sample] = []
    found: dict[str, str] = {}
    for one in samples:
        try:
            blocks.append(form.render(one.label, one.text))
            wanted.append(Sample(one.label.strip(), one.text.strip()))
        except FormatError as error:
            shown = one.label if len(one.label) <= 40 else one.label[:40] + "..."
            found[one.label] = f"{what}: a sample of the label {shown!r} is not read back as it is; {error.problems[0].why}"
    parsed = form.parse(form.join(blocks), labels)
    if not found and parsed != Parsed(tuple(Sample(_same(s.label, labels), s.text) for s in wanted)):
        said = ", ".join(sorted({one.reason for one in parsed.rejected})) or "other samples come out"
        found[""] = f"{what}: its own few-shot example of {len(wanted)} samples is not read back as it is ({said})"
    return list(found.values())


def _same(label: str, labels: Sequence[str]) -> str:
    """The label as the list has it."""
    return next((one for one in labels if one.strip() == label), label)
