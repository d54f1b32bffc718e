# SPDX-License-Identifier: Apache-2.0
"""Before training: is every per-example gradient right on this very model? Tried on public dummies; else ConfigError.

Each dummy's gradient by hooks, with another one and in company of as many as are in memory together, padded, must equal
autograd's for that dummy alone, within 1e-5 of its norm; so must its loss. How far off the worst one was says how many records
may be in memory together (`clipping.together`). Trained parameters are moved a little for the trial (adapters start at a
product of zero, where half of the gradients vanish and any fault would hide) and put back exactly. What is off by less than
1e-3 is tried again in float64, since float32 alone can be 1e-5 off in a deep model; then records go one at a time. Nothing
private is read, so what is said here may be shown to anyone. Void when: the loss or the model treats the dummies in another way
than the records (a branch on the text, on a length that no dummy has): the trial cannot see what it does not run.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from osmotic.plugins.contract import PrivateJob
from osmotic.plugins.dp_sgd.clipping import Gradients, together
from osmotic.plugins.dp_sgd.layers import OUT
from osmotic.schemas.errors import ConfigError, Problem

TOLERANCE = 1e-5  # of the norm of the example's whole gradient
NEAR = 1e-3  # off by less than this: tried again in float64
MOVED = 0.02  # standard deviation of the trial's shift of each trained number
APART = "give losses one example's own tokens only: mean over its targets, attention mask and padding that carries no loss"
TRIED = 4  # dummies: the first ones, and the last
NAMED = 6  # at most so many layers in a message


def check(job: PrivateJob) -> int:
    """How many records may be in memory together. Raises ConfigError unless the job's per-example gradients are right.

    The module is afterwards as it was.
    """
    module = job.module
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    dummies = [*job.dummies[: TRIED - 1], job.dummies[-1]] if len(job.dummies) > TRIED else list(job.dummies)
    if len(dummies) < 2:
        raise ConfigError(Problem("two public dummies or more are needed to try the model", fix="give PrivateJob.dummies"))
    _check_kinds(trained)
    try:
        return together(_try(job, trained, dummies))
    except _NearError:
        with _doubled(module):
            _try(job, trained, dummies)
        return 1


class _NearError(ConfigError):
    """Off by little: a fault, or what float32 adds in a deep model. Float64 can tell."""


def _try(job: PrivateJob, trained: dict[str, Any], dummies: Sequence[Any]) -> float:
    """The largest share by which a dummy's gradient in company is off from the one of it alone."""
    worst = 0.0
    with _moved(trained), _same_buffers(job.module):
        _check_losses(job, dummies)
        with Gradients(job.module, job.at_once) as gradients:
            chunk = gradients.chunk
        for chosen in _companies(len(dummies), chunk):
            with Gradients(job.module, job.at_once) as gradients:
                losses, found = gradients.of(job.losses, [dummies[k] for k in chosen])
            for row, i in enumerate(chosen):
                alone = _alone(job, trained, dummies[i])
                off = _compare(job.module, alone, float(losses[row]), {name: g[row] for name, g in found.items()})
                worst = max(worst, off)
    return worst


def _companies(count: int, chunk: int) -> list[list[int]]:
    """One alone; two, where two are ever together; each in company of as many as are."""
    size = min(count, chunk)
    starts = [*range(0, count - size, size), count - size]
    most = [list(range(start, start + size)) for start in starts]
    return most if size == 1 else [[0], *([[1, 0]] if size > 2 else []), *most]


def _check_kinds(trained: dict[str, Any]) -> None:
    import torch

    narrow = sorted(name for name, p in trained.items() if p.dtype != torch.float32)
    if narrow:
        what = f"{len(narrow)} trained parameters are not float32, first {narrow[0]!r}"
        raise ConfigError(Problem(what, why="noise is lost in fewer digits", fix="load the model with dtype: float32"))


@contextmanager
def _moved(trained: dict[str, Any]) -> Iterator[None]:
    """The trained parameters moved a little, the same way each time; afterwards, bit for bit what they were."""
    import torch

    before = {name: p.detach().clone() for name, p in trained.items()}
    generator = torch.Generator().manual_seed(1)
    try:
        with torch.no_grad():
            for p in trained.values():
                p.add_((MOVED * torch.randn(p.shape, generator=generator)).to(p.device))
        yield
    finally:
        with torch.no_grad():
            for name, p in trained.items():
                p.copy_(before[name])


@contextmanager
def _doubled(module: Any) -> Iterator[None]:
    """The module in float64; afterwards every tensor has its own dtype, and what it held, again."""
    import torch

    before = [(t, t.dtype) for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    try:
        with torch.no_grad():
            for t, _ in before:
                t.data = t.data.double()
        yield
    finally:
        with torch.no_grad():
            for t, dtype in before:
                t.data = t.data.to(dtype)


@contextmanager
def _same_buffers(module: Any) -> Iterator[None]:
    """Refuse a module whose buffers change as it runs: statistics of a batch are nobody's own."""
    import torch

    training = {m: m.training for m in module.modules()}
    before = {name: b.detach().clone() for name, b in module.named_buffers()}
    module.eval()
    try:
        yield
        changed = sorted(n for n, b in module.named_buffers() if n not in before or not torch.equal(b, before[n]))
        if changed:
            what = f"{len(changed)} buffers of the model change as it runs, first {changed[0]!r}"
            why = "they carry something of every record past the noise"
            raise ConfigError(Problem(what, why=why, fix="a model without running statistics"))
    finally:
        for m, was in training.items():
            m.training = was


def _alone(job: PrivateJob, trained: dict[str, Any], dummy: Any) -> tuple[float, dict[str, Any]]:
    """Loss and gradient of one example that is all there is, by autograd."""
    import torch

    with torch.enable_grad():
        values = _each(job, [dummy])
        given = torch.autograd.grad(values.sum(), list(trained.values()), allow_unused=True)
    pairs = zip(trained.items(), given, strict=True)
    return float(values.detach()), {name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs}


def _each(job: PrivateJob, chosen: Sequence[Any]) -> Any:
    """Float tensor [n]: one loss an example; raises ConfigError for another shape."""
    values = job.losses(job.module, chosen)
    if tuple(values.shape) != (len(chosen),):
        what = f"the losses of {len(chosen)} examples came in the shape {tuple(values.shape)}"
        raise ConfigError(Problem(what, why="one loss an example is needed, none may be shared", fix=APART))
    return values


def _check_losses(job: PrivateJob, dummies: Sequence[Any]) -> None:
    """Each loss is the same in company: else the loss, or the model, mixes examples."""
    import torch

    with torch.no_grad():
        alone = [float(_each(job, [dummy])[0]) for dummy in dummies]
        for chosen in (list(dummies), list(dummies[:2]), list(dummies[1::-1])):
            found = _each(job, chosen)
            order = alone[: len(chosen)] if chosen[0] is dummies[0] else alone[1::-1]
            for i, (one, other) in enumerate(zip(found.tolist(), order, strict=True)):
                if not abs(one - other) <= TOLERANCE * max(1.0, abs(other)):
                    what = f"the loss of public dummy {i} is {other:.6g} alone and {one:.6g} in company"
                    raise ConfigError(Problem(what, why="it depends on other examples or on padding", fix=APART))


def _compare(module: Any, alone: tuple[float, dict[str, Any]], loss: float, found: dict[str, Any]) -> float:
    """The share by which the gradient found is off. Raises ConfigError where that, or the loss, is beyond the tolerance."""
    import torch

    wanted = alone[1]
    norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in wanted.values()])))
    off = {name: float(torch.linalg.vector_norm(found[name] - g)) for name, g in wanted.items()}
    room, square = TOLERANCE * norm, sum(v * v for v in off.values())
    if abs(loss - alone[0]) <= TOLERANCE * max(1.0, abs(alone[0])) and square <= room * room:
        return float(square**0.5 / norm) if norm else 0.0
    worst = max(off.values())
    wrong = [name for name, value in off.items() if not value <= max(room / 10, worst / 100)] or list(off)
    what = "per-example gradients are not right for " + ", ".join(_layers(module, wrong))
    why = f"on public dummies they differ from those of one example alone by {worst / (norm or 1.0):.2g} of its norm"
    problem = Problem(what, why=why, fix=OUT)
    raise _NearError(problem) if worst < NEAR * norm else ConfigError(problem)


def _layers(module: Any, names: Sequence[str]) -> list[str]:
    """`name (kind)` of the layers of these parameters, the first few."""
    found: dict[str, str] = {}
    for name in names:
        owner = name.rpartition(".")[0]
        found.setdefault(owner or "the model", type(module.get_submodule(owner)).__name__)
    told = [f"{name} ({kind})" for name, kind in list(found.items())[:NAMED]]
    return [*told, f"{len(found) - NAMED} more"] if len(found) > NAMED else told
