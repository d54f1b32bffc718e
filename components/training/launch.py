# SPDX-License-Identifier: Apache-2.0
"""Training in several processes of one machine: a folder that says everything, N workers, and somebody to watch them.

The processes are started plainly, as our own children, and not by torchrun or DeepSpeed's launcher: those put an agent between
us and them, which neither ends when we are killed nor says why one of its own died. They meet through a file, not a port, so
no port has to be guessed free; their messages stay on the loopback interface. The job folder, which only its owner can read,
holds the model (configuration, class name, safetensors), the settings, and the steps as JSON files of token ids, written ahead
a little at a time; there is no pickle. It is removed at the end, by the first worker where this process is killed. When one
process dies, or does not answer for `PATIENCE` seconds, the others are ended, and the first cause is told.
"""

import contextlib
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.components.training import checkpoints
from osmotic.components.training.parts import Feed, Step
from osmotic.components.training.settings import TrainSettings
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ComponentError, ConfigError, OsmoticError, Problem

if TYPE_CHECKING:
    from osmotic.components.training.loop import Report, Result

CHUNK = 16  # steps of a file
AHEAD = 2  # files written before they are needed
ORPHANED = 75
GRACE = 2.0  # seconds in which the others may still say what happened, once one has died
PATIENCE = 1800.0  # seconds that a process waits for another, at a sum or a checkpoint
JOB = "job."
SECRET = re.compile(r"(^|_)(KEY|TOKEN|PASSWORD|PASSWD|CREDENTIALS?)$|SECRET")  # variables that a training has no use for
KINDS: dict[str, type[OsmoticError]] = {"ComponentError": ComponentError, "ConfigError": ConfigError}


def chunk_name(step: int) -> str:
    """File of the steps from `step` (counted from 0) on."""
    return f"steps-{step:08d}.json"


def put(path: Path, content: bytes) -> None:
    """Write a file that others wait for: whole or not at all."""
    work = path.with_suffix(".writing")
    work.write_bytes(content)
    work.rename(path)


def train_in_processes(
    module: Any,
    feed: Feed,
    settings: TrainSettings,
    folder: Path,
    key: str,
    report: "Report",
    held_out: Step | None,
    checkpoint_seconds: float,
) -> "Result":
    """As `loop.train`, by `settings.processes` processes; the module here is only read, and given the final weights."""
    from osmotic.components.training.engines import put_tensors, trained
    from osmotic.components.training.loop import Result, Whole

    start, notes = checkpoints.load(folder, key)
    source, first = Whole(feed), start.step if start else 0
    if start is not None:
        source.restore(start.state["feed"])
    del start
    told = {"key": key, "start": first, "folder": str(folder.absolute()), "checkpoint_seconds": checkpoint_seconds}
    told |= {"held_out": _plain(held_out) if held_out else None, "settings": settings.to_json(), "patience": PATIENCE}
    with _job(folder.absolute()) as job:
        with _room():
            _write_module(module, job, told)
        ahead = _Ahead(job, source, first, settings.steps)
        ahead.up_to(first)
        with _ranks(job, settings.processes) as ranks:
            _relay(ranks, ahead, settings, report, job)
        from safetensors.torch import load_file

        put_tensors(trained(module), load_file(job / "final.safetensors"))
        found = Result(**json.loads((job / "result.json").read_bytes()))
        found.notes[:0] = notes
        return found


@contextlib.contextmanager
def _job(folder: Path) -> Iterator[Path]:
    """A new folder that only its owner can read; those that killed runs have left go, and so does it at the end."""
    with _room():
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{JOB}*"):
            shutil.rmtree(old, ignore_errors=True)
        job = Path(tempfile.mkdtemp(prefix=JOB, dir=folder))
    try:
        yield job
    finally:
        shutil.rmtree(job, ignore_errors=True)


@contextlib.contextmanager
def _room() -> Iterator[None]:
    """A disk that is full, or cannot be written, is something that the user can mend."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        fix = "free room on the disk of the home folder, or set processes: 1"
        raise ComponentError(Problem("the processes' files cannot be written", why=why, fix=fix)) from error


class _Ahead:
    """Writes the files of steps a little before they are needed, and removes those that are done with."""

    def __init__(self, job: Path, source: Any, first: int, total: int) -> None:
        self._job, self._source, self._next, self._total = job, source, first, total
        self._written: list[int] = []

    def up_to(self, done: int) -> None:
        """`done` steps are done: bring the files up to date."""
        while self._next < self._total and self._next < done + CHUNK * AHEAD:
            state, count = self._source.state(), min(CHUNK, self._total - self._next)
            steps = [_plain(self._source.take()) for _ in range(count)]
            with _room():
                put(self._job / chunk_name(self._next), canonical({"state": state, "steps": steps}))
            self._written.append(self._next)
            self._next += count
        while len(self._written) > 1 and self._written[1] < done:
            (self._job / chunk_name(self._written.pop(0))).unlink(missing_ok=True)


def _plain(step: Step) -> dict[str, Any]:
    return {task: [[list(head), list(tail)] for head, tail in rows] for task, rows in step.examples.items()}


def _write_module(module: Any, job: Path, told: dict[str, Any]) -> None:
    """The model's configuration, class and tensors, and job.json with the rest that was told."""
    import transformers
    from safetensors.torch import save_file

    from osmotic.components.training.engines import whole

    base = module.get_base_model() if hasattr(module, "peft_config") else module
    kind = type(base).__name__
    if getattr(transformers, kind, None) is not type(base):
        why = f"its class {kind} is not one of transformers'"
        raise ConfigError(Problem("this model cannot be trained by several processes", why=why, fix="set processes: 1"))
    base.config.save_pretrained(job / "model")
    adapters = getattr(module, "peft_config", {})
    if adapters:
        module.peft_config[module.active_adapter].save_pretrained(str(job / "adapter"))
    owned = dict(module.named_parameters()) | dict(module.named_buffers())
    save_file({name: whole(tensor) for name, tensor in owned.items()}, job / "module.safetensors")
    attention = str(getattr(base.config, "_attn_implementation", None) or "")
    told |= {"architecture": kind, "adapter": bool(adapters), "attention": "" if attention.startswith("osmotic") else attention}
    told["trainable"] = [n for n, p in module.named_parameters() if p.requires_grad]
    put(job / "job.json", canonical(told))


@contextlib.contextmanager
def _ranks(job: Path, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The worker processes; ended when the block is left, whatever the reason. They end themselves when this process does."""
    settings = {name: value for name, value in os.environ.items() if not SECRET.search(name.upper())}
    settings |= {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    settings.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(count):
            with (job / f"rank-{rank}.log").open("wb") as log:
                ranks.append(
                    subprocess.Popen(
                        [sys.executable, "-P", "-m", "osmotic.components.training.worker", str(job), str(rank)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                        stderr=log,
                        env=settings,
                        start_new_session=True,
                    )
                )
        yield ranks
    finally:
        _end(ranks)


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.kill()
    for rank in ranks:
        rank.wait()
        for pipe in (rank.stdin, rank.stdout):
            if pipe is not None:
                pipe.close()


def _relay(
    ranks: Sequence[subprocess.Popen[bytes]], ahead: _Ahead, settings: TrainSettings, report: "Report", job: Path
) -> None:
    """Pass progress on and files ahead until all have ended well. Raises OsmoticError when one did not."""
    lines: queue.Queue[bytes] = queue.Queue()

    def read() -> None:
        with contextlib.suppress(ValueError):  # closed under our hands: the ranks are being ended
            for line in ranks[0].stdout or ():
                lines.put(line)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    while True:
        ended = all(rank.poll() is not None for rank in ranks)
        if any(rank.poll() for rank in ranks):
            raise _cause(ranks, job)
        if ended:
            reader.join()
        _pass_on(lines, ahead, settings.steps, report, 0.0 if ended else 0.05)
        if ended:
            return


def _pass_on(lines: "queue.Queue[bytes]", ahead: _Ahead, total: int, report: "Report", patience: float) -> None:
    """All progress lines that are there; waits a little for the first."""
    with contextlib.suppress(queue.Empty):
        while True:
            told = json.loads(lines.get(timeout=patience) if patience else lines.get_nowait())
            ahead.up_to(told["done"])
            report(told["done"], total, told["note"])
            patience = 0.0


def _cause(ranks: Sequence[subprocess.Popen[bytes]], job: Path) -> OsmoticError:
    """Why it failed: what a worker said itself, else a worker that was killed, else the first that ended."""
    first = next(i for i, rank in enumerate(ranks) if rank.poll())
    until = time.monotonic() + GRACE
    while time.monotonic() < until and any(rank.poll() is None for rank in ranks):
        time.sleep(0.05)
    codes = [rank.poll() for rank in ranks]
    killed = [(i, -code) for i, code in enumerate(codes) if code is not None and code < 0]
    for i in range(len(ranks)):
        said = job / f"error-{i}.json"
        if said.exists():
            body = json.loads(said.read_bytes())
            return KINDS.get(body["kind"], ComponentError)(*(Problem(**problem) for problem in body["problems"]))
    if killed:
        rank, signal = killed[0]
        fix = "most likely memory ran out: lower batch, raise accumulate, or use fewer processes" if signal == 9 else ""
        return ComponentError(Problem(f"training process {rank} of {len(ranks)} was ended by signal {signal}", fix=fix))
    tails = [(job / f"rank-{i}.log").read_text("utf-8", "replace").strip().splitlines() for i in range(len(ranks))]
    own = [i for i, tail in enumerate(tails) if codes[i] and tail and not _echo(tail[-1])]
    if not own and None in codes:
        return ComponentError(Problem(f"training process {codes.index(None)} of {len(ranks)} does not answer any more"))
    rank = own[0] if own else first
    why = tails[rank][-1][:500] if tails[rank] else f"it left with {codes[rank]} and said nothing"
    return ComponentError(Problem(f"training process {rank} of {len(ranks)} failed", why=why))


def _echo(line: str) -> bool:
    """Whether an error only says that another process has gone."""
    return any(word in line.lower() for word in ("connection", "gloo", "nccl", "peer", "timed out"))
