# SPDX-License-Identifier: Apache-2.0
"""A tiny Llama, steps of random tokens, and a training of them, for the tests of the loop."""

import hashlib
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

WORDS = 96


def llama(lora: bool = False, dropout: float = 0.0) -> Any:
    """Two layers, tied embeddings; with or without adapters. Always the same one."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = LlamaForCausalLM(
            LlamaConfig(vocab_size=WORDS, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, **sizes)
        )
        if not lora:
            return module
        from peft import LoraConfig, get_peft_model

        targets = ["q_proj", "v_proj"]
        wanted = LoraConfig(r=3, lora_alpha=6, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft reads names that transformers has renamed
            return get_peft_model(module, wanted)


class Feed:
    """Steps of random rows, seeded."""

    def __init__(self, seed: int = 3, rows: tuple[int, int] = (5, 4)) -> None:
        self.rng, self.rows, self.taken = random.Random(seed), rows, 0

    def row(self) -> tuple[list[int], list[int]]:
        """Prompt and target."""
        ids = [self.rng.randrange(WORDS) for _ in range(self.rng.randrange(5, 15))]
        return ids[: len(ids) // 2], ids[len(ids) // 2 :]

    def take(self) -> Any:
        """The next step."""
        from osmotic.components.training.parts import Step

        self.taken += 1
        label, rationale = self.rows
        return Step({"label": [self.row() for _ in range(label)], "rationale": [self.row() for _ in range(rationale)]})

    def state(self) -> Any:
        """JSON value."""
        return list(self.rng.getstate())

    def restore(self, state: Any) -> None:
        """Go on there."""
        self.rng.setstate((state[0], tuple(state[1]), state[2]))


def settings(**more: Any) -> Any:
    """Five steps with everything on."""
    from osmotic.components.training.settings import TrainSettings

    usual: dict[str, Any] = {"steps": 5, "learning_rate": 5e-3, "weights": {"label": 1.0, "rationale": 0.5}, "kind": "packed"}
    usual |= {"warmup": 2, "schedule": "cosine", "weight_decay": 0.1, "clip": 0.5, "accumulate": 2, "proximal": 0.1}
    return TrainSettings(**{**usual, **more})


def train(
    folder: Path,
    module: Any = None,
    feed: Any = None,
    report: Callable[[int, int, str], None] | None = None,
    rows: Any = None,
    seconds: float = 1e9,
    key: str = "a run",
    **more: Any,
) -> Any:
    """(result, module) of a training; rows: its held-out part."""
    from osmotic.components.training import loop
    from osmotic.components.training.losses import kind_of

    module = llama() if module is None else module
    wanted = settings(**more)
    if wanted.kind == "packed":
        kind_of(module, "packed")
    result = loop.train(
        module, feed or Feed(), wanted, folder, key, report or (lambda *_: None), rows, checkpoint_seconds=seconds
    )
    return result, module


def digest(module: Any) -> str:
    """SHA-256 of all parameters' bytes."""
    total = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        total.update(name.encode() + parameter.detach().numpy().tobytes())
    return total.hexdigest()


def apart(one: Any, other: Any) -> float:
    """Largest difference between two trainings' losses."""
    return max(abs(a["loss"] - b["loss"]) for a, b in zip(one.curve, other.curve, strict=True))


def distance(one: Any, other: Any) -> float:
    """Largest difference between two modules' parameters."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a.detach() - b.detach()).abs().max()) for a, b in pairs)


@pytest.fixture
def tiny() -> SimpleNamespace:
    """All of the above."""
    return SimpleNamespace(
        llama=llama, Feed=Feed, settings=settings, train=train, digest=digest, apart=apart, distance=distance, words=WORDS
    )
