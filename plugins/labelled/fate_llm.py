# SPDX-License-Identifier: Apache-2.0
"""Data set files of FATE-LLM (its FDKT): read, checked, and turned into schema and configuration of the components here.

A file of that kind is YAML with ten keys: label_key, text_key, sub_domain, few_shot_num_per_label, tokenize_format,
few_shot_format, augment_format, text_with_label_format, filter_format, label_list; others are for other tools and left alone.
A file whose prompts cannot work is refused with the place of every reason. Notes say where that program's own parser would
not read back what its prompts show (as its source of 2024 does it); the parser here does, so they do not stop anything.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from osmotic.plugins.labelled.formats import SampleFormat, label_problems
from osmotic.plugins.labelled.roundtrip import check_formats, stand_ins
from osmotic.plugins.labelled.template import PlainTemplate, slot_problems
from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.source import Source, did_you_mean, read

TEMPLATES: Mapping[str, tuple[str, ...]] = {  # key -> slots that it must have; sub_domain may stand in all of them
    "tokenize_format": ("label",),
    "few_shot_format": ("label", "text"),
    "augment_format": (),
    "text_with_label_format": ("i", "text", "label"),
    "filter_format": ("text_with_label",),
}
KEYS = ("label_key", "text_key", "sub_domain", "few_shot_num_per_label", *TEMPLATES, "label_list")
DOMAIN = "sub_domain"
RENAMED = {"i": "index", "text_with_label": "samples"}


@dataclass(frozen=True)
class Converted:
    """Blocks for our files by name, and notes about how the file's own program would have read its prompts."""

    blocks: dict[str, Any]
    notes: list[Problem]


@dataclass
class _Reading:
    """A file while it is read: problems with their places, templates that are whole."""

    source: Source
    problems: list[Problem] = field(default_factory=list)
    templates: dict[str, PlainTemplate] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)  # the entries of label_list as they stand in the file

    def get(self, key: str) -> Any:
        value: Any = self.source.value
        return value.get(key)

    def say(self, key: str, *problems: Problem) -> None:
        self.problems += [replace(one, where=self.source.where((key,)), path=key) for one in problems]


def read_fate_llm(path: Path, strict: bool = False) -> Converted:
    """Read a file. Raises ConfigError with every problem and its place; the notes go along, or with `strict` are problems."""
    found = _Reading(read(path))
    if not isinstance(found.source.value, dict):
        raise ConfigError(Problem("must be a mapping", found.source.name, fix=f"keys: {', '.join(KEYS)}"))
    found.written = _entries(path, "label_list")
    labels = _labels(found)
    domain, shots = _settings(found)
    for key, slots in TEMPLATES.items():
        _template(found, key, slots, domain)
    few_shot = found.templates.get("few_shot_format")
    notes = _own_parser(found.source, few_shot, labels, domain) if few_shot is not None and labels else []
    texts = {key: one.renamed(RENAMED, {DOMAIN: domain or ""}) for key, one in found.templates.items()}
    if "few_shot_format" in texts:
        problems = check_formats(stand_ins(None, labels=labels), labels or ("one", "two"), texts["few_shot_format"])
        found.say("few_shot_format", *[Problem(text.removeprefix("format: ")) for text in problems])
    if found.problems or (strict and notes):
        error = ConfigError(*found.problems, *(notes if strict else ()))
        for note in () if strict else notes:
            error.add_note(f"note: {note.path}: {note.what}; {note.why}")
        raise error
    return Converted(_blocks(found, texts, labels, shots), notes)


def _entries(path: Path, key: str) -> list[str]:
    """The entries of a list as the file writes them: YAML would make 1 of 01, and 1000.0 of 1e3."""
    import yaml

    root = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    lists = [value.value for name, value in pairs if name.value == key and isinstance(value, yaml.SequenceNode)]
    return [str(one.value) for one in lists[0]] if lists else []


def _labels(found: _Reading) -> tuple[str, ...]:
    """The labels as text; numbers as they are written (01, 1e3)."""
    values = found.get("label_list")
    if not isinstance(values, list) or not values:
        found.say("label_list", Problem("must be a list of labels", fix="the public list of all labels"))
        return ()
    if not all(isinstance(value, str | int | float) and not isinstance(value, bool) for value in values):
        found.say("label_list", Problem("labels must be texts or numbers", fix="put words such as true in quotes"))
        return ()
    labels = tuple(value if isinstance(value, str) else text for value, text in zip(values, found.written, strict=True))
    problems = label_problems(None, labels)
    found.say("label_list", *[Problem(text.removeprefix("labels: ")) for text in problems])
    if len(labels) < 2:
        found.say("label_list", Problem("there must be two labels or more"))
    return () if problems else labels


def _settings(found: _Reading) -> tuple[str | None, int]:
    """(sub_domain, few_shot_num_per_label); says what is wrong with the plain keys."""
    for key in ("label_key", "text_key"):
        if not isinstance(found.get(key), str) or not re.fullmatch(r"[A-Za-z_][A-Za-z_0-9]*", found.get(key)):
            found.say(key, Problem("must be the name of a column: letters, digits and '_'"))
    domain, shots = found.get(DOMAIN), found.get("few_shot_num_per_label")
    if domain is not None and (not isinstance(domain, str) or not domain.strip() or re.search(r"[{}%#]", domain)):
        found.say(DOMAIN, Problem("must be a text without braces, '%' and '#'"))
        domain = None
    shots = 2 if shots is None else shots
    if not isinstance(shots, int) or isinstance(shots, bool) or not 1 <= shots <= 64:
        found.say("few_shot_num_per_label", Problem("must be a number in 1..64"))
    return domain, shots


def _template(found: _Reading, key: str, required: Iterable[str], domain: str | None) -> None:
    """One template: there, plain, with its slots."""
    text = found.get(key)
    if not isinstance(text, str) or not text.strip():
        near = did_you_mean(key, [k for k in found.source.value if isinstance(k, str) and k not in KEYS])
        fix = near if near.startswith("did you") else ""
        found.say(key, Problem("this key is required: a template" if text is None else "must be a text", fix=fix))
        return
    try:
        made = PlainTemplate(text, key)
        problems = slot_problems(made, required, (DOMAIN,))
    except ConfigError as error:
        problems = error.problems
    why = {
        "filter_format": "the judge would be asked about samples that the prompt does not contain",
        "few_shot_format": "the teacher would see examples without it",
        "tokenize_format": "the generator would not know what to write",
    }.get(key, "")
    found.say(key, *[replace(one, why=one.why or why) for one in problems])
    if not problems:
        found.templates[key] = made
        if DOMAIN in made.names and domain is None:
            found.say(key, Problem("the slot 'sub_domain' is not filled in", fix="give the key sub_domain"))


def _blocks(found: _Reading, texts: Mapping[str, str], labels: tuple[str, ...], shots: int) -> dict[str, Any]:
    """Schema, mapping, and configuration by component."""
    control = texts["tokenize_format"].strip()
    return {
        "schema": {"fields": {"label": {"domain": list(labels)}, "text": {"text": True}}},
        "map": {"label": f"{{{{ {found.get('label_key')} }}}}", "text": f"{{{{ {found.get('text_key')} }}}}"},
        "dp_generator": {"prompt": control},
        "text_synthesizer": {"prompt": control},
        "cluster_judge": {"sample": texts["text_with_label_format"].strip("\n"), "prompt": texts["filter_format"].strip("\n")},
        "teacher_augmenter": {
            "format": SampleFormat(texts["few_shot_format"]).source,
            "prompt": f"{texts['augment_format'].strip()}\n\n{{{{ examples }}}}",
            "labels": list(labels),
            "few_shot_per_label": shots,
        },
    }


def _own_parser(source: Source, template: PlainTemplate, labels: tuple[str, ...], domain: str | None) -> list[Problem]:
    """What the program that the file is for would lose of two blocks that copy the form it shows."""

    def note(key: str, what: str, why: str) -> Problem:
        return Problem(f"FATE-LLM's own parser {what}", source.where((key,)), key, why)

    keys = re.findall(r"<([^>]+)>", template.source)[:2]
    if len(keys) < 2:
        return [note("few_shot_format", "cannot read it", "it takes its names from the first two <words>; read here, it is")]
    values = {DOMAIN: domain or "", "text": "a text", "label": labels[0]}
    shown = "".join(template.fill(values).removesuffix("\n") for _ in range(2))
    entries = [entry.split(f"<{keys[1]}>:") for entry in shown.split("\n\n-")]
    kept = [parts[0] for parts in entries if len(parts) == 2 and f"<{keys[0]}>" in parts[0]]
    found = []
    if len(kept) < 2:
        what = f"reads {len(kept)} of 2 blocks that copy the form shown"
        found.append(note("few_shot_format", what, "it looks for an empty line and a dash between them; read here, both are"))
    raw = template.fill(values).split(f"<{keys[1]}>:")[0].split(f"<{keys[0]}>:")[-1].strip(" \n-*")
    if all(re.fullmatch(r"-?[0-9]+", label) for label in labels):
        if any(len(label) > 1 for label in labels):
            found.append(note("label_list", "takes the first digit of a label alone", "read here, all count"))
    elif raw != labels[0]:
        found.append(note("few_shot_format", f"reads the label {labels[0]!r} as {raw!r}", "read here, it is the label"))
    return found
