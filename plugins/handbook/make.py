# SPDX-License-Identifier: Apache-2.0
"""Make the handbook from a seed: schema, records, tokenizer and the model that is every arm's start.

``python -m osmotic.plugins.handbook.make --out DIR`` writes ``DIR/data`` and ``DIR/base`` (``--only``: one of them); some six
minutes on one core, with torch 2.9 or later. The data come out byte for byte the same everywhere, weights (bfloat16) on one
machine and one torch version. The model learns from public, generated text; a client's records are never looked at.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from osmotic.plugins.clinic.make import build_tokenizer as build_words
from osmotic.plugins.clinic.make import save_lists, save_model
from osmotic.plugins.handbook import domain, teaching

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 512  # tokens


@dataclass(frozen=True)
class Recipe:
    """Size and training. ends: of the first lessons, in shares of the steps; rates: of matrices, of all others."""

    hidden: int = 128
    inner: int = 256
    layers: int = 4
    heads: int = 4
    steps: int = 600
    records: int = 64
    ends: tuple[float, float] = (0.3, 0.5)
    rates: tuple[float, float] = (0.02, 4e-3)


BASE = Recipe()


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the clinic's kind of word-level tokenizer on the handbook's words; decoding puts punctuation after its word."""
    from tokenizers import decoders

    tokenizer = build_words(vocabulary=domain.vocabulary())
    glued = [decoders.Replace(f" {point}", point) for point in domain.POINTS]
    tokenizer.backend_tokenizer.decoder = decoders.Sequence([decoders.WordPiece(cleanup=False), decoders.Fuse(), *glued])
    tokenizer.model_max_length = CONTEXT
    return tokenizer


def build_model(recipe: Recipe, seed: int) -> LlamaForCausalLM:
    """Return a freshly initialised Llama; what it reads words by is what it writes them by, which makes copying easy."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    listed = domain.vocabulary()
    config = LlamaConfig(
        vocab_size=len(listed), hidden_size=recipe.hidden, intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers, num_attention_heads=recipe.heads, num_key_value_heads=recipe.heads,
        max_position_embeddings=CONTEXT, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=listed.index(domain.EOS), pad_token_id=listed.index(domain.PAD),
    )  # fmt: skip
    return LlamaForCausalLM(config)


def optimisers(model: LlamaForCausalLM, recipe: Recipe) -> list[Optimizer]:
    """Return Muon for the layers' matrices and AdamW for embeddings and norms. Needs torch 2.9."""
    import torch

    layers, rest = list[torch.nn.Parameter](), list[torch.nn.Parameter]()
    for name, value in model.named_parameters():
        (layers if value.ndim == 2 and "embed" not in name else rest).append(value)
    matrices, others = recipe.rates
    return [
        torch.optim.Muon(layers, lr=matrices, weight_decay=0.1, momentum=0.95),
        torch.optim.AdamW(rest, lr=others, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def pace(step: int, steps: int) -> float:
    """Return the factor of the learning rates: up in a twentieth of the steps, level, and down from two fifths on.

    >>> [round(pace(step, 100), 2) for step in (0, 4, 40, 70, 99)]
    [0.2, 1.0, 1.0, 0.5, 0.02]
    """
    return min(1.0, (step + 1) / (0.05 * steps), max(0.02, (1 - step / steps) / 0.6))


def train(recipe: Recipe, seed: int, log: bool = True) -> LlamaForCausalLM:
    """Return a model trained on fresh tasks at every step; one lesson after another."""
    import torch

    torch.set_num_threads(1)
    model, rng = build_model(recipe, seed), random.Random(seed)
    trained = optimisers(model, recipe)
    rates = [optimiser.param_groups[0]["lr"] for optimiser in trained]
    for step in range(recipe.steps):
        lesson = teaching.LESSONS[sum(step >= end * recipe.steps for end in recipe.ends)]
        loss = teaching.loss_of(model, teaching.batch(rng, recipe.records, lesson))
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser, rate in zip(trained, rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate * pace(step, recipe.steps)
            optimiser.step()
        if log and step % 50 == 0:
            print(f"step {step:4d}  loss {loss.item():.4f}", flush=True)
    return model.eval()


def save_data(folder: Path, seed: int = domain.SEED) -> None:
    """Write the schema and every list of records as JSON lines."""
    save_lists(folder, domain.schema_yaml(), domain.splits(seed))


def make_data(out: Path, seed: int) -> None:
    """Write ``out/data``."""
    save_data(out / "data", seed)


def make_base(out: Path, seed: int) -> None:
    """Write ``out/base``, some six minutes."""
    save_model(train(BASE, seed).bfloat16(), build_tokenizer(), out / "base")


PARTS = {"data": make_data, "base": make_base}


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
