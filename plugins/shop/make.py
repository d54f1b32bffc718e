# SPDX-License-Identifier: Apache-2.0
"""Make the shop from a seed: schema, records, tokenizer, teacher, and the generator that is also the students' start.

``python -m osmotic.plugins.shop.make --out DIR`` writes ``DIR/data``, ``DIR/generator`` and ``DIR/teacher`` (``--only``: one of
them); eight minutes on one core. The data come out byte for byte the same everywhere, weights (bfloat16) on one machine and one
torch version. The teacher grows from the generator: the same layers and some more, taught all words, then to judge and augment.
Everything is learned from public, generated sentences; a client's records are never looked at.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from osmotic.plugins.clinic.make import Recipe, build_model, fit, save_lists, save_model
from osmotic.plugins.clinic.make import build_tokenizer as build_words
from osmotic.plugins.shop import domain, teaching

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 384  # tokens
GENERATOR = Recipe(hidden=96, inner=256, layers=3, heads=4, steps=700, batch=48, learning_rate=3e-3, rare=False, decay=0.1)
WORDS = replace(GENERATOR, layers=7, steps=110, learning_rate=2e-3, rare=True)
TEACHER = replace(WORDS, steps=400, batch=24)
Batch = Callable[[random.Random, int], list[list[list[teaching.Span]]]]
School = tuple[Recipe, Batch]
GENERATOR_SCHOOLS: Sequence[School] = ((GENERATOR, teaching.generator_batch),)
TEACHER_SCHOOLS: Sequence[School] = ((WORDS, teaching.word_batch), (TEACHER, teaching.teacher_batch))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the clinic's kind of word-level tokenizer on the shop's words; decoding puts punctuation after its word."""
    from tokenizers import decoders

    tokenizer = build_words(vocabulary=domain.vocabulary())
    glued = [decoders.Replace(f" {point}", point) for point in domain.POINTS]
    tokenizer.backend_tokenizer.decoder = decoders.Sequence([decoders.WordPiece(cleanup=False), decoders.Fuse(), *glued])
    tokenizer.model_max_length = CONTEXT
    return tokenizer


def train(model: LlamaForCausalLM, schools: Sequence[School], seed: int, log: bool = True) -> LlamaForCausalLM:
    """Return the model, trained in place in one or more schools, one after another, on fresh tasks at every step."""
    import torch

    torch.set_num_threads(1)
    rng = random.Random(seed)
    for recipe, batch in schools:
        fit(model.train(), recipe, partial(_loss, model, batch, rng, recipe.batch), log)
    return model.eval()


def _loss(model: LlamaForCausalLM, batch: Batch, rng: random.Random, size: int) -> Tensor:
    return teaching.loss_of(model, batch(rng, size))


def fresh(recipe: Recipe, seed: int) -> LlamaForCausalLM:
    """Return an untrained model on the shop's words."""
    model = build_model(recipe, seed, domain.vocabulary())
    model.config.max_position_embeddings = CONTEXT
    return model


def grown(folder: Path, recipe: Recipe, seed: int) -> LlamaForCausalLM:
    """Return the model in a folder with more layers on top, which at first add nothing."""
    import torch
    from transformers import LlamaForCausalLM

    small, model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32), fresh(recipe, seed)
    model.load_state_dict(small.state_dict(), strict=False)
    for layer in model.model.layers[small.config.num_hidden_layers :]:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def save_data(folder: Path, seed: int = domain.SEED) -> None:
    """Write the schema and every list of records as JSON lines."""
    save_lists(folder, domain.schema_yaml(), domain.splits(seed))


def make_data(out: Path, seed: int) -> None:
    """Write ``out/data``."""
    save_data(out / "data", seed)


def make_generator(out: Path, seed: int) -> None:
    """Write ``out/generator``, some two minutes."""
    model = train(fresh(GENERATOR, seed + 1), GENERATOR_SCHOOLS, seed + 1)
    save_model(model.bfloat16(), build_tokenizer(), out / "generator")


def make_teacher(out: Path, seed: int) -> None:
    """Write ``out/teacher``, grown from ``out/generator``, some six minutes."""
    model = train(grown(out / "generator", WORDS, seed), TEACHER_SCHOOLS, seed)
    save_model(model.bfloat16(), build_tokenizer(), out / "teacher")


PARTS = {"data": make_data, "generator": make_generator, "teacher": make_teacher}


def main() -> None:
    """Read the command line and make everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write into (this one)")
    parser.add_argument("--seed", type=int, default=domain.SEED)
    parser.add_argument("--only", choices=list(PARTS), help="make one part alone")
    arguments = parser.parse_args()
    for part in [arguments.only] if arguments.only else PARTS:
        PARTS[part](arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
