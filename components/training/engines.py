# SPDX-License-Identifier: Apache-2.0
"""What steps a student's parameters: plain torch, or DeepSpeed (ZeRO-0, one process, in line). Same mathematics in both."""

import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from osmotic.schemas.artifacts import Weights
from osmotic.schemas.errors import ComponentError, ConfigError, Problem

EngineName = Literal["torch", "deepspeed"]


@dataclass
class Engine:
    """`forward` runs the module, `step` takes one optimiser step down a loss."""

    forward: Callable[..., Any]
    step: Callable[[Any], None]
    optimizer: Any


@contextmanager
def open_engine(name: EngineName, module: Any, weight_decay: float, batch: int) -> Iterator[Engine]:
    """An engine over the module's trainable parameters; matrices decay, vectors (norms, biases) do not."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    with _deepspeed(module, groups, batch) if name == "deepspeed" else _torch(module, groups) as engine:
        yield engine


@contextmanager
def _torch(module: Any, groups: list[dict[str, Any]]) -> Iterator[Engine]:
    import torch

    optimizer = torch.optim.AdamW(groups, fused=True)

    def step(loss: Any) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    yield Engine(module, step, optimizer)


@contextmanager
def _deepspeed(module: Any, groups: list[dict[str, Any]], batch: int) -> Iterator[Engine]:
    settings = {
        "train_micro_batch_size_per_gpu": batch,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": 0},
        "gradient_clipping": 0.0,
        "optimizer": {"type": "AdamW", "params": {"torch_adam": True, "adam_w_mode": True, "lr": 1e-3}},
        "steps_per_print": 1 << 30,
    }
    with _environment(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        deepspeed, ours = _import_deepspeed(), not _distributed()
        engine, optimizer, _, _ = deepspeed.initialize(model=module, model_parameters=groups, config=settings)

        def step(loss: Any) -> None:
            engine.backward(loss)
            engine.step()

        try:
            yield Engine(engine, step, getattr(optimizer, "optimizer", optimizer))
        finally:
            engine.destroy()
            if ours and _distributed():
                deepspeed.comm.destroy_process_group()


def _distributed() -> bool:
    from torch import distributed

    return bool(distributed.is_available() and distributed.is_initialized())


def _import_deepspeed() -> Any:
    """The package, without the communication kernel that it would compile at first use (gloo does the same)."""
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigError(
            Problem("deepspeed is not installed", why=str(error), fix="pip install 'osmotic[deepspeed]'")
        ) from error
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    known = getattr(deepspeed.ops, "__compatible_ops__", None)
    if isinstance(known, dict) and "deepspeed_shm_comm" in known:
        known["deepspeed_shm_comm"] = False
    return deepspeed


@contextmanager
def _environment() -> Iterator[None]:
    """What DeepSpeed reads of a launcher's variables, for one process; put back at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    wanted = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "DS_ACCELERATOR": "cpu",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def trained(module: Any) -> dict[str, Any]:
    """Name -> trainable parameter."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def read_out(module: Any) -> dict[str, Any]:
    """Name -> float32 numpy copy of each trainable parameter."""
    return {name: p.detach().float().cpu().numpy().copy() for name, p in trained(module).items()}


def put_in(parameters: Mapping[str, Any], weights: Weights) -> None:
    """Load weights into parameters of the same names and shapes; raises ComponentError naming the first that differs."""
    import torch

    odd = weights.misfits({name: tuple(p.shape) for name, p in parameters.items()})
    if odd:
        raise ComponentError(Problem("'init' does not fit the model", why=f"{len(odd)} tensors differ, first {odd[0]!r}"))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(weights.tensors[name]))
