# SPDX-License-Identifier: Apache-2.0
"""Training batches of prompt -> target tasks: which records, with which re-drawn fields, as which token ids; and their loss.

Every choice comes from seeded streams that do not depend on the rationales, so that all arms of a comparison see the same
label batches. Sequences are padded on the right: under causal attention no real token can see the padding.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from osmotic.components.templates import Template, slots
from osmotic.schemas.errors import ComponentError, Problem

if TYPE_CHECKING:
    from torch import Tensor

Row = Mapping[str, Any]
Example = tuple[list[int], list[int]]  # prompt ids, target ids with the end token
IGNORE = -100
LEAST_PROMPT = 8


class Order:
    """Record indices, epoch by epoch in random order; records that are not wanted are passed over, in their place."""

    def __init__(self, rng: random.Random, wanted: Sequence[bool]) -> None:
        self._rng = rng
        self._wanted = wanted
        self._queue: list[int] = []

    def take(self, count: int) -> list[int]:
        """The next `count` indices; a new epoch begins where one ends."""
        taken: list[int] = []
        while len(taken) < count:
            if not self._queue:
                self._queue = list(range(len(self._wanted)))
                self._rng.shuffle(self._queue)
            index = self._queue.pop()
            if self._wanted[index]:
                taken.append(index)
        return taken

    def state(self) -> Any:
        """JSON value from which `restore` goes on."""
        return [self._rng.getstate(), self._queue]

    def restore(self, state: Any) -> None:
        """Go on where `state` was taken."""
        set_state(self._rng, state[0])
        self._queue = list(state[1])


@dataclass
class Redraw:
    """Draws fields anew from their public domains, each with the same probability."""

    rng: random.Random
    domains: Mapping[str, Sequence[str]]
    probability: float

    def __call__(self, row: Row) -> Row:
        """The record with some fields drawn anew."""
        changed = dict(row)
        for name, domain in self.domains.items():
            if self.rng.random() < self.probability:
                changed[name] = self.rng.choice(domain)
        return changed


@dataclass
class Encoder:
    """Text to token ids, cut to `limit` tokens a pair: the prompt loses its beginning, never its end; the target nothing."""

    encode_prompts: Callable[[Sequence[str]], list[list[int]]]
    tokenizer: Any
    limit: int
    _prompts: dict[str, list[int]] = field(default_factory=dict)
    _targets: dict[str, list[int]] = field(default_factory=dict)

    def pairs(self, prompts: Sequence[str], targets: Sequence[str], keep: bool) -> list[Example]:
        """Token ids of each pair. `keep`: remember the prompts' ids (they will come again)."""
        new = [text for text in dict.fromkeys(prompts) if text not in self._prompts]
        found = dict(zip(new, self.encode_prompts(new), strict=True)) if new else {}
        if keep:
            self._prompts.update(found)
        rows = []
        for prompt, target in zip(prompts, targets, strict=True):
            tail = self.target(target)
            head = found[prompt] if prompt in found else self._prompts[prompt]
            if not head:
                raise ComponentError(Problem("a prompt has no tokens", fix="check the templates of the prompts"))
            rows.append((head[-(self.limit - len(tail)) :], tail))
        return rows

    def target(self, text: str) -> list[int]:
        """Ids of a target and the end token. Raises ComponentError when it leaves no room for a prompt."""
        if text not in self._targets:
            ids = [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]
            if len(ids) + LEAST_PROMPT > self.limit:
                why = f"{len(ids)} tokens; max_length {self.limit} must leave {LEAST_PROMPT} for the prompt"
                raise ComponentError(Problem("a target is too long", why=why, fix="raise max_length, or filter by length"))
            self._targets[text] = ids
        return self._targets[text]


class Task:
    """One of the student's tasks: its records (None where a record takes no part), templates, order and re-drawing."""

    def __init__(
        self,
        prompt: Template,
        target: Template,
        rows: Sequence[Row | None],
        order: Order,
        redraw: Redraw | None,
        encoder: Encoder,
    ) -> None:
        self._prompt, self._target = prompt, target
        self._rows, self._order, self._redraw, self._encoder = rows, order, redraw, encoder
        self._fixed = redraw is None or not slots(prompt.source) & set(redraw.domains)
        for row in rows:
            if row is not None:
                encoder.target(target.render(row))

    def batch(self, count: int) -> list[Example]:
        """The next `count` examples."""
        rows = [row for i in self._order.take(count) if (row := self._rows[i]) is not None]
        if self._redraw:
            rows = [self._redraw(row) for row in rows]
        prompts = [self._prompt.render(row) for row in rows]
        return self._encoder.pairs(prompts, [self._target.render(row) for row in rows], keep=self._fixed)

    def state(self) -> Any:
        """JSON value from which `restore` goes on."""
        return {"order": self._order.state(), "redraw": self._redraw.rng.getstate() if self._redraw else None}

    def restore(self, state: Any) -> None:
        """Go on where `state` was taken."""
        self._order.restore(state["order"])
        if self._redraw:
            set_state(self._redraw.rng, state["redraw"])


def set_state(rng: random.Random, state: Any) -> None:
    """Put back a stream's state that has been through JSON."""
    rng.setstate((state[0], tuple(state[1]), state[2]))


def task_loss(forward: Callable[..., Any], examples: Sequence[Example]) -> "Tensor":
    """Mean cross entropy over the targets' tokens (end tokens included); prompts and padding carry none."""
    import torch
    from torch.nn.functional import cross_entropy

    width = max(len(head) + len(tail) for head, tail in examples) - 1
    first = min(len(head) for head, _ in examples) - 1
    ids, labels = [], []
    for head, tail in examples:
        row = [*head, *tail[:-1]]
        fill = width - len(row)
        ids.append(row + [tail[-1]] * fill)
        labels.append(([IGNORE] * (len(head) - 1) + tail + [IGNORE] * fill)[first:])
    keep = torch.arange(first, width)
    logits = forward(input_ids=torch.tensor(ids), use_cache=False, logits_to_keep=keep).logits
    return cross_entropy(logits.flatten(0, 1).float(), torch.tensor(labels).flatten(), ignore_index=IGNORE)
