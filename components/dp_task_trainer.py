# SPDX-License-Identifier: Apache-2.0
"""Train the task model with differential privacy, so that it may leave its party: what task_trainer does, by DP-SGD.

Two stages. With `augmented` wired and `before` given, the model is trained on the augmented records, which are no private data
of this party, without noise; then on the private ones by the host's DP-SGD, which draws Poisson batches of private records
alone. A mixed batch would count the private records' sampling wrongly.

Guarantee: (epsilon, delta) a record of the private data, neighbours that differ in one record (there, or adding nothing),
against everybody outside the party. It comes on top of what the augmented records cost: the ledger composes both. Void: when
the noise is seeded; for settings tried on these records without being charged; for a base model, or weights to start from,
that had seen them. There is no early stopping and no choice of a checkpoint, which would read private records unpaid. Records
whose label is not on the list, or whose text has no tokens, add nothing, and nobody outside learns how many. Of the inputs,
only `records` may be private. The curve stays at home.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field

from osmotic.components.private_jobs import DEEPSPEED, Learning, PrivateConfig, language_job, privacy_problems, public_rows
from osmotic.components.task_trainer import CHECKPOINT_SECONDS, Setup, TaskTrainerConfig, target_of, task_problems
from osmotic.components.templates import Template, compile_template
from osmotic.components.training import loop
from osmotic.components.training.batches import Cut
from osmotic.components.training.common import key_of, settings_of, told_of
from osmotic.components.training.heads import HeadEncoder, class_losses
from osmotic.components.training.labelled import TaskConfig, need_slots
from osmotic.components.training.mixing import AUGMENTED, PoolFeed
from osmotic.components.training.parts import Example
from osmotic.components.training.settings import Schedule
from osmotic.plugins.contract import (
    Component,
    Config,
    Context,
    Document,
    Out,
    Outputs,
    PrivateJob,
    Records,
    Weights,
)
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ComponentError, ConfigError, Problem
from osmotic.schemas.records import RecordSchema


class Before(Config):
    """Training on the augmented records, before the private ones; it draws no noise."""

    steps: int = Field(ge=1)
    batch: int = Field(32, ge=1, description="Augmented records a step.")
    learning_rate: float = Field(2e-3, gt=0)
    warmup: int = Field(0, ge=0, description="Steps of linear warm-up.")
    schedule: Schedule = "constant"
    weight_decay: float = Field(0.01, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)


class DpTaskTrainerConfig(TaskConfig, PrivateConfig):
    """What is trained, on which texts, under which guarantee."""

    before: Before | None = Field(None, description="Training on `augmented` first; without it they are not used.")
    max_length: int = Field(256, ge=16, description="Tokens of prompt and target together; head: of the text.")
    truncate: Cut = Field("left", description="head: what a text that is too long loses; never what follows its last slot.")


class DpTaskTrainer(Component[DpTaskTrainerConfig]):
    """Private and augmented records in, a task model that may cross out, and the private curve."""

    name = "dp_task_trainer"
    trains = True
    outputs = {"weights": Out(Weights, label="release"), "curve": Out(Document)}

    @classmethod
    def check(cls, config: DpTaskTrainerConfig, schema: RecordSchema | None) -> Sequence[str]:
        """What task_trainer checks, the engine, and privacy settings that no data set could make right."""
        before, found = config.before, privacy_problems(config)
        if before is not None and before.warmup >= before.steps:
            found.append(f"before.warmup: {before.warmup} of {before.steps} steps; the rate would never be reached")
        return [*found, *task_problems(plain(config), schema)]

    def run(self, context: Context, records: Records, augmented: Records | None = None, init: Weights | None = None) -> Outputs:
        """Train; see the module. Raises what `Context.private_training` raises.

        The weights' description is that of task_trainer, with the plan's under ``privacy``. The curve: ``before`` (as
        task_trainer's), ``private`` (step by step) and ``notes``: what of the first stage was not there.
        """
        config = self.config
        if config.engine == "deepspeed":
            raise ConfigError(Problem(DEEPSPEED))
        setup = Setup.of(context, plain(config), init, packing=False)
        started = self._start(context, setup, augmented, init)
        said = [augmented.rows if augmented is not None and config.before else None]
        key = key_of(config, setup.base, [list(setup.labelled.labels), *said], init)
        job = self._head_job(context, setup, key) if config.mode == "head" else self._language_job(context, setup, key)
        weights, log = context.private_training(records, job, config.privacy.model_dump())
        curve = {"before": started, "private": log.data, "notes": _unused(augmented, config.before)}
        return {"weights": weights, "curve": Document(curve)}

    def _start(self, context: Context, setup: Setup, augmented: Records | None, init: Weights | None) -> dict[str, Any] | None:
        """Train on the augmented records; the curve."""
        config = plain(self.config)
        if augmented is None or not len(augmented) or self.config.before is None:
            return None
        need_slots(augmented, setup.texts(), setup.label_field, "augmented records")
        examples = [e for e in setup.labelled.examples(augmented.rows, AUGMENTED) if e is not None]
        if not examples:
            raise ComponentError(Problem("no augmented record has a label on the list", path="before", fix="before: null"))
        sources = {AUGMENTED: examples}
        result = loop.train(
            setup.module,
            PoolFeed(sources, config.batch, context.rng("batches-augmented")),
            settings_of(
                context, config, setup.model, setup.kind, {AUGMENTED: 1.0}, smoothing=config.label_smoothing, pooled=True
            ),
            context.scratch(),
            key_of(self.config, setup.base, [augmented.rows], init),
            context.progress,
            checkpoint_seconds=CHECKPOINT_SECONDS,
        )
        return told_of(result, setup.notes(sources))

    def _head_job(self, context: Context, setup: Setup, key: str) -> PrivateJob:
        config, labelled = self.config, setup.labelled
        encode = HeadEncode(labelled.encoder, labelled.prompt, config.label_field, labelled.labels, labelled.cue)  # type: ignore[arg-type]
        return PrivateJob(
            module=setup.module,
            encode=encode,
            losses=class_losses,
            dummies=_dummies(encode, context.schema()),
            key=hashlib.sha256(canonical(["head", 1, key])).hexdigest(),
            meta={**setup.meta(), "steps": config.privacy.steps},
            **Learning.of(config).arguments(),
        )

    def _language_job(self, context: Context, setup: Setup, key: str) -> PrivateJob:
        config = self.config
        job = language_job(
            _Started(setup),
            compile_template(config.prompt, "prompt"),
            compile_template(target_of(plain(config)), "target"),
            context.schema(),
            Learning.of(config),
        )
        known, encode = set(setup.labelled.labels), job.encode
        named = canonical([job.key, key])
        return replace(
            job,
            encode=lambda row: encode(row) if not known or str(row[config.label_field]) in known else None,
            key=hashlib.sha256(named).hexdigest(),
            meta={**job.meta, "steps": config.privacy.steps},
        )


class HeadEncode:
    """One record -> (token ids, [number of its class]); None for another label or a text without tokens. Never fails."""

    def __init__(self, encoder: HeadEncoder, prompt: Template, label_field: str, labels: Sequence[str], cue: int) -> None:
        self._encoder, self.prompt, self.label_field, self._cue = encoder, prompt, label_field, cue
        self.limit = encoder.limit
        self.numbers = {label: number for number, label in enumerate(labels)}

    def __call__(self, row: Mapping[str, Any]) -> Example | None:
        """The example of a record; reads nothing but that record."""
        number = self.numbers.get(str(row[self.label_field]))
        if number is None:
            return None
        text = self.prompt.render(row).encode("utf-8", "replace").decode()  # halves of characters stop some tokenizers
        head = self._encoder.texts([text], self._cue)[0][0]
        return (head, [number]) if head else None


class _Started:
    """A model whose fresh copy is one that has been trained already."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self.fingerprint = setup.base
        self.dtype = getattr(setup.model, "dtype", "float32")
        self.encode_prompts: Callable[[Sequence[str]], list[list[int]]] = setup.labelled.encoder.encode_prompts

    def trainable(self) -> tuple[Any, Any]:
        """The module as it is, and its tokenizer."""
        return self._setup.module, self._setup.labelled.encoder.tokenizer  # type: ignore[union-attr]

    def with_weights(self, weights: Weights) -> Any:
        """The model with other weights."""
        return self._setup.model.with_weights(weights)


def plain(config: DpTaskTrainerConfig) -> TaskTrainerConfig:
    """The settings of the first stage, as task_trainer has them."""
    kept = {name: getattr(config, name) for name in TaskTrainerConfig.model_fields if name in DpTaskTrainerConfig.model_fields}
    before = config.before.model_dump() if config.before else {"steps": 1}
    return TaskTrainerConfig(**{**kept, **before, "engine": "torch", "packing": "padded"})


def _unused(augmented: Records | None, before: Before | None) -> list[str]:
    """What was asked of the first stage, or given to it, and left undone."""
    if before is None:
        return ["augmented records came and were not used: give 'before'"] if augmented is not None else []
    if augmented is None or not len(augmented):
        return [f"nothing was learned before the private records: {'no' if augmented is None else '0'} augmented records came"]
    return []


def _dummies(encode: HeadEncode, schema: RecordSchema) -> list[Example]:
    """Public examples: of each, the class is the next one."""
    labels, rows = list(encode.numbers), public_rows([encode.prompt.source], schema, encode.limit)
    found = [encode({**row, encode.label_field: labels[i % len(labels)]}) for i, row in enumerate(rows)]
    return [example for example in found if example is not None]
