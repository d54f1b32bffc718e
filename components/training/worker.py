# SPDX-License-Identifier: Apache-2.0
"""One process of a training: rebuilds the module from the job folder, runs the loop on its share; see launch.py.

``python -m osmotic.components.training.worker FOLDER RANK``. It ends as soon as its standard input does, which is when the
process that started it is gone, however it went; process 0 then takes the job folder along. Its standard output carries
progress lines, one JSON object each, and nothing else: whatever libraries print goes to standard error, a file of the job
folder.
"""

import json
import os
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

from osmotic.components.training import checkpoints, launch
from osmotic.components.training.engines import World, device_of, loopback
from osmotic.components.training.loop import Run
from osmotic.components.training.parts import Step
from osmotic.components.training.settings import TrainSettings
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ComponentError, ConfigError, OsmoticError, Problem

PAUSE = 0.005  # seconds between two looks for the next chunk


class ChunkFeed:
    """Steps from the job folder's files, which appear while training goes on. State: the chunk's own, and how far in it is."""

    def __init__(self, folder: Path, step: int) -> None:
        self._folder, self._next = folder, step
        self._steps: list[Step] = []
        self._at: Any = None
        self._skip = 0

    def take(self) -> Step:
        """The next step; waits for it."""
        if self._skip == len(self._steps):
            path = self._folder / launch.chunk_name(self._next)
            while not path.exists():
                time.sleep(PAUSE)
            body = json.loads(path.read_bytes())
            self._steps, self._at, self._skip = [step_from(one) for one in body["steps"]], body["state"], 0
            self._next += len(self._steps)
        self._skip += 1
        return self._steps[self._skip - 1]

    def state(self) -> Any:
        """As `loop.Whole` gives it."""
        return {"at": self._at["at"], "skip": self._at["skip"] + self._skip}

    def restore(self, state: Any) -> None:
        """Nothing: the launching process starts the files where the checkpoint ends."""


def step_from(body: Mapping[str, Any]) -> Step:
    """A step from its JSON."""
    return Step({task: [(head, tail) for head, tail in rows] for task, rows in body.items()})


def rebuild(job: Path, told: Mapping[str, Any], kind: str) -> Any:
    """The module as it was in the launching process: class and configuration from transformers, adapters from peft."""
    import transformers

    from osmotic.components.training.losses import kind_of

    settings = transformers.AutoConfig.from_pretrained(job / "model", local_files_only=True, trust_remote_code=False)
    if told["attention"]:
        settings._attn_implementation = told["attention"]
    module = getattr(transformers, told["architecture"])(settings)
    if told["adapter"]:
        from peft import PeftConfig, get_peft_model

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft reads names that transformers has renamed
            module = get_peft_model(module, PeftConfig.from_pretrained(str(job / "adapter")))
    _fill(module, job / "module.safetensors")
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in told["trainable"])
    if kind == "packed":
        kind_of(module, "packed")
    return module


def _fill(module: Any, path: Path) -> None:
    """Parameters and buffers from the file, with its dtypes; every one of them must be there, and nothing else."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    owned = dict(module.named_parameters()) | dict(module.named_buffers())
    odd = sorted(set(owned) ^ set(tensors)) or [n for n, t in owned.items() if t.shape != tensors[n].shape]
    if odd:
        why = f"{len(odd)} tensors differ, first {odd[0]!r}"
        raise ConfigError(Problem("the model cannot be rebuilt in other processes", why=why, fix="set processes: 1"))
    for name, tensor in owned.items():
        tensor.data = tensors[name]


def work(job: Path, rank: int, channel: TextIO) -> None:
    """All of a process's part; process 0 leaves final.safetensors and result.json in the job folder."""
    told = json.loads((job / "job.json").read_bytes())
    import torch
    from safetensors.torch import save_file
    from torch import distributed

    settings = TrainSettings.from_json(told["settings"])
    device = device_of(settings, rank)
    if device != "cpu":
        torch.cuda.set_device(device)
    module = rebuild(job, told, settings.kind)
    distributed.init_process_group(
        "nccl" if device != "cpu" else "gloo",
        store=distributed.FileStore(str(job / "meeting"), settings.processes),
        rank=rank,
        world_size=settings.processes,
        timeout=timedelta(seconds=told["patience"]),
    )
    start, _ = checkpoints.load(Path(told["folder"]), told["key"]) if told["start"] else (None, [])
    if told["start"] != (start.step if start else 0):
        raise ComponentError(Problem("the checkpoint to go on from is gone or damaged", fix="run again"))
    report: Callable[[int, int, str], None] = _reporter(channel) if rank == 0 else _nothing
    feed, held_out = ChunkFeed(job, told["start"]), step_from(told["held_out"]) if told["held_out"] else None
    world = World(rank, settings.processes, device)
    run = Run(feed, settings, Path(told["folder"]), told["key"], report, held_out, world, told["checkpoint_seconds"], True)
    result = run(module, start, [])
    if rank == 0:
        save_file(run.final, job / "final.safetensors")
        (job / "result.json").write_bytes(canonical(asdict(result)))
    distributed.barrier()
    distributed.destroy_process_group()


def _reporter(channel: TextIO) -> Callable[[int, int, str], None]:
    def report(done: int, total: int, note: str) -> None:
        channel.write(canonical({"done": done, "note": note}).decode() + "\n")
        channel.flush()

    return report


def _nothing(done: int, total: int, note: str) -> None:
    pass


def _watch(job: Path, rank: int) -> None:
    """End at once when standard input ends: a rank must not outlive the process that started it, nor its files process 0."""
    while os.read(0, 1):
        pass
    for _ in range(3 if rank == 0 else 0):  # the other threads may be writing yet
        shutil.rmtree(job, ignore_errors=True)
    os._exit(launch.ORPHANED)


def main(job: Path, rank: int) -> int:
    """Exit code 0, or 1 with ``error-RANK.json`` in the job folder where the user can mend it."""
    threading.Thread(target=_watch, args=(job, rank), daemon=True).start()
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.environ |= loopback()
    try:
        work(job, rank, channel)
    except OsmoticError as error:
        body = {"kind": type(error).__name__, "problems": [asdict(problem) for problem in error.problems]}
        launch.put(job / f"error-{rank}.json", canonical(body))
        return 1
    return 0


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), int(sys.argv[2]))
    sys.stderr.flush()
    os._exit(code)  # not by way of the libraries' own endings, which may wait for processes that have gone
