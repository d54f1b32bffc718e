# SPDX-License-Identifier: Apache-2.0
"""Masked inference: a masked language model guesses the true value of a position from the sanitised context around it.

Each released field is masked in turn in the rendered text (each word of a text field), and the model's candidates are compared
with what stood there before sanitising. It measures what the context gives away that the mechanism did not touch: fields that
tell about each other. The model sees released text only; the comparison reads private records, so the metrics are private. A
model that guesses badly shows nothing about a better one. Words that the model cuts into pieces cannot be guessed whole.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import Field

from osmotic.components.attacks import Pair, attacked, paired
from osmotic.components.mechanism_config import FieldsConfig, unknown_fields
from osmotic.components.templates import check_slots, compile_template
from osmotic.plugins.contract import Component, Context, Metrics, ModelName, Out, Outputs, Records
from osmotic.schemas.errors import ComponentError, DataError, Problem
from osmotic.schemas.records import RecordSchema

MASK = "[MASK]"
Question = tuple[int, str, str, tuple[str, ...] | None]  # record, text with a mask, what is right, the field's domain


class MaskedAttackerConfig(FieldsConfig):
    """Configuration of `masked_attacker`."""

    model: ModelName = Field(description="A masked language model at this party.")
    template: str = Field(description="The text that the model reads, over the released fields.")
    k: int = Field(5, ge=1, description="K: how many guesses count.")
    candidates: int = Field(
        50,
        ge=1,
        description="Candidates asked for; those outside a field's domain are passed over, since the domain is public.",
    )
    most: int = Field(2000, ge=1, description="Positions masked at most; chosen at random where there are more.")
    batch: int = Field(64, ge=1, description="Texts asked at a time.")


class MaskedAttacker(Component[MaskedAttackerConfig]):
    """How often a masked language model finds the true value from the sanitised context."""

    name = "masked_attacker"
    outputs = {"metrics": Out(Metrics)}

    @classmethod
    def check(cls, config: MaskedAttackerConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Fields that the schema does not have; slots that are not fields that were released."""
        known = config.fields or (list(schema.fields) if schema else None)
        return [*unknown_fields(config, schema), *(check_slots(config.template, known, "template") if known else ())]

    def run(self, context: Context, records: Records, sanitized: Records, key: Records) -> Outputs:
        """Metrics ``masked_top1`` and ``masked_topk`` (share of masked positions), ``positions``; outcomes: of each record that
        was asked about, its share.
        """
        fields = attacked(self.config, sanitized)
        questions = list(self._questions(context.schema(), paired(records, sanitized, key, fields), fields))
        if not questions:
            raise DataError(Problem("no position of the records could be masked", path="template"))
        if len(questions) > self.config.most:
            chosen = sorted(context.rng("masked").sample(range(len(questions)), self.config.most))
            questions = [questions[i] for i in chosen]
        hits = self._ask(context, questions)
        outcomes = {name: _by_record(questions, [hit < k for hit in hits]) for name, k in self._limits().items()}
        values = {name: sum(hit < k for hit in hits) / len(hits) for name, k in self._limits().items()}
        return {"metrics": Metrics({**values, "positions": float(len(hits))}, outcomes)}

    def _limits(self) -> dict[str, int]:
        return {"masked_top1": 1, "masked_topk": self.config.k}

    def _questions(self, schema: RecordSchema, pairs: list[Pair], fields: list[str]) -> Iterator[Question]:
        """Every position once: a domain field as a whole, a text field word by word where both texts have as many."""
        template = compile_template(self.config.template, "template")
        for i, (own, released) in enumerate(pairs):
            for field in fields:
                domain = schema.fields[field].domain
                true = [str(own[field])] if domain else str(own[field]).split()
                words = [str(released[field])] if domain else str(released[field]).split()
                for j, word in enumerate(true if len(true) == len(words) else ()):
                    masked = " ".join([*words[:j], MASK, *words[j + 1 :]])
                    text = template.render({**released, field: masked})
                    if text.count(MASK) == 1:
                        yield i, text, word, domain

    def _ask(self, context: Context, questions: list[Question]) -> list[int]:
        """The place of the true value among the guesses, from 0; a large number when it is not among them."""
        model, hits = context.model(self.config.model), []
        if not hasattr(model, "fill"):
            raise ComponentError(Problem(f"the model {self.config.model!r} is not a masked language model", path="model"))
        for start in range(0, len(questions), self.config.batch):
            part = questions[start : start + self.config.batch]
            answers = model.fill([text for _, text, _, _ in part], self.config.candidates)
            if len(answers) != len(part):
                raise ComponentError(Problem(f"{len(part)} texts were asked, {len(answers)} answers came"))
            hits += [_place(answer, right, domain) for answer, (_, _, right, domain) in zip(answers, part, strict=True)]
            context.progress(len(hits), len(questions))
        return hits


def _place(answer: Sequence[tuple[str, float]], right: str, domain: tuple[str, ...] | None) -> int:
    allowed = {value.casefold() for value in domain or ()}
    guesses = [token.strip().casefold() for token, _ in answer]
    guesses = list(dict.fromkeys(g for g in guesses if not allowed or g in allowed))
    return guesses.index(right.casefold()) if right.casefold() in guesses else 1 << 30


def _by_record(questions: list[Question], hits: list[bool]) -> list[float]:
    """Mean of each record's positions, in the records' order."""
    found: dict[Any, list[bool]] = {}
    for (record, *_), hit in zip(questions, hits, strict=True):
        found.setdefault(record, []).append(hit)
    return [sum(flags) / len(flags) for _, flags in sorted(found.items())]
