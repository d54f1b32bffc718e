# SPDX-License-Identifier: Apache-2.0
"""Divide a document's budget over its positions, more where a public model expects more: a pure privacy filter.

Positions are the fields in order, a text field's tokens in order. Position i goes through list randomised response (see
list-rr) at eps_i = remaining * w_i / (w_i + expected weight of the rest), within a floor and a ceiling; w_i may depend on
public things and on what was released before it, and on nothing else (`osmotic.plugins.mechanisms.importance`, which never
meets a private value). Guarantee: class certified, pure, epsilon = B a document, for documents with equal numbers of tokens in
each text field: given the outputs before it, position i is eps_i-private, and the eps_i of every path of outputs sum to at most
B, which is checked while drawing (Rogers, Roth, Ullman, Vadhan 2016, fully adaptive composition; list-rr: Kairouz, Oh,
Viswanath 2016). B is charged whole, whatever was used. Void when: weights, template, model or lists were chosen by looking at
private data, or the randomness is seeded.

`shuffled` is the control of a comparison: the same epsilons, at random positions of the document. The weights of a model
depend on a release, so a first release (of budget B, thrown away) is made to have them: it costs 2 B in all, and only the
comparison at equal B of what comes out is of interest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from osmotic.plugins import spaces
from osmotic.plugins.contract import Config, DocumentMechanism, Drawn, Entropy, Guarantee, Mechanism, ModelName, Slot
from osmotic.plugins.exact import coins
from osmotic.plugins.mechanisms.importance import FixedWeights, ModelWeights, Plan, Prefix, Rendering, next_token
from osmotic.plugins.mechanisms.list_rr import ListRandomisedResponse, ListRrConfig
from osmotic.plugins.mechanisms.shared import Epsilon
from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.source import did_you_mean

if TYPE_CHECKING:
    import numpy as np

Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Budget = Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)]
Floor = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class AdaptiveExponentialConfig(Config):
    """Configuration of `adaptive-exponential`."""

    epsilon: Budget = Field(description="B, the privacy loss of a whole document, natural logarithm; pure. Charged whole.")
    k: int = Field(8, ge=1, description="Size of the lists of list-rr, the symbol itself included.")
    lists: Literal["nearest", "order"] = Field("nearest", description="The lists' rule, as for list-rr.")
    weights: Literal["uniform", "model"] | dict[str, Weight] = Field(
        "uniform", description="uniform; model: from a language model that reads what was released; or {field: weight}, public "
        "and declared, 1 for fields that are not named.",
    )  # fmt: skip
    model: ModelName | None = Field(None, description="weights: model: a causal model at this party, trained on public data.")
    importance: Literal["entropy", "influence"] = Field(
        "entropy", description="weights: model: entropy of the next token; or influence: how much the answer to the question "
        "hangs on the field.",
    )  # fmt: skip
    template: str | None = Field(None, description="weights: model: the fields as the model reads them, each once, in order.")
    question: str | None = Field(None, description="importance: influence: what follows the document and asks for the answer.")
    floor: Floor = Field(0.0, description="Least epsilon of a position (less where n floors would pass B).")
    ceiling: Epsilon = Field(16.0, description="Most epsilon of a position; what it leaves over goes to later ones.")
    shuffled: bool = Field(False, description="The control: the same epsilons at random positions; costs 2 B with a model.")

    @model_validator(mode="after")
    def _fits(self) -> "AdaptiveExponentialConfig":
        if (self.weights == "model") != (self.model is not None):
            raise ValueError("'model' is needed for 'weights: model', and for nothing else")
        if self.model is None and (self.template or self.question or self.importance != "entropy"):
            raise ValueError("'template', 'question' and 'importance' are for 'weights: model'")
        if (self.importance == "influence") != (self.question is not None):
            raise ValueError("'question' is needed for 'importance: influence', and for nothing else")
        if self.floor > self.ceiling:
            raise ValueError(f"floor {self.floor:g} is more than ceiling {self.ceiling:g}")
        return self


@dataclass(frozen=True)
class _Layout:
    """What a release shows anyway: lengths int64 [documents, slots], where each document starts, each position's slot."""

    lengths: "np.ndarray"
    starts: "np.ndarray"
    slots: "np.ndarray"

    @property
    def sizes(self) -> "np.ndarray":
        """Positions of each document."""
        import numpy as np

        return np.asarray(self.lengths.sum(axis=1))


class AdaptiveExponential(DocumentMechanism[AdaptiveExponentialConfig]):
    """List randomised response with a budget a document, divided as the release goes on."""

    name = "adaptive-exponential"

    def __init__(self, config: AdaptiveExponentialConfig, slots: Sequence[Slot], model: Callable[[str], Any]) -> None:
        super().__init__(config, slots, model)
        ceiling = min(config.ceiling, config.epsilon)
        self._plan = Plan(config.epsilon, config.floor, ceiling)
        inner = ListRrConfig(epsilon=ceiling, k=config.k, lists=config.lists)
        self._inner = [ListRandomisedResponse(inner, _space(slot)) for slot in self.slots]
        self._fixed = None if config.weights == "model" else FixedWeights(_declared(config, self.slots))
        self._rendering = Rendering(config.template, self.slots)
        self._weights: FixedWeights | ModelWeights | None = self._fixed
        if config.importance == "influence" and any(slot.text for slot in self.slots):
            what = "importance: influence needs fields with a domain"
            raise ConfigError(Problem(what, path="mechanism.importance", fix="importance: entropy, for text fields"))

    def guarantee(self) -> Guarantee:
        """Certified, B a document; 2 B for the shuffled control of a model's weights."""
        return Guarantee(mechanism_class="certified", epsilon=self._charge, unit="document")

    def parts(self) -> Sequence[Mechanism[Any]]:
        """List randomised response over each slot's space, at the largest epsilon that a position may be given."""
        return tuple(self._inner)

    def sample(self, documents: Sequence[tuple[str, ...]], entropy: Entropy) -> list[Drawn]:
        """One outcome a document. All go forward in step, so that the model reads many prefixes at a time.

        A document's outcome depends on no other's content. Which prefixes share a batch of the model, all of them released, can
        move a weight by rounding alone; weights are rounded to three digits, so that it hardly ever shows.
        """
        rows, layout = self._encode(documents)
        profile, out = self._adapt(rows, layout, entropy)
        if self.config.shuffled:
            profile = _shuffle(profile, layout, entropy)
            out = self._draw(rows, layout.slots, profile, entropy)
        self._plan.check(_sums(profile, layout))
        texts = self._decode(out, layout)
        return [
            Drawn(text, self._charge, tuple(length))
            for text, length in zip(texts, layout.lengths.tolist(), strict=True)
        ]  # fmt: skip

    @property
    def _charge(self) -> float:
        return self.config.epsilon * (2 if self.config.shuffled and self._fixed is None else 1)

    # ---- epsilons: from public things only ----

    def _epsilons(self, layout: _Layout, step: int, active: "np.ndarray", spent: "np.ndarray", seen: "np.ndarray") -> Any:
        """Epsilon of position `step` of each active document, float64 [n]. seen: the output symbols so far, all positions."""
        import numpy as np

        weights = self._weigher()
        slots = layout.slots[layout.starts[active] + step]
        before = np.cumsum(layout.lengths[active], axis=1) - layout.lengths[active]
        left = np.clip(layout.lengths[active] - np.maximum(step - before, 0), 0, None)
        if isinstance(weights, ModelWeights):
            weight = weights.weigh(self._prefixes(layout, step, active, seen))
        else:
            weight = weights.expected[slots]
        rest = (left * weights.expected).sum(axis=1) - weights.expected[slots]  # no product of matrices: rows stay apart
        return self._plan.share(spent[active], weight, np.maximum(rest, 0.0), left.sum(axis=1))

    def _prefixes(self, layout: _Layout, step: int, active: "np.ndarray", seen: "np.ndarray") -> list[Prefix]:
        """What the model may read: the released text of each active document up to position `step`."""
        import numpy as np

        starts, lengths = layout.starts[active], layout.lengths[active]
        before = np.cumsum(lengths, axis=1) - lengths
        columns = []
        for i, slot in enumerate(self.slots):
            runs = np.clip(step - before[:, i], 0, lengths[:, i])
            within = np.arange(runs.sum()) - np.repeat(np.cumsum(runs) - runs, runs)
            columns.append(spaces.decode(_space(slot), seen[np.repeat(starts + before[:, i], runs) + within], runs))
        slots = layout.slots[starts + step].tolist()
        rows = zip(*columns, strict=True)
        return [Prefix(slot, row[:slot], row[slot]) for slot, row in zip(slots, rows, strict=True)]

    def _weigher(self) -> FixedWeights | ModelWeights:
        if self._weights is None:
            name = self.config.model or ""
            model = next_token(self.model(name), name)
            self._weights = ModelWeights(model, self._rendering, self.slots, self.config.question)
        return self._weights

    # ---- symbols: from private rows, at given epsilons ----

    def _adapt(self, rows: "np.ndarray", layout: _Layout, entropy: Entropy) -> "tuple[np.ndarray, np.ndarray]":
        """(epsilon of each position, released symbols), the first decided from the second alone."""
        import numpy as np

        sizes = layout.sizes
        profile, out = np.zeros(len(rows)), np.zeros(len(rows), dtype=np.int64)
        spent = np.zeros(len(sizes))
        for step in range(int(sizes.max(initial=0))):
            active = np.flatnonzero(sizes > step)
            at = layout.starts[active] + step
            profile[at] = self._epsilons(layout, step, active, spent, out)
            spent[active] += profile[at]
            self._plan.check(spent)
            if self._fixed is None:
                out[at] = self._draw(rows[at], layout.slots[at], profile[at], entropy)
        return profile, out if self._fixed is None else self._draw(rows, layout.slots, profile, entropy)

    def _draw(self, rows: "np.ndarray", slots: "np.ndarray", epsilons: "np.ndarray", entropy: Entropy) -> "np.ndarray":
        """Output symbols int64 [n] of list-rr, each at its own epsilon."""
        import numpy as np

        out = np.empty(len(rows), dtype=np.int64)
        for number in np.unique(slots).tolist():
            at = np.flatnonzero(slots == number)
            out[at] = _respond(self._inner[number], rows[at], epsilons[at], entropy)
        return out

    def _encode(self, documents: Sequence[tuple[str, ...]]) -> "tuple[np.ndarray, _Layout]":
        """(symbols of all positions, a document after another; the layout). Raises DataError for a value outside its domain."""
        import numpy as np

        n, columns = len(documents), []
        lengths = np.ones((n, len(self.slots)), dtype=np.int64)
        for i, slot in enumerate(self.slots):
            flat, lengths[:, i] = spaces.encode(_space(slot), [document[i] for document in documents])
            columns.append(flat)
        kinds = np.tile(np.arange(len(self.slots)), n)
        slots = np.repeat(kinds, lengths.reshape(-1))
        rows = np.empty(len(slots), dtype=np.int64)
        for i, column in enumerate(columns):
            rows[slots == i] = column
        sizes = lengths.sum(axis=1)
        return rows, _Layout(lengths, np.cumsum(sizes) - sizes, slots)

    def _decode(self, out: "np.ndarray", layout: _Layout) -> list[tuple[str, ...]]:
        columns = []
        for i, slot in enumerate(self.slots):
            columns.append(spaces.decode(_space(slot), out[layout.slots == i], layout.lengths[:, i]))
        return [tuple(column[i] for column in columns) for i in range(len(layout.lengths))]


def _respond(inner: ListRandomisedResponse, rows: "np.ndarray", epsilons: "np.ndarray", entropy: Entropy) -> "np.ndarray":
    """List randomised response with an epsilon a row: uniform with probability V / (K e^eps + V - K), else one of the list."""
    import numpy as np

    k, v, n = inner.config.k, inner.space.size, len(rows)
    spread = coins(np.exp(np.log(v) - np.logaddexp(np.log(k) + epsilons, np.log(v - k))), entropy)
    place, out = entropy.integers(k, n), entropy.integers(v, n)
    near = np.flatnonzero(~spread & (rows < v))  # the unknown symbol is always uniform
    out[near] = rows[near]
    far = near[place[near] > 0]
    out[far] = inner.lists(rows[far])[np.arange(len(far)), place[far]]
    return out


def _shuffle(profile: "np.ndarray", layout: _Layout, entropy: Entropy) -> "np.ndarray":
    """Each document's epsilons in a random order, which depends on nothing."""
    import numpy as np

    documents = np.repeat(np.arange(len(layout.starts)), layout.sizes)
    return profile[np.lexsort((entropy.uniform(len(profile)), documents))]


def _sums(profile: "np.ndarray", layout: _Layout) -> "np.ndarray":
    """What each document spent."""
    import numpy as np

    documents = np.repeat(np.arange(len(layout.starts)), layout.sizes)
    return np.bincount(documents, weights=profile, minlength=len(layout.starts))


def _declared(config: AdaptiveExponentialConfig, slots: Sequence[Slot]) -> "np.ndarray":
    """The weight of each slot. Raises ConfigError for a field that is not released."""
    import numpy as np

    given = config.weights if isinstance(config.weights, dict) else {}
    names = [slot.name for slot in slots]
    for name in given:
        if name not in names:
            what = f"the field {name!r} is not released"
            raise ConfigError(Problem(what, path="mechanism.weights", fix=did_you_mean(name, names)))
    return np.array([given.get(name, 1.0) for name in names])


def _space(slot: Slot) -> Any:
    if slot.space is None:
        fix = "give the field a table, or use a mechanism of whole texts"
        raise ConfigError(Problem(f"the field {slot.name!r} has no table", path="mechanism", fix=fix))
    return slot.space
