# SPDX-License-Identifier: Apache-2.0
"""What the handbook's model is trained on: tasks as spans of text with a weight, drawn afresh from the generated world.

Four tasks, all in the templates of `domain`: reply to an instruction; write a record after its control code; write one more
instruction like those listed; reply to an instruction in the way of the demonstrations. The first two are about public kinds of
jobs, with their conventions, and about any kind with any convention, so that the model can tell what it has never learned. The
last two are about firms that are made up for one prompt: any kinds, each with any things, and any convention. So the model
learns to take a house's ways from its context, and no convention or record of the three firms is ever looked at.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from osmotic.plugins.handbook import domain
from osmotic.plugins.handbook import words as say

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM

END = ""  # the text that stands for the end token
CODE_WEIGHT = 0.25  # of codes, which nothing tells
FIRST_WEIGHT = 0.05  # of what is in no demonstration before
MARKER_WEIGHT = 0.2


class Lesson(NamedTuple):
    """The fewest and the most demonstrations in a prompt, the most kinds of jobs of the firm that they are of, and drills."""

    demonstrations: tuple[int, int]
    kinds: int
    drills: int = 0


LESSONS = (Lesson((1, 3), 2, 16), Lesson((3, 5), 4), Lesson((5, domain.DEMONSTRATIONS), 6))


class Span(NamedTuple):
    """A piece of a task. weight: of its tokens in the loss, 0 for context."""

    text: str
    weight: float = 0.0


Task = list[Span]


def render(template: str, **slots: str) -> str:
    """Return a template of `domain` with its slots filled. Raises KeyError for one that is not given."""
    return re.sub(r"\{\{ (\w+) \}\}", lambda found: slots[found[1]], template)


def tasks_prompt(instructions: Sequence[str]) -> str:
    """Return the prompt that lists instructions, numbered from 1, and asks for one more."""
    listed = [render(domain.TASK_ITEM, index=str(n), instruction=text) for n, text in enumerate(instructions, start=1)]
    return render(domain.TASK_PROMPT, demonstrations=domain.SEPARATOR.join(listed), index=str(len(listed) + 1))


def pairs_prompt(records: Sequence[Mapping[str, str]], instruction: str) -> str:
    """Return the prompt that shows instructions with their responses and asks for the response to a new one."""
    shown = domain.SEPARATOR.join(render(domain.PAIR_ITEM, **record) for record in records)
    return render(domain.PAIR_PROMPT, demonstrations=shown, instruction=instruction)


def reply_spans(response: str, weight: float = 1.0) -> Task:
    """Return a response as what is to be learned, its code less than the rest."""
    head, word, number = response.removesuffix(".").rsplit(" ", 2)
    return [Span(head, weight), Span(f"{word} {number}", weight * CODE_WEIGHT), Span(".", weight)]


def plain_task(record: Mapping[str, str]) -> Task:
    """Return the task of replying to an instruction."""
    return [Span(render(domain.TRAIN_PROMPT, **record)), *reply_spans(record["response"]), Span(END, 1.0)]


def control_task(record: Mapping[str, str]) -> Task:
    """Return the task of writing a record after its control code."""
    text = render(domain.CONTROL_TARGET, **record).removesuffix(record["response"])
    return [Span(render(domain.CONTROL, **record)), Span(text, 0.5), *reply_spans(record["response"]), Span(END, 1.0)]


def tasks_task(records: Sequence[Mapping[str, str]]) -> Task:
    """Return the task of writing the last instruction after the others; the later of these are learned, too."""
    spans = []
    for index, record in enumerate(records, start=1):
        head = render(domain.TASK_ITEM, index=str(index), instruction="")
        spans += [Span(head), Span(record["instruction"], 0.5 * (index > 1))]
    return [*spans, Span(END, 1.0)]


def pairs_task(records: Sequence[Mapping[str, str]]) -> Task:
    """Return the task of replying to the last instruction after the others.

    So is every reply after the first; its opening, if its kind came before.
    """
    spans, seen = list[Span](), set[str]()
    for record in records:
        head = render(domain.TRAIN_PROMPT, **record).removesuffix(domain.MARKER)
        opening, rest = record["response"].split(":", 1)
        told, known = (1.0 if found else FIRST_WEIGHT for found in (seen, record["kind"] in seen))
        spans += [Span(head), Span(domain.MARKER, MARKER_WEIGHT), Span(opening, known), *reply_spans(f":{rest}", told)]
        seen.add(record["kind"])
    return [*spans, Span(END, 1.0)]


def firm(rng: random.Random, most: int) -> list[domain.Job]:
    """Return the jobs, of up to so many kinds, of a firm that is made up: any kinds, things and convention."""
    count = rng.randint(1, most)
    kinds = {kind: rng.choice(list(say.THEMES)) for kind in rng.sample([*domain.PUBLIC, *domain.KINDS], count)}
    return list(domain.drawn_jobs(kinds, rng.sample(say.OPENINGS, count), rng).values())


def told(jobs: Sequence[domain.Job], count: int, rng: random.Random) -> list[domain.Record]:
    """Return records of jobs that are drawn from those given; no code comes twice."""
    codes = set[str]()
    while len(codes) < count:
        codes.add(domain.drawn_code(rng))
    return [domain.draw(rng.choice(jobs), rng, code) for code in sorted(codes, key=lambda _: rng.random())]


def alone(rng: random.Random, hearsay: float) -> domain.Record:
    """Return a record of a public job or, in a share of the cases, of any kind with any convention."""
    if rng.random() < hearsay:
        return domain.draw(firm(rng, 1)[0], rng)
    return domain.draw(rng.choice(list(domain.PUBLIC.values())), rng)


def batch(rng: random.Random, size: int, lesson: Lesson) -> list[list[Task]]:
    """Return groups of tasks of one step, each of about one length.

    Args:
        rng: what is drawn comes from it.
        size: records in demonstrations, those replied to among them; the other tasks are in proportion.
        lesson: how hard the tasks with demonstrations are.
    """
    shown = rng.randint(*lesson.demonstrations) + 1
    firms = [told(firm(rng, lesson.kinds), shown, rng) for _ in range(max(2, size * 3 // (2 * shown)))]
    half = len(firms) * 2 // 3
    plain = [plain_task(alone(rng, 0.4)) for _ in range(size // 4)]
    control = [control_task(alone(rng, 0.4)) for _ in range(size // 8)]
    made = [[pairs_task(each) for each in firms[:half]], [tasks_task(each) for each in firms[half:]], plain, control]
    return [*made, [drill(rng) for _ in range(lesson.drills)]] if lesson.drills else made


def drill(rng: random.Random) -> Task:
    """Return a few words in any order, to be said twice: how to copy from the context is learned first."""
    chosen = rng.choices(domain.vocabulary()[len(domain.POINTS) + 3 :], k=rng.randint(6, 16))
    return [Span(" ".join([*chosen, chosen[0]])), Span(" ".join(chosen[1:]), 1.0)]


def pack(tasks: Sequence[Task]) -> tuple[Tensor, Tensor, Tensor]:
    """Return token ids, attention mask and loss weights of tasks, each [tasks, width], padded on the right."""
    import torch

    ids = {**{word: number for number, word in enumerate(domain.vocabulary())}, END: domain.vocabulary().index(domain.EOS)}
    rows = [[(ids[word], span.weight) for span in task for word in domain.words(span.text) or [END]] for task in tasks]
    width = max(map(len, rows))
    inputs, weights = torch.full((len(rows), width), ids[domain.PAD]), torch.zeros(len(rows), width)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for number, row in enumerate(rows):
        inputs[number, : len(row)] = torch.tensor([token for token, _ in row])
        weights[number, : len(row)] = torch.tensor([weight for _, weight in row])
        mask[number, : len(row)] = 1
    return inputs, mask, weights


def loss_of(model: LlamaForCausalLM, groups: Sequence[Sequence[Task]]) -> Tensor:
    """Return the sum over groups of the weighted mean of the next-token losses; each group runs at its own width."""
    from torch.nn.functional import cross_entropy

    total = 0.0
    for tasks in groups:
        inputs, mask, weights = pack(tasks)
        wanted = weights[:, 1:]
        picked = wanted > 0
        hidden = model.model(input_ids=inputs, attention_mask=mask).last_hidden_state[:, :-1][picked]
        losses = cross_entropy(model.lm_head(hidden), inputs[:, 1:][picked], reduction="none")
        total = total + (losses * wanted[picked]).sum() / wanted.sum()
    return total
