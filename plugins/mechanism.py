# SPDX-License-Identifier: Apache-2.0
"""What a privacy mechanism is, for those who write one: spaces, tables, entropy, token mechanisms, document mechanisms.

A *token mechanism* (`Mechanism`) gives log-probabilities over a public space of symbols; its output depends on one input symbol
alone, so the host can compute its certificate. A *document mechanism* sees a whole document: it may let what was released so
far decide what is drawn next, or ask a model of the same party. Both are registered by `register_mechanisms`. A *table* gives
the symbols of free text, their vectors and the public rule that cuts text (`register_tables`). `osmotic.plugins.contract` has
all of these names; import them from there.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from osmotic.schemas.base import Config
from osmotic.schemas.guarantees import Guarantee

if TYPE_CHECKING:
    import numpy as np

C = TypeVar("C", bound=Config)


# ---- spaces and tables -----------------------------------------------------------------------------------------------


class Tokenizer(Protocol):
    """A public rule from text to symbols and back; part of a table, and of the digest of every space made from it."""

    @property
    def digest(self) -> str:
        """SHA-256 of what the rule is (files and version), not of where it lies."""

    def encode(self, texts: Sequence[str]) -> "tuple[np.ndarray, np.ndarray]":
        """(int64 [n] indices of all texts one after another, V where unknown; int64 [texts] how many each text has)."""

    def decode(self, symbols: "np.ndarray", lengths: "np.ndarray") -> list[str]:
        """Text of each run of output indices; the inverse of `encode` but for case, spacing and unknown symbols."""


@dataclass(frozen=True)
class Table:
    """What a table plugin loads. vectors: float32 [V, d] (memory-mapped where it can be) or None; tokenizer: None for words."""

    symbols: tuple[str, ...]
    vectors: "np.ndarray | None"
    tokenizer: Tokenizer | None = None


class TablePlugin(ABC):
    """Vocabularies and vectors under references ``NAME:ARGUMENT``; public by declaration, hashed by the host."""

    name: ClassVar[str]

    @abstractmethod
    def load(self, argument: str, base: Path) -> Table:
        """The table; `base`: the folder that relative paths start from. Raises ConfigError when there is none."""

    @abstractmethod
    def files(self, argument: str, base: Path) -> Sequence[Path]:
        """The files that the table is made from, without loading them: part of cache keys. Raises ConfigError."""


@dataclass(frozen=True)
class Space:
    """A public space of symbols: a field's domain or a token table.

    vectors: float32 [V, d] or None. unknown: an input symbol V ("not in the table") exists, with its own row. tokenizer: how
    text is cut; None: the public rule of words (`osmotic.plugins.spaces.tokenize`).
    """

    name: str
    symbols: tuple[str, ...]
    vectors: "np.ndarray | None" = None
    unknown: bool = False
    tokenizer: Tokenizer | None = None

    @property
    def size(self) -> int:
        """V: the number of symbols that can come out."""
        return len(self.symbols)


class Entropy(Protocol):
    """Where a mechanism's randomness comes from: the operating system, or a seed (which voids the guarantee)."""

    def uniform(self, count: int) -> "np.ndarray":
        """float64 [count], uniform in (0, 1), never 0 or 1."""

    def integers(self, high: int, count: int) -> "np.ndarray":
        """int64 [count], uniform in [0, high), unbiased."""


# ---- token mechanisms ------------------------------------------------------------------------------------------------


class Mechanism(ABC, Generic[C]):
    """A token mechanism over a space. Output depends on the input symbol alone, so its certificate can be computed.

    A *wrapper* has ``wraps = True`` and a configuration field ``inner`` (a mapping: name and configuration); the host builds
    the inner mechanism over `inner_space` and gives it as the third argument.
    """

    name: ClassVar[str]
    wraps: ClassVar[bool] = False
    inner: "Mechanism[Any] | None" = None

    def __init__(self, config: C, space: Space, inner: "Mechanism[Any] | None" = None) -> None:
        self.config = config
        self.space = space
        self.inner = inner

    @abstractmethod
    def log_prob(self, rows: "np.ndarray") -> "np.ndarray":
        """log P(y | x) for input indices `rows` (int64 [n]; V = unknown): float64 [n, V], rows sum to 1 in probability."""

    @abstractmethod
    def guarantee(self) -> Guarantee:
        """What is claimed, per token (or field: the host says which)."""

    @property
    def exact(self) -> bool:
        """Whether `log_prob` is the law of `sample` itself, up to rounding; False: a numerical estimate, which proves nothing.

        Without a `sample` of its own a mechanism is drawn from `log_prob`, which then is the law, whatever is inside it.
        """
        return self.inner is None or type(self).sample is Mechanism.sample or self.inner.exact

    def derived(self) -> str:
        """What the law rests on beyond code, configuration and space: a number computed from them and cached, say; stable.

        It stands on the card, and what is drawn with must say the same: another value, forged or not, is certified anew.
        Asked for when a certificate is made and before each release, so it may compute.
        """
        return "" if self.inner is None else self.inner.derived()

    @classmethod
    def inner_space(cls, config: C, space: Space) -> Space:
        """The space of a wrapper's inner mechanism: by default the same."""
        return space

    def cells(self) -> "np.ndarray | None":
        """int64 [V + unknown]: the cell of each input symbol, for class partition; the cell is released exactly."""
        return None

    def distances(self, rows: "np.ndarray") -> "np.ndarray | None":
        """float64 [n, V + unknown]: d(x, x') for class metric (a true distance, of the unit that epsilon is given in)."""
        return None

    def cleartext(self) -> tuple[str, ...]:
        """Classes of input that come out unchanged, or marked, or dropped: declared on the card, allowed by the site or not."""
        return ()

    def sample(self, rows: "np.ndarray", entropy: Entropy) -> "np.ndarray":
        """Output indices int64 [n], drawn exactly from `log_prob`; override only with something faster and equal.

        Rows are computed in blocks of the symbols that occur, so that rounding in one row (1e-16, relative) may depend on which
        other symbols occur. Raises ComponentError when a row is no distribution.
        """
        import numpy as np

        from osmotic.plugins.exact import choose

        out = np.empty(len(rows), dtype=np.int64)
        symbols, which, counts = np.unique(rows, return_inverse=True, return_counts=True)
        places, ends = np.argsort(which, kind="stable"), np.cumsum(counts)  # one row for all places of a symbol
        for start in range(0, len(symbols), 256):
            weights = np.exp(self.log_prob(symbols[start : start + 256]))
            for first in range(start, min(start + 256, len(symbols)), 32):  # what stays in the processor's cache
                last = min(first + 32, start + len(weights))
                here = places[ends[first] - counts[first] : ends[last - 1]]
                out[here] = choose(weights[first - start : last - start], entropy, which[here] - first)
        return out


# ---- document mechanisms ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """One field of a document. space: the domain or table; None for a text field without a table."""

    name: str
    text: bool
    space: Space | None = None


@dataclass(frozen=True)
class Drawn:
    """One document as released: the text of each field, in order; `epsilon`: what it cost; `symbols`: sampled ones a field."""

    texts: tuple[str, ...]
    epsilon: float
    symbols: tuple[int, ...]


class DocumentMechanism(ABC, Generic[C]):
    """A mechanism over whole documents. Configuration fields annotated ModelName are models of the same party.

    model(name) builds or finds a model when it is called first: do that in `sample`, never when constructed.
    """

    name: ClassVar[str]

    def __init__(self, config: C, slots: Sequence[Slot], model: Callable[[str], Any]) -> None:
        self.config = config
        self.slots = tuple(slots)
        self.model = model

    @abstractmethod
    def guarantee(self) -> Guarantee:
        """What is claimed, per document."""

    @abstractmethod
    def parts(self) -> Sequence[Mechanism[Any]]:
        """Token mechanisms that it is composed of, at their largest epsilon: the host certifies each. None: never certified."""

    @abstractmethod
    def sample(self, documents: Sequence[tuple[str, ...]], entropy: Entropy) -> list[Drawn]:
        """One outcome a document, in order; a document has one text a slot. No outcome may depend on another document."""
