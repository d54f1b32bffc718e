# SPDX-License-Identifier: Apache-2.0
"""How a document's budget is divided over its positions: from lengths and from what was released, and from nothing else.

No function here has a private argument: it gets the public plan, the lengths (which a release shows), and the released
prefixes. That is what makes `adaptive-exponential` a privacy filter with fully adaptive composition (Rogers, Roth, Ullman,
Vadhan 2016, "Privacy odometers and filters: pay-as-you-go composition"; for pure privacy the sum alone decides).
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from osmotic.plugins.contract import NextToken, Slot
from osmotic.schemas.errors import ComponentError, ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np

TOLERANCE = 1e-9  # rounding, on the sum of what a document spent
GHOSTS = 8  # made-up documents behind an expected weight
RESTS, VALUES = 2, 12  # influence: endings of the document, values of the position
DECIMALS = 3  # of a weight: rounding in a batch of a model must not move it
CHUNK = 256  # prompts of one call
KEPT = 1 << 18  # weights that are remembered


@dataclass(frozen=True)
class Plan:
    """The public limits: epsilon of a document, and the least and the most of a position."""

    budget: float
    floor: float
    ceiling: float

    def share(self, spent: "np.ndarray", weight: "np.ndarray", rest: "np.ndarray", left: "np.ndarray") -> "np.ndarray":
        """Epsilon of the next position of each document, float64 [n].

        remaining * weight / (weight + rest), at least the floor (B / n where n floors would pass B) and at most the ceiling;
        never so much that later floors could not be paid, never more than remains. left: positions to come, this one too.
        """
        import numpy as np

        remaining = np.maximum(self.budget - spent, 0.0)
        total = weight + rest
        fair = remaining / left
        with np.errstate(invalid="ignore", divide="ignore"):
            wanted = np.where(total > 0, remaining * (weight / total), fair)
        floor = np.minimum(self.floor, fair)
        most = np.minimum(self.ceiling, remaining - floor * (left - 1))
        return np.asarray(np.clip(wanted, np.minimum(floor, most), np.maximum(most, 0.0)))

    def check(self, spent: "np.ndarray") -> None:
        """Raise ComponentError when a document spent more than its budget: nothing of it may then come out."""
        if spent.size and not float(spent.max()) <= self.budget + TOLERANCE * max(1.0, self.budget):
            why = f"{spent.max():g} > {self.budget:g}"
            raise ComponentError(Problem("a document would spend more than its budget", why=why))


@dataclass(frozen=True)
class Prefix:
    """What was released of a document so far. slot: of the next position; texts: of the slots before; partial: of this one."""

    slot: int
    texts: tuple[str, ...]
    partial: str = ""


@dataclass(frozen=True)
class FixedWeights:
    """The same weight for every position of a slot, whatever was released: uniform, or declared. expected: float64 [slots]."""

    expected: "np.ndarray"


class Rendering:
    """The public text around the slots: what comes before each, and after the last."""

    def __init__(self, template: str | None, slots: Sequence[Slot]) -> None:
        names = [slot.name for slot in slots]
        text = " ".join("{{ " + name + " }}" for name in names) if template is None else template
        parts = re.split(r"\{\{\s*(\w+)\s*\}\}", text)
        if parts[1::2] != names:
            why = f"it has {', '.join(parts[1::2]) or 'none'}; the fields are {', '.join(names)}"
            what = "the template must have every released field once, in the order of release"
            raise ConfigError(Problem(what, path="mechanism.template", why=why))
        self.before, self.after = parts[0:-1:2], parts[-1]

    def prefix(self, seen: Prefix) -> str:
        """The document up to its next position."""
        whole = "".join(b + t for b, t in zip(self.before, seen.texts, strict=False))
        return (whole + self.before[seen.slot] + seen.partial).rstrip()

    def whole(self, texts: Sequence[str], question: str) -> str:
        """A whole document with a question after it."""
        return f"{''.join(b + t for b, t in zip(self.before, texts, strict=True))}{self.after} {question}".rstrip()


class ModelWeights:
    """Weights from a public language model that reads released prefixes: entropy, or influence on an answer.

    entropy: of the next token, in nats. influence: how much the answer to a question hangs on the next field: the mutual
    information of its value (uniform on the domain) and the answer's first token, the fields after it drawn at random.
    """

    def __init__(self, model: NextToken, rendering: Rendering, slots: Sequence[Slot], question: str | None) -> None:
        self._model, self._rendering, self._slots, self._question = model, rendering, tuple(slots), question
        self._known: dict[tuple[int, str], float] = {}  # a function of public text, looked up again
        self.expected = self._expected()

    def weigh(self, prefixes: Sequence[Prefix]) -> "np.ndarray":
        """float64 [n] >= 0, one for each released prefix; equal prefixes are asked once."""
        import numpy as np

        keys = [(prefix.slot, self._rendering.prefix(prefix)) for prefix in prefixes]
        new = {key: prefix for key, prefix in zip(keys, prefixes, strict=True) if key not in self._known}
        if new:
            found = self._entropies([text for _, text in new]) if self._question is None else self._influences([*new.values()])
            self._known |= zip(new, np.round(found, DECIMALS).tolist(), strict=True)
        weights = np.array([self._known[key] for key in keys])
        if len(self._known) > KEPT:
            self._known.clear()
        return weights

    def _expected(self) -> "np.ndarray":
        """Mean weight of each slot over made-up prefixes: float64 [slots]."""
        import numpy as np

        rng = random.Random("osmotic importance")
        means = []
        for at, slot in enumerate(self._slots):
            made = []
            for i in range(GHOSTS):
                texts = tuple(_value(before, rng) for before in self._slots[:at])
                made.append(Prefix(at, texts, _value(slot, rng, i % 4) if slot.text else ""))
            means.append(float(self.weigh(made).mean()))
        return np.array(means)

    def _entropies(self, texts: Sequence[str]) -> "np.ndarray":
        """Entropy of the next token after each text; after nothing, that of the uniform distribution."""
        import numpy as np

        out = np.full(len(texts), np.log(self._model.vocabulary))
        full = [i for i, text in enumerate(texts) if text]
        out[full] = _entropy(self._ask([texts[i] for i in full]))
        return out

    def _influences(self, prefixes: Sequence[Prefix]) -> "np.ndarray":
        import numpy as np

        prompts: list[str] = []
        for prefix in prefixes:
            rng = random.Random(f"osmotic importance {prefix.slot}")
            domain = _symbols(self._slots[prefix.slot])
            values = rng.sample(domain, min(VALUES, len(domain)))
            values = (values * VALUES)[:VALUES]
            for _ in range(RESTS):
                rest = [_value(slot, rng) for slot in self._slots[prefix.slot + 1 :]]
                prompts += [self._rendering.whole([*prefix.texts, value, *rest], self._question or "") for value in values]
        answers = self._ask(prompts).reshape(len(prefixes), RESTS, VALUES, -1)
        within = _entropy(answers.reshape(-1, answers.shape[-1])).reshape(len(prefixes), RESTS, VALUES).mean(axis=2)
        across = _entropy(answers.mean(axis=2).reshape(-1, answers.shape[-1])).reshape(len(prefixes), RESTS)
        return np.asarray(np.maximum(across - within, 0.0).mean(axis=1))

    def _ask(self, prompts: Sequence[str]) -> "np.ndarray":
        """Next-token probabilities, float64 [n, vocabulary]. Raises ComponentError for logits that are no numbers."""
        import numpy as np

        blocks = [np.zeros((0, self._model.vocabulary))]
        for start in range(0, len(prompts), CHUNK):
            logits = self._model.start(prompts[start : start + CHUNK])[1].astype(np.float64)
            if np.isnan(logits).any():
                raise ComponentError(Problem("the model gave logits that are no numbers", path="mechanism.model"))
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            blocks.append(weights / weights.sum(axis=1, keepdims=True))
        return np.concatenate(blocks)


def next_token(model: Any, name: str) -> NextToken:
    """The model, if it has the protocol. Raises ConfigError, with the model's name, when it does not."""
    if not isinstance(model, NextToken):
        fix = "use a model that provides next_token (type transformers, say) at the same party"
        raise ConfigError(Problem(f"the model {name!r} gives no next-token distributions", path="mechanism.model", fix=fix))
    return model


def _entropy(probabilities: "np.ndarray") -> "np.ndarray":
    """Of each row, in nats."""
    import numpy as np

    logs = np.log(np.where(probabilities > 0, probabilities, 1.0))
    return np.asarray(-(probabilities * logs).sum(axis=1))


def _symbols(slot: Slot) -> tuple[str, ...]:
    return slot.space.symbols if slot.space is not None else ()


def _value(slot: Slot, rng: random.Random, words: int = 4) -> str:
    """A made-up value: uniform on the domain, or some words of the table."""
    symbols = _symbols(slot)
    return " ".join(rng.choice(symbols) for _ in range(words)) if slot.text else rng.choice(symbols)
