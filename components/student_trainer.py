# SPDX-License-Identifier: Apache-2.0
"""Train a student on two tasks: the label, and the teacher's rationale (FedCoT, arXiv 2406.12403, multi-task step).

loss = label_weight * CE(label) + rationale_weight * CE(rationale); each CE is the mean over that task's target tokens of a
batch. Targets end with the model's own end token, which carries loss; prompts and padding carry none. Records without a
rationale train the label task all the same. A task with weight 0 is not run at all.

Guarantee: none. The weights depend on raw private records, whatever protected the prompts: sending them anywhere is an
unprotected crossing. Deterministic: equal seeds, inputs, versions and thread counts give equal weights, also after a resume.
"""

import hashlib
import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

from pydantic import Field

from osmotic.components.training import checkpoints
from osmotic.components.training.batches import Encoder, Order, Redraw, Task, task_loss
from osmotic.components.training.engines import Engine, EngineName, open_engine, put_in, read_out, trained
from osmotic.components.templates import check_slots, compile_template
from osmotic.plugins.contract import Component, Config, Context, Document, ModelName, Out, Outputs, Records, Trainable, Weights
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ComponentError, Problem
from osmotic.schemas.records import RecordSchema

CHECKPOINT_SECONDS = 30.0
CURVE_POINTS = 200


class RedrawConfig(Config):
    """Fields that carry no answer, drawn anew from their public domains at every step, in every arm alike."""

    fields: tuple[str, ...] = Field(strict=False, min_length=1, description="Fields with a domain.")
    probability: float = Field(0.8, ge=0, le=1, description="Of drawing a field anew, each field for itself.")


class StudentTrainerConfig(Config):
    """What is trained, on which prompts and targets, for how long."""

    model: ModelName
    label_prompt: str = Field(description="Jinja2 over the record's fields.")
    label_target: str = Field(description="Jinja2 over the record's fields.")
    rationale_prompt: str = Field(description="Jinja2 over the record's fields.")
    rationale_target: str = Field("{{ rationale }}", description="Jinja2 over the record's fields and `rationale`.")
    steps: int = Field(ge=1)
    batch: int = Field(32, ge=1, description="Records a task a step.")
    learning_rate: float = Field(2e-3, gt=0)
    warmup: int = Field(0, ge=0, description="Steps of linear warm-up.")
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: float = Field(0.01, ge=0, description="Of matrices; norms and biases do not decay.")
    label_weight: float = Field(1.0, ge=0)
    rationale_weight: float = Field(1.0, ge=0)
    max_length: int = Field(256, ge=16, description="Tokens of prompt and target; prompts lose their beginning, never the cue.")
    redraw: RedrawConfig | None = None
    engine: EngineName = "torch"
    shuffle_rationales: bool = Field(False, description="Control arm: every rationale goes to another record.")


class StudentTrainer(Component[StudentTrainerConfig]):
    """Labels and rationales in, trained weights and the loss curve out."""

    name = "student_trainer"
    outputs = {"weights": Out(Weights), "curve": Out(Document)}

    @classmethod
    def check(cls, config: StudentTrainerConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Slots of the templates, and re-drawn fields without a domain."""
        if schema is None:
            return ()
        known = set(schema.fields)
        found = []
        for key in ("label_prompt", "label_target", "rationale_prompt"):
            found += check_slots(getattr(config, key), known, key)
        found += check_slots(config.rationale_target, known | {"rationale"}, "rationale_target")
        for name in config.redraw.fields if config.redraw else ():
            if name not in known or schema.fields[name].domain is None:
                found.append(f"redraw.fields: {name!r} is not a field with a domain")
        return found

    def run(
        self, context: Context, records: Records, rationales: Records | None = None, init: Weights | None = None
    ) -> Outputs:
        """Train; see the module. `rationales`: rows of ``id`` (the record's own) and ``rationale``. `init`: where to start."""
        import torch
        from numpy import isfinite

        model = context.model(self.config.model)
        if not isinstance(model, Trainable):
            raise ComponentError(Problem(f"the model {self.config.model!r} cannot be trained here", fix="name a local model"))
        module, tokenizer = model.trainable()
        base = str(getattr(model, "fingerprint", ""))
        if init is not None:
            _check_base(init, base)
            put_in(trained(module), init)
        joined = self._join(context, records, rationales)
        tasks = self._tasks(context, records, joined, _encoder(model, module, tokenizer, self.config.max_length))
        key = _key(self.config, base, records, joined, init)
        with (
            torch.random.fork_rng(devices=[]),
            open_engine(self.config.engine, module, self.config.weight_decay, self.config.batch) as engine,
        ):
            torch.manual_seed(context.rng("torch").getrandbits(63))
            curve = self._train(context, engine, module, tasks, key, _autocast(model))
        meta = {"base": base, "layout": "lora" if hasattr(module, "peft_config") else "full", "steps": self.config.steps}
        tensors = read_out(module)
        if not all(isfinite(tensor).all() for tensor in tensors.values()):
            raise ComponentError(Problem("the trained weights are not all finite numbers", fix="lower learning_rate"))
        return {"weights": Weights(tensors, meta), "curve": Document(_thin(curve))}

    def _join(self, context: Context, records: Records, rationales: Records | None) -> dict[str, str]:
        """Record id -> rationale; shuffled in the control arm."""
        found: dict[str, str] = {}
        known = {row["id"] for row in records}
        for row in rationales or ():
            if row["id"] not in known or row["id"] in found:
                what = "twice" if row["id"] in found else "for a record that is not there"
                raise ComponentError(Problem(f"a rationale comes {what}: id {row['id']!r}"))
            found[row["id"]] = row["rationale"]
        if self.config.shuffle_rationales and len(found) > 1:
            order = sorted(found)
            context.rng("shuffle").shuffle(order)
            return {one: found[other] for one, other in zip(order, order[1:] + order[:1], strict=True)}
        return found

    def _tasks(self, context: Context, records: Records, joined: dict[str, str], encoder: Encoder) -> dict[str, Task]:
        """The tasks that have a weight and something to learn from."""
        config, tasks = self.config, {}
        plain: list[dict[str, Any] | None] = list(records.rows)
        told = [{**row, "rationale": joined[row["id"]]} if row["id"] in joined else None for row in records]
        for name, rows, weight in (("label", plain, config.label_weight), ("rationale", told, config.rationale_weight)):
            wanted = [row is not None for row in rows]
            if weight > 0 and any(wanted):
                suffix = "" if name == "label" else "-rationales"
                order = Order(context.rng(f"batches{suffix}"), wanted)
                prompt = compile_template(getattr(config, f"{name}_prompt"), f"{name}_prompt")
                target = compile_template(getattr(config, f"{name}_target"), f"{name}_target")
                tasks[name] = Task(prompt, target, rows, order, self._redraw(context, suffix), encoder)
        if not tasks:
            raise ComponentError(Problem("there is nothing to learn from", why="no records, or only tasks of weight 0"))
        return tasks

    def _redraw(self, context: Context, suffix: str) -> Redraw | None:
        if self.config.redraw is None:
            return None
        fields = context.schema().fields
        domains = {name: fields[name].domain or () for name in self.config.redraw.fields if name in fields}
        if not all(domains.get(name) for name in self.config.redraw.fields):
            raise ComponentError(
                Problem("a field to be re-drawn has no domain", fix="list fields with a domain in redraw.fields")
            )
        return Redraw(context.rng(f"redraw{suffix}"), domains, self.config.redraw.probability)

    def _train(
        self, context: Context, engine: Engine, module: Any, tasks: dict[str, Task], key: str, cast: AbstractContextManager[Any]
    ) -> list[dict[str, float]]:
        """All steps that are left; returns one point a step."""
        folder, parameters = context.scratch(), trained(module)
        first, state = checkpoints.load(folder, key, parameters, engine.optimizer)
        curve: list[dict[str, float]] = state["curve"] if state else []
        for name, task in tasks.items() if state else ():
            task.restore(state["tasks"][name])
        saved = time.monotonic()
        for step in range(first, self.config.steps):
            point = self._step(engine, tasks, step, cast)
            curve.append(point)
            if time.monotonic() - saved >= CHECKPOINT_SECONDS:
                now = {"curve": curve, "tasks": {name: task.state() for name, task in tasks.items()}}
                checkpoints.save(folder, key, step + 1, parameters, engine.optimizer, now)
                saved = time.monotonic()
            if (step + 1) % 5 == 0 or step + 1 == self.config.steps:
                context.progress(step + 1, self.config.steps, f"loss {point['loss']:.3f}")
        return curve

    def _step(self, engine: Engine, tasks: dict[str, Task], step: int, cast: AbstractContextManager[Any]) -> dict[str, float]:
        for group in engine.optimizer.param_groups:
            group["lr"] = rate(self.config, step)
        with cast:
            losses = {name: task_loss(engine.forward, task.batch(self.config.batch)) for name, task in tasks.items()}
        total: Any = sum(getattr(self.config, f"{name}_weight") * loss for name, loss in losses.items())
        point = {
            "step": step + 1,
            "loss": float(total.detach()),
            **{name: float(loss.detach()) for name, loss in losses.items()},
        }
        if not math.isfinite(point["loss"]):
            raise ComponentError(
                Problem(f"the loss is {point['loss']} at step {step + 1}", fix="lower learning_rate, or raise warmup")
            )
        engine.step(total)
        return point


def rate(config: StudentTrainerConfig, step: int) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, then constant, or falling to 0 at the last step's end."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    falls = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
    return config.learning_rate * falls[config.schedule]


def _encoder(model: Any, module: Any, tokenizer: Any, limit: int) -> Encoder:
    if tokenizer.eos_token_id is None:
        raise ComponentError(Problem("the tokenizer has no end token", why="a target must end with one"))
    positions = getattr(module.config, "max_position_embeddings", None) or limit
    own = getattr(model, "encode_prompts", None) or (lambda texts: [list(ids) for ids in tokenizer(list(texts))["input_ids"]])
    return Encoder(own, tokenizer, min(limit, positions))


def _autocast(model: Any) -> AbstractContextManager[Any]:
    import torch

    reduced = getattr(model, "dtype", "float32") == "bfloat16"
    return torch.autocast("cpu", dtype=torch.bfloat16) if reduced else nullcontext()


def _check_base(init: Weights, base: str) -> None:
    if init.meta.get("base") != base:
        why = f"trained from {str(init.meta.get('base'))[:12]}, this model is {base[:12]}"
        raise ComponentError(Problem("'init' belongs to another model", why=why, fix="use the same model in all trainers"))


def _key(config: StudentTrainerConfig, base: str, records: Records, joined: dict[str, str], init: Weights | None) -> str:
    """What a checkpoint must have been made from to be of use."""
    total = hashlib.sha256(canonical([config.model_dump(mode="json"), base, records.rows, sorted(joined.items())]))
    for name, tensor in sorted(init.tensors.items()) if init else ():
        total.update(name.encode() + tensor.tobytes())
    return total.hexdigest()


def _thin(curve: list[dict[str, float]]) -> dict[str, list[float]]:
    """Columns of at most about 200 evenly spaced points, first and last included."""
    stride = max(1, math.ceil(len(curve) / CURVE_POINTS))
    points = [p for i, p in enumerate(curve) if i % stride == 0 or i == len(curve) - 1]
    return {name: [point[name] for point in points] for name in (curve[0] if curve else {})}
