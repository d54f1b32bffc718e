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
from abc import ABC
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
from osmotic.plugins.model import (
    PROBLEMS,
    Answer,
    Embedder,
    Generation,
    MaskedLM,
    ModelPlugin,
    NextToken,
    Scorer,
    TextGenerator,
    Trainable,
)
from osmotic.schemas.artifacts import Artifact, Document, Gathered, Metrics, Records, Weights
from osmotic.schemas.base import Config
from osmotic.schemas.guarantees import Guarantee
from osmotic.schemas.records import RecordSchema

if TYPE_CHECKING:
    import numpy as np


__all__ = [
    "PROBLEMS", "Answer", "Artifact", "Component", "Config", "Context", "DatasetName", "Document", "DocumentMechanism",
    "Drawn", "Embedder", "Entropy", "Gathered", "Generation", "Guarantee", "Journal", "MaskedLM", "Mechanism", "Metrics",
    "ModelName", "ModelPlugin", "NextToken", "Out", "Outputs", "OwnModelName", "Port", "PrivateJob", "Records", "Scorer",
    "Slot", "Space", "Table", "TablePlugin", "TextGenerator", "Tokenizer", "Trainable", "Weights", "config_type", "input_ports",
]  # fmt: skip

C = TypeVar("C", bound=Config)
Outputs = Mapping[str, Artifact]
ModelName = Annotated[str, Field(json_schema_extra={"osmotic": "model"}, description="Name of a model of the pipeline.")]
OwnModelName = Annotated[
    str, Field(json_schema_extra={"osmotic": "model", "own": True}, description="Name of a model at the task's own role.")
]
DatasetName = Annotated[
    str, Field(json_schema_extra={"osmotic": "dataset"}, description="A bound data set: its public schema is read, no record.")
]


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


@dataclass(frozen=True)
class PrivateJob:
    """What is trained with differential privacy, and how; `Context.private_training` does it.

    Whatever comes out for a record may depend on that record and on public things alone, never on another record: this is tried
    on the model before training, and a job that mixes records is refused.
    module: torch.nn.Module; its parameters that require a gradient are trained, in place.
    encode: one record -> an example of any kind; None where nothing can be learned from it (it then adds nothing).
    losses: (module, examples) -> float tensor [n], one loss an example; is called with `module` wrapped.
    dummies: some public examples, of the kind that `encode` gives, to try the model on: two of unequal length or more.
    key: names everything public that the result depends on (model, templates, settings): equal jobs have equal keys.
    meta: goes with the trained weights; public. at_once: examples in memory at a time; changes nothing else.
    """

    module: Any
    encode: Callable[[Mapping[str, Any]], Any | None]
    losses: Callable[[Any, Sequence[Any]], Any]
    dummies: Sequence[Any]
    key: str
    learning_rate: float
    warmup: int = 0
    schedule: Literal["constant", "linear"] = "constant"
    weight_decay: float = 0.0
    at_once: int = 32
    dtype: Literal["float32", "bfloat16"] = "float32"
    meta: Mapping[str, Any] = field(default_factory=dict)


class Context(Protocol):
    """What the host gives to a running component."""

    @property
    def party(self) -> str:
        """Name of the party it runs at."""

    @property
    def task(self) -> str:
        """Identity of the task, e.g. ``student[arm=fedcot,seed=1]@north``."""

    def rng(self, stream: str) -> random.Random:
        """A named, seeded stream: equal for equal (pipeline seed or seed axis, party, round, stream), whatever the arm."""

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

    def noisy_votes(self, records: Records, votes: Mapping[str, int], size: int, noise: Mapping[str, Any]) -> Records:
        """How often each of `size` public candidates was voted for, with Gaussian noise: rows ``value`` ("0"..), ``count``.

        votes: record id -> number of a candidate, for every record of the data set; a vote may depend on its own record and on
        public or released things, on nothing else. noise: see `schemas.noise.VoteNoise`. count: a number, may be negative.
        Charged a record, and stored, before it returns; the same question about the same votes finds it again.
        """

    def private_training(self, records: Records, job: PrivateJob, noise: Mapping[str, Any]) -> "tuple[Weights, Document]":
        """Train with DP-SGD on every record of the data set: (the trained tensors, what happened step by step).

        noise: see `schemas.noise.TrainingNoise`. One plan binds Poisson sampling, clipping, noise and accounting; it is charged
        a record, in full, before the first gradient; a killed training goes on where it was, with the batches and the noise
        that it would have had, and the same training is found again, free. The weights are released: meta is the job's and the
        plan's. The document (batch sizes, losses) is private. Raises ConfigError for a model that gives no per-example
        gradients, RefusedError or BudgetError by the cap `per_record`.
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
