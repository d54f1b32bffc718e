# SPDX-License-Identifier: Apache-2.0
"""What a model is, for those who write one: protocols of what it can do, a request and an answer, the plugin that builds it.

A model plugin (`register_models`) is light to construct and says what it is without loading it; the object that `build` gives
has one or more of the protocols. `osmotic.plugins.contract` has all of these names; import them from there.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

from osmotic.schemas.artifacts import Weights
from osmotic.schemas.base import Config

if TYPE_CHECKING:
    import numpy as np

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Generation:
    """How to generate. temperature 0 = greedy. `stop`: strings that end an answer (not part of it).

    json_schema: ask for JSON of this schema, where the back end can hold a model to one; the answer is still to be checked.
    top_k: of the likeliest tokens, how many may be drawn, before top_p; 0: all. seeds: one for each prompt, in the place of
    `seed`: prompts that read alike then get answers of their own.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    json_schema: Mapping[str, Any] | None = None
    top_k: int = 0
    seeds: tuple[int, ...] = ()

    def of(self, index: int) -> "Generation":
        """What holds for the prompt of that index alone."""
        return replace(self, seed=self.seeds[index], seeds=()) if self.seeds else self


@dataclass(frozen=True)
class Answer:
    """One generated text. finished: it ended by itself, not by the length limit. tokens: generated ones.

    prompt_tokens: of the prompt, 0 where a back end does not count them. cost: in the currency of the model's configuration.
    problem: why there is no answer, a word of `PROBLEMS`; "" where there is one.
    """

    text: str
    finished: bool
    tokens: int
    prompt_tokens: int = 0
    cost: float = 0.0
    problem: str = ""


PROBLEMS = ("timeout", "overloaded", "server-error", "refused-request", "bad-answer", "too-long", "empty-prompt")


@runtime_checkable
class TextGenerator(Protocol):
    """Text in, text out.

    A model may also have ``stream(prompts, how) -> Iterator[tuple[int, Answer]]``: (index of the prompt, answer) as they
    come, in any order, each once; what cannot be answered comes with `Answer.problem`, and the others go on. And beside it
    ``batches(prompts, how) -> Iterator[list[tuple[int, Answer]]]``: the same, those together that came together.
    """

    def generate(self, prompts: Sequence[str], how: Generation) -> list[Answer]:
        """One answer a prompt, in order."""


@runtime_checkable
class Scorer(Protocol):
    """Log-probabilities of given continuations."""

    def log_likelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
        """(sum of log-probabilities, number of tokens) of each target given its prompt."""


@runtime_checkable
class NextToken(Protocol):
    """Next-token distributions of a causal model, one token after another: for mechanisms that draw tokens themselves.

    A model may also have ``fits(prompt, new) -> bool``: whether a prompt and `new` tokens have room; texts are cut by it.
    """

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""

    @property
    def end(self) -> int:
        """The token that ends an answer."""

    def start(self, prompts: Sequence[str]) -> "tuple[Any, np.ndarray]":
        """(state, float32 [n, vocabulary] logits of the token after each prompt)."""

    def advance(self, state: Any, tokens: Sequence[int]) -> "tuple[Any, np.ndarray]":
        """(state, logits) after one more token for each prompt."""

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as text, without special ones."""


@runtime_checkable
class MaskedLM(Protocol):
    """Candidates for a masked position.

    A model may also have ``fits(text) -> bool``: whether there is room for a text; texts are cut around the mask by it.
    """

    def fill(self, texts: Sequence[str], top_k: int) -> list[list[tuple[str, float]]]:
        """For each text with one ``[MASK]``: (token, log-probability), best first."""

    def vocabulary(self) -> tuple[str, ...]:
        """Every token as text, in the order of the logits' columns; empty where a token stands for no text."""

    def logits(self, texts: Sequence[str]) -> "np.ndarray":
        """float32 [n, V]: the logits at the one ``[MASK]`` of each text."""


@runtime_checkable
class Embedder(Protocol):
    """Text -> vectors."""

    def embed(self, texts: Sequence[str]) -> "np.ndarray":
        """float32 [n, d], L2-normalised."""


@runtime_checkable
class Trainable(Protocol):
    """A model whose parameters can be trained (torch)."""

    def trainable(self) -> tuple[Any, Any]:
        """A fresh copy: (torch.nn.Module of transformers' causal or sequence-to-sequence kind, its tokenizer)."""

    def with_weights(self, weights: Weights) -> Any:
        """The same plugin's object with trained weights in place; meta["base"] must be this model's fingerprint."""


class ModelPlugin(ABC, Generic[C]):
    """Builds a model object from its configuration. Light to construct; `build` may be slow and is called once a process."""

    name: ClassVar[str]
    provides: ClassVar[frozenset[str]]  # of: text_generator, scorer, next_token, masked_lm, embedder, trainable

    def __init__(self, config: C) -> None:
        self.config = config

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of what the model is (files, not paths); part of cache keys. Must not load the model."""

    def endpoint(self) -> str | None:
        """Address of the server that answers, for the site's policy and the transcript; None: the model runs at its party."""
        return None

    def memory(self, training: bool) -> int | None:
        """Bytes of memory that it needs, for answering or for training, roughly; None: not known. Must not load the model."""
        return None

    @abstractmethod
    def build(self) -> Any:
        """The model object, with the protocols that `provides` names."""
