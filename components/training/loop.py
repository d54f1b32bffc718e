# SPDX-License-Identifier: Apache-2.0
"""The loop of optimiser steps: forwards, gradients, clip, step; early stopping; exact resume.

One step: the feed's next `Step` is shared out in processes x accumulate forwards; their losses add up to the step's loss; one
optimiser step follows, unless the loss or the gradient is not finite: then nothing is changed, and a ComponentError says at
which step. All of torch's randomness in a step (dropout) comes from (seed, step, process), so nothing of it has to be kept.

Exact: a run that was cut off, however hard, and is called again with the same arguments gives the same losses and weights, bit
for bit, as one that was not: same versions, engine, processes, thread count, CPU. With other processes or another stage than
the checkpoint's it goes on all the same, equal within float error. On a GPU equal within float error only.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osmotic.components.training import checkpoints, losses
from osmotic.components.training.checkpoints import Checkpoint
from osmotic.components.training.engines import Engine, World, device_of, open_engine, put_tensors, trained
from osmotic.components.training.parts import Feed, Step
from osmotic.components.training.settings import TrainSettings
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ComponentError, Problem

CHECKPOINT_SECONDS = 30.0
Report = Callable[[int, int, str], None]


@dataclass
class Result:
    """What a training was like.

    curve: a point a step: ``step`` (from 1), ``loss``, each task's name (mean cross entropy of its target tokens, not
    weighted), ``rate``, ``norm`` (of the gradient, before clipping). held_out: a point an evaluation, with ``step``, ``loss``
    and the tasks. stopped: the step after which training stopped early. best: the step whose weights were kept. notes:
    sentences about what did not go as one would wish (a damaged checkpoint, a full disk).
    """

    curve: list[dict[str, float]] = field(default_factory=list)
    held_out: list[dict[str, float]] = field(default_factory=list)
    stopped: int | None = None
    best: int | None = None
    notes: list[str] = field(default_factory=list)


def train(
    module: Any,
    feed: Feed,
    settings: TrainSettings,
    folder: Path,
    key: str,
    report: Report,
    held_out: Step | None = None,
    *,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Result:
    """Train a module's trainable parameters; they hold the final weights afterwards (with a held-out part: the best).

    folder: for checkpoints, which stay (they go with the caller's scratch folder); key: what the run is: a checkpoint of
    another key is not used. report(done, total, note) after every step. held_out: used where `settings.held_out` is set. The
    module is taken to a GPU where there is one, and comes back. Raises ComponentError when the loss or the gradient is not
    finite: the parameters (of this module: with one process and plain torch) are those before that step, the last checkpoint
    stays.
    """
    if settings.held_out is None:
        held_out = None
    if settings.processes > 1:
        from osmotic.components.training.launch import train_in_processes

        return train_in_processes(module, feed, settings, folder, key, report, held_out, checkpoint_seconds)
    import torch

    world = World(device=device_of(settings, 0))
    before, training = next(module.parameters()).device, module.training
    start, notes = checkpoints.load(folder, key)
    source = Whole(feed)
    if start is not None:
        source.restore(start.state["feed"])
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if world.device != "cpu" else []):
        try:
            run = Run(source, settings, folder, key, report, held_out, world, checkpoint_seconds)
            result = run(module, start, notes)
            put_tensors(trained(module), run.final)
            return result
        finally:
            module.to(before).train(training)


class Whole:
    """A feed whose state is {"at": the feed's own, "skip": steps to pass over}, as it stands in a checkpoint."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def take(self) -> Step:
        """The next step."""
        return self._feed.take()

    def state(self) -> Any:
        """JSON value."""
        return {"at": self._feed.state(), "skip": 0}

    def restore(self, state: Any) -> None:
        """Go on where `state` was taken."""
        self._feed.restore(state["at"])
        for _ in range(state["skip"]):
            self._feed.take()


@dataclass
class Run:
    """One process's part of a training. `source.state()` is as `Whole` gives it; only process 0 reports and writes.

    final: afterwards, name -> trained parameter, on the CPU. spoil: see `open_engine`.
    """

    source: Feed
    settings: TrainSettings
    folder: Path
    key: str
    report: Report
    held_out: Step | None
    world: World
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    spoil: bool = False
    final: dict[str, Any] = field(default_factory=dict, init=False)
    _result: Result = field(default_factory=Result, init=False)
    _best: dict[str, Any] = field(default_factory=dict, init=False)
    _rows: int = field(default=0, init=False)  # of the largest step so far: how large a forward may be
    _saved: float = field(default=0.0, init=False)

    def __call__(self, module: Any, start: Checkpoint | None, notes: list[str]) -> Result:
        """Train; see `train`. The source stands where `start` ends."""
        self._result = Result(notes=notes)
        first = self._resume(start) if start else 0
        self._saved = time.monotonic()
        with open_engine(module.train(), self.settings, self.world, start, self.spoil) as engine:
            for step in range(first, self.settings.steps):
                due = self._step(engine, step)
                if self.held_out and self._look(engine, step + 1):
                    break
                if due:
                    self._save(engine, step + 1)
            self.final = self._best or engine.values()
        return self._result

    def _resume(self, start: Checkpoint) -> int:
        state, result = start.state, self._result
        result.curve, result.held_out, result.best = state["curve"], state["held_out"], state["best"]
        self._best, self._rows = start.slot("best"), state["rows"]
        if state["layout"] != self._layout():
            made = f"the checkpoint of step {start.step} was made by {state['layout']}"
            result.notes.append(f"{made}: equal within float error only")
        return start.step

    def _layout(self) -> str:
        import torch

        s = self.settings
        stage = f" stage {s.stage}" if s.engine == "deepspeed" else ""
        return f"{s.engine}{stage}, {s.processes} process(es), {torch.get_num_threads()} thread(s)"

    def _step(self, engine: Engine, step: int) -> bool:
        """One optimiser step; whether a checkpoint is due (process 0's clock says so to all)."""
        settings, tasks = self.settings, sorted(self.settings.weights)
        seed_step(settings.seed, step, self.world.rank)
        taken = self.source.take()
        self._rows = max(self._rows, sum(len(rows) for rows in taken.examples.values()))
        weights = losses.balance(taken, settings.weights, settings.pooled)
        parts = self._mine(losses.share(taken, weights, self.world.size * settings.accumulate, settings.smoothing))
        shares, loss = dict.fromkeys(tasks, 0.0), 0.0
        for i, micro in enumerate(parts):
            tensor, found = losses.loss_of(engine.module, micro, settings.kind)
            engine.backward(tensor, last=i + 1 == len(parts))
            loss += float(tensor.detach())
            for name, value in found.items():
                shares[name] += value
        due = self.world.rank == 0 and time.monotonic() - self._saved >= self.checkpoint_seconds
        loss, late, *sums = self.world.total([loss, float(due), *(shares[name] for name in tasks)])
        self._check(loss, step, "the loss is")
        rate = rate_of(settings, step)
        norm = engine.step(rate)
        self._check(norm, step, "the size of the gradient is")
        point = {"step": step + 1, "loss": loss, **_means(tasks, sums, weights), "rate": rate, "norm": norm}
        self._result.curve.append(point)
        self.report(step + 1, settings.steps, f"loss {loss:.3f}")
        return late > 0

    def _check(self, value: float, step: int, what: str) -> None:
        if not math.isfinite(value):
            why = "the weights are as they were before it, and the last checkpoint was kept"
            fix = "lower learning_rate, raise warmup, or set clip"
            raise ComponentError(Problem(f"{what} {value} at step {step + 1} (batch {step + 1})", why=why, fix=fix))

    def _mine(self, parts: list[Any]) -> list[Any]:
        each = len(parts) // self.world.size
        return parts[self.world.rank * each :][:each]

    def _look(self, engine: Engine, done: int) -> bool:
        """Evaluate where it is time to; whether to stop."""
        every, patience = self.settings.held_out or (1, 1)
        if done % every and done != self.settings.steps:
            return False
        result = self._result
        point = self._evaluate(engine, done)
        best = min((p["loss"] for p in result.held_out), default=math.inf)
        result.held_out.append(point)
        if point["loss"] < best:
            self._best, result.best = engine.values(), done
        since = sum(p["step"] > (result.best or 0) for p in result.held_out)
        if since < patience:
            return False
        if done < self.settings.steps:
            result.stopped = done
        return True

    def _evaluate(self, engine: Engine, done: int) -> dict[str, float]:
        """The held-out part's loss, in forwards about as large as those of training; no gradients, no dropout."""
        import torch

        held_out, tasks = self.held_out or Step({}), sorted(self.settings.weights)
        rows = sum(len(found) for found in held_out.examples.values())
        a_forward = max(1, self._rows // (self.world.size * self.settings.accumulate))
        parts = math.ceil(rows / (a_forward * self.world.size)) * self.world.size
        sums, settings = dict.fromkeys(tasks, 0.0), self.settings
        weights = losses.balance(held_out, settings.weights, settings.pooled)
        engine.module.eval()
        with torch.no_grad():
            for micro in self._mine(losses.share(held_out, weights, parts, settings.smoothing)):
                for name, value in losses.loss_of(engine.module, micro, settings.kind)[1].items():
                    sums[name] += value
        engine.module.train()
        totals = self.world.total([sums[name] for name in tasks])
        loss = sum(totals)
        if not math.isfinite(loss):
            raise ComponentError(Problem(f"the held-out loss is {loss} after step {done}", fix="lower learning_rate"))
        return {"step": done, "loss": loss, **_means(tasks, totals, weights)}

    def _save(self, engine: Engine, step: int) -> None:
        """Write a checkpoint. Where that fails training goes on, with a note, and it is tried again later."""
        values, moments = engine.values(), engine.moments()  # of all processes together
        self._saved = time.monotonic()
        if self.world.rank:
            return
        result = self._result
        state: dict[str, Any] = {"curve": result.curve, "held_out": result.held_out, "best": result.best}
        state |= {"feed": self.source.state(), "rows": self._rows, "layout": self._layout()}
        tensors = {f"value/{n}": t for n, t in values.items()} | {f"best/{n}": t for n, t in self._best.items()} | moments
        try:
            checkpoints.save(self.folder, self.key, step, tensors, state)
        except OSError as error:
            note = f"a checkpoint could not be written ({error.strerror or 'input/output error'}): training goes on"
            if note not in result.notes:
                result.notes.append(note)
            self.report(step, self.settings.steps, note)


def _means(tasks: list[str], sums: list[float], weights: Mapping[str, float]) -> dict[str, float]:
    """Mean cross entropy of each task that was in a step, its weight in that step taken out again."""
    return {name: value / weights[name] for name, value in zip(tasks, sums, strict=True) if weights.get(name)}


def seed_step(seed: int, step: int, rank: int) -> None:
    """torch's generators for one step of one process."""
    import torch

    digest = hashlib.sha256(canonical([seed, step, rank])).digest()
    torch.manual_seed(int.from_bytes(digest[:8]) >> 1)


def rate_of(settings: TrainSettings, step: int) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, then constant, or falling to 0 at the last step's end."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    falls: Mapping[str, float] = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
    return settings.learning_rate * falls[settings.schedule]
