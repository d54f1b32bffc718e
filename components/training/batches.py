# SPDX-License-Identifier: Apache-2.0
"""Training batches of prompt -> target tasks: which records, with which re-drawn fields, as which token ids.

Every choice comes from seeded streams that do not depend on the rationales, so that all arms of a comparison see the same
label batches. A prompt that is too long loses its beginning or its middle, never the model's start token before it, nor what
the template says after its last slot (the cue); a target loses nothing.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from osmotic.components.templates import Template, slots
from osmotic.components.training.parts import Example, Step
from osmotic.schemas.errors import ComponentError, Problem

__all__ = ["Cut", "Encoder", "Example", "Order", "Redraw", "Row", "StepFeed", "Task", "set_state"]
Row = Mapping[str, Any]
Cut = Literal["left", "middle"]
LEAST_PROMPT = 8


class Order:
    """Record indices, epoch by epoch in random order; records that are not wanted are passed over, in their place."""

    def __init__(self, rng: random.Random, wanted: Sequence[bool]) -> None:
        if not any(wanted):
            raise ComponentError(Problem("there is no record to take"))
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
        return [self._rng.getstate(), list(self._queue)]

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
    """Text to token ids.

    limit: tokens of prompt and target together, or of each where they go `apart` (encoder and decoder). cut: what a prompt that
    is too long loses. rows: tokens that the model has; others, which a tokenizer may know (special ones, written in
    a text), are left out.
    """

    encode_prompts: Callable[[Sequence[str]], list[list[int]]]
    tokenizer: Any
    limit: int
    apart: bool = False
    cut: Cut = "left"
    rows: int | None = None
    _targets: dict[str, list[int]] = field(default_factory=dict)

    def pairs(
        self, prompts: Sequence[str], targets: Sequence[str], places: Sequence[int], cue: int = 0
    ) -> tuple[list[Example], int]:
        """(token ids of each pair, how many prompts were cut). cue: tokens at a prompt's end that are never cut off.

        places: position of each pair's record, for errors. Raises ComponentError where a target leaves no room for the cue (or
        for `LEAST_PROMPT` tokens), or a prompt has no tokens.
        """
        heads = map(self._known, self.encode_prompts(prompts) if prompts else [])
        rows, short = [], 0
        for head, target, place in zip(heads, targets, places, strict=True):
            if not head:
                raise ComponentError(Problem(f"the prompt of record {place + 1} has no tokens", fix="check its template"))
            tail = self.target(target)
            room = self._room(tail, max(LEAST_PROMPT, cue), place)
            short += len(head) > room
            rows.append((self._shortened(head, room, max(LEAST_PROMPT, cue)), tail))
        return rows, short

    def _room(self, tail: list[int], least: int, place: int) -> int:
        room = self.limit if self.apart else self.limit - len(tail)
        if room < least or len(tail) > self.limit:
            rest = "" if self.apart else f" and {least} of the prompt"
            why = f"{len(tail)} tokens with the end token; {self.limit} must hold it{rest}"
            fix = "raise max_length (at most the model's own positions), or filter by length"
            raise ComponentError(Problem(f"the target of record {place + 1} is too long", why=why, fix=fix))
        return room

    def _shortened(self, head: list[int], room: int, least: int) -> list[int]:
        if len(head) <= room:
            return head
        starts = int(room > least and head[0] == getattr(self.tokenizer, "bos_token_id", None))
        front = max(starts, (room - least) // 2 if self.cut == "middle" else 0)
        return [*head[:front], *head[len(head) - room + front :]]

    def _known(self, ids: Sequence[int]) -> list[int]:
        return [token for token in ids if self.rows is None or token < self.rows]

    def target(self, text: str) -> list[int]:
        """Ids of a target and the end token, uncut."""
        if text not in self._targets:
            ids = self._known(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            self._targets[text] = [*ids, self.tokenizer.eos_token_id]
        return self._targets[text]


class Task:
    """One of the student's tasks: templates over its records (None where a record takes no part), order and re-drawing.

    What stays as it is, is encoded once; `redraw` of fields that the templates name is encoded as it comes. held: indices that
    take no part in training. short: how many prompts are too long as they stand. Raises ComponentError as `Encoder.pairs`.
    """

    def __init__(
        self,
        prompt: Template,
        target: Template,
        rows: Sequence[Row | None],
        order: random.Random,
        redraw: Redraw | None,
        encoder: Encoder,
        held: frozenset[int] = frozenset(),
    ) -> None:
        self._prompt, self._target, self._rows, self._redraw, self._encoder = prompt, target, rows, redraw, encoder
        self._fixed = redraw is None or not (slots(prompt.source) | slots(target.source)) & set(redraw.domains)
        self._order = Order(order, [row is not None and i not in held for i, row in enumerate(rows)])
        self._cue = len(encoder.encode_prompts([cue_of(prompt.source)])[0])
        known = [i for i, row in enumerate(rows) if row is not None]
        found, self.short = self._encode([self._rows[i] for i in known], known)
        self._examples = dict(zip(known, found, strict=True))
        self.held_out = [self._examples[i] for i in known if i in held]

    def batch(self, count: int) -> list[Example]:
        """The next `count` examples."""
        taken = self._order.take(count)
        if self._redraw is None:
            return [self._examples[i] for i in taken]
        rows = [self._redraw(self._rows[i] or {}) for i in taken]  # drawn in any case: the stream goes on alike
        return [self._examples[i] for i in taken] if self._fixed else self._encode(rows, taken)[0]

    def state(self) -> Any:
        """JSON value from which `restore` goes on."""
        return {"order": self._order.state(), "redraw": self._redraw.rng.getstate() if self._redraw else None}

    def restore(self, state: Any) -> None:
        """Go on where `state` was taken."""
        self._order.restore(state["order"])
        if self._redraw:
            set_state(self._redraw.rng, state["redraw"])

    def _encode(self, rows: Sequence[Row | None], places: Sequence[int]) -> tuple[list[Example], int]:
        given = [row for row in rows if row is not None]
        prompts = [self._prompt.render(row) for row in given]
        return self._encoder.pairs(prompts, [self._target.render(row) for row in given], places, self._cue)


class StepFeed:
    """Steps of `batch` records a task. A `Feed`."""

    def __init__(self, tasks: Mapping[str, Task], batch: int) -> None:
        self._tasks, self._batch = tasks, batch

    def take(self) -> Step:
        """The next step."""
        return Step({name: task.batch(self._batch) for name, task in self._tasks.items()})

    def state(self) -> Any:
        """JSON value from which `restore` goes on."""
        return {name: task.state() for name, task in self._tasks.items()}

    def restore(self, state: Any) -> None:
        """Go on where `state` was taken."""
        for name, task in self._tasks.items():
            task.restore(state[name])


def cue_of(source: str) -> str:
    """What a template says after its last slot."""
    return re.split(r"\}\}|%\}", source)[-1]


def set_state(rng: random.Random, state: Any) -> None:
    """Put back a stream's state that has been through JSON."""
    rng.setstate((state[0], tuple(state[1]), state[2]))
