# SPDX-License-Identifier: Apache-2.0
"""What steps a module's parameters: plain torch here, DeepSpeed in zero.py. Same mathematics, in one process or in several.

The loss of a step is a *sum* over processes and forwards (see parts.py), so gradients are summed, never averaged. AdamW with
decay on matrices only; the learning rate is set anew at every step; the whole gradient is clipped by its L2 norm; FedProx's
pull is added after that. Every parameter takes part in every step, with a gradient of zero where it had none.
"""

import copy
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from osmotic.components.training.checkpoints import Checkpoint
from osmotic.components.training.settings import EngineName, TrainSettings
from osmotic.schemas.artifacts import Weights, tensors_digest
from osmotic.schemas.errors import ComponentError, ConfigError, Problem

__all__ = ["MOMENTS", "Engine", "EngineName", "World", "layout_of", "loopback", "open_engine", "put_in", "read_out", "trained"]
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class World:
    """The processes that train together, and this one's place; `device` is where its tensors are."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    def total(self, values: Sequence[float]) -> list[float]:
        """Each number summed over the processes; every process gets the same."""
        if self.size == 1:
            return list(values)
        import torch
        from torch import distributed

        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]


class Engine(Protocol):
    """Where forwards and gradients go. `module` is what a loss calls; all methods are called by all processes together."""

    module: Any

    def backward(self, loss: Any, last: bool) -> None:
        """Add a forward's gradient. last: it is the step's last forward in this process."""

    def step(self, rate: float) -> float:
        """One optimiser step; gives the gradient's L2 norm before clipping. Not finite: nothing was changed."""

    def values(self) -> dict[str, Any]:
        """Name -> copy of each trained parameter, whole, on the CPU."""

    def moments(self) -> dict[str, Any]:
        """ "exp_avg/NAME" and "exp_avg_sq/NAME" -> copy, whole, on the CPU."""


@contextmanager
def open_engine(
    module: Any, settings: TrainSettings, world: World, start: Checkpoint | None = None, spoil: bool = False
) -> Iterator[Engine]:
    """An engine over the module's trainable parameters, which it steps (deepspeed: those of a copy); goes on at `start`.

    spoil: the module is not needed afterwards: deepspeed may have it itself. Plain torch leaves it on `world.device`.
    """
    if not trained(module):
        raise ComponentError(Problem("the model has no trainable parameters", fix="train it whole, or with adapters"))
    origin = trained(module) if settings.proximal else {}
    origin = {name: p.detach().clone() for name, p in origin.items()}
    if settings.engine == "deepspeed":
        from osmotic.components.training.zero import open_zero

        with open_zero(module if spoil else copy.deepcopy(module), settings, world, start, origin) as engine:
            yield engine
        return
    module.to(world.device)
    if start is not None:
        put_tensors(trained(module), start.slot("value"))
    with cast_forward(module, settings, world):
        yield TorchEngine(module, settings, world, start, origin)


class TorchEngine:
    """Plain torch. With several processes each holds everything, and the gradients are summed before the step."""

    def __init__(
        self, module: Any, settings: TrainSettings, world: World, start: Checkpoint | None, origin: Mapping[str, Any]
    ) -> None:
        self.module = module
        self._named = trained(module)
        self._clip, self._world = settings.clip, world
        self._optimizer = adamw(self._named.values(), settings)
        fill_moments(self._optimizer, self._named, start)
        pull(self._optimizer, settings.proximal, {self._named[name]: value for name, value in origin.items()})

    def backward(self, loss: Any, last: bool) -> None:
        """See `Engine`."""
        loss.backward()

    def step(self, rate: float) -> float:
        """See `Engine`."""
        import torch

        gradients = filled_gradients(self._named.values())
        if self._world.size > 1:
            _sum_over_processes(gradients)
        norm = torch.nn.utils.get_total_norm(gradients)
        size = float(norm)
        if size == size and abs(size) != float("inf"):
            if self._clip:
                torch.nn.utils.clip_grads_with_norm_(list(self._named.values()), self._clip, norm)
            set_rate(self._optimizer, rate)
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return size

    def values(self) -> dict[str, Any]:
        """See `Engine`."""
        return {name: whole(p) for name, p in self._named.items()}

    def moments(self) -> dict[str, Any]:
        """See `Engine`."""
        return named_moments(self._optimizer, self._named)


def adamw(parameters: Any, settings: TrainSettings) -> Any:
    """torch's AdamW over them: matrices decay, vectors (norms, biases) do not."""
    import torch

    every = list(parameters)
    groups = [
        {"params": [p for p in every if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.learning_rate, fused=True)


def set_rate(optimizer: Any, rate: float) -> None:
    """The learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def empty_state(parameter: Any, steps: int) -> dict[str, Any]:
    """AdamW's state of a tensor that has seen `steps` steps, with moments of zero."""
    import torch

    count = torch.tensor(float(steps), dtype=torch.float32, device=parameter.device)
    return {"step": count, **{slot: torch.zeros_like(parameter.detach()) for slot in MOMENTS}}


def fill_moments(optimizer: Any, named: Mapping[str, Any], start: Checkpoint | None) -> None:
    """Put a checkpoint's moments, or those of a beginning, into an optimiser over whole parameters."""
    for parameter in named.values():
        optimizer.state[parameter] = empty_state(parameter, start.step if start else 0)
    for slot in MOMENTS if start else ():
        put_tensors({name: optimizer.state[p][slot] for name, p in named.items()}, start.slot(slot) if start else {})


def named_moments(optimizer: Any, named: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of the moments of an optimiser over whole parameters."""
    return {f"{slot}/{name}": whole(optimizer.state[p][slot]) for slot in MOMENTS for name, p in named.items()}


def whole(tensor: Any) -> Any:
    """A contiguous copy on the CPU."""
    import torch

    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def pull(optimizer: Any, strength: float, origin: Mapping[Any, Any]) -> None:
    """FedProx: add strength * (w - origin) to each gradient as a step begins. origin: the optimiser's tensor -> its start."""
    if not strength:
        return

    def hook(stepping: Any, *_: Any) -> None:
        for group in stepping.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.add_(p.detach() - origin[p].to(p.device), alpha=strength)

    optimizer.register_step_pre_hook(hook)


def filled_gradients(parameters: Any) -> list[Any]:
    """The gradients; a parameter that had none gets zeros, so that all engines treat it alike."""
    import torch

    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    return [p.grad for p in parameters]


def _sum_over_processes(gradients: Sequence[Any]) -> None:
    """Sum each gradient over the processes, in place: one message for all."""
    import torch
    from torch import distributed

    flat = torch.cat([g.flatten() for g in gradients])
    distributed.all_reduce(flat)
    at = 0
    for gradient in gradients:
        gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient))
        at += gradient.numel()


@contextmanager
def cast_forward(module: Any, settings: TrainSettings, world: World) -> Iterator[None]:
    """Run the module's forward under autocast, where settings say bfloat16: inside any engine around it."""
    if settings.dtype == "float32":
        yield
        return
    import torch

    module.forward = torch.autocast(world.device.split(":")[0], dtype=torch.bfloat16)(module.forward)
    try:
        yield
    finally:
        del module.forward


def device_of(settings: TrainSettings, rank: int) -> str:
    """Where a process computes: a GPU of its own where there are any. Raises ConfigError when there are too few."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count and count < settings.processes:
        why = f"{settings.processes} processes, {count} GPU(s)"
        raise ConfigError(Problem("there are fewer GPUs than processes", why=why, fix="lower processes, or hide the GPUs"))
    return f"cuda:{rank}" if count else "cpu"


def loopback() -> dict[str, str]:
    """Variables that keep the messages between processes on this machine: they carry gradients of private records."""
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")][:1]
    return {variable: name for name in names for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}


def trained(module: Any) -> dict[str, Any]:
    """Name -> trainable parameter."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def read_out(module: Any) -> dict[str, Any]:
    """Name -> float32 numpy copy of each trainable parameter."""
    return {name: p.detach().float().cpu().numpy().copy() for name, p in trained(module).items()}


def layout_of(module: Any) -> dict[str, Any]:
    """What the tensors are, for whoever averages them: ``layout``; of adapters ``rank`` and ``alpha``, and ``frozen``, the
    digest of the factors that do not train, where there are such."""
    adapters = getattr(module, "peft_config", None)
    if not adapters:
        return {"layout": "full"}
    settings = next(iter(adapters.values()))
    frozen = {name: p for name, p in module.named_parameters() if "lora_" in name and not p.requires_grad}
    facts = {"layout": "lora", "rank": int(settings.r), "alpha": float(settings.lora_alpha)}
    if not frozen:
        return facts
    return {**facts, "frozen": tensors_digest((n, frozen[n].detach().float().cpu().numpy()) for n in sorted(frozen))}


def put_tensors(parameters: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Copy values in by name; names and shapes must match. Raises ComponentError naming the first that does not."""
    import torch

    odd = sorted(set(parameters) ^ set(tensors)) or [n for n, p in parameters.items() if p.shape != tensors[n].shape]
    if odd:
        raise ComponentError(Problem("tensors do not fit the model", why=f"{len(odd)} differ, first {odd[0]!r}"))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def put_in(parameters: Mapping[str, Any], weights: Weights) -> None:
    """Load weights into parameters of the same names and shapes; raises ComponentError naming the first that differs."""
    import torch

    odd = weights.misfits({name: tuple(p.shape) for name, p in parameters.items()})
    if odd:
        raise ComponentError(Problem("'init' does not fit the model", why=f"{len(odd)} tensors differ, first {odd[0]!r}"))
    put_tensors(parameters, {name: torch.from_numpy(tensor) for name, tensor in weights.tensors.items()})
