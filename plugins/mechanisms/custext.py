# SPDX-License-Identifier: Apache-2.0
"""CusText: every word has a small set of words that it may become, and the exponential mechanism chooses among them.

Chen et al. 2023, "A Customized Text Sanitization Mechanism with Differential Privacy". `conservative`: the sets are a
partition, made by walking the symbols in public frequency order: each that has no set yet takes the k - 1 nearest (by cosine)
that have none either; fewer than k left over join the last set. Within a set P(y|x) is proportional to exp(eps u(x, y) / 2),
u the cosine similarity of x to the members, rescaled to [0, 1] (1 for x itself, 0 for the least similar).

Guarantee of `conservative`: partition, epsilon for two symbols of one set (u moves by at most 1, in weight and normaliser);
*which set* is released exactly. The unknown symbol belongs to the last set, with the uniform row over it, which lies within
eps/2 of every other row: so what comes out of the last set was one of its words or unknown, and epsilon holds between them;
with a set of its own, that a word is unknown would be released. How often the last set comes out still says how many words
are likely unknown. `aggressive`: every symbol has its own k nearest; supports differ, so that an output excludes inputs:
heuristic. Void when: the frequencies or vectors depend on private data, or the randomness is seeded. Costs O(k) a token;
building needs no V x V matrix.
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from osmotic.plugins.contract import Config, Entropy, Guarantee, Mechanism, Space
from osmotic.plugins.exact import choose
from osmotic.plugins.mechanisms.geometry import log_softmax, public_order
from osmotic.plugins.mechanisms.list_rr import ListRandomisedResponse, ListRrConfig
from osmotic.plugins.mechanisms.shared import Epsilon, check_rows, unit_vectors
from osmotic.schemas.errors import ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np

SEEDS = 256  # symbols whose similarities are made together
ROWS = 4096  # distinct symbols at a time
ROUNDING = 1e-9  # similarities closer than this are no difference


class CusTextConfig(Config):
    """Configuration of `custext`."""

    epsilon: Epsilon
    k: int = Field(20, ge=2, description="Symbols in a set, the symbol itself included; the last set may have up to 2k - 1.")
    variant: Literal["conservative", "aggressive"] = Field(
        "conservative", description="conservative: sets are a partition; aggressive: each symbol's own k nearest (heuristic)."
    )
    frequencies: str | None = Field(
        None,
        description="Public file, SYMBOL<tab>COUNT a line; default: the table's order, most frequent first.",
    )
    sha256: str | None = Field(None, description="SHA-256 of the file of frequencies; needed with it.")


class CusText(Mechanism[CusTextConfig]):
    """CusText; sets are built with the object."""

    name = "custext"

    def __init__(self, config: CusTextConfig, space: Space) -> None:
        import numpy as np

        super().__init__(config, space)
        if config.k > space.size or (config.k == space.size and config.variant == "aggressive"):
            why = f"k is {config.k}, the space {space.name!r} has {space.size} symbols"
            raise ConfigError(Problem("a set cannot be larger than the space", path="k", why=why))
        self._unit = unit_vectors(space, np.float32)
        order = public_order(space, config.frequencies, config.sha256)
        self._lists, self._cells = None, None
        if config.variant == "aggressive":
            self._lists = ListRandomisedResponse(ListRrConfig(epsilon=1.0, k=config.k), space)
        else:
            self._cells = partition(self._unit, order, config.k)
            size = np.bincount(self._cells)
            self._members = np.full((len(size), size.max()), space.size)  # filled up with V, which is no output
            grouped = np.argsort(self._cells, kind="stable")
            place = np.arange(space.size) - np.repeat(np.cumsum(size) - size, size)
            self._members[self._cells[grouped], place] = grouped

    def log_prob(self, rows: "np.ndarray") -> "np.ndarray":
        """float64 [n, V]; -inf outside a symbol's set."""
        import numpy as np

        rows, v = check_rows(rows, self.space), self.space.size
        out = np.full((len(rows), v + 1), -np.inf)
        if self._cells is None:
            out[rows == v] = -np.log(v)
        at = np.arange(len(rows)) if self._cells is not None else np.flatnonzero(rows < v)
        members, chances = self._support(rows[at])
        out[at[:, None], members] = chances
        return out[:, :v]

    def guarantee(self) -> Guarantee:
        """Partition (conservative), epsilon within a set; heuristic (aggressive)."""
        kind: Literal["partition", "heuristic"] = "partition" if self._cells is not None else "heuristic"
        return Guarantee(mechanism_class=kind, epsilon=self.config.epsilon, unit="token")

    def cells(self) -> "np.ndarray | None":
        """int64 [V + unknown]: the set of each symbol, the last one for the unknown symbol; None for aggressive."""
        import numpy as np

        if self._cells is None:
            return None
        return np.append(self._cells, [len(self._members) - 1] * self.space.unknown).astype(np.int64)

    def sample(self, rows: "np.ndarray", entropy: Entropy) -> "np.ndarray":
        """int64 [n]: an exact choice in each token's set."""
        import numpy as np

        rows, v = check_rows(rows, self.space), self.space.size
        out = entropy.integers(v, len(rows))  # stays for an aggressive unknown symbol
        order = np.argsort(rows, kind="stable")
        if self._cells is None:
            order = order[rows[order] < v]
        for start in range(0, len(order), ROWS):
            at = order[start : start + ROWS]
            symbols, which = np.unique(rows[at], return_inverse=True)
            members, chances = self._support(symbols)
            out[at] = members[which, choose(np.exp(chances), entropy, which)]
        return out

    def _support(self, rows: "np.ndarray") -> "tuple[np.ndarray, np.ndarray]":
        """(members int64 [n, S], V where a set is smaller; log P float64 [n, S])."""
        import numpy as np

        v, cells = self.space.size, self.cells()
        if cells is not None:
            members = self._members[cells[rows]]
        elif self._lists is not None:
            members = self._lists.lists(rows)
        scores, known = np.zeros(members.shape), np.flatnonzero(rows < v)
        for start in range(0, len(known), SEEDS):
            part = known[start : start + SEEDS]
            scores[part] = self._utility(rows[part], members[part])
        return members, log_softmax(np.where(members < v, self.config.epsilon / 2 * scores, -np.inf))

    def _utility(self, rows: "np.ndarray", members: "np.ndarray") -> "np.ndarray":
        """float64 [n, S] in [0, 1]; 1 everywhere where the members do not differ."""
        import numpy as np

        real = members < self.space.size
        others = self._unit[np.where(real, members, 0)].astype(np.float64)
        near = np.einsum("ij,isj->is", self._unit[rows].astype(np.float64), others)
        near[members == rows[:, None]] = 1.0
        low = np.where(real, near, 1.0).min(axis=1, keepdims=True)
        width = np.maximum(1.0 - low, ROUNDING)
        return np.asarray(np.where(1.0 - low > ROUNDING, np.clip((near - low) / width, 0.0, 1.0), 1.0))


def partition(unit: "np.ndarray", order: "np.ndarray", k: int) -> "np.ndarray":
    """int64 [V]: the set of each symbol. unit: float32 [V, d], vectors of length 1; order: who chooses first."""
    import numpy as np

    v, made = len(unit), 0
    cells = np.full(v, -1, dtype=np.int64)
    while (waiting := order[cells[order] < 0]).size:
        rest = np.sort(waiting)
        seeds, last = waiting[:SEEDS], v // k - 1
        near = unit[seeds] @ unit[rest].T
        for row, seed in zip(near, seeds, strict=True):
            if cells[seed] >= 0:
                continue
            if made >= last:
                cells[cells < 0] = made
                break
            cells[_nearest(unit, rest, row, cells, seed, k)] = made
            made += 1
    return cells


def _nearest(
    unit: "np.ndarray", rest: "np.ndarray", near: "np.ndarray", cells: "np.ndarray", seed: int, k: int
) -> "np.ndarray":
    """The seed and its k - 1 nearest free symbols: candidates by float32 with a margin, order by float64, ties by index."""
    import numpy as np

    near[cells[rest] >= 0] = -np.inf
    near[rest == seed] = np.inf
    least = np.partition(near, -k)[-k] - 4 * unit.shape[1] * np.finfo(np.float32).eps
    found = rest[near >= least]
    exact = np.square(unit[found].astype(np.float64) - unit[seed]).sum(axis=1)
    exact[found == seed] = -1.0
    return np.asarray(found[np.lexsort((found, exact))[:k]])
