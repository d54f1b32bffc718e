# SPDX-License-Identifier: Apache-2.0
"""Train a student on two tasks: the label, and the teacher's rationale (FedCoT, arXiv 2406.12403, multi-task step).

loss = label_weight * CE(label) + rationale_weight * CE(rationale); each CE is the mean over that task's target tokens of a
step, whatever processes and accumulated forwards it was shared out to. Targets end with the model's own end token, which
carries loss; prompts and padding carry none. Records without a rationale train the label task all the same. A task with weight
0 is not run at all. Both tasks go through the model in one forward, packed without padding where the model can
(docs/students.md); an encoder-decoder reads the prompt and writes the target.

Guarantee: none. The weights depend on raw private records, whatever protected the prompts: sending them anywhere is an
unprotected crossing. With `declare_examples` the number of records goes along with them. Deterministic: equal seeds, inputs,
versions and thread counts give equal weights on a CPU, also after a resume.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import Field

from osmotic.components.templates import check_slots, compile_template
from osmotic.components.training import loop
from osmotic.components.training.batches import Cut, Encoder, Redraw, StepFeed, Task
from osmotic.components.training.engines import put_in, read_out, trained
from osmotic.components.training.losses import Packing, kind_of
from osmotic.components.training.parts import Step
from osmotic.components.training.settings import DeepspeedConfig, EngineName, HeldOutConfig, Schedule, TrainSettings
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


class HeldOut(HeldOutConfig):
    """Records kept apart, the same in all arms: training stops when their loss does, and the best weights are given out."""

    share: float = Field(0.1, gt=0, lt=1, description="Of the records; at least one, and at least one is left to train on.")


class StudentTrainerConfig(Config):
    """What is trained, on which prompts and targets, for how long."""

    model: ModelName
    label_prompt: str = Field(description="Jinja2 over the record's fields.")
    label_target: str = Field(description="Jinja2 over the record's fields.")
    rationale_prompt: str = Field(description="Jinja2 over the record's fields.")
    rationale_target: str = Field("{{ rationale }}", description="Jinja2 over the record's fields and `rationale`.")
    steps: int = Field(ge=1)
    batch: int = Field(32, ge=1, description="Records a task a step, over all processes and accumulated forwards.")
    accumulate: int = Field(1, ge=1, description="Forwards a step in each process, for less memory; the loss stays the same.")
    learning_rate: float = Field(2e-3, gt=0)
    warmup: int = Field(0, ge=0, description="Steps of linear warm-up.")
    schedule: Schedule = "constant"
    weight_decay: float = Field(0.01, ge=0, description="Of matrices; norms and biases do not decay.")
    clip: float | None = Field(None, gt=0, description="Largest L2 norm of the gradient.")
    label_weight: float = Field(1.0, ge=0)
    rationale_weight: float = Field(1.0, ge=0)
    max_length: int = Field(256, ge=16, description="Tokens of prompt and target together; of each with an encoder-decoder.")
    truncate: Cut = Field("left", description="What a prompt that is too long loses; never what follows its last slot.")
    packing: Packing = Field("auto", description="auto: without padding where the model can, else padded.")
    redraw: RedrawConfig | None = None
    held_out: HeldOut | None = None
    proximal: float = Field(0.0, ge=0, description="FedProx: mu of mu/2 ||w - start||^2; start: `init`, or the model itself.")
    declare_examples: bool = Field(
        False, description="Put the number of records trained on into the weights' description: it crosses with them."
    )
    engine: EngineName = "torch"
    processes: int = Field(1, ge=1, description="Processes on this machine that share each step's rows.")
    deepspeed: DeepspeedConfig = DeepspeedConfig()
    columns: tuple[str, ...] = Field(
        (), strict=False, description="Columns that the records have beside the schema's fields (of record_joiner)."
    )
    shuffle_rationales: bool = Field(False, description="Control arm: every rationale goes to another record.")


class StudentTrainer(Component[StudentTrainerConfig]):
    """Labels and rationales in, trained weights and the loss curve out."""

    name = "student_trainer"
    trains = True
    outputs = {"weights": Out(Weights), "curve": Out(Document)}

    @classmethod
    def check(cls, config: StudentTrainerConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Slots of the templates, re-drawn fields without a domain, settings of an engine that is not used."""
        found = []
        if config.engine != "deepspeed" and config.deepspeed != DeepspeedConfig():
            found.append("deepspeed: is used with 'engine: deepspeed' only")
        if config.deepspeed.offload != "none" and not config.deepspeed.stage:
            found.append("deepspeed.offload: needs stage 1, 2 or 3")
        if schema is None:
            return found
        known = {*schema.fields, *config.columns}
        for key in ("label_prompt", "label_target", "rationale_prompt"):
            found += check_slots(getattr(config, key), known, key)
        found += check_slots(config.rationale_target, known | {"rationale"}, "rationale_target")
        for name in config.redraw.fields if config.redraw else ():
            if name not in schema.fields or schema.fields[name].domain is None:
                found.append(f"redraw.fields: {name!r} is not a field with a domain")
        return found

    def run(
        self, context: Context, records: Records, rationales: Records | None = None, init: Weights | None = None
    ) -> Outputs:
        """Train; see the module. `rationales`: rows of ``id`` (the record's own) and ``rationale``. `init`: where to start."""
        from numpy import isfinite

        model = context.model(self.config.model)
        if not isinstance(model, Trainable):
            raise ComponentError(Problem(f"the model {self.config.model!r} cannot be trained here", fix="name a local model"))
        module, tokenizer = model.trainable()
        base = str(getattr(model, "fingerprint", ""))
        if init is not None:
            _check_base(init, base)
            put_in(trained(module), init)
        held = self._held_out(context, len(records))
        joined = self._join(context, records, rationales, held)
        tasks = self._tasks(context, records, joined, self._encoder(model, module, tokenizer), held)
        apart = {name: task.held_out for name, task in tasks.items() if task.held_out}
        notes = self._notes(tasks, rationales)
        if held and not apart:
            notes.append("no record held out has a rationale: training was not stopped early")
        result = loop.train(
            module,
            StepFeed(tasks, self.config.batch),
            self._settings(context, model, kind_of(module, self.config.packing), tasks),
            context.scratch(),
            _key(self.config, base, records, joined, init),
            context.progress,
            Step(apart) if apart else None,
            checkpoint_seconds=CHECKPOINT_SECONDS,
        )
        tensors = read_out(module)
        if not all(isfinite(tensor).all() for tensor in tensors.values()):
            raise ComponentError(Problem("the trained weights are not all finite numbers", fix="lower learning_rate"))
        meta = {"base": base, "steps": result.best or len(result.curve), **_layout(module)}
        if self.config.declare_examples:
            meta["examples"] = len(records) - len(held)
        return {"weights": Weights(tensors, meta), "curve": Document(_told(result, notes))}

    def _join(
        self, context: Context, records: Records, rationales: Records | None, held: frozenset[int] = frozenset()
    ) -> dict[str, str]:
        """Record id -> rationale; shuffled in the control arm, those held out among themselves; a lone one goes nowhere."""
        found: dict[str, str] = {}
        known = {row["id"] for row in records}
        for row in rationales or ():
            if row["id"] not in known or row["id"] in found:
                what = "twice" if row["id"] in found else "for a record that is not there"
                raise ComponentError(Problem(f"a rationale comes {what}: id {row['id']!r}"))
            found[row["id"]] = row["rationale"]
        if not self.config.shuffle_rationales:
            return found
        apart, rng, given = {records.rows[i]["id"] for i in held}, context.rng("shuffle"), dict[str, str]()
        for group in (sorted(set(found) - apart), sorted(apart & set(found))):
            rng.shuffle(group)
            if len(group) > 1:
                given |= {one: found[other] for one, other in zip(group, group[1:] + group[:1], strict=True)}
        return given

    def _held_out(self, context: Context, count: int) -> frozenset[int]:
        """Indices of the records that take no part in training: the same for all arms."""
        if self.config.held_out is None:
            return frozenset()
        if count < 2:
            fix = "give more records, or held_out: null"
            raise ComponentError(Problem(f"none of {count} record(s) can be held out", fix=fix))
        size = min(count - 1, max(1, round(self.config.held_out.share * count)))
        return frozenset(context.rng("held-out").sample(range(count), size))

    def _tasks(
        self, context: Context, records: Records, joined: dict[str, str], encoder: Encoder, held: frozenset[int]
    ) -> dict[str, Task]:
        """The tasks that have a weight and something to learn from."""
        config, tasks = self.config, {}
        plain: list[dict[str, Any] | None] = list(records.rows)
        told = [{**row, "rationale": joined[row["id"]]} if row["id"] in joined else None for row in records]
        for name, rows, weight in (("label", plain, config.label_weight), ("rationale", told, config.rationale_weight)):
            if weight > 0 and any(row is not None and i not in held for i, row in enumerate(rows)):
                suffix = "" if name == "label" else "-rationales"
                prompt = compile_template(getattr(config, f"{name}_prompt"), f"{name}_prompt")
                target = compile_template(getattr(config, f"{name}_target"), f"{name}_target")
                order = context.rng(f"batches{suffix}")
                tasks[name] = Task(prompt, target, rows, order, self._redraw(context, suffix), encoder, held)
        if not tasks:
            why = "no records, no rationales to train on, or only tasks of weight 0"
            raise ComponentError(Problem("there is nothing to learn from", why=why))
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

    def _encoder(self, model: Any, module: Any, tokenizer: Any) -> Encoder:
        if tokenizer.eos_token_id is None:
            raise ComponentError(Problem("the tokenizer has no end token", why="a target must end with one"))
        config, limit = module.config, self.config.max_length
        apart = bool(getattr(config, "is_encoder_decoder", False))
        positions = getattr(config, "max_position_embeddings", None) or limit
        encode = getattr(model, "encode_prompts", None) or _plain(tokenizer)
        return Encoder(encode, tokenizer, min(limit, positions), apart, self.config.truncate)

    def _notes(self, tasks: dict[str, Task], rationales: Records | None) -> list[str]:
        """What did not go as one would wish, in counts."""
        notes = []
        if rationales is not None and self.config.rationale_weight > 0 and "rationale" not in tasks:
            notes.append("there are no rationales to train on: trained on labels alone")
        what = "beginning" if self.config.truncate == "left" else "middle"
        for name, task in tasks.items():
            if task.short:
                notes.append(f"{task.short} prompts of the {name} task were too long and lost their {what}")
        return notes

    def _settings(self, context: Context, model: Any, kind: str, tasks: dict[str, Task]) -> TrainSettings:
        config = self.config
        return TrainSettings(
            steps=config.steps,
            learning_rate=config.learning_rate,
            weights={name: getattr(config, f"{name}_weight") for name in tasks},
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
        )


def _plain(tokenizer: Any) -> Callable[[Sequence[str]], list[list[int]]]:
    """How a model's plugin that does not say so encodes prompts."""
    return lambda texts: [list(ids) for ids in tokenizer(list(texts))["input_ids"]]


def _layout(module: Any) -> dict[str, Any]:
    """What the tensors are, for whoever averages them: ``layout``, and of adapters ``rank``, ``alpha``, ``frozen`` factors."""
    adapters = getattr(module, "peft_config", None)
    if not adapters:
        return {"layout": "full"}
    settings = next(iter(adapters.values()))
    frozen = sorted(name for name, p in module.named_parameters() if "lora_" in name and not p.requires_grad)
    facts = {"layout": "lora", "rank": int(settings.r), "alpha": float(settings.lora_alpha)}
    return {**facts, "frozen": frozen} if frozen else facts


def _check_base(init: Weights, base: str) -> None:
    if init.meta.get("base") != base:
        why = f"trained from {str(init.meta.get('base'))[:12]}, this model is {base[:12]}"
        raise ComponentError(Problem("'init' belongs to another model", why=why, fix="use the same model in all trainers"))


def _key(config: StudentTrainerConfig, base: str, records: Records, joined: dict[str, str], init: Weights | None) -> str:
    """What a checkpoint must have been made from to be of use."""
    settings = config.model_dump(mode="json", exclude={"engine", "processes", "deepspeed", "declare_examples"})
    total = hashlib.sha256(canonical([settings, base, records.rows, sorted(joined.items())]))
    for name, tensor in sorted(init.tensors.items()) if init else ():
        total.update(name.encode() + tensor.tobytes())
    return total.hexdigest()


def _told(result: loop.Result, notes: list[str]) -> dict[str, Any]:
    """The curve as columns, with what is to be said of the run."""
    told: dict[str, Any] = {**_thin(result.curve), "notes": [*notes, *result.notes]}
    if result.held_out:
        told |= {"held_out": _thin(result.held_out), "best": result.best, "stopped": result.stopped}
    return told


def _thin(curve: list[dict[str, float]]) -> dict[str, list[float]]:
    """Columns of at most about 200 evenly spaced points, first and last included."""
    stride = max(1, math.ceil(len(curve) / CURVE_POINTS))
    points = [p for i, p in enumerate(curve) if i % stride == 0 or i == len(curve) - 1]
    return {name: [point[name] for point in points] for name in (curve[0] if curve else {})}
