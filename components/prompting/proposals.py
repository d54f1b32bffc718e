# SPDX-License-Identifier: Apache-2.0
"""Words that may come to a position of a prompt: by a masked language model, by chance, or as an editor (an LLM) suggests.

None of them sees a record; what they are asked follows from the prompt, and so from what it became by private labels.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from osmotic.components.prompting.judging import Asker, SpentError
from osmotic.components.prompting.prompts import Prompt
from osmotic.components.prompting.search import Candidate
from osmotic.components.prompting.words import Words
from osmotic.components.templates import compile_template

_SAID = re.compile(r"\w+|[^\w\s]")
EDIT = (
    "Here is an instruction with a gap:\n{{ prompt }}\n"
    "Which words fit in the place of [MASK], other than {{ word }}? Answer with single words, the best first, with commas."
)


@dataclass(frozen=True)
class Proposed:
    """Candidates, best first. current: log-probability of the word that stands there; None where words have none."""

    candidates: Sequence[Candidate]
    current: float | None = None


class Proposals(Protocol):
    """A way to come by candidates."""

    def at(self, prompt: Prompt, position: int) -> Proposed:
        """Candidates for a free position of a prompt."""


class MaskedProposals:
    """The `top_k` likeliest usable words of a masked model; of equal ones, the smaller number. A text is asked once."""

    def __init__(self, model: Any, words: Words, top_k: int) -> None:
        self._model, self._words, self._top_k = model, words, top_k
        self._known: dict[str, Any] = {}

    def at(self, prompt: Prompt, position: int) -> Proposed:
        """Log-probabilities among the usable words."""
        import numpy as np

        text = self._text(prompt, position)
        if text not in self._known:
            self._known[text] = self._words.log_probabilities(self._model.logits([text])[0])
        logs, ids = self._known[text], self._words.ids
        best = [int(i) for i in np.argsort(-logs, kind="stable")[: self._top_k] if np.isfinite(logs[i])]
        own = self._words.id(prompt.tokens[position].text)
        current = None if own is None or own not in self._words.places else float(logs[self._words.places[own]])
        return Proposed([(self._words.word(ids[i]) or "", float(logs[i])) for i in best], current)

    def _text(self, prompt: Prompt, position: int) -> str:
        """The prompt with a mask; if it is too long for the model, as many tokens on each side as fit."""
        fits, longest = getattr(self._model, "fits", None), prompt.masked(position)
        if fits is None or fits(longest):
            return longest
        low, high = 0, len(prompt.tokens)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(prompt.masked(position, middle)) else (low, middle)
        return prompt.masked(position, low)


class RandomProposals:
    """Words of the vocabulary, all alike: the ablation without a language model."""

    def __init__(self, words: Words, top_k: int, rng: random.Random) -> None:
        self._words, self._top_k, self._rng = words, top_k, rng

    def at(self, prompt: Prompt, position: int) -> Proposed:
        """`top_k` of them."""
        drawn = self._rng.sample(self._words.ids, min(self._top_k, len(self._words.ids)))
        return Proposed([(self._words.word(number) or "", 0.0) for number in drawn])


class EditorProposals:
    """What an LLM suggests: usable words of its answer, the earlier the likelier (0, -1, ...). spent: its budget ended."""

    def __init__(self, asker: Asker, template: str, words: Words, top_k: int) -> None:
        self._asker, self._words, self._top_k = asker, words, top_k
        self._template = compile_template(template, "editor_prompt")
        self.spent = False

    @property
    def queries(self) -> int:
        """Answers of the editor."""
        return self._asker.queries

    def at(self, prompt: Prompt, position: int) -> Proposed:
        """One question to the editor, unless it was asked before; no candidates where it may not be asked any more."""
        row = {"prompt": prompt.masked(position), "word": prompt.tokens[position].text}
        try:
            text = self._asker.texts([self._template.render(row)])[0] or ""
        except SpentError:
            self.spent = True
            return Proposed([])
        said = [number for word in _SAID.findall(text) if word.isalnum() and (number := self._words.id(word)) is not None]
        found = [self._words.word(number) or "" for number in dict.fromkeys(said)][: self._top_k]
        return Proposed([(word, -float(rank)) for rank, word in enumerate(found)])
