# SPDX-License-Identifier: Apache-2.0
"""Training checkpoints: parameters, optimiser and generator states, as safetensors and JSON; written whole or not at all."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osmotic.schemas.artifacts import canonical


def save(folder: Path, key: str, step: int, parameters: Mapping[str, Any], optimizer: Any, state: Any) -> None:
    """Write `step-N`, then remove older ones. key: what the run is; state: any JSON value."""
    import torch
    from safetensors.torch import save_file

    work, done = folder / "writing", folder / f"step-{step:08d}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    tensors = {"generator": torch.get_rng_state()}
    for name, parameter in parameters.items():
        tensors[f"value/{name}"] = parameter.detach().contiguous()
        for slot, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{slot}/{name}"] = value.detach().contiguous() if torch.is_tensor(value) else torch.tensor(float(value))
    save_file(tensors, work / "tensors.safetensors")
    (work / "state.json").write_bytes(canonical({"key": key, "step": step, "state": state}))
    shutil.rmtree(done, ignore_errors=True)
    work.rename(done)
    for old in folder.glob("step-*"):
        if old != done:
            shutil.rmtree(old, ignore_errors=True)


def load(folder: Path, key: str, parameters: Mapping[str, Any], optimizer: Any) -> tuple[int, Any]:
    """Put the newest checkpoint of this key in place: (step, state); (0, None) when there is none that can be used."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for found in sorted(folder.glob("step-*"), reverse=True):
        try:
            head = json.loads((found / "state.json").read_bytes())
            tensors = load_file(found / "tensors.safetensors")
        except (OSError, ValueError, SafetensorError):
            continue
        if head.get("key") == key and all(f"value/{name}" in tensors for name in parameters):
            torch.set_rng_state(tensors.pop("generator"))
            _place(tensors, parameters, optimizer)
            return int(head["step"]), head["state"]
    return 0, None


def _place(tensors: dict[str, Any], parameters: Mapping[str, Any], optimizer: Any) -> None:
    import torch

    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors.pop(f"value/{name}"))
    for label, tensor in tensors.items():
        slot, name = label.split("/", 1)
        optimizer.state[parameters[name]][slot] = tensor
