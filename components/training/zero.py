# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed's ZeRO-0 to 3 as an engine of training, on CPU or GPU, in one process or as one of several.

torch's AdamW does the arithmetic, so nothing is compiled at first use. DeepSpeed averages gradients over the processes, the
loss is a sum: so every forward's loss is multiplied by their number. With stages 1 to 3 each process holds a part of the
optimiser's state; checkpoints gather it by parameter name. DeepSpeed's own checkpoints are pickles: they are not used.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from osmotic.components.training.checkpoints import Checkpoint
from osmotic.components.training.engines import (
    MOMENTS,
    World,
    adamw,
    cast_forward,
    empty_state,
    fill_moments,
    filled_gradients,
    loopback,
    named_moments,
    pull,
    put_tensors,
    set_rate,
    trained,
    whole,
)
from osmotic.components.training.settings import TrainSettings
from osmotic.schemas.errors import ConfigError, Problem

BUCKET = 1 << 24  # elements of one message; DeepSpeed's own default would take gigabytes of buffers
SMALL = 1_000  # elements: smaller parameters stay whole in every process (stage 3)


@contextmanager
def open_zero(
    module: Any, settings: TrainSettings, world: World, start: Checkpoint | None, origin: Mapping[str, Any]
) -> Iterator["ZeroEngine"]:
    """An engine that takes the module over: DeepSpeed leaves its marks on what it wraps. See `engines.open_engine`."""
    with _quiet(), _environment(world):
        deepspeed = _import_deepspeed()
        with _group(deepspeed, world):
            yield from _open(deepspeed, module, settings, world, start, origin)


def _open(
    deepspeed: Any, module: Any, settings: TrainSettings, world: World, start: Checkpoint | None, origin: Mapping[str, Any]
) -> Iterator["ZeroEngine"]:
    module.to(world.device)
    if start is not None:
        put_tensors(trained(module), start.slot("value"))
    with cast_forward(module, settings, world):
        engine = ZeroEngine(deepspeed, module, settings, world, start, origin)
        try:
            yield engine
        finally:
            engine.module.destroy()


class ZeroEngine:
    """See `engines.Engine`."""

    def __init__(
        self,
        deepspeed: Any,
        module: Any,
        settings: TrainSettings,
        world: World,
        start: Checkpoint | None,
        origin: Mapping[str, Any],
    ) -> None:
        self._deepspeed, self._stage, self._size = deepspeed, settings.stage, world.size
        self._named = trained(module)
        self._base = adamw(self._named.values(), settings)
        self.module, wrapped, _, _ = deepspeed.initialize(
            model=module, optimizer=self._base, config=_config(settings), dist_init_required=False
        )
        self._zero: Any = wrapped if settings.stage else None
        self._fill(start)
        if settings.proximal:
            pull(self._base, settings.proximal, self._origins(origin, start))

    def backward(self, loss: Any, last: bool) -> None:
        """See `engines.Engine`."""
        self.module.backward(loss * self._size, scale_wrt_gas=False)
        if not last:
            self.module.step()

    def step(self, rate: float) -> float:
        """See `engines.Engine`."""
        import torch

        set_rate(self._base, rate)
        if self._zero is not None:
            self.module.step()
            return float("inf") if self._zero.overflow else float(self.module.get_global_grad_norm())
        norm = float(torch.nn.utils.get_total_norm(filled_gradients(self._named.values())))
        if norm == norm and abs(norm) != float("inf"):
            self.module.step()
        return norm

    def values(self) -> dict[str, Any]:
        """See `engines.Engine`."""
        if self._stage < 3:
            return {name: whole(p) for name, p in self._named.items()}
        found = {}
        for name, p in self._named.items():
            with self._deepspeed.zero.GatheredParameters([p]):
                found[name] = whole(p)
        return found

    def moments(self) -> dict[str, Any]:
        """See `engines.Engine`."""
        if self._zero is None:
            return named_moments(self._base, self._named)
        read = self._deepspeed.utils.safe_get_full_optimizer_state
        return {f"{slot}/{name}": whole(read(p, slot)) for slot in MOMENTS for name, p in self._named.items()}

    def _fill(self, start: Checkpoint | None) -> None:
        """Moments of a checkpoint, or zeros; each process takes its part of them."""
        if self._zero is None:
            fill_moments(self._base, self._named, start)
            return
        for part in self._parts():
            self._base.state[part] = empty_state(part, start.step if start else 0)
        if self._stage < 3:
            self._zero._lazy_init_hp_params_optimizer_state()
        for slot in MOMENTS if start else ():
            self._scatter(slot, start.slot(slot) if start else {})

    def _parts(self) -> list[Any]:
        """This process's parts of the parameters, as the optimiser steps them."""
        parts: list[Any] = (
            self._zero.fp32_partitioned_groups_flat if self._stage == 3 else self._zero.single_partition_of_fp32_groups
        )
        return parts

    def _scatter(self, slot: str, tensors: Mapping[str, Any]) -> None:
        """Put whole tensors, by parameter name, into one slot of the optimiser's state."""
        for name, parameter in self._named.items():
            value = tensors[name].to(parameter.device, dtype=self._parts()[0].dtype)
            if self._stage == 3:
                self._deepspeed.utils.safe_set_local_optimizer_state(parameter, _local(parameter, value), slot)
            else:
                self._deepspeed.utils.safe_set_full_optimizer_state(parameter, value, slot)

    def _origins(self, origin: Mapping[str, Any], start: Checkpoint | None) -> dict[Any, Any]:
        """The optimiser's tensor -> its part of the weights that training began with (laid out by way of a moment)."""
        if self._zero is None:
            return {self._named[name]: value.to(self._named[name].device) for name, value in origin.items()}
        self._scatter(MOMENTS[0], origin)
        found = {part: self._base.state[part][MOMENTS[0]].clone() for part in self._parts()}
        for part in self._parts():
            self._base.state[part][MOMENTS[0]].zero_()
        if start is not None:
            self._scatter(MOMENTS[0], start.slot(MOMENTS[0]))
        return found


def _local(parameter: Any, value: Any) -> Any:
    """This process's part of a whole tensor under stage 3: equal parts, the last one filled up with zeros."""
    import torch
    from torch import distributed

    size = parameter.ds_tensor.numel()
    padded = torch.zeros(size * distributed.get_world_size(), dtype=value.dtype, device=value.device)
    padded[: value.numel()] = value.flatten()
    if size == value.numel():  # a small one: whole in every process
        return value.flatten()
    return padded[size * distributed.get_rank() :][:size]


def _config(settings: TrainSettings) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": settings.stage}
    if settings.stage:
        zero |= {"reduce_bucket_size": BUCKET, "overlap_comm": False}
        zero |= {"stage3_param_persistence_threshold": SMALL} if settings.stage == 3 else {"allgather_bucket_size": BUCKET}
        if settings.offload == "cpu":
            zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,  # only ever multiplied into a count that nobody reads
        "gradient_accumulation_steps": settings.accumulate,
        "gradient_clipping": settings.clip,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 30,
    }


def _import_deepspeed() -> Any:
    """The package, without the communication kernel that it would compile at first use (gloo does the same)."""
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigError(
            Problem("deepspeed is not installed", why=str(error), fix="pip install 'osmotic[deepspeed]'")
        ) from error
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    known = getattr(deepspeed.ops, "__compatible_ops__", None)
    if isinstance(known, dict) and "deepspeed_shm_comm" in known:
        known["deepspeed_shm_comm"] = False
    return deepspeed


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _group(deepspeed: Any, world: World) -> Iterator[None]:
    """The process group, known to DeepSpeed. Where there is none: one of this process alone, on the loopback interface."""
    from torch import distributed

    ours, hook = not distributed.is_initialized(), sys.excepthook
    if ours:
        backend = "nccl" if world.device.startswith("cuda") else "gloo"
        distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    try:
        if not deepspeed.comm.is_initialized():
            deepspeed.init_distributed(verbose=False)  # takes over the group that is there
        yield
    finally:
        if ours and deepspeed.comm.is_initialized():
            deepspeed.comm.destroy_process_group()
        if ours and distributed.is_initialized():
            distributed.destroy_process_group()
        sys.excepthook = hook  # torch puts its own there with a group, and leaves it


@contextmanager
def _environment(world: World) -> Iterator[None]:
    """What DeepSpeed reads of a launcher's variables, and where the group may listen; put back at the end."""
    wanted = {
        "RANK": str(world.rank),
        "LOCAL_RANK": str(world.rank),
        "WORLD_SIZE": str(world.size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
        "DS_ACCELERATOR": world.device.split(":")[0],
        **loopback(),
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
