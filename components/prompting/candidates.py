# SPDX-License-Identifier: Apache-2.0
"""Candidate prompts that are voted on, as they travel: one document from whoever proposes to all who answer and vote.

``{"prompts": [PROMPT, ...], "vote": RULE}``: the current prompt first, then edits of it; all have its frozen tokens and its
places, so that an edit can be named by a position and a word.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

from osmotic.components.prompting.prompts import Prompt
from osmotic.components.prompting.votes import Rule
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import DataError, Problem

__all__ = ["MOST", "Candidates", "column"]
MOST = 1000  # candidates in one round
FIX = "connect the candidates that prompt_proposer gave"
Edit = tuple[int, str]


def column(number: int) -> str:
    """The column of the answers to a candidate.

    >>> column(3)
    'c3'
    """
    return f"c{number}"


@dataclass(frozen=True)
class Candidates:
    """The prompts, the current one first, and the rule by which records vote on them."""

    prompts: tuple[Prompt, ...]
    vote: Rule

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the document, hexadecimal."""
        return hashlib.sha256(canonical(self.to_json())).hexdigest()

    def edits(self, number: int) -> tuple[Edit, ...]:
        """(position, word) wherever a candidate differs from the current prompt."""
        pairs = zip(self.prompts[0].tokens, self.prompts[number].tokens, strict=True)
        return tuple((i, after.text) for i, (before, after) in enumerate(pairs) if before.text != after.text)

    def to_json(self) -> dict[str, Any]:
        """The document."""
        return {"prompts": [prompt.to_json() for prompt in self.prompts], "vote": self.vote}

    @classmethod
    def of_json(cls, data: Any, path: str = "candidates") -> "Candidates":
        """The inverse of `to_json`. Raises DataError for anything else, or prompts whose frozen tokens or places differ."""
        fine = isinstance(data, Mapping) and set(data) == {"prompts", "vote"} and isinstance(data["prompts"], list)
        if not fine or data["vote"] not in get_args(Rule):
            raise DataError(Problem("not candidates: 'prompts' and 'vote' are needed, and nothing else", path=path, fix=FIX))
        if not 1 <= len(data["prompts"]) <= MOST:
            what = f"{len(data['prompts'])} candidates: there must be 1 to {MOST}, the current prompt first"
            raise DataError(Problem(what, path=path, fix=FIX))
        prompts = tuple(Prompt.of_json(one, f"{path}.prompts[{i}]") for i, one in enumerate(data["prompts"]))
        for i, prompt in enumerate(prompts):
            if prompt.skeleton != prompts[0].skeleton or prompt.free != prompts[0].free:
                what = "the candidate is no edit of the current prompt: its frozen tokens or their places differ"
                raise DataError(Problem(what, path=f"{path}.prompts[{i}]", fix=FIX))
        return cls(prompts, data["vote"])
