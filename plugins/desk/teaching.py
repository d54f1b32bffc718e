# SPDX-License-Identifier: Apache-2.0
"""What the desk's models are trained on: instructions, well-formed or not, before messages, drawn afresh at every step.

A language model learns to answer a prompt with the department of the matter that is meant: which of the two that is, it learns
as a chance, the closer to one half the nearer the margin is to 0 (`domain.margin`). The masked model learns well-formed
instructions, mostly before the frame or a message, and so which words go where; of what they do to an answer it knows nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from osmotic.plugins.desk import domain
from osmotic.plugins.desk.words import BEFORE, LABELS, MATTERS, NOW, PLAIN, TOPICS

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear
    from transformers import LlamaForCausalLM

SOFTNESS = 0.4  # of the margin: where this far from 0, the matter is told with three to one
END_WEIGHT = 0.1  # of the end in the loss, against the answer
NO_HINT = -1.0
HINT_LAYERS = (1, 1, 2)  # after which each kind of hint is to be known
PROBED = len(HINT_LAYERS) + len(LABELS)  # a logit for each kind, and for each department of a matter
SENTENCES = (
    "{do} the {adjective} {noun} of the {who}",
    "please {do} the {adjective} {noun} of this {text}",
    "{do} which {noun} the {who} {verb} {time}",
    "{do} what the {who} {verb} {time} and {do} the {noun}",
    "{do} the {noun} that this {who} {verb} {time}",
    "please {do} this {text} and {do} the {adjective} {noun}",
    "which {noun} of the {text} is {adjective}? {do} it in one {desk}.",
    "{do} the {text} of our {who} and {do} the {desk} it belongs to {time}",
    "{time} {do} {who} and {desk}: {do} the {adjective} {noun} that the {text} {verb}",
    "{do} the {desk} for the {adjective} {noun} the {who} {verb}",
    "here is a {text} from a {who} who {verb} a {adjective} {noun}. {do} the {desk}.",
    "what is the {noun} about, {adjective} or {adjective}? {do} what the {who} {verb} {time}",
    "{do} {time} the {noun} and the {adjective} {noun} the {who} {verb}",
    "you {do} each {text}: {adjective} {noun}, {adjective} {noun}. {do} the {desk}.",
)
DEPARTMENTS = {
    domain.vocabulary().index(word): number for number, label in enumerate(LABELS) for word in MATTERS[label]
}  # of a token, that of its matter
SLOTS = ("adjective", "noun", "verb", "time")  # whose words tell which matter is meant, more or less
LISTED = "{}, {}, {} or {}"
FRAME = domain.FRAME.strip("[]")


class Task(NamedTuple):
    """A prompt, and the answers it may have: the department of the matter of now with a chance, the other one without.

    asked: the chance by the instruction alone. matters: the words of the matter of now and of the one from before.
    """

    prompt: str
    now: str
    before: str
    chance: float
    asked: float
    matters: tuple[str, str]


def told(slot: str, tilt: int, rng: random.Random) -> str:
    """Return a word for a slot: plain, or one that mostly leans as the tilt (-1, 0 for either, 1) wants."""
    if rng.random() < 0.4:
        return rng.choice(PLAIN[slot])
    wanted = tilt if tilt and rng.random() < 0.8 else rng.choice((-1, 1))
    return rng.choice((NOW if wanted > 0 else BEFORE)[slot])


def sentence(rng: random.Random) -> str:
    """Return a well-formed instruction; what it asks for is mostly one of the two matters, or nothing in particular."""
    tilt, made = rng.choice((-1, -1, 0, 1, 1)), rng.choice(SENTENCES)
    while "{" in made:
        slot = made[made.index("{") + 1 : made.index("}")]
        word = told(slot, tilt, rng) if slot in SLOTS else rng.choice(PLAIN[slot])
        made = made.replace(f"{{{slot}}}", word, 1)
    return made


_WORDS = sorted({word for lists in (NOW, BEFORE, PLAIN) for part in lists.values() for word in part} | {*domain.POINTS})
_TOPICS = [*LABELS, *(word for topics in TOPICS.values() for word in topics)]
_ANY = [word for word in domain.vocabulary() if word not in (domain.PAD, domain.UNK, domain.EOS)]


def any_word(rng: random.Random) -> str:
    """Return a word of instructions, now and then a topic or any other word at all."""
    return rng.choice(rng.choices((_WORDS, _TOPICS, _ANY), (0.86, 0.06, 0.08))[0])


def instruction(rng: random.Random) -> str:
    """Return an instruction as a search may come to it: well-formed, with words replaced, joined, cut or no sentence at all."""
    kind = rng.random()
    if kind < 0.3:
        return " ".join(any_word(rng) for _ in range(rng.randint(0, 18)))
    found = domain.words(sentence(rng))
    if kind < 0.4:
        found += domain.words(sentence(rng))
    if kind < 0.75:
        share = rng.random()
        found = [any_word(rng) if rng.random() < share else word for word in found]
    if rng.random() < 0.1:
        found = rng.sample(found, rng.randint(1, len(found)))
    if rng.random() < 0.1:
        found += domain.words(LISTED.format(*rng.sample(LABELS, len(LABELS))))
    return " ".join(found)


def _chance(margin: float) -> float:
    return 1 / (1 + math.exp(-margin / SOFTNESS))


def task(rng: random.Random, taste: domain.Taste, ahead: float = 0.0) -> Task:
    """Return a fresh instruction before a fresh message about anybody's names and items, and what to answer.

    ahead: added to the margin. A model that starts with the matter of now far ahead learns to tell the two matters apart first.
    """
    now, before = rng.sample(LABELS, 2)
    text, asked = domain.draw(now, before, rng.choice((*domain.CLIENTS, "public")), rng), instruction(rng)
    found = domain.words(text)
    matters = [next(word for word in found if word in MATTERS[label]) for label in (now, before)]
    return Task(
        f"{asked} {FRAME.replace('{{ text }}', text)}", now, before, _chance(ahead + domain.margin(asked, text, taste)),
        _chance(domain.strength(asked, taste)), (matters[0], matters[1]),
    )  # fmt: skip


def hints_of(made: Task) -> list[tuple[int, int, float]]:
    """Return what a model is to know where in a prompt: kinds, places, chances that the matter of now is meant, or is there.

    Kind 0 is of either matter in the message, 1 of the frame's beginning, by the instruction alone, 2 of the prompt's end.
    """
    found = domain.words(made.prompt)
    start = max(n for n, word in enumerate(found) if word == "message") + 1
    matters = [(0, found.index(matter, start), float(matter == made.matters[0])) for matter in made.matters]
    return [*matters, (1, start, made.asked), (2, len(found) - 1, made.chance)]


def pack(tasks: Sequence[Task], rng: random.Random) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ids and mask [tasks, width], padded on the left, answers [tasks, vocabulary], hints [kinds, tasks, width].

    The last token of a row is one of its answers, drawn by its chance, the one before it the prompt's last; a row of answers
    holds the chance of each. Where there is no hint stands `NO_HINT`.
    """
    import torch

    ids = {word: number for number, word in enumerate(domain.vocabulary())}
    rows = [[ids[w] for w in domain.words(t.prompt)] + [ids[t.now if rng.random() < t.chance else t.before]] for t in tasks]
    width = max(map(len, rows))
    inputs, answers = torch.full((len(rows), width), ids[domain.PAD]), torch.zeros(len(rows), len(ids))
    mask, hints = torch.zeros((len(rows), width), dtype=torch.long), torch.full((len(HINT_LAYERS), len(rows), width), NO_HINT)
    for number, (row, made) in enumerate(zip(rows, tasks, strict=True)):
        start = width - len(row)
        inputs[number, start:], mask[number, start:] = torch.tensor(row), 1
        answers[number, ids[made.now]], answers[number, ids[made.before]] = made.chance, 1 - made.chance
        for kind, place, chance in hints_of(made):
            hints[kind, number, start + place] = chance
    return inputs, mask, answers, hints


def loss_of(model: LlamaForCausalLM, tasks: Sequence[Task], rng: random.Random, probe: Linear) -> Tensor:
    """Return the loss of the answers, of the end after them, and of the hints, which the lower layers alone learn.

    probe: reads a hint of each kind off a hidden state; it is no part of the model.
    """
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

    inputs, mask, answers, hints = pack(tasks, rng)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    out = model.model(input_ids=inputs, attention_mask=mask, position_ids=positions, output_hidden_states=True)
    end = torch.full((len(tasks),), domain.vocabulary().index(domain.EOS))
    told = model.lm_head(out.last_hidden_state[:, -2:])
    loss = cross_entropy(told[:, 0], answers) + END_WEIGHT * cross_entropy(told[:, 1], end)
    for kind, layer in enumerate(HINT_LAYERS):
        hinted = hints[kind] != NO_HINT
        thought = probe(out.hidden_states[layer][hinted])[:, kind]
        loss = loss + binary_cross_entropy_with_logits(thought, hints[kind][hinted])
    matters = hints[0] != NO_HINT
    thought = probe(out.hidden_states[1][matters])[:, len(HINT_LAYERS) :]
    departments = torch.tensor([DEPARTMENTS[number] for number in inputs[matters].tolist()])
    return loss + cross_entropy(thought, departments)


def masked_text(rng: random.Random) -> str:
    """Return a text of the masked model's training: a well-formed instruction or two, mostly before the frame or a message."""
    asked = " ".join(sentence(rng) for _ in range(rng.choice((1, 1, 1, 2))))
    if rng.random() < 0.3:
        return asked
    labels = rng.sample(LABELS, 2)
    text = "text" if rng.random() < 0.6 else domain.draw(labels[0], labels[1], rng.choice((*domain.CLIENTS, "public")), rng)
    return f"{asked} {FRAME.replace('{{ text }}', text)}"


def instructions(seed: int = domain.SEED) -> list[domain.Record]:
    """Return the shipped public instructions, numbered, all different and well-formed: no record of anybody."""
    rng, found = random.Random(f"{seed} instructions"), dict[str, None]()
    while len(found) < domain.INSTRUCTIONS:
        found[sentence(rng)] = None
    return [{"id": f"instruction-{number:04d}", "text": text} for number, text in enumerate(found, start=1)]
