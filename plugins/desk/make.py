# SPDX-License-Identifier: Apache-2.0
"""Make the desk from its seeds: schemas, records, instructions, tokenizers, two language models and a masked one.

``python -m osmotic.plugins.desk.make --out DIR`` writes ``DIR/data``, ``DIR/llm``, ``DIR/other`` and ``DIR/masked`` (``--only``
makes one of them); some eight minutes on one core. The data come out byte for byte the same everywhere, weights (bfloat16) do
on one machine and one torch version. The other model grows from ``DIR/llm``: its layers and one more, taught another taste.
Everything is learned from generated sentences; a client's records are never looked at.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from osmotic.plugins.clinic.make import (
    MAX_POSITIONS,
    Recipe,
    build_masked,
    build_model,
    fit,
    mask_batch,
    save_lists,
    save_model,
)
from osmotic.plugins.clinic.make import build_tokenizer as build_words
from osmotic.plugins.desk import domain, teaching

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BertForMaskedLM, LlamaForCausalLM, PreTrainedTokenizerFast

LLM = Recipe(hidden=64, inner=192, layers=3, heads=4, steps=900, batch=48, learning_rate=4e-3, rare=True)
OTHER = replace(LLM, layers=4, steps=300, learning_rate=3e-3)
MASKED = Recipe(hidden=64, inner=192, layers=2, heads=4, steps=900, batch=64, learning_rate=3e-3, rare=True)

SEEDS = {"llm": 1, "other": 2, "masked": 2413}
AHEAD, AHEAD_SHARE = 6.0, 0.3  # by how much the matter of now is ahead at first, and the share of steps until it is no more


def build_tokenizer(mask: bool = False) -> PreTrainedTokenizerFast:
    """Return the clinic's kind of word-level tokenizer on the desk's words. mask: with a mask token, the last."""
    return build_words(mask, domain.vocabulary())


def grown(folder: Path, recipe: Recipe, seed: int) -> LlamaForCausalLM:
    """Return the language model in a folder with more layers on top, which at first add nothing."""
    import torch
    from transformers import LlamaForCausalLM

    small = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = build_model(recipe, seed, domain.vocabulary())
    model.load_state_dict(small.state_dict(), strict=False)
    for layer in model.model.layers[small.config.num_hidden_layers :]:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def train(
    model: LlamaForCausalLM, recipe: Recipe, taste: domain.Taste, seed: int, ahead: float = 0.0, log: bool = True
) -> LlamaForCausalLM:
    """Return a language model, trained in place to a taste on fresh tasks at every step.

    ahead: by how much the matter of now is ahead at first; it ceases within `AHEAD_SHARE` of the steps.
    """
    import torch

    torch.set_num_threads(recipe.threads)
    rng, steps, probe = random.Random(seed), iter(range(recipe.steps)), torch.nn.Linear(recipe.hidden, teaching.PROBED)
    model.add_module("probe", probe)  # trained with the model, and taken off it below

    def loss() -> Tensor:
        still = ahead * max(0.0, 1 - (next(steps) + 1) / (AHEAD_SHARE * recipe.steps))
        return teaching.loss_of(model, [teaching.task(rng, taste, still) for _ in range(recipe.batch)], rng, probe)

    fit(model.train(), recipe, loss, log)
    del model.probe
    return model.eval()


def train_masked(recipe: Recipe, seed: int, log: bool = True) -> BertForMaskedLM:
    """Return a masked model of well-formed instructions; every tenth step joins three texts, for long prompts."""
    import torch

    torch.set_num_threads(recipe.threads)
    model, rng = build_masked(recipe, seed, domain.vocabulary()), random.Random(seed)

    def loss() -> Tensor:
        joined = 3 if rng.random() < 0.1 else 1
        texts = [" ".join(teaching.masked_text(rng) for _ in range(joined)) for _ in range(recipe.batch // joined)]
        texts = [" ".join(domain.words(text)[:MAX_POSITIONS]) for text in texts]
        inputs, mask, labels = mask_batch(texts, rng, vocabulary=domain.vocabulary())
        found: Tensor = model(input_ids=inputs, attention_mask=mask, labels=labels).loss
        return found

    fit(model, recipe, loss, log)
    return model.eval()


def save_data(folder: Path, seed: int = domain.SEED) -> None:
    """Write the schemas, every list of records and the public instructions as JSON lines."""
    save_lists(folder, domain.schema_yaml(), {**domain.splits(seed), "instructions": teaching.instructions(seed)})
    (folder / "instructions.yaml").write_text(domain.schema_yaml(labelled=False), encoding="utf-8")


def make_data(out: Path, more: int = 0) -> None:
    """Write ``out/data``."""
    save_data(out / "data", domain.SEED + more)


def make_llm(out: Path, more: int = 0) -> None:
    """Write ``out/llm``, the black box, some four minutes."""
    seed = SEEDS["llm"] + more
    model = train(build_model(LLM, seed, domain.vocabulary()), LLM, "llm", seed, AHEAD)
    save_model(model.bfloat16(), build_tokenizer(), out / "llm")


def make_other(out: Path, more: int = 0) -> None:
    """Write ``out/other``, a second black box that takes many words otherwise, grown from ``out/llm``, some two minutes."""
    seed = SEEDS["other"] + more
    model = train(grown(out / "llm", OTHER, seed), OTHER, "other", seed)
    save_model(model.bfloat16(), build_tokenizer(), out / "other")


def make_masked(out: Path, more: int = 0) -> None:
    """Write ``out/masked``, some two minutes."""
    save_model(train_masked(MASKED, SEEDS["masked"] + more).bfloat16(), build_tokenizer(mask=True), out / "masked")


PARTS = {"data": make_data, "llm": make_llm, "other": make_other, "masked": make_masked}


def main() -> None:
    """Read the command line and make everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write into (this one)")
    parser.add_argument("--more", type=int, default=0, help="added to each part's own seed")
    parser.add_argument("--only", choices=list(PARTS), help="make one part alone")
    arguments = parser.parse_args()
    for part in [arguments.only] if arguments.only else PARTS:
        PARTS[part](arguments.out, arguments.more)


if __name__ == "__main__":
    main()
