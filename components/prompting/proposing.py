# SPDX-License-Identifier: Apache-2.0
"""Edits of the current prompt for records to vote on, made of public and released things.

`Credit` is what released counts have said about edits so far: (position, word) -> how often it was voted on, and by how many
votes it was better in all. An edit that was not better is not proposed again; one that was, and did not win, is.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from osmotic.components.prompting.candidates import Edit
from osmotic.components.prompting.prompts import Prompt
from osmotic.components.prompting.proposals import Proposals
from osmotic.schemas.errors import DataError, Problem

__all__ = ["Credit", "Proposer"]
DRAWS = 8  # tries for each candidate that is wanted, before fewer are taken


@dataclass
class Credit:
    """What votes have said of edits. known: (position, word) -> (times voted on, sum of its scores in votes)."""

    known: dict[Edit, tuple[int, float]] = field(default_factory=dict)

    def add(self, edits: Sequence[Edit], score: float) -> None:
        """One round's score of a candidate, shared among its edits."""
        for edit in edits:
            times, total = self.known.get(edit, (0, 0.0))
            self.known[edit] = (times + 1, total + score / len(edits))

    def mean(self, edit: Edit) -> float | None:
        """The mean score of an edit; None where it was never voted on."""
        times, total = self.known.get(edit, (0, 0.0))
        return total / times if times else None

    def again(self, prompt: Prompt) -> list[Edit]:
        """Edits that were better and are not in the prompt, the best first."""
        open_ = [edit for edit in self.known if (self.mean(edit) or 0.0) > 0 and _fits(prompt, edit)]
        return sorted(open_, key=lambda edit: (-(self.mean(edit) or 0.0), edit))

    def to_json(self) -> list[list[Any]]:
        """Lists of position, word, times, sum; sorted."""
        return [[position, word, times, total] for (position, word), (times, total) in sorted(self.known.items())]

    @classmethod
    def of_json(cls, data: Any, path: str = "credit") -> "Credit":
        """The inverse of `to_json`; raises DataError for anything else."""
        if not isinstance(data, list) or not all(isinstance(one, list) and len(one) == 4 and _entry(*one) for one in data):
            raise DataError(Problem("not the credit of edits", path=path, fix="connect what prompt_proposer gave"))
        return cls({(position, word): (times, float(total)) for position, word, times, total in data})


def _entry(position: Any, word: Any, times: Any, total: Any) -> bool:
    whole = all(isinstance(one, int) and not isinstance(one, bool) for one in (position, times))
    number = isinstance(total, int | float) and not isinstance(total, bool) and math.isfinite(total)
    return whole and isinstance(word, str) and number and position >= 0 and times > 0


def _fits(prompt: Prompt, edit: Edit) -> bool:
    position, word = edit
    return position < len(prompt.tokens) and not prompt.tokens[position].frozen and prompt.tokens[position].text != word


@dataclass
class Proposer:
    """Draws edits: words that `proposals` gives, by their log-probabilities at a temperature."""

    proposals: Proposals
    credit: Credit
    rng: random.Random
    temperature: float = 1.0

    def candidates(self, prompt: Prompt, count: int, edits: int) -> list[Prompt]:
        """`count` different edits of a prompt, or fewer where no more are found; each replaces `edits` words.

        Half of them, at most, give an edit that was better before another chance.
        """
        again = self.credit.again(prompt)[: count // 2]
        made = {one.template: one for one in (prompt.replaced(position, word) for position, word in again)}
        rows: dict[int, list[tuple[str, float]]] = {}
        for _ in range(DRAWS * count):
            if len(made) >= count:
                break
            found = self._edited(prompt, edits, rows)
            if found.template != prompt.template:
                made.setdefault(found.template, found)
        return list(made.values())[:count]

    def _edited(self, prompt: Prompt, edits: int, rows: dict[int, list[tuple[str, float]]]) -> Prompt:
        """With some free words replaced, each by what may stand at its place in the current prompt."""
        made = prompt
        for position in self.rng.sample(prompt.free, min(edits, len(prompt.free))):
            if position not in rows:
                rows[position] = self._row(prompt, position)
            if words := rows[position]:
                word = self.rng.choices([name for name, _ in words], [weight for _, weight in words])[0]
                made = made.replaced(position, word)
        return made

    def _row(self, prompt: Prompt, position: int) -> list[tuple[str, float]]:
        """(word, weight) of what may stand at a position: not what stands there, not what votes have found no better."""
        now, found = prompt.tokens[position].text.casefold(), self.proposals.at(prompt, position).candidates
        open_ = [(word, score) for word, score in found if word.casefold() != now and self._untold((position, word))]
        top = max((score for _, score in open_), default=0.0)
        return [(word, math.exp((score - top) / self.temperature)) for word, score in open_]

    def _untold(self, edit: Edit) -> bool:
        mean = self.credit.mean(edit)
        return mean is None or mean > 0
