# SPDX-License-Identifier: Apache-2.0
"""The variant of the clinic whose rationale names what was perturbed: its teacher, its students' start, and a local decoder.

``python -m osmotic.plugins.clinic.make --out DIR --only named`` writes ``DIR/named/{data,teacher,student,decoder}``, weights
in bfloat16; about five minutes on one core. The teacher goes on from the clinic's own (the shipped one, where DIR has none).
The students' start is trained like the clinic's, on common words. The decoder sees (perturbed question, perturbed rationale,
question) and learns to write the question's own words into the rationale. In its training every conclusion is drawn at random,
so that it cannot learn where a word belongs: it knows all words, and nothing about them. All of it is public and generated;
only the public template is used.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from osmotic.plugins.clinic import domain, make
from osmotic.plugins.clinic.make import Recipe

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM

TEACHER = Recipe(hidden=128, inner=344, layers=3, heads=4, steps=700, batch=48, learning_rate=2e-3, rare=True)
STUDENT = replace(make.STUDENT, steps=700)
DECODER = Recipe(hidden=96, inner=256, layers=3, heads=4, steps=1000, batch=32, learning_rate=3e-3, rare=True)
INSTRUCTIONS = ("rewrite", "decode")  # words that the decoder knows beside the domain's, for training it further
PAIRS = 400  # public records
CHANGED = 0.6  # probability that a field of a demonstration is drawn anew


def named_record(rng: random.Random, rare: bool) -> domain.Record:
    """Return a public record (without id) on common words, or on all words."""
    signs = domain.flatten(domain.COMMON_SIGNS) + (domain.flatten(domain.RARE_SIGNS) if rare else ())
    exposures = domain.flatten(domain.COMMON_EXPOSURES) + (domain.flatten(domain.RARE_EXPOSURES) if rare else ())
    return domain.make_record(rng.choice(signs), rng.choice(exposures), rng)


def demonstration(record: Mapping[str, str], rng: random.Random) -> tuple[str, str]:
    """Return (prompt, target) of one decoding task: a perturbed question with an answer, then the question.

    Each field is redrawn from its whole domain with probability `CHANGED`. System and cause are drawn without looking at the
    words: the answer teaches copying alone.
    """
    public = domain.domains()
    shown = {field: rng.choice(public[field]) if rng.random() < CHANGED else record[field] for field in domain.SLOTS}
    system, cause = rng.randrange(len(domain.SYSTEMS)), rng.randrange(len(domain.CAUSES))
    asked, answered = domain.explain_prompt(domain.render(shown)), domain.chain(shown, system, cause)
    return decode_prompt(asked, answered, domain.render(record)), domain.chain(record, system, cause)


def decode_prompt(perturbed: str, rationale: str, text: str) -> str:
    """Return the one-shot prompt: the perturbed question as it was asked, its answer, then the real question.

    >>> decode_prompt("patient a. explain:", "a from b", "patient c.")
    'patient a. explain: a from b. patient c. explain:'
    """
    return f"{perturbed} {rationale}. {domain.explain_prompt(text)}"


def vocabulary() -> list[str]:
    """Return the decoder's tokens: the domain's, and its instructions."""
    return [*domain.vocabulary(), *INSTRUCTIONS]


def train(model: LlamaForCausalLM, recipe: Recipe, loss: Callable[[], Tensor], log: bool = True) -> LlamaForCausalLM:
    """Train a model and return it, ready to answer."""
    import torch

    torch.set_num_threads(recipe.threads)
    make.fit(model, recipe, loss, log)
    return model.eval()


def explained(records: list[domain.Record]) -> list[make.Example]:
    """Return the rationale task of records."""
    return [(domain.explain_prompt(domain.render(r)), domain.named_rationale_of(r)) for r in records]


def train_teacher(folder: Path, recipe: Recipe, seed: int) -> LlamaForCausalLM:
    """Return the clinic's teacher in ``folder``, trained on to write rationales that name."""
    from transformers import LlamaForCausalLM

    model, rng = LlamaForCausalLM.from_pretrained(folder), random.Random(seed)

    def loss() -> Tensor:
        return make.task_loss(model, explained([named_record(rng, recipe.rare) for _ in range(recipe.batch)]), 0, 1.0)

    return train(model.train(), recipe, loss)


def train_student(recipe: Recipe, seed: int) -> LlamaForCausalLM:
    """Return the students' public start: wards and naming rationales of records on common words."""
    model, rng = make.build_model(recipe, seed), random.Random(seed)

    def loss() -> Tensor:
        records = [named_record(rng, recipe.rare) for _ in range(recipe.batch)]
        pairs = [(domain.predict_prompt(domain.render(r)), r["department"]) for r in records] + explained(records)
        return make.task_loss(model, pairs, len(records), recipe.rationale_weight)

    return train(model, recipe, loss)


def train_decoder(recipe: Recipe, seed: int) -> LlamaForCausalLM:
    """Return the local decoder: copies the question's words into the demonstration's rationale."""
    model, rng = make.build_model(recipe, seed, vocabulary()), random.Random(seed)

    def loss() -> Tensor:
        return make.task_loss(model, [demonstration(named_record(rng, recipe.rare), rng) for _ in range(recipe.batch)], 0, 1.0)

    return train(model, recipe, loss)


def public_records(seed: int, count: int = PAIRS) -> list[domain.Record]:
    """Return numbered public records on common words, to train a decoder on."""
    rng = random.Random(seed)
    return [{"id": f"public-{number:04d}", **named_record(rng, rare=False)} for number in range(1, count + 1)]


def save_data(folder: Path, seed: int) -> None:
    """Write the public records as JSON lines; their schema is the clinic's."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record) + "\n" for record in public_records(seed)]
    (folder / "public.jsonl").write_text("".join(lines), encoding="utf-8")


def make_variant(out: Path, teacher: Path, seed: int) -> None:
    """Write data, teacher (grown from the one in ``teacher``), students' start and decoder below ``out``."""
    save_data(out / "data", seed)
    common, own = make.build_tokenizer(), make.build_tokenizer(vocabulary=vocabulary())
    make.save_model(train_teacher(teacher, TEACHER, seed + 3).bfloat16(), common, out / "teacher")
    make.save_model(train_student(STUDENT, seed + 4).bfloat16(), common, out / "student")
    make.save_model(train_decoder(DECODER, seed + 5).bfloat16(), own, out / "decoder")
