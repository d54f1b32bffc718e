# SPDX-License-Identifier: Apache-2.0
"""Adapters (peft) and trained tensors: put on a module, checked by name, put back in place.

With `freeze_a`, A is drawn anew on the CPU, by the names of the layers and a fixed seed, whatever device the module is on, and
does not train. Weights then hold B alone; their description has ``frozen``, the digest of A, which must be that of the module
that they are put into.
"""

import warnings
from typing import Any

from osmotic.plugins.contract import Weights
from osmotic.plugins.models.options import LoraConfig
from osmotic.schemas.artifacts import tensors_digest
from osmotic.schemas.errors import ComponentError, ConfigError, Problem

LINEAR = ("Linear", "Conv1D")
FROZEN = "frozen"  # of the weights' description: the digest of adapters' factors that were not trained


def linear_names(module: Any) -> list[str]:
    """Last part of the names of the linear layers, the output head left out: what adapters can be put on."""
    head = module.get_output_embeddings()
    found = {name for name, part in module.named_modules() if type(part).__name__ in LINEAR and part is not head}
    return sorted({name.rpartition(".")[2] for name in found})


def check_targets(module: Any, lora: LoraConfig, path: str = "lora.target_modules") -> None:
    """Raises ConfigError, listing the layers that exist, when a target names none."""
    linear = [name for name, part in module.named_modules() if type(part).__name__ in LINEAR]
    missing = [t for t in lora.target_modules if not any(name == t or name.endswith(f".{t}") for name in linear)]
    if missing:
        what = f"the model has no linear layer called {', '.join(map(repr, missing))}"
        raise ConfigError(Problem(what, path=path, fix=f"it has: {', '.join(linear_names(module))}"))


def with_adapters(module: Any, lora: LoraConfig) -> Any:
    """The module with fresh adapters; their start is the same at every party (seeded; torch's generator is put back)."""
    import torch
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    check_targets(module, lora)
    kind = "SEQ_2_SEQ_LM" if module.config.is_encoder_decoder else "CAUSAL_LM"
    wanted = PeftConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.target_modules), lora_dropout=0.0, task_type=kind
    )
    device = next(module.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft reads names that transformers has renamed, and warns of GPT-2's layout
        torch.manual_seed(0)
        try:
            made = get_peft_model(module, wanted)
        except ValueError as error:
            raise ConfigError(Problem("the adapters do not fit the model", why=str(error)[:300])) from error
    if lora.freeze_a:
        _freeze_a(made)
    return made


def _freeze_a(module: Any) -> None:
    """Draw each A [rank, n] anew, uniform in +-1/sqrt(n) as peft does, and let it be."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters(), key=lambda named: str(named[0])):
            if ".lora_A." in name:
                drawn = torch.rand(parameter.shape, generator=generator, dtype=torch.float32) * 2 - 1
                parameter.copy_(drawn / parameter.shape[1] ** 0.5)
                parameter.requires_grad_(False)


def frozen_digest(module: Any) -> str | None:
    """SHA-256 over names and values of the adapters' factors that do not train; None where all of them do."""
    frozen = {n: p for n, p in module.named_parameters() if "lora_" in n and not p.requires_grad}
    return tensors_digest((n, frozen[n].detach().float().cpu().numpy()) for n in sorted(frozen)) if frozen else None


def put_tensors(module: Any, weights: Weights) -> None:
    """Load named tensors into the trainable parameters. Raises ComponentError on missing, unknown or misshapen ones, and where
    they were trained beside other factors than the module's own frozen ones."""
    import torch

    if weights.meta.get(FROZEN) != frozen_digest(module):
        what, why = "the adapters were trained with another A", "B alone says nothing without the A that it was trained with"
        raise ComponentError(Problem(what, why=why, fix="the same lora settings at every party, freeze_a among them"))
    wanted = {name: p for name, p in module.named_parameters() if p.requires_grad}
    odd = weights.misfits({name: tuple(p.shape) for name, p in wanted.items()})
    if odd:
        raise ComponentError(Problem("the weights do not fit the model", why=f"{len(odd)} tensors differ, first {odd[0]!r}"))
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(torch.from_numpy(weights.tensors[name]))
