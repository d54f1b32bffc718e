# SPDX-License-Identifier: Apache-2.0
"""Prompts that show local examples, one after another, and end where the next one is to be written (Self-Instruct style)."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from osmotic.components.matching import need_columns
from osmotic.components.templates import Template, check_slots, compile_template, slots
from osmotic.plugins.contract import Records
from osmotic.schemas.errors import DataError, Problem
from osmotic.schemas.records import RecordSchema
from osmotic.schemas.source import did_you_mean

Example = Mapping[str, str]  # slot -> text


def examples_of(records: Records, fields: Mapping[str, str], what: str = "records") -> list[dict[str, str]]:
    """The rows that have all of the texts, by slot. fields: slot -> field. Rows with a blank one are left out.

    Raises DataError where a field is missing or holds anything but text; nothing of a row is quoted.
    """
    need_columns(records, fields.values(), what)
    for name in fields.values():
        wrong = sum(not isinstance(row[name], str) for row in records)
        if wrong:
            fix = "give text there, or name another field"
            raise DataError(Problem(f"{wrong} of {len(records)} {what} have no text in {name!r}", path=name, fix=fix))
    rows = [{slot: row[name].strip() for slot, name in fields.items()} for row in records]
    return [row for row in rows if all(row.values())]


def field_problems(fields: Mapping[str, str], schema: RecordSchema | None) -> list[str]:
    """Fields that the records' schema does not have. fields: configuration key -> field."""
    known = schema.fields if schema else fields.values()
    return [
        f"{key}: the records have no field {name!r}; {did_you_mean(name, known)}"
        for key, name in fields.items()
        if name not in known
    ]


@dataclass(frozen=True)
class Layout:
    """How demonstrations are written. item: over the example's slots and `index`; prompt: over `demonstrations`, `index` (the
    number after theirs) and what is asked about. separator: stands between the items."""

    item: str
    separator: str
    prompt: str

    def problems(self, shown: Sequence[str], asked: Sequence[str] = ()) -> list[str]:
        """What is wrong with the templates. shown: slots that an item must show; asked: slots that the prompt must show."""
        found = check_slots(self.item, ["index", *shown], "item")
        found += check_slots(self.prompt, ["demonstrations", "index", *asked], "prompt")
        if found:
            return found
        parts = (("item", self.item, shown), ("prompt", self.prompt, ["demonstrations", *asked]))
        return [
            f"{key}: does not show {name!r}: write {{{{ {name} }}}} where it belongs"
            for key, text, wanted in parts
            for name in wanted
            if name not in slots(text)
        ]


class Prompts:
    """Writes prompts. rng: draws the demonstrations of every prompt, a prompt after another."""

    def __init__(self, layout: Layout, examples: Sequence[Example], count: int) -> None:
        if len(examples) < count:
            what = f"{count} demonstrations are asked, and there are {len(examples)} usable records"
            fix = "lower demonstrations, or give more records with a text in every field"
            raise DataError(Problem(what, path="demonstrations", fix=fix))
        self._examples, self._count, self._separator = list(examples), count, layout.separator
        self._item: Template = compile_template(layout.item, "item")
        self._prompt: Template = compile_template(layout.prompt, "prompt")

    def written(self, rng: random.Random, asked: Sequence[Example]) -> list[str]:
        """A prompt for each of `asked` (slots of the prompt beside the demonstrations), with demonstrations of its own."""
        return [self._one(rng.sample(self._examples, self._count), about) for about in asked]

    def _one(self, hand: Sequence[Example], about: Example) -> str:
        items = [self._item.render({**example, "index": i}) for i, example in enumerate(hand, 1)]
        return self._prompt.render({**about, "demonstrations": self._separator.join(items), "index": len(hand) + 1})
