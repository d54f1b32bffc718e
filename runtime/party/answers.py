# SPDX-License-Identifier: Apache-2.0
"""Answers that were paid for, kept by model, method and question with its options (the seed is one), across tasks and kills.

An answer is what a model says to a question, whoever asks: so it may be given again. That a task may ask is checked before, and
that it did is noted for it, as if the question had gone once more. What failed is not kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from osmotic.plugins.contract import Answer
from osmotic.runtime.storage.journal import TaskJournal
from osmotic.runtime.storage.ledger import Ledger
from osmotic.schemas.messages import fingerprint


@dataclass(frozen=True)
class Questions:
    """Some questions, sorted. found: (place, answer kept); keys, places: of what is to be asked, alike ones once."""

    found: list[tuple[int, Any]]
    keys: list[str]
    places: list[list[int]]

    @property
    def first(self) -> list[int]:
        """One place of each question that is to be asked."""
        return [places[0] for places in self.places]


def answers_key(model: Sequence[str]) -> str:
    """Under which task of the journal a model's answers are kept; those of a version with other fields are asked anew."""
    return fingerprint(["answers", [field.name for field in fields(Answer)], *model])


class Answers:
    """What one model said to one party's tasks. `model` names it and says what it is; None: nothing is kept or found."""

    def __init__(self, ledger: Ledger, model: Sequence[str] | None) -> None:
        self._journal = None if model is None else TaskJournal(ledger, answers_key(model), "calls")

    def sort(self, method: str, items: Sequence[Any]) -> Questions:
        """Which of these were answered before. items: of plain values."""
        if self._journal is None:
            return Questions([], [str(i) for i in range(len(items))], [[i] for i in range(len(items))])
        places: dict[str, list[int]] = {}
        for i, item in enumerate(items):
            places.setdefault(fingerprint([method, item]), []).append(i)
        kept = {key: value for key in places if (value := self._journal.get(key)) is not None}
        found = sorted(((i, value) for key, value in kept.items() for i in places[key]), key=lambda pair: pair[0])
        asked = {key: several for key, several in places.items() if key not in kept}
        return Questions(found, list(asked), list(asked.values()))

    def keep(self, answers: Mapping[str, Any]) -> None:
        """Keep answers by their questions' keys."""
        if self._journal is not None and answers:
            self._journal.put_many(answers)
