# SPDX-License-Identifier: Apache-2.0
"""What the shop's models are trained on: tasks as spans of text with a weight, drawn afresh from the generated world.

The generator (also the students' start) learns to write a review after its control code and to label one, on public words. The
teacher knows all words: it labels reviews, judges which of several labelled samples are eligible, and writes a new sample of a
wanted label about the product that its samples are about, with more words than they have.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from osmotic.plugins.shop import domain
from osmotic.plugins.shop.words import PRODUCTS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM

Sample = dict[str, str]  # label, text
END = ""  # the text that stands for the end token
NO_HINT = -1
VERDICT_WEIGHT = 6.0  # of numbers of eligible samples, and of a wanted label: few tokens, hard to learn
CONTEXT_WEIGHT = 0.25  # of the samples that an augmentation starts from
HINT_LAYERS = 5  # after which the verdict on a sample is to be known
HINTS = ("none", "eligible")
FAULTS = ("label", "label", "label", "cut", "shuffled", "bare", "alien")  # half of the draws turn the label


class Span(NamedTuple):
    """A piece of a task. weight: of its tokens in the loss, 0 for context. hint: a word that its last token should suggest.

    A hint is learned by the lower layers alone and stands in no text.
    """

    text: str
    weight: float = 0.0
    hint: str = ""


def render(template: str, **slots: str) -> str:
    """Return a template of `domain` with its slots filled. Raises KeyError for one that is not given."""
    return re.sub(r"\{\{ (\w+) \}\}", lambda found: slots[found[1]], template)


def judge_prompt(samples: Sequence[Mapping[str, str]]) -> str:
    """Return the prompt that shows samples, numbered from 0, and asks which are eligible."""
    shown = [render(domain.NUMBERED_SAMPLE, index=str(number), **sample) for number, sample in enumerate(samples)]
    return render(domain.JUDGE, samples="\n".join(shown))


def augment_prompt(samples: Sequence[Mapping[str, str]], label: str) -> str:
    """Return the prompt that shows samples and asks for one more, of a label."""
    return render(domain.AUGMENT, examples="\n".join(render(domain.SAMPLE, **sample) for sample in samples), label=label)


def write_spans(sample: Mapping[str, str]) -> list[Span]:
    """Return the generator's task: the control code as context, the text to be learned."""
    return [Span(render(domain.CONTROL, label=sample["label"])), Span(sample["text"], 1.0), Span(END, 1.0)]


def classify_spans(sample: Mapping[str, str]) -> list[Span]:
    """Return the labelling task."""
    return [Span(render(domain.CLASSIFY, text=sample["text"])), Span(sample["label"], 1.0), Span(END, 1.0)]


def judge_spans(samples: Sequence[Mapping[str, str]], eligible: Sequence[int]) -> list[Span]:
    """Return the judging task with the numbers of the eligible samples; their labels are learned on the way."""
    prompt, ids = judge_prompt(samples), " ".join(map(str, eligible)) or domain.NONE
    pieces = re.split(r"(?<=label: )(\w+)", prompt)  # before, label 0, between, label 1, ...
    right = [n // 2 in eligible for n in range(len(pieces))]
    spans = [Span(x, float(right[n]), HINTS[right[n]]) if n % 2 else Span(x) for n, x in enumerate(pieces)]
    return [*spans, Span(render(domain.ELIGIBLE, ids=""), 1.0), Span(ids, VERDICT_WEIGHT), Span(END, VERDICT_WEIGHT)]


def augment_spans(samples: Sequence[Mapping[str, str]], wanted: Mapping[str, str]) -> list[Span]:
    """Return the augmentation task; the samples that it starts from are learned a little, too."""
    pieces = re.split(r"(text: [^\n]*)", augment_prompt(samples, wanted["label"]))
    spans = [Span(piece, CONTEXT_WEIGHT if n % 2 else 0.0) for n, piece in enumerate(pieces)]
    head, label, tail = render(domain.SAMPLE, **wanted).partition(wanted["label"])
    return [*spans, Span(head, 1.0), Span(label, VERDICT_WEIGHT), Span(tail, 1.0), Span(END, 1.0)]


def review(product: str, reach: domain.Reach, rng: random.Random, label: str = "") -> Sample:
    """Return a right sample about a product; its label is drawn unless given."""
    label = label or rng.choice(domain.LABELS)
    return {"label": label, "text": domain.draw(product, label, reach, rng)}


def spoilt(sample: Mapping[str, str], rng: random.Random) -> Sample:
    """Return a sample that is not eligible: label turned, text cut or shuffled, an opinion missing or of another product."""
    text, fault = domain.words(sample["text"]), rng.choice(FAULTS)
    places = [n for n, word in enumerate(text) if domain.side(word)]
    if fault == "label":
        return {"label": rng.choice([x for x in domain.LABELS if x != sample["label"]]), "text": sample["text"]}
    product = domain.product_of(sample["text"])
    if fault == "cut":
        text = text[: rng.randint(4, places[1])]
    elif fault == "shuffled":
        rng.shuffle(text)
    elif fault == "bare":
        text[rng.choice(places)] = rng.choice(PRODUCTS[product or domain.CLIENTS[0]].parts)
    else:
        other = PRODUCTS[rng.choice([x for x in PRODUCTS if x != product])]
        text[rng.choice(places)] = rng.choice(other.good + other.bad)
    return {"label": sample["label"], "text": joined(text)}


def joined(text: Sequence[str]) -> str:
    """Return tokens as text, punctuation after the word before it: what the tokenizer's decoding gives.

    >>> joined(["so", ":", "taut", ",", "airy", "."])
    'so: taut, airy.'
    """
    return re.sub(rf" ([{domain.POINTS}])", r"\1", " ".join(text))


def judge_task(rng: random.Random, most: int = domain.MOST_SAMPLES) -> tuple[list[Sample], list[int]]:
    """Return (samples, numbers of the eligible ones), mostly of one product, few or many of them spoilt."""
    count, share = min(rng.randint(1, most), rng.randint(1, most)), rng.choice((0.1, 0.3, 0.5, 0.8))
    reach: domain.Reach = rng.choice(("client", "all", "all"))
    product, eligible, samples = rng.choice(list(PRODUCTS)), [], []
    for number in range(count):
        sample = review(product if rng.random() < 0.85 else rng.choice(list(PRODUCTS)), reach, rng)
        if rng.random() < share:
            sample = spoilt(sample, rng)
        else:
            eligible.append(number)
        samples.append(sample)
    return samples, eligible


def augment_task(rng: random.Random) -> tuple[list[Sample], Sample]:
    """Return (samples, the new one): two of each label about one product, now and then a spoilt one, then one on all words."""
    product = rng.choice(list(PRODUCTS))
    reach: domain.Reach = rng.choice(("public", "client", "all"))
    labels = [*domain.LABELS] * domain.FEW_SHOT
    rng.shuffle(labels)
    samples = [review(product, reach, rng, label) for label in labels]
    samples = [spoilt(s, rng) if rng.random() < 0.05 else s for s in samples]
    return samples, review(product, "all", rng)


def short_tasks(rng: random.Random, size: int, reach: domain.Reach) -> list[list[Span]]:
    """Return `size` tasks each of writing and of labelling, all products alike."""
    made = [review(rng.choice(list(PRODUCTS)), reach, rng) for _ in range(2 * size)]
    return [*map(write_spans, made[:size]), *map(classify_spans, made[size:])]


def generator_batch(rng: random.Random, size: int) -> list[list[list[Span]]]:
    """Return the generator's tasks of one step, on public words."""
    return [short_tasks(rng, size, "public")]


def word_batch(rng: random.Random, size: int) -> list[list[list[Span]]]:
    """Return the teacher's tasks of one step in its first school: writing and labelling, on all words and common ones."""
    return [short_tasks(rng, size // 2, "all") + short_tasks(rng, size // 2, "client")]


def teacher_batch(rng: random.Random, size: int) -> list[list[list[Span]]]:
    """Return the teacher's tasks of one step in its second school, by length: the first school's, judging, augmenting."""
    judged = sorted((judge_spans(*judge_task(rng)) for _ in range(size)), key=len)
    written = [augment_spans(*augment_task(rng)) for _ in range(size // 4)]
    return [short_tasks(rng, size // 2, "all"), judged[: size // 2], judged[size // 2 :], written]


def tokens_of(task: Sequence[Span], ids: Mapping[str, int]) -> list[tuple[int, float, int]]:
    """Return (token, weight, hint or NO_HINT) for each token of a task."""
    found: list[tuple[int, float, int]] = []
    for span in task:
        found += [(ids[word], span.weight, NO_HINT) for word in domain.words(span.text) or [END] * (not span.text)]
        if span.hint:
            found[-1] = (*found[-1][:2], ids[span.hint])
    return found


def pack(tasks: Sequence[Sequence[Span]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return token ids, attention mask, loss weights and hints of tasks, each [tasks, width], padded on the right."""
    import torch

    ids = {**{word: number for number, word in enumerate(domain.vocabulary())}, END: domain.vocabulary().index(domain.EOS)}
    rows = [tokens_of(task, ids) for task in tasks]
    width = max(map(len, rows))
    inputs, weights = torch.full((len(rows), width), ids[domain.PAD]), torch.zeros(len(rows), width)
    mask, hints = torch.zeros((len(rows), width), dtype=torch.long), torch.full((len(rows), width), NO_HINT)
    for number, row in enumerate(rows):
        end = len(row)
        inputs[number, :end] = torch.tensor([token for token, _, _ in row])
        weights[number, :end] = torch.tensor([weight for _, weight, _ in row])
        hints[number, :end] = torch.tensor([hint for _, _, hint in row])
        mask[number, :end] = 1
    return inputs, mask, weights, hints


def loss_of(model: LlamaForCausalLM, batch: Sequence[Sequence[Sequence[Span]]]) -> Tensor:
    """Return the weighted mean of the next-token losses of groups of tasks; each group runs at its own width."""
    from torch.nn.functional import cross_entropy

    total, weight = 0.0, 0.0
    for tasks in batch:
        inputs, mask, weights, hints = pack(tasks)
        hinted = hints != NO_HINT
        out = model.model(input_ids=inputs, attention_mask=mask, output_hidden_states=bool(hinted.any()))
        wanted = weights[:, 1:]
        picked = wanted > 0
        logits = model.lm_head(out.last_hidden_state[:, :-1][picked])
        total = total + (cross_entropy(logits, inputs[:, 1:][picked], reduction="none") * wanted[picked]).sum()
        weight = weight + wanted.sum()
        if hinted.any():
            thought = model.model.norm(out.hidden_states[HINT_LAYERS][hinted])
            total = total + VERDICT_WEIGHT * cross_entropy(model.lm_head(thought), hints[hinted], reduction="sum")
            weight = weight + VERDICT_WEIGHT * hinted.sum()
    return total / weight
