# SPDX-License-Identifier: Apache-2.0
"""Models that answer whatever the text is: what they cannot answer is a constant, so that no failure tells of a private text.

A guarantee "for any two texts" covers that a text is too long, has no token, or makes the model give NaN: an error there would
be an outcome that depends on the text. Here texts are cut to what fits (at their end, or to a window around a mask), and logits
that do not come, or are NaN, are the least ones (after clipping: b_min), which lie in the box like any others. What is wrong
whatever the text is said by a public example, before the first private one.

A model says what fits by a method of its own, beside the contract: `fits(prompt, new)` of a NextToken or TextGenerator (new:
tokens to come), `fits(text)` of a MaskedLM. One without it is taken to have room for everything.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from osmotic.plugins import spaces
from osmotic.plugins.contract import Entropy, MaskedLM, NextToken
from osmotic.plugins.exact import choose
from osmotic.plugins.mechanisms.texts import checked_logits
from osmotic.schemas.errors import ConfigError, OsmoticError, Problem

if TYPE_CHECKING:
    import numpy as np

MASK = "[MASK]"
EXAMPLE = "example"
FAILURES = (OsmoticError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)  # a model's, over one text


def cut(text: str, fits: Callable[[str], bool]) -> str:
    """The text without so much of its end that it fits; empty where nothing does. About log2 of its length tries."""
    if fits(text):
        return text
    low, high = 0, len(text)  # what fits, or is empty; what does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(text[:middle]) else (low, middle)
    return text[:low]


def shortened(model: Any, render: Callable[[str], str], text: str, new: int) -> str:
    """The prompt of a text that is cut so that `new` tokens fit after it."""
    fits = getattr(model, "fits", None)
    return render(text if fits is None else cut(text, lambda part: bool(fits(render(part), new))))


class SteadyTokens:
    """Next tokens after the prompt of a text, one text at a time, always of one shape. new: the most tokens of an answer."""

    def __init__(self, model: NextToken, render: Callable[[str], str], new: int) -> None:
        """Raises ConfigError when the prompt of a short text does not fit, ComponentError when its logits are no numbers."""
        self.model, self._render, self._new = model, render, new
        fits = getattr(model, "fits", None)
        if fits is not None and not fits(render(EXAMPLE), new):
            what = f"the model has no room for the prompt and {new} tokens after it"
            raise ConfigError(Problem(what, path="mechanism.n_max", fix="lower n_max, or shorten the template"))
        self._columns = checked_logits(model.start([render(EXAMPLE)])[1]).shape[1]

    def start(self, text: str) -> "tuple[Any, np.ndarray]":
        """(state, float64 [1, V] logits without NaN) after the text's prompt; state None: the model has nothing to say."""
        try:
            state, logits = self.model.start([shortened(self.model, self._render, text, self._new)])
        except FAILURES:
            state, logits = None, None
        return state, steady(logits, 1, self._columns)

    def advance(self, state: Any, token: int) -> "tuple[Any, np.ndarray]":
        """The same after one more token."""
        logits = None
        if state is not None:
            try:
                state, logits = self.model.advance(state, [token])
            except FAILURES:
                state = None
        return state, steady(logits, 1, self._columns)

    def answer(self, text: str, weigh: "Callable[[np.ndarray], np.ndarray]", entropy: Entropy) -> str:
        """A text drawn token by token: weigh(logits) are unnormalised weights. Ends at the model's end token, or at `new`."""
        state, logits = self.start(text)
        tokens: list[int] = []
        while True:
            token = int(choose(weigh(logits), entropy)[0])
            if token == self.model.end:
                break
            tokens.append(token)
            if len(tokens) == self._new:
                break
            state, logits = self.advance(state, token)
        return self.model.text(tokens).strip()


class SteadyMasks:
    """Logits at each word of a text when it is masked, always of one shape."""

    def __init__(self, model: MaskedLM) -> None:
        """Raises ComponentError when the logits of a short text are no numbers."""
        self.model = model
        self._columns = checked_logits(model.logits([MASK])).shape[1]

    def logits(self, tokens: Sequence[str], places: Sequence[int]) -> "np.ndarray":
        """float64 [n, V] without NaN: with the word at each place masked, the others as they stand."""
        import numpy as np

        try:
            whole = self.model.logits([self._masked(tokens, at) for at in places])
        except FAILURES:
            return np.concatenate([self._alone(tokens, at) for at in places])
        return steady(whole, len(places), self._columns)

    def _alone(self, tokens: Sequence[str], at: int) -> "np.ndarray":
        try:
            logits = self.model.logits([self._masked(tokens, at)])
        except FAILURES:
            logits = None
        return steady(logits, 1, self._columns)

    def _masked(self, tokens: Sequence[str], at: int) -> str:
        """The text with one word masked; if it is too long, as many words on each side of the mask as fit."""
        fits = getattr(self.model, "fits", None)
        low, high = 0, max(at, len(tokens) - 1 - at)
        if fits is None or fits(_window(tokens, at, high)):
            return _window(tokens, at, high)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(_window(tokens, at, middle)) else (low, middle)
        return _window(tokens, at, low)


def _window(tokens: Sequence[str], at: int, radius: int) -> str:
    return spaces.join([*tokens[max(at - radius, 0) : at], MASK, *tokens[at + 1 : at + 1 + radius]])


def steady(logits: Any, rows: int, columns: int) -> "np.ndarray":
    """float64 [rows, columns]: the logits, the least possible where they are NaN, are missing or have another shape."""
    import numpy as np

    table = np.full((rows, columns), -np.inf) if logits is None else np.asarray(logits, dtype=np.float64)
    if table.shape != (rows, columns):
        table = np.full((rows, columns), -np.inf)
    return np.where(np.isnan(table), -np.inf, table)
