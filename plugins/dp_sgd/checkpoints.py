# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a private training: trained parameters, moments and what happened, as safetensors; no pickle, no secret.

One file a checkpoint: key, step and a digest of everything stand in its header, as JSON. It is written beside, synced and
renamed, so it is there whole or not at all; the two newest stay. What cannot be read or was altered is passed over for the one
before. It holds private things (batch sizes, losses): the guarantee is void when it leaves the task's own folder.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osmotic.schemas.artifacts import canonical

KEPT = 2


def save(folder: Path, key: str, step: int, tensors: Mapping[str, Any]) -> None:
    """Write one, then remove all but the two newest. tensors: numpy arrays by name. Raises OSError (a full disk)."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    work, text = folder / "writing.tmp", canonical({"key": key, "step": step}).decode()
    try:
        save_file(dict(tensors), work, {"said": text, "digest": _digest(text, tensors)})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    with work.open("rb") as file:
        os.fsync(file.fileno())
    work.replace(folder / f"step-{step:08d}.safetensors")
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    for old in _found(folder)[KEPT:]:
        old.unlink(missing_ok=True)


def load(folder: Path, key: str) -> tuple[int, dict[str, Any]] | None:
    """(step, tensors) of the newest whole checkpoint of this key; None if there is none."""
    from safetensors import SafetensorError

    for path in _found(folder):
        try:
            return _read(path, key)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            continue
    return None


def _read(path: Path, key: str) -> tuple[int, dict[str, Any]]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        head = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    said = json.loads(head["said"])
    if head["digest"] != _digest(head["said"], tensors) or said["key"] != key:
        raise ValueError("altered, or of another training")
    return int(said["step"]), tensors


def _found(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-????????.safetensors"), reverse=True)


def _digest(text: str, tensors: Mapping[str, Any]) -> str:
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        total.update(canonical([name, str(tensors[name].dtype), list(tensors[name].shape)]))
        total.update(tensors[name].tobytes())
    return total.hexdigest()
