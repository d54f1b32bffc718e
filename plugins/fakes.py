# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for models and for the host, without torch: algorithms can be tested in milliseconds, and on every platform.

They keep the contract's shapes and errors, and are deterministic. The host's stand-in is `osmotic.plugins.fake_context`.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from osmotic.plugins.contract import Answer, Generation
from osmotic.plugins.fake_context import FakeContext, FakeJournal, hashed, validated
from osmotic.schemas.errors import ComponentError, Problem

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "FakeContext", "FakeEmbedder", "FakeJournal", "FakeMaskedLM", "FakeNextToken", "FakeScorer", "FakeTextGenerator",
    "validated",
]  # fmt: skip

MASK = "[MASK]"


# ---- models ----------------------------------------------------------------------------------------------------------


class FakeTextGenerator:
    """Answers from a dictionary or a function of the prompt. `prompts`: all that it was asked, in order.

    Words count as tokens: an answer longer than `max_new_tokens` words is cut and not finished; `stop` strings end an answer.
    """

    def __init__(self, answers: Mapping[str, str] | Callable[[str], str]) -> None:
        self._answers = answers
        self.prompts: list[str] = []

    def generate(self, prompts: Sequence[str], how: Generation) -> list[Answer]:
        """One answer a prompt. Raises ComponentError for a prompt that the dictionary does not have."""
        self.prompts.extend(prompts)
        return [self._answer(prompt, how) for prompt in prompts]

    def _answer(self, prompt: str, how: Generation) -> Answer:
        if callable(self._answers):
            text = self._answers(prompt)
        elif prompt in self._answers:
            text = self._answers[prompt]
        else:
            raise ComponentError(Problem("the fake generator has no answer", why=f"prompt: {prompt[:80]!r}"))
        for stop in how.stop:
            text = text.partition(stop)[0]
        ends = [found.end() for found in re.finditer(r"\S+", text)]
        if len(ends) > how.max_new_tokens:
            return Answer(text[: ends[how.max_new_tokens - 1]], False, how.max_new_tokens)
        return Answer(text, True, len(ends))


class FakeScorer:
    """Log-likelihoods by a function of (prompt, target); by default a target's word is likelier if the prompt has it."""

    def __init__(self, score: Callable[[str, str], float] | None = None) -> None:
        self._score = score or _by_overlap
        self.pairs: list[tuple[str, str]] = []

    def log_likelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
        """(log-probability, number of words) of each target."""
        self.pairs.extend(pairs)
        return [(self._score(prompt, target), max(1, len(target.split()))) for prompt, target in pairs]


def _by_overlap(prompt: str, target: str) -> float:
    known = set(re.findall(r"\w+", prompt.lower()))
    words = re.findall(r"\w+", target.lower()) or [""]
    return sum(math.log(0.5 if word in known else 0.05) for word in words)


class FakeMaskedLM:
    """Fills ``[MASK]`` from a list of candidates with log-probabilities that depend on the text and sum to 1."""

    def __init__(self, candidates: Sequence[str] = ("good", "bad", "great", "poor")) -> None:
        self._candidates = tuple(candidates)

    def vocabulary(self) -> tuple[str, ...]:
        """The candidates."""
        return self._candidates

    def logits(self, texts: Sequence[str]) -> "np.ndarray":
        """float32 [n, V]: the log-probabilities that `fill` gives."""
        import numpy as np

        out = np.empty((len(texts), len(self._candidates)), dtype=np.float32)
        for row, text in zip(out, texts, strict=True):
            found = dict(self._fill(text))
            row[:] = [found[word] for word in self._candidates]
        return out

    def fill(self, texts: Sequence[str], top_k: int) -> list[list[tuple[str, float]]]:
        """(token, log-probability), best first. Raises ComponentError unless a text has exactly one ``[MASK]``."""
        return [self._fill(text)[:top_k] for text in texts]

    def _fill(self, text: str) -> list[tuple[str, float]]:
        if text.count(MASK) != 1:
            raise ComponentError(Problem(f"a text must have exactly one {MASK} (it has {text.count(MASK)})"))
        weights = {word: 1 + hashed(f"{word}\0{text}") % 1000 for word in self._candidates}
        total = sum(weights.values())
        return sorted(((word, math.log(w / total)) for word, w in weights.items()), key=lambda pair: (-pair[1], pair[0]))


class FakeNextToken:
    """Next words from a list, the last of which ends an answer. Logits: a function of the text so far, by default its hash.

    `prompts`: all that it was asked, in order; `batches`: how many at a time.
    """

    def __init__(
        self, words: Sequence[str] = ("a", "b", "c", "."), logits: Callable[[str], Sequence[float]] | None = None
    ) -> None:
        self.words = tuple(words)
        self.prompts: list[str] = []
        self.batches: list[int] = []
        self._logits = logits or (lambda text: [hashed(f"{word}\0{text}") % 1000 / 250 - 2 for word in self.words])

    @property
    def vocabulary(self) -> int:
        """Number of words."""
        return len(self.words)

    @property
    def end(self) -> int:
        """The last word."""
        return len(self.words) - 1

    def start(self, prompts: Sequence[str]) -> "tuple[list[str], np.ndarray]":
        """(the texts so far, float32 [n, vocabulary])."""
        self.prompts.extend(prompts)
        self.batches.append(len(prompts))
        return list(prompts), self._rows(prompts)

    def advance(self, state: list[str], tokens: Sequence[int]) -> "tuple[list[str], np.ndarray]":
        """One word more for each text."""
        texts = [f"{text} {self.words[token]}" for text, token in zip(state, tokens, strict=True)]
        return texts, self._rows(texts)

    def text(self, tokens: Sequence[int]) -> str:
        """The words, joined; the last word of the list stands for no text."""
        return " ".join(self.words[token] for token in tokens if token != self.end)

    def _rows(self, texts: Sequence[str]) -> "np.ndarray":
        import numpy as np

        return np.array([list(self._logits(text)) for text in texts], dtype=np.float32).reshape(len(texts), len(self.words))


class FakeEmbedder:
    """A bag of words: every word has its own random direction, so texts that share words are near."""

    def __init__(self, dimension: int = 32) -> None:
        self._dimension = dimension

    def embed(self, texts: Sequence[str]) -> "np.ndarray":
        """float32 [n, dimension], length 1."""
        import numpy as np

        out = np.zeros((len(texts), self._dimension))
        for row, text in zip(out, texts, strict=True):
            for word in text.lower().split() or [""]:
                row += np.random.Generator(np.random.PCG64(hashed(word))).standard_normal(self._dimension)
        return np.asarray(out / np.linalg.norm(out, axis=1, keepdims=True), dtype=np.float32)
