# SPDX-License-Identifier: Apache-2.0
"""A wrapper that lets public classes of symbols through unchanged and gives all others to another mechanism.

Classes: `punctuation` (Unicode categories P and S, or such characters only), `digits` (decimal digits only), `letters` (one
letter a-z or A-Z, as in multiple-choice answers), `stopwords` (the list below, in any case). Membership is a property of the
symbol's text, so it is public; word pieces with a prefix such as ``##`` belong to no class but punctuation. The inner
mechanism works over the space of the remaining symbols (and unknown), so what it makes is never taken for a symbol that
passed.

Guarantee: partition, "given the class pattern": where symbols of these classes stand, and which, is released exactly; between
any two of the other symbols (within the inner mechanism's own cells, if it has some) epsilon holds as the inner mechanism
claims it. A heuristic inner mechanism stays heuristic, and one of class metric becomes so, because no one number covers both.
The classes are declared on the card, and a site must allow them. Void when: the inner mechanism's guarantee is, or a class is
extended by words from private data.
"""

import unicodedata
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from osmotic.plugins.contract import Config, Entropy, Guarantee, Mechanism, Space
from osmotic.plugins.mechanisms.shared import check_rows
from osmotic.schemas.errors import ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np

Class = Literal["punctuation", "digits", "letters", "stopwords"]
WORDS = (
    "a an and are as at be been but by did do does for from had has have he her his i if in is it its me my no nor not of on "
    "or our she so than that the their them then there these they this those to too was we were what when where which who why "
    "will with would you your"
)
STOPWORDS = frozenset(WORDS.split())


class CleartextConfig(Config):
    """Configuration of `cleartext`."""

    inner: dict[str, Any] = Field(description="The mechanism for all other symbols: its name and configuration.")
    classes: tuple[Class, ...] = Field(min_length=1, strict=False, description="Classes of symbols that pass unchanged.")


class Cleartext(Mechanism[CleartextConfig]):
    """Declared classes in the clear, the rest through another mechanism."""

    name = "cleartext"
    wraps = True

    def __init__(self, config: CleartextConfig, space: Space, inner: Mechanism[Any] | None = None) -> None:
        import numpy as np

        super().__init__(config, space, inner)
        kept = sampled_symbols(config, space)
        if inner is None or inner.space.symbols != tuple(space.symbols[i] for i in kept):
            raise ConfigError(Problem("cleartext needs a mechanism over the symbols of no class", path="inner"))
        self._inner, self._kept = inner, np.array(kept, dtype=np.int64)
        self._place = np.full(space.size + 1, -1)  # index in the inner space, -1 for what passes
        self._place[self._kept] = np.arange(len(kept))
        self._place[space.size] = len(kept)

    @classmethod
    def inner_space(cls, config: CleartextConfig, space: Space) -> Space:
        """The symbols of no class, with a copy of their vectors; raises ConfigError when there are none."""
        import numpy as np

        kept = sampled_symbols(config, space)
        if not kept:
            why = f"every symbol of the space {space.name!r} belongs to one of: {', '.join(config.classes)}"
            raise ConfigError(Problem("nothing is left to sample", path="classes", why=why))
        vectors = None if space.vectors is None else np.asarray(space.vectors)[kept]
        return Space(space.name, tuple(space.symbols[i] for i in kept), vectors, space.unknown)

    def log_prob(self, rows: "np.ndarray") -> "np.ndarray":
        """float64 [n, V]: 0 at the symbol itself where it passes, else the inner mechanism's row; -inf elsewhere."""
        import numpy as np

        rows = check_rows(rows, self.space)
        place = self._place[rows]
        out = np.full((len(rows), self.space.size), -np.inf)
        passing, drawn = np.flatnonzero(place < 0), np.flatnonzero(place >= 0)
        out[passing, rows[passing]] = 0.0
        if drawn.size:
            out[drawn[:, None], self._kept] = self._inner.log_prob(place[drawn])
        return out

    def guarantee(self) -> Guarantee:
        """Partition with the inner epsilon, given the class pattern; heuristic where the inner class is neither."""
        inner = self._inner.guarantee()
        kind: Literal["partition", "heuristic"] = (
            "partition" if inner.mechanism_class in ("certified", "partition") else "heuristic"
        )
        unit = "token" if inner.unit == "distance" else inner.unit
        return inner.model_copy(update={"mechanism_class": kind, "unit": unit})

    def cells(self) -> "np.ndarray":
        """int64 [V + unknown]: each symbol that passes alone; all others, unknown too, in one (or in the inner one's cells)."""
        import numpy as np

        place = self._place[: self.space.size + self.space.unknown]
        own = self._inner.cells()
        drawn = (np.zeros(len(self._kept) + self.space.unknown, dtype=np.int64) if own is None else own)[place]
        return np.asarray(np.where(place >= 0, drawn, np.arange(len(place)) + drawn.max() + 1))

    def cleartext(self) -> tuple[str, ...]:
        """The classes that pass, and those of the inner mechanism."""
        return tuple(dict.fromkeys((*self.config.classes, *self._inner.cleartext())))

    def sample(self, rows: "np.ndarray", entropy: Entropy) -> "np.ndarray":
        """int64 [n]: the inner mechanism draws for the symbols that do not pass, all in one call."""
        import numpy as np

        rows = check_rows(rows, self.space)
        place, out = self._place[rows], rows.copy()
        drawn = np.flatnonzero(place >= 0)
        if drawn.size:
            out[drawn] = self._kept[self._inner.sample(place[drawn], entropy)]
        return out


def class_of(symbol: str) -> Class | None:
    """The class of a symbol, by its text; None for all others. One letter that is a stop word (a, i) is a letter here."""
    if len(symbol) == 1 and symbol.isascii() and symbol.isalpha():
        return "letters"
    if symbol.lower() in STOPWORDS:
        return "stopwords"
    if symbol.isdecimal():
        return "digits"
    return "punctuation" if symbol and all(unicodedata.category(c)[0] in "PS" for c in symbol) else None


def sampled_symbols(config: CleartextConfig, space: Space) -> list[int]:
    """Indices of the symbols that do not pass, in order. The letters a and i pass with `stopwords` too."""
    return [i for i, symbol in enumerate(space.symbols) if not _passes(symbol, config.classes)]


def _passes(symbol: str, classes: tuple[Class, ...]) -> bool:
    return class_of(symbol) in classes or ("stopwords" in classes and symbol.lower() in STOPWORDS)
