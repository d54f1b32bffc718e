# SPDX-License-Identifier: Apache-2.0
"""The training: draw a batch, clip and sum, add noise, step; checkpoints, and exact resume.

AdamW runs on the noisy mean, which is the only thing of a step that reaches the parameters: they are post-processing of what
the plan charges. A step without a single record drawn is noise alone, and is taken. Dropout is off. Everything random follows
from the secret and the step's number, so a training that was killed, however hard, goes on as it would have gone: bit for bit
on a CPU with the same versions and thread count, within float error elsewhere; nothing is drawn twice. Sizes of batches, losses
and norms are private: they stay at the party.

Void when: the secret is not from the operating system, or serves another training too; anything of `Trained.steps` or of the
checkpoints leaves the party; the training is stopped, or its result chosen, by looking at them.
"""

import hashlib
import hmac
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.plugins.contract import PrivateJob
from osmotic.plugins.dp_sgd import checkpoints, trial
from osmotic.plugins.dp_sgd.clipping import Gradients, add_clipped
from osmotic.plugins.dp_sgd.plan import ExecutionPlan
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ComponentError, Problem

if TYPE_CHECKING:
    import numpy as np

CHECKPOINT_SECONDS = 30.0
COLUMNS = ("step", "batch", "loss", "norm_median", "clipped", "lost")
MEANS = ("loss", "norm_median")  # None where there is nothing to take them of
MOMENTS = ("exp_avg", "exp_avg_sq")
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Trained:
    """tensors: name of a trained parameter -> float32; these are a release. steps: one a step, private.

    A step has ``step`` (from 1), ``batch`` (records drawn), ``loss`` (their mean, None if there was none), ``norm_median`` (of
    their gradients, likewise), ``clipped`` (how many were longer than the clip norm), ``lost`` (how many were no number).
    """

    tensors: "dict[str, np.ndarray]"
    steps: list[dict[str, Any]]


def train(
    job: PrivateJob,
    examples: Sequence[Any | None],
    plan: ExecutionPlan,
    secret: bytes,
    folder: Path,
    progress: Progress,
    *,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    together: int | None = None,
) -> Trained:
    """Train the module's parameters that require a gradient, in place, on its own device.

    examples: one for each of the plan's records, in the data set's order, None for a record that adds nothing. secret: 32 bytes
    from the operating system, kept by the caller until this has returned, and the same when it is called again after a kill.
    folder: for checkpoints, which stay. together: what `trial.check` said of this very job and module; None: it is tried here.
    Raises ConfigError for a model whose per-example gradients are not right, ComponentError when the training leaves the
    numbers, or a record changes the model past the noise.
    """
    if len(examples) != plan.records:
        raise ComponentError(Problem(f"the plan is for {plan.records} records, {len(examples)} examples were given"))
    together = trial.check(job) if together is None else together
    with Gradients(job.module, min(job.at_once, together), job.dtype) as gradients:
        run = Run(job, examples, plan, secret, folder, progress, gradients)
        return run(checkpoint_seconds)


@dataclass
class Run:
    """One training, with hooks in place; `train` makes it."""

    job: PrivateJob
    examples: Sequence[Any | None]
    plan: ExecutionPlan
    secret: bytes
    folder: Path
    progress: Progress
    gradients: Gradients
    steps: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        import torch

        parameters = list(self.gradients.trained.values())
        self.buffers = {name: (b, b._version, b.detach().clone()) for name, b in self.job.module.named_buffers()}
        self.adam = torch.optim.AdamW(parameters, lr=self.job.learning_rate, weight_decay=self.job.weight_decay)
        self.sampler, self.noise = self.plan.sampler(self.secret), self.plan.noise(self.secret)
        self.limit = self.noise.limit(self.gradients.size)
        self.total = torch.zeros(self.gradients.size, dtype=torch.float64, device=self.gradients.device)
        shapes = {name: list(p.shape) for name, p in self.gradients.trained.items()}
        said = canonical([self.job.key, asdict(self.plan), shapes, self._settings()])
        self.key = hmac.new(self.secret, b"dp-sgd checkpoint" + said, hashlib.sha256).hexdigest()

    def _settings(self) -> list[Any]:
        job = self.job
        return [job.learning_rate, job.warmup, job.schedule, job.weight_decay, job.dtype]

    def __call__(self, checkpoint_seconds: float) -> Trained:
        """Take every step that is left."""
        first, saved = self._resume(), time.monotonic()
        for step in range(first, self.plan.steps):
            point = self.step(step)
            self.steps.append(point)
            note = "no record drawn" if point["loss"] is None else f"loss {point['loss']:.3f}"
            if time.monotonic() - saved >= checkpoint_seconds:
                note += self._save(step + 1)
                saved = time.monotonic()
            self.progress(step + 1, self.plan.steps, note)
        return Trained(self._tensors(), self.steps)

    def step(self, step: int) -> dict[str, Any]:
        """Take a step (counted from 0); what happened, private."""
        import torch

        drawn = self.sampler.batch(step).tolist()
        self.total.zero_()
        losses, norms = self.add(drawn)
        mean = torch.from_numpy(self.noise.mean(self.total.cpu().numpy(), step)).to(self.gradients.device)
        at = 0
        for parameter in self.gradients.trained.values():
            parameter.grad = mean[at : at + parameter.numel()].view(parameter.shape)
            at += parameter.numel()
        for group in self.adam.param_groups:
            group["lr"] = rate_of(self.job, self.plan.steps, step)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return {"step": step + 1, "batch": len(drawn), **_told(losses, norms, self.plan.clip)}

    def add(self, drawn: Sequence[int]) -> tuple[list[float], list[float]]:
        """Add the clipped gradients of a batch to the total: (losses, norms of the gradients) of those that have an example."""
        import torch

        losses: list[float] = []
        norms: list[float] = []
        for start in range(0, len(drawn), self.gradients.chunk):
            places = drawn[start : start + self.gradients.chunk]
            there = [self.examples[i] is not None for i in places]
            if not any(there):
                continue
            rows = [self.job.dummies[0] if e is None else e for e in (self.examples[i] for i in places)]
            values, found = self.gradients.of(self.job.losses, rows)
            self._check_buffers()
            counted = torch.tensor(there, device=self.gradients.device)
            lengths = add_clipped(self.total, found, counted, self.limit)
            losses += values[counted].tolist()
            norms += lengths[counted].tolist()
        return losses, norms

    def _check_buffers(self) -> None:
        """Raise ComponentError when what was computed for some records stays in the model, as seen by those after them."""
        import torch

        for name, b in self.job.module.named_buffers():
            before, version, value = self.buffers.get(name, (None, 0, None))
            if (b is before and b._version == version) or (value is not None and torch.equal(b, value)):
                continue
            why = "what follows would depend on a record past the noise; public examples did not show it"
            fix = "shorter texts (max_length), or a model whose positions do not depend on the longest text"
            raise ComponentError(Problem(f"the buffer {name!r} of the model changed as it ran", why=why, fix=fix))

    def _tensors(self) -> "dict[str, np.ndarray]":
        import numpy as np

        found = {name: p.detach().cpu().numpy().copy() for name, p in self.gradients.trained.items()}
        broken = sorted(name for name, value in found.items() if not bool(np.isfinite(value).all()))
        if broken:
            why = f"{len(broken)} trained parameters are no numbers any more, first {broken[0]!r}"
            fix = "lower learning_rate, or raise batch"
            raise ComponentError(Problem("the private training diverged", why=why, fix=fix))
        return found

    def _save(self, step: int) -> str:
        """Write a checkpoint; a remark where that is impossible: training goes on then."""
        tensors = {f"value/{name}": p.detach().cpu().numpy() for name, p in self.gradients.trained.items()}
        for name, p in self.gradients.trained.items():
            for moment in MOMENTS:
                tensors[f"{moment}/{name}"] = self.adam.state[p][moment].cpu().numpy()
        tensors["steps"] = _table(self.steps)
        try:
            checkpoints.save(self.folder, self.key, step, tensors)
        except OSError as error:
            return f"; no checkpoint could be written ({error.strerror or 'input/output error'})"
        return ""

    def _resume(self) -> int:
        """Put back what the newest checkpoint holds; the step to go on with."""
        import torch

        found = checkpoints.load(self.folder, self.key)
        if found is None:
            return 0
        step, tensors = found
        self.steps = _rows(tensors["steps"])
        with torch.no_grad():
            for name, p in self.gradients.trained.items():
                p.copy_(torch.from_numpy(tensors[f"value/{name}"]))
                moments = {m: torch.from_numpy(tensors[f"{m}/{name}"]).to(p.device) for m in MOMENTS}
                self.adam.state[p] = {"step": torch.tensor(float(step)), **moments}
        return step


def rate_of(job: PrivateJob, steps: int, step: int) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, then constant or falling to 0 at the end."""
    if step < job.warmup:
        return job.learning_rate * (step + 1) / job.warmup
    done = (step - job.warmup) / max(1, steps - job.warmup)
    return job.learning_rate * (1.0 - done if job.schedule == "linear" else 1.0)


def _told(losses: Sequence[float], norms: Sequence[float], clip: float) -> dict[str, Any]:
    import numpy as np

    usable = np.isfinite(norms) & np.isfinite(losses)
    kept, values = np.asarray(norms)[usable], np.asarray(losses)[usable]
    told: dict[str, Any] = {"loss": None, "norm_median": None}
    if len(kept):
        told = {"loss": float(values.mean()), "norm_median": float(np.median(kept))}
    return {**told, "clipped": int((kept > clip).sum()), "lost": int(len(norms) - len(kept))}


def _table(steps: Sequence[dict[str, Any]]) -> "np.ndarray":
    """float64 [steps, 6]."""
    import numpy as np

    rows = [[np.nan if step[name] is None else step[name] for name in COLUMNS] for step in steps]
    return np.asarray(rows, dtype=np.float64).reshape(-1, len(COLUMNS))


def _rows(table: "np.ndarray") -> list[dict[str, Any]]:
    """The same back."""
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in table.tolist()]
    return [{k: (None if v != v else v) if k in MEANS else int(v) for k, v in row.items()} for row in rows]
