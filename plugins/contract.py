# SPDX-License-Identifier: Apache-2.0
"""What a plugin author implements: components, mechanisms, models. Everything here can be imported without torch.

A *component* is a function from typed artifacts to typed artifacts at one party::

    class DpSanitizer(Component[DpSanitizerConfig]):
        name = "dp_sanitizer"
        outputs = {"sanitized": Out(Records, label="release"), "key": Out(Records)}

        def run(self, context: Context, records: Records) -> Outputs: ...

Input ports are read from the annotations of `run`: an artifact class, ``Class | None`` (optional), or ``Gathered[Class]``
(one from every sending party). It never opens a socket, never sees another party, never picks a path. A *mechanism* gives
log-probabilities over a public space of symbols; the host samples from it, charges the ledger, stores the release. A *model*
plugin builds an object that has one or more of the protocols below.
"""

import inspect
import random
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

from pydantic import Field

from osmotic.plugins.mechanism import (
    DocumentMechanism,
    Drawn,
    Entropy,
    Mechanism,
    Slot,
    Space,
    Table,
    TablePlugin,
    Tokenizer,
)
from osmotic.schemas.artifacts import Artifact, Document, Gathered, Metrics, Records, Weights
from osmotic.schemas.base import Config
from osmotic.schemas.guarantees import Guarantee
from osmotic.schemas.records import RecordSchema

if TYPE_CHECKING:
    import numpy as np


__all__ = [
    "Answer", "Artifact", "Component", "Config", "Context", "DatasetName", "Document", "DocumentMechanism", "Drawn",
    "Embedder", "Entropy", "Gathered", "Generation", "Guarantee", "Journal", "MaskedLM", "Mechanism", "Metrics", "ModelName",
    "ModelPlugin", "NextToken", "Out", "Outputs", "Port", "Records", "Scorer", "Slot", "Space", "Table", "TablePlugin",
    "TextGenerator", "Tokenizer", "Trainable", "Weights", "config_type", "input_ports",
]  # fmt: skip

C = TypeVar("C", bound=Config)
Outputs = Mapping[str, Artifact]
ModelName = Annotated[str, Field(json_schema_extra={"osmotic": "model"}, description="Name of a model of the pipeline.")]
DatasetName = Annotated[
    str, Field(json_schema_extra={"osmotic": "dataset"}, description="A bound data set: its public schema is read, no record.")
]


# ---- components ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Out:
    """An output port. label: ``join`` (of the inputs), ``release`` (minted by the host) or ``source`` (a data binding)."""

    kind: type[Artifact]
    label: Literal["join", "release", "source"] = "join"


@dataclass(frozen=True)
class Port:
    """An input port, as read from `run`'s annotations."""

    kind: type[Artifact]
    optional: bool = False
    gathered: bool = False


class Journal(Protocol):
    """Append-only memory of one task that survives a kill: key -> JSON value (answers of a paid teacher, say)."""

    def get(self, key: str) -> Any | None:
        """What was put under the key by this task, in this or an earlier attempt; None if nothing."""

    def put(self, key: str, value: Any) -> None:
        """Store durably before going on."""

    def put_many(self, values: Mapping[str, Any]) -> None:
        """The same for several that came together, all or none: one write instead of many."""


class Context(Protocol):
    """What the host gives to a running component."""

    @property
    def party(self) -> str:
        """Name of the party it runs at."""

    @property
    def task(self) -> str:
        """Identity of the task, e.g. ``student[arm=fedcot,seed=1]@north``."""

    def rng(self, stream: str) -> random.Random:
        """A named, seeded stream: equal for equal (pipeline seed or seed axis, party, stream), whatever the arm."""

    def model(self, name: str) -> Any:
        """The model of that name: the object itself at this party, or a port to the party that has it."""

    def dataset(self, name: str) -> tuple[Records, RecordSchema]:
        """A data set that this party's site policy binds. Raises RefusedError when it does not.

        For components with an output of the label ``source`` only, and only the one that their configuration key `data` names.
        """

    def schema(self) -> RecordSchema:
        """The record schema of the data this party loaded (the first bound data set the task descends from)."""

    def release(
        self,
        records: Records,
        fields: Sequence[str],
        mechanism: Mapping[str, Any],
        *,
        attempt: int = 1,
        chosen: tuple[Records, Records] | None = None,
    ) -> tuple[Records, Records]:
        """Release the fields of each record through a mechanism: (released, key).

        Every record of the data set, once, as it was loaded; else RefusedError. mechanism: {"name": ..., and its
        configuration}. Charged to the ledger and stored, in one transaction, before this returns; what was released before is
        looked up and costs nothing. `released` has a fresh random ``id`` and the fields,
        in random order; `key` maps ``released`` (that id) to ``id`` (the record's own) and must stay at home. attempt: another
        number is another release of the same documents, charged in full. chosen: what `feedback` gave for this data set;
        then exactly the documents whose released bit is "yes" are to be given, and nothing else may choose.
        """

    def feedback(self, records: Records, bits: Mapping[str, bool], epsilon: float) -> tuple[Records, Records]:
        """One bit of each document through randomised response: (released, key).

        bits: record id -> bit, for every record of the data set; a bit may depend on its own document and on what was
        released, on nothing else. epsilon (at most 30) a document, charged like any release. `released` has a fresh random
        ``id`` and ``bit``: "yes" or "no", right with probability e^eps / (e^eps + 1).
        """

    def histogram(self, records: Records, field: str, mechanism: Mapping[str, Any]) -> Records:
        """Noisy counts of a domain field's values over the whole data set: rows ``value``, ``count``; charged a record.

        mechanism: {"name": "laplace", "epsilon": e} (pure) or {"name": "gaussian", "epsilon": e, "delta": d}; neighbours
        differ in one record's value (replace-one).
        """

    def noisy_sum(
        self, updates: "Iterable[Mapping[str, np.ndarray]]", shapes: Mapping[str, tuple[int, ...]], noise: Mapping[str, Any]
    ) -> Weights:
        """The sum of clients' updates, each clipped to an L2 norm, with Gaussian noise: float32 tensors of the `shapes`.

        updates: at most one a client, tensors by name; each is read twice, tensor by tensor. noise: {"clip": c,
        "noise_multiplier": z}, or epsilon, delta and rounds for z; the result's meta has both. Every update must be of one
        client alone: neighbours differ in one of them. Charged to this party's account of clients, and stored, before it
        returns; the same task with the same sum finds it again. Raises RefusedError or BudgetError by the cap `per_client`.
        """

    def mechanism(self, mechanism: Mapping[str, Any], field: str) -> Mechanism[Any]:
        """A token mechanism over the space of a field of the schema, for analysis: nothing is released or charged."""

    def blind(self, records: Records, fields: Sequence[str]) -> tuple[Records, Records]:
        """The fields unchanged under fresh random ids, in random order: (blinded, key).

        Protects nothing: the result stays private. For records that cross under a waiver, since ids never cross, waived or not.
        """

    def journal(self, name: str = "rows") -> Journal:
        """The task's durable memory."""

    def scratch(self) -> Path:
        """A folder of the task's own for checkpoints; kept until the task has finished."""

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Report progress; cheap, call it as often as you like."""


class Component(ABC, Generic[C]):
    """A building block. Subclasses set `name` and `outputs`, and implement `run`; the configuration is `self.config`."""

    name: ClassVar[str]
    outputs: ClassVar[Mapping[str, Out]]
    version: ClassVar[int] = 1
    trains: ClassVar[bool] = False  # whether it trains the models that it names: the plan then counts their optimiser states
    private_choice: ClassVar[bool] = False  # its output's presence depends on private data (documented in the catalogue)

    def __init__(self, config: C) -> None:
        self.config = config

    run: Callable[..., Outputs]

    @classmethod
    def mixes(cls, config: C) -> bool:
        """Whether an output row may depend on other records than its own; a feedback bit must not come from such rows."""
        return True

    @classmethod
    def check(cls, config: C, schema: RecordSchema | None) -> Sequence[str]:
        """Problems of a valid configuration against the record schema (templates, fields), before anything is loaded."""
        return ()


def config_type(cls: type[Any]) -> type[Config]:
    """The configuration class of a component, mechanism or model plugin, from its generic argument."""
    for base in (b for c in cls.__mro__ for b in getattr(c, "__orig_bases__", ())):
        for argument in get_args(base):
            if isinstance(argument, type) and issubclass(argument, Config):
                return argument
    raise TypeError(f"{cls.__name__} does not name its configuration class, as in Component[MyConfig]")


def input_ports(cls: type[Component[Any]]) -> dict[str, Port]:
    """Input ports of a component class, from the annotations of `run`. Raises TypeError when one is missing or wrong."""
    hints = get_type_hints(cls.run)
    names = list(inspect.signature(cls.run).parameters)[2:]
    return {name: _port(cls, name, hints.get(name)) for name in names}


def _port(cls: type, name: str, hint: Any) -> Port:
    optional = False
    if get_origin(hint) in (Union, types.UnionType):
        rest = [a for a in get_args(hint) if a is not type(None)]
        optional, hint = len(rest) < len(get_args(hint)), rest[0]
    gathered = get_origin(hint) is Gathered
    kind = get_args(hint)[0] if gathered else hint
    if not (isinstance(kind, type) and issubclass(kind, Artifact)):
        raise TypeError(f"{cls.__name__}.run: the input {name!r} must be annotated with an artifact class")
    return Port(kind, optional, gathered)


# ---- models ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Generation:
    """How to generate. temperature 0 = greedy. `stop`: strings that end an answer (not part of it).

    json_schema: ask for JSON of this schema, where the back end can hold a model to one; the answer is still to be checked.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    json_schema: Mapping[str, Any] | None = None


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
