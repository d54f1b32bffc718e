# SPDX-License-Identifier: Apache-2.0
"""What benchmarks/zero.py and benchmarks/resume.py share: a student, steps of real text, versions. Not a benchmark itself."""

import hashlib
import platform
import random
from importlib import metadata
from typing import Any

from osmotic.components.training.parts import Example, Step
from osmotic.plugins.clinic import domain
from osmotic.plugins.contract import ModelPlugin
from osmotic.plugins.models.smollm2 import PACKAGE, SmolLm2, SmolLm2Config
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel

LORA = {"rank": 8, "alpha": 16, "target_modules": ["q_proj", "v_proj"]}
WEIGHTS = {"label": 1.0, "rationale": 0.5}


def student(small: bool) -> tuple[str, Any, Any]:
    """(what it is, module, tokenizer): SmolLM2's first 4 layers with adapters; if small or not installed: the clinic's."""
    plugin: ModelPlugin[Any]
    try:
        metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        small = True
    if small:
        name = "clinic student, all parameters"
        plugin = TransformersModel(TransformersConfig(path="osmotic:clinic/student"))
    else:
        name = "SmolLM2-135M-Instruct, first 4 layers, LoRA of rank 8 on q_proj and v_proj"
        plugin = SmolLm2(SmolLm2Config.model_validate({"layers": 4, "chat": False, "lora": LORA}))
    return name, *plugin.build().trainable()


class ClinicFeed:
    """Steps over the shipped domain's records: the label after a prompt, and the rationale after another; seeded."""

    def __init__(self, tokenizer: Any, batch: int, seed: int = 7) -> None:
        self._rows = [_pair(tokenizer, row) for row in _records(200)]
        self._rng, self._batch = random.Random(seed), batch

    def take(self) -> Step:
        """The next step."""
        rows = self._rng.sample(self._rows, self._batch)
        return Step({"label": [row[0] for row in rows], "rationale": [row[1] for row in rows]})

    def state(self) -> Any:
        """JSON value."""
        return list(self._rng.getstate())

    def restore(self, state: Any) -> None:
        """Go on there."""
        self._rng.setstate((state[0], tuple(state[1]), state[2]))


def digest(module: Any) -> str:
    """SHA-256 of every parameter's name and bytes."""
    total = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        total.update(name.encode() + parameter.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def versions() -> str:
    """One line: Python, libraries, processor, threads."""
    import torch

    names = ("torch", "transformers", "peft", "deepspeed")
    found = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    return f"Python {platform.python_version()}, {found}; {platform.machine()}, {torch.get_num_threads()} thread(s) a process"


def _records(count: int) -> list[dict[str, str]]:
    return domain.public_records(random.Random(1), count)


def _pair(tokenizer: Any, row: dict[str, str]) -> tuple[Example, Example]:
    end = [tokenizer.eos_token_id]

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    label = domain.department_of(row["sign"], row["exposure"])
    return (
        (ids(domain.predict_prompt(row["text"])), ids(f" {label}") + end),
        (ids(domain.explain_prompt(row["text"])), ids(f" {row['rationale']}") + end),
    )
