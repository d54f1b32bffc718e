# SPDX-License-Identifier: Apache-2.0
"""Training checkpoints: whole parameters and moments by name as safetensors, everything else as JSON; no pickle.

A checkpoint does not depend on the engine, the ZeRO stage or the number of processes that made it: what these share out is
gathered before it is written. It is written beside, synced, and renamed, so it is there whole or not at all; the two newest
stay. What cannot be read, or does not match its own digest, is passed over for the one before.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osmotic.schemas.artifacts import canonical

KEPT = 2
FORMAT = 2


@dataclass(frozen=True)
class Checkpoint:
    """Where a run was after `step` steps. tensors, on the CPU: "value/NAME", "exp_avg/NAME", "exp_avg_sq/NAME", "best/NAME"."""

    step: int
    state: dict[str, Any]
    tensors: dict[str, Any]

    def slot(self, slot: str) -> dict[str, Any]:
        """Parameter name -> tensor of one kind; empty where there is none."""
        return {name.removeprefix(f"{slot}/"): t for name, t in self.tensors.items() if name.startswith(f"{slot}/")}


def save(folder: Path, key: str, step: int, tensors: Mapping[str, Any], state: Any) -> None:
    """Write one, then remove all but the two newest of this key. Raises OSError when that is impossible (a full disk).

    key: what the run is; state: any JSON value; tensors: as in `Checkpoint`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    work, done = folder / "writing", folder / f"{_prefix(key)}-{step:08d}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(mode=0o700, parents=True)  # it holds what private records made of the model
    try:
        try:
            save_file(dict(tensors), work / "tensors.safetensors")
        except SafetensorError as error:
            raise OSError(str(error)) from error
        head = {"format": FORMAT, "key": key, "step": step, "state": state, "sha256": _digest(work / "tensors.safetensors")}
        (work / "state.json").write_bytes(canonical({**head, "check": _check(head)}))
        for path in (work / "tensors.safetensors", work / "state.json", work):
            _sync(path)
        shutil.rmtree(done, ignore_errors=True)
        work.rename(done)
        _sync(folder)
    except OSError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    for old in sorted(folder.glob("*-????????"), reverse=True):
        ours = old.name.startswith(_prefix(key))
        if not ours or old.name > done.name or old in _of(folder, key)[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)


def load(folder: Path, key: str) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of this key, or None; and a sentence about each damaged one."""
    notes: list[str] = []
    for found in _of(folder, key):
        try:
            return _read(found, key), notes
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            notes.append(f"a checkpoint was damaged and is passed over: {found.name} ({' '.join(str(error).split())[:120]})")
    return None, notes


def _read(found: Path, key: str) -> Checkpoint:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    head = json.loads((found / "state.json").read_bytes())
    if head.pop("check") != _check(head):
        raise ValueError("the state does not match its own digest")
    if head["format"] != FORMAT or head["key"] != key:
        raise ValueError("of another kind of run")
    if _digest(found / "tensors.safetensors") != head["sha256"]:
        raise ValueError("the tensors do not match their digest")
    try:
        return Checkpoint(int(head["step"]), dict(head["state"]), load_file(found / "tensors.safetensors"))
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _of(folder: Path, key: str) -> list[Path]:
    """Checkpoints of a key, newest first."""
    return sorted(folder.glob(f"{_prefix(key)}-????????"), reverse=True)


def _prefix(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def _check(head: Any) -> str:
    return hashlib.sha256(canonical(head)).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
