# SPDX-License-Identifier: Apache-2.0
"""What the trainers of local models share: configuration keys, the held-out part, encoders, settings, the curve as told."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from osmotic.components.training import loop
from osmotic.components.training.batches import Cut, Encoder
from osmotic.components.training.engines import read_out
from osmotic.components.training.heads import plain_prompts, rows_of
from osmotic.components.training.losses import Packing
from osmotic.components.training.settings import DeepspeedConfig, EngineName, HeldOutConfig, Schedule, TrainSettings
from osmotic.plugins.contract import Config, Context, Trainable, Weights
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ComponentError, Problem

CURVE_POINTS = 200


class HeldOut(HeldOutConfig):
    """Records kept apart, the same in all arms: training stops when their loss does, and the best weights are given out."""

    share: float = Field(0.1, gt=0, lt=1, description="Of the records; at least one, and at least one is left to train on.")


class TrainerConfig(Config):
    """For how long, how fast and on what machinery a model is trained."""

    steps: int = Field(ge=1)
    batch: int = Field(32, ge=1, description="Records a task a step, over all processes and accumulated forwards.")
    accumulate: int = Field(1, ge=1, description="Forwards a step in each process, for less memory; the loss stays the same.")
    learning_rate: float = Field(2e-3, gt=0)
    warmup: int = Field(0, ge=0, description="Steps of linear warm-up.")
    schedule: Schedule = "constant"
    weight_decay: float = Field(0.01, ge=0, description="Of matrices; norms and biases do not decay.")
    clip: float | None = Field(None, gt=0, description="Largest L2 norm of the gradient.")
    max_length: int = Field(256, ge=16, description="Tokens of prompt and target together; of each with an encoder-decoder.")
    truncate: Cut = Field("left", description="What a prompt that is too long loses; never what follows its last slot.")
    packing: Packing = Field("auto", description="auto: without padding where the model can, else padded.")
    held_out: HeldOut | None = None
    proximal: float = Field(0.0, ge=0, description="FedProx: mu of mu/2 ||w - start||^2; start: `init`, or the model itself.")
    declare_examples: bool = Field(
        False, description="Put the number of records trained on into the weights' description: it crosses with them."
    )
    engine: EngineName = "torch"
    processes: int = Field(1, ge=1, description="Processes on this machine that share each step's rows.")
    deepspeed: DeepspeedConfig = DeepspeedConfig()


NOT_WHAT = frozenset({"at_once", "engine", "processes", "deepspeed", "declare_examples"})  # keys that change how, and not what


def engine_problems(config: TrainerConfig) -> list[str]:
    """Settings of an engine that is not used, or that do not go together."""
    found = []
    if config.engine != "deepspeed" and config.deepspeed != DeepspeedConfig():
        found.append("deepspeed: is used with 'engine: deepspeed' only")
    if config.deepspeed.offload != "none" and not config.deepspeed.stage:
        found.append("deepspeed.offload: needs stage 1, 2 or 3")
    return found


def trainable_of(context: Context, name: str) -> tuple[Any, Any, Any, str]:
    """(model, fresh module, tokenizer, fingerprint) of a model of the pipeline. Raises ComponentError: it cannot be trained."""
    model = context.model(name)
    if not isinstance(model, Trainable):
        raise ComponentError(Problem(f"the model {name!r} cannot be trained here", fix="name a local model"))
    module, tokenizer = model.trainable()
    return model, module, tokenizer, str(getattr(model, "fingerprint", ""))


def check_base(init: Weights, base: str, layout: Mapping[str, Any]) -> None:
    """Raises ComponentError when weights to start from belong to another model, or were trained beside another frozen A.

    layout: of the model that starts from them (`engines.layout_of`).
    """
    if init.meta.get("base") != base:
        why = f"trained from {str(init.meta.get('base'))[:12]}, this model is {base[:12]}"
        raise ComponentError(Problem("'init' belongs to another model", why=why, fix="use the same model in all trainers"))
    if init.meta.get("frozen") != layout.get("frozen"):
        what, why = "'init' was trained beside another A", "B alone says nothing without the A that it was trained with"
        raise ComponentError(Problem(what, why=why, fix="use the same model, with the same lora settings, in all trainers"))


def held_out_of(context: Context, held_out: HeldOut | None, count: int) -> frozenset[int]:
    """Indices of the records that take no part in training: the same for all arms. Raises ComponentError with one record."""
    if held_out is None:
        return frozenset()
    if count < 2:
        raise ComponentError(Problem(f"none of {count} record(s) can be held out", fix="give more records, or held_out: null"))
    size = min(count - 1, max(1, round(held_out.share * count)))
    return frozenset(context.rng("held-out").sample(range(count), size))


def encoder_of(model: Any, module: Any, tokenizer: Any, config: TrainerConfig) -> Encoder:
    """How a model's prompts and targets become token ids."""
    if tokenizer.eos_token_id is None:
        raise ComponentError(Problem("the tokenizer has no end token", why="a target must end with one"))
    settings, limit = module.config, config.max_length
    apart = bool(getattr(settings, "is_encoder_decoder", False))
    positions = getattr(settings, "max_position_embeddings", None) or limit
    encode = getattr(model, "encode_prompts", None) or plain_prompts(tokenizer)
    return Encoder(encode, tokenizer, min(limit, positions), apart, config.truncate, rows_of(module))


def settings_of(
    context: Context, config: TrainerConfig, model: Any, kind: str, weights: dict[str, float], **more: Any
) -> TrainSettings:
    """A training, whole. weights: task -> weight in the loss; more: settings that not every trainer has."""
    return TrainSettings(
        steps=config.steps,
        learning_rate=config.learning_rate,
        weights=weights,
        kind=kind,
        warmup=config.warmup,
        schedule=config.schedule,
        weight_decay=config.weight_decay,
        clip=config.clip or 0.0,
        accumulate=config.accumulate,
        dtype="bfloat16" if getattr(model, "dtype", "float32") == "bfloat16" else "float32",
        seed=context.rng("torch").getrandbits(63),
        engine=config.engine,
        processes=config.processes,
        stage=config.deepspeed.stage,
        offload=config.deepspeed.offload,
        held_out=(config.held_out.every, config.held_out.patience) if config.held_out else None,
        proximal=config.proximal,
        **more,
    )


def cut_note(count: int, config: TrainerConfig, what: str = "") -> list[str]:
    """A sentence about prompts that lost a part; none where none did."""
    lost = "beginning" if config.truncate == "left" else "middle"
    return [f"{count} prompts {what}were too long and lost their {lost}"] if count else []


def finite_tensors(module: Any) -> dict[str, Any]:
    """The trained parameters, read out. Raises ComponentError unless they are finite numbers."""
    from numpy import isfinite

    tensors = read_out(module)
    if not all(isfinite(tensor).all() for tensor in tensors.values()):
        raise ComponentError(Problem("the trained weights are not all finite numbers", fix="lower learning_rate"))
    return tensors


def key_of(config: Config, base: str, parts: Sequence[Any], init: Weights | None) -> str:
    """What a checkpoint must have been made from to be of use: settings, model, JSON values, the weights it began with."""
    settings = config.model_dump(mode="json", exclude=set(NOT_WHAT))
    total = hashlib.sha256(canonical([settings, base, *parts]))
    for name, tensor in sorted(init.tensors.items()) if init else ():
        total.update(name.encode() + tensor.tobytes())
    return total.hexdigest()


def told_of(result: loop.Result, notes: Sequence[str]) -> dict[str, Any]:
    """The curve as columns, with what is to be said of the run."""
    found: dict[str, Any] = {**_thin(result.curve), "notes": [*notes, *result.notes]}
    if result.held_out:
        found |= {"held_out": _thin(result.held_out), "best": result.best, "stopped": result.stopped}
    return found


def _thin(curve: Sequence[dict[str, float]]) -> dict[str, list[float | None]]:
    """Columns of at most about 200 evenly spaced points, first and last included; None where a step had nothing of a task."""
    stride = max(1, math.ceil(len(curve) / CURVE_POINTS))
    points = [p for i, p in enumerate(curve) if i % stride == 0 or i == len(curve) - 1]
    names = dict.fromkeys(name for point in points for name in point)
    return {name: [point.get(name) for point in points] for name in names}
