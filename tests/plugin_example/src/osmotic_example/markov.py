# SPDX-License-Identifier: Apache-2.0
"""A word-level Markov chain: the next word depends on the last `order` words, with back-off to fewer.

Trained on the public text in this package when it is built, in a blink. A real generator, though a small one: useful where a
pipeline is to run anywhere, without weights and without a network.
"""

import hashlib
import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from importlib import resources

from pydantic import Field

from osmotic.plugins.contract import Answer, Config, Generation, ModelPlugin

END = "."


class MarkovConfig(Config):
    """Configuration of `markov`."""

    order: int = Field(4, ge=1, le=6, description="How many words back the chain looks.")


class Markov(ModelPlugin[MarkovConfig]):
    """A chain over the words of a text about gardens."""

    name = "markov"
    provides = frozenset({"text_generator"})

    def fingerprint(self) -> str:
        """SHA-256 of the text, the order and the version of this code."""
        return hashlib.sha256(f"markov 1\n{self.config.order}\n{_text()}".encode()).hexdigest()

    def build(self) -> "Chain":
        """Count the text's word sequences."""
        return Chain(_text().split(), self.config.order)


class Chain:
    """Counts of what follows each context of up to `order` words."""

    def __init__(self, words: Sequence[str], order: int) -> None:
        self.order = order
        self._follows: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for i, word in enumerate(words):
            for length in range(min(order, i) + 1):
                self._follows[tuple(w.lower() for w in words[i - length : i])][word] += 1

    def generate(self, prompts: Sequence[str], how: Generation) -> list[Answer]:
        """One answer a prompt; a sentence's end finishes it. Equal prompts with equal seeds give equal answers."""
        return [self._one(prompt, how) for prompt in prompts]

    def _one(self, prompt: str, how: Generation) -> Answer:
        rng = random.Random(f"{how.seed}\n{prompt}")
        past, new = prompt.split(), []
        while len(new) < how.max_new_tokens:
            new.append(self._next([*past, *new], how, rng))
            text = " ".join(new)
            cut = min((at for stop in how.stop if stop and (at := text.find(stop)) >= 0), default=None)
            if cut is not None:
                return Answer(text[:cut], True, len(new))
            if new[-1].endswith(END):
                return Answer(text, True, len(new))
        return Answer(" ".join(new), False, len(new))

    def _next(self, past: list[str], how: Generation, rng: random.Random) -> str:
        context = tuple(word.lower() for word in past[-self.order :])
        while context not in self._follows:
            context = context[1:]
        ranked = sorted(self._follows[context].items(), key=lambda item: (-item[1], item[0]))
        if how.temperature == 0:
            return ranked[0][0]
        weights = [math.exp(math.log(count) / how.temperature) for _, count in ranked]
        kept = _nucleus(weights, how.top_p)
        return rng.choices([word for word, _ in ranked[:kept]], weights[:kept])[0]


def _nucleus(weights: list[float], top_p: float) -> int:
    """How many of the best carry `top_p` of the weight."""
    reached, wanted = 0.0, top_p * sum(weights)
    for i, weight in enumerate(weights, 1):
        reached += weight
        if reached >= wanted:
            return i
    return len(weights)


def _text() -> str:
    return resources.files("osmotic_example").joinpath("gardens.txt").read_text(encoding="utf-8")
