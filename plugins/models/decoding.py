# SPDX-License-Identifier: Apache-2.0
"""What all decoding shares: padding, batches by length, the choice of a token, stop strings, answers.

Sampling draws from a stream of each prompt's own (seed, prompt), by inverse CDF over the vocabulary in its own order: torch's
global generator is never touched, and neither the order nor the company of a prompt in its batch decides its draws.
"""

import hashlib
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from osmotic.plugins.contract import Answer, Generation
from osmotic.schemas.errors import ComponentError, Problem

if TYPE_CHECKING:
    from torch import Tensor

FIRST_CHOICE = 256  # likeliest tokens that are looked at first for top_p
AT_A_TIME = 2**22  # probabilities, in float64, that are drawn from at a time


def left_pad(rows: Sequence[Sequence[int]], pad: int) -> "tuple[Tensor, Tensor]":
    """(ids, mask), int64 [n, longest], the padding on the left."""
    return _padded(rows, pad, left=True)


def right_pad(rows: Sequence[Sequence[int]], pad: int) -> "tuple[Tensor, Tensor]":
    """(ids, mask), int64 [n, longest], the padding on the right."""
    return _padded(rows, pad, left=False)


def _padded(rows: Sequence[Sequence[int]], pad: int, left: bool) -> "tuple[Tensor, Tensor]":
    import torch

    width = max(len(row) for row in rows)
    ids, mask = [], []
    for row in rows:
        fill = width - len(row)
        real, blank = [1] * len(row), [0] * fill
        ids.append([pad] * fill + list(row) if left else list(row) + [pad] * fill)
        mask.append(blank + real if left else real + blank)
    return torch.tensor(ids), torch.tensor(mask)


def by_length(lengths: Sequence[int], extra: int, budget: int) -> Iterator[list[int]]:
    """Groups of indices, long rows first, so that rows x (longest + extra) stays within the budget of tokens."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        widest = lengths[group[0]] if group else lengths[index]
        if group and (len(group) + 1) * (widest + extra) > budget:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


@dataclass
class Row:
    """One answer in the making. text: set when the row has ended by itself. seen: generated tokens that are not special."""

    index: int
    prompt: Sequence[int]
    rng: random.Random | None
    ids: list[int] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)
    text: str | None = None


def rows_of(prompts: Iterable[tuple[int, Sequence[int]]], how: Generation) -> list[Row]:
    """A row for each (index, tokenised prompt), with its own stream of draws."""
    return [Row(index, prompt, _stream(how.of(index), prompt)) for index, prompt in prompts]


def _stream(how: Generation, prompt: Sequence[int]) -> random.Random | None:
    if how.temperature <= 0:
        return None
    key = f"{how.seed}:{','.join(map(str, prompt))}"
    return random.Random(hashlib.sha256(key.encode()).digest())


def not_numbers() -> Problem:
    """What is wrong with a model whose logits are NaN or infinite."""
    why = "its weights are damaged, or dtype is too narrow for it"
    return Problem("the model gives logits that are not numbers", why=why, fix="dtype: float32")


def choose(logits: "Tensor", how: Generation, rows: Sequence[Row]) -> list[int]:
    """The next token of each row, [n] of [n, V]. Raises ComponentError when the model gives no numbers."""
    import torch

    best, found = logits.max(-1)
    if not bool(torch.isfinite(best).all()):
        raise ComponentError(not_numbers())
    if how.temperature <= 0:
        return [int(i) for i in found.tolist()]
    if not math.isfinite(how.temperature):
        raise ComponentError(Problem(f"temperature: {how.temperature} is not a number", fix="0 for the likeliest answer, or 1"))
    step, chosen = max(1, AT_A_TIME // logits.shape[-1]), list[int]()
    for begin in range(0, len(rows), step):
        part = slice(begin, begin + step)
        chosen += _draw(logits[part], best[part], how, rows[part])
    return chosen


def _draw(logits: "Tensor", best: "Tensor", how: Generation, rows: Sequence[Row]) -> list[int]:
    """Tokens of rows whose greatest logits are `best`: these are taken off first, so that no temperature is too low."""
    import torch

    probabilities = torch.softmax((logits.double() - best[:, None].double()) / how.temperature, -1)
    tokens = None
    if 0 < how.top_k < probabilities.shape[-1]:
        tokens, probabilities = _likeliest(probabilities, how.top_k)
    if how.top_p < 1:
        places, probabilities = _nucleus(probabilities, how.top_p)
        tokens = places if tokens is None else tokens.gather(1, places)
    cdf = probabilities.cumsum(-1)
    draws = torch.tensor([[row.rng.random() if row.rng else 0.0] for row in rows], dtype=torch.float64, device=cdf.device)
    # a draw of exactly the total, by rounding, goes to the last token that has a probability
    last = probabilities.shape[-1] - 1 - (probabilities > 0).flip(-1).int().argmax(-1, keepdim=True)
    place = torch.minimum((cdf <= draws * cdf[:, -1:]).sum(-1, keepdim=True), last)
    chosen = place if tokens is None else tokens.gather(1, place)
    return [int(i) for i in chosen[:, 0].tolist()]


def _likeliest(probabilities: "Tensor", top_k: int) -> "tuple[Tensor, Tensor]":
    """(tokens, probabilities that sum to 1), in the vocabulary's order, of the likeliest `top_k`."""
    values, tokens = probabilities.topk(top_k, -1)
    tokens, order = tokens.sort(-1)
    values = values.gather(1, order)
    return tokens, values / values.sum(-1, keepdim=True)


def _nucleus(probabilities: "Tensor", top_p: float) -> "tuple[Tensor, Tensor]":
    """(tokens, probabilities), in the vocabulary's order: the likeliest few that hold top_p; others have 0."""
    size, total = FIRST_CHOICE, probabilities.shape[-1]
    while True:
        size = min(size, total)
        values, tokens = probabilities.topk(size, -1)
        before = values.cumsum(-1) - values
        if size == total or bool((before[:, -1] >= top_p).all()):
            break
        size *= 8
    kept = before < top_p
    kept[:, 0] = True
    tokens, order = tokens.sort(-1)
    return tokens, (values * kept).gather(1, order)


class Ends:
    """When an answer ends: at an end token, or where a stop string appears; only the last few tokens are read for one."""

    def __init__(self, tokenizer: Any, how: Generation, tokens: frozenset[int]) -> None:
        self.tokenizer, self.how, self.tokens = tokenizer, how, tokens
        self._stop = tuple(stop for stop in how.stop if stop)
        self._special = _special(tokenizer)
        # each token that is not special stands for at least a byte, so this many hold any stop string that ends here
        self._window = max((len(stop.encode()) for stop in self._stop), default=0) + 4

    def extend(self, rows: Sequence[Row], chosen: Iterable[int]) -> None:
        """Append the chosen tokens; a row that has come to its end gets its text."""
        for row, token in zip(rows, chosen, strict=True):
            row.ids.append(token)
            if token in self.tokens:
                row.text = cut(text_of(row.ids[:-1], self.tokenizer), self._stop)[0]
            elif self._stop and token not in self._special:
                row.seen.append(token)
                self._look(row)

    def _look(self, row: Row) -> None:
        tail = text_of(row.seen[-self._window :], self.tokenizer)
        if any(stop in tail for stop in self._stop):
            text, met = cut(text_of(row.ids, self.tokenizer), self._stop)
            row.text = text if met else None

    def done(self, row: Row) -> bool:
        """Whether nothing is to be added to the row."""
        return row.text is not None or len(row.ids) >= self.how.max_new_tokens

    def answer(self, row: Row) -> Answer:
        """What the row has come to; finished when it met an end token or a stop string."""
        if row.text is not None:
            return Answer(row.text, True, len(row.ids), len(row.prompt))
        text, met = cut(text_of(row.ids, self.tokenizer), self._stop)
        return Answer(text, met, len(row.ids), len(row.prompt))


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """(the text before the first stop string, whether there was one)."""
    found = [text.index(stop) for stop in stops if stop in text]
    return (text[: min(found)], True) if found else (text, False)


def text_of(ids: Sequence[int], tokenizer: Any) -> str:
    """Tokens as text, without special ones."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _special(tokenizer: Any) -> frozenset[int]:
    """Tokens that stand for no text: the named ones, and those that a tokenizer reserves."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}


def accepts(module: Any, *names: str) -> frozenset[str]:
    """Which of the keywords the module's forward takes."""
    import inspect

    known = inspect.signature(module.forward).parameters
    return frozenset(name for name in names if name in known)
