# SPDX-License-Identifier: Apache-2.0
"""Train the client's own model for its task on private and on augmented records (FDKT, arXiv 2405.14212, last step).

mode `head`: a linear head of classes on a decoder-only model's state of the last token (or the mean of all), trained together
with the model or its adapters; loss: cross entropy of the class. mode `generation`: the model writes the target after the
prompt; loss: cross entropy of the target's tokens. Both with label smoothing where asked for. With a `target` of its own, as
for instructions and their responses, generation needs no label: neither the schema nor any row must have one.

The two inputs are mixed by `mixing`. `examples`: one pool, from which every example comes equally often; the loss of a step is
the mean over its target tokens (of a head: examples), each weighted by own_weight or augmented_weight. `share`: of each batch
own_weight / (own_weight + augmented_weight) are own examples, and all count alike. A held-out part is taken from the private
records where there are any. Labels are the public ones of the schema; augmented records with another label are left out and
counted.

Guarantee: none. The weights depend on raw private records; what protected the augmented ones does not cover them, so they may
not cross. `dp_task_trainer` trains with differential privacy. On augmented records alone the weights keep those records'
guarantee. Deterministic: equal seeds, inputs, versions and thread counts give equal weights on a CPU, also after a resume.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from osmotic.components.templates import check_slots, compile_template
from osmotic.components.training import loop
from osmotic.components.training.common import (
    TrainerConfig,
    check_base,
    cut_note,
    encoder_of,
    engine_problems,
    finite_tensors,
    held_out_of,
    key_of,
    settings_of,
    told_of,
    trainable_of,
)
from osmotic.components.training.engines import layout_of, put_in, trained
from osmotic.components.training.heads import META, HeadEncoder, classifier, rows_of, start_from
from osmotic.components.training.labelled import Labelled, TaskConfig, labels_of, need_labels, need_slots
from osmotic.components.training.losses import kind_of
from osmotic.components.training.mixing import AUGMENTED, OWN, PoolFeed, ShareFeed, Sources
from osmotic.components.training.parts import Example, Feed, Step
from osmotic.plugins.contract import Component, Context, Document, Out, Outputs, Records, Weights
from osmotic.schemas.errors import ComponentError, ConfigError, Problem, RefusedError
from osmotic.schemas.records import RecordSchema

CHECKPOINT_SECONDS = 30.0


class TaskTrainerConfig(TaskConfig, TrainerConfig):
    """What is trained, on which texts, and how the two inputs are mixed."""

    batch: int = Field(32, ge=1, description="Examples a step, over all processes and accumulated forwards.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of a target's probability that goes to all alike.")
    mixing: Literal["examples", "share"] = Field(
        "examples", description="examples: one pool, weighted in the loss; share: so large a part of each batch."
    )
    own_weight: float = Field(1.0, ge=0, allow_inf_nan=False, description="Of private examples; 0: they are not used.")
    augmented_weight: float = Field(1.0, ge=0, allow_inf_nan=False, description="Of augmented examples; 0: they are not used.")
    max_length: int = Field(256, ge=16, description="Tokens of prompt and target together; head: of the text.")


class TaskTrainer(Component[TaskTrainerConfig]):
    """Private and augmented records in, the trained task model and the loss curve out."""

    name = "task_trainer"
    trains = True
    outputs = {"weights": Out(Weights), "curve": Out(Document)}

    @classmethod
    def check(cls, config: TaskTrainerConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Slots of the templates, a public list of labels, weights, settings of engines."""
        return task_problems(config, schema)

    def run(
        self,
        context: Context,
        records: Records | None = None,
        augmented: Records | None = None,
        init: Weights | None = None,
    ) -> Outputs:
        """Train; see the module. `records`: private; `augmented`: any labelled rows; at least one. `init`: where to start.

        The weights' description: ``base``, ``steps``, ``layout``, and of a head ``head``: labels, pooling, max_length,
        truncate, prompt. The curve has ``own`` and ``augmented``: mean cross entropy of each. Raises ComponentError where
        there is nothing to learn from.
        """
        setup = Setup.of(context, self.config, init)
        sources, held, notes = self._sources(context, setup, records, augmented)
        weights = {name: self._weight(name) for name in sources}
        result = loop.train(
            setup.module,
            self._feed(context, sources),
            settings_of(
                context, self.config, setup.model, setup.kind, weights, smoothing=self.config.label_smoothing, pooled=True
            ),
            context.scratch(),
            key_of(
                self.config,
                setup.base,
                [list(setup.labelled.labels), *(part.rows if part else None for part in (records, augmented))],
                init,
            ),
            context.progress,
            Step(held) if held else None,
            checkpoint_seconds=CHECKPOINT_SECONDS,
        )
        meta = setup.meta() | {"steps": result.best or len(result.curve)}
        if self.config.declare_examples:
            meta["examples"] = sum(map(len, sources.values()))
        return {"weights": Weights(finite_tensors(setup.module), meta), "curve": Document(told_of(result, notes))}

    def _weight(self, name: str) -> float:
        """Of a source's examples in the loss."""
        if self.config.mixing == "share":
            return 1.0
        return self.config.own_weight if name == OWN else self.config.augmented_weight

    def _sources(
        self, context: Context, setup: "Setup", records: Records | None, augmented: Records | None
    ) -> tuple[Sources, Sources, list[str]]:
        """(examples to train on by source, those held out, what is to be said)."""
        config, found = self.config, dict[str, list[Example | None]]()
        for name, rows, weight in ((OWN, records, config.own_weight), (AUGMENTED, augmented, config.augmented_weight)):
            if rows is not None and len(rows) and weight > 0:
                need_slots(rows, setup.texts(), setup.label_field, f"{name} records")
                found[name] = setup.labelled.examples(rows.rows, name)
        usable = {name: [e for e in examples if e is not None] for name, examples in found.items()}
        usable = {name: examples for name, examples in usable.items() if examples}
        if not usable:
            why = "no records, only weights of 0, no label that is on the list, or no text with tokens"
            raise ComponentError(Problem("there is nothing to learn from", why=why, fix="wire 'records' or 'augmented'"))
        first = OWN if OWN in usable else AUGMENTED
        apart = held_out_of(context, config.held_out, len(usable[first]))
        held = {first: [usable[first][i] for i in sorted(apart)]} if apart else {}
        usable[first] = [example for i, example in enumerate(usable[first]) if i not in apart]
        return usable, held, setup.notes(usable)

    def _feed(self, context: Context, sources: Sources) -> Feed:
        config = self.config
        rngs = {OWN: context.rng("batches"), AUGMENTED: context.rng("batches-augmented")}
        if config.mixing == "examples" or len(sources) < 2:
            return PoolFeed(sources, config.batch, rngs[OWN])
        return ShareFeed(sources, config.batch, config.own_weight / (config.own_weight + config.augmented_weight), rngs)


@dataclass
class Setup:
    """A model that is to be trained, and how rows become examples for it."""

    config: TaskTrainerConfig
    model: Any
    module: Any
    kind: str
    base: str
    layout: dict[str, Any]
    labelled: Labelled

    @classmethod
    def of(cls, context: Context, config: TaskTrainerConfig, init: Weights | None, packing: bool = True) -> "Setup":
        """Load the model and start from `init`. packing: False for forwards that need one row an example."""
        model, module, tokenizer, base = trainable_of(context, config.model)
        layout, encoder = layout_of(module), encoder_of(model, module, tokenizer, config)
        if init is not None:
            check_base(init, base, layout)
        prompt, wanted = compile_template(config.prompt, "prompt"), config.packing if packing else "padded"
        if config.mode == "generation":
            if init is not None:
                put_in(trained(module), init)
            schema = _schema(context, config) if config.labels is None else None
            labels = labels_of(schema, config.label_field, config.labels)
            labelled = Labelled(config.label_field, labels, encoder, prompt, compile_template(target_of(config), "target"))
            return cls(config, model, module, kind_of(module, wanted), base, layout, labelled)
        labels = need_labels(context, config.label_field, config.labels)
        head, kind = classifier(module, len(labels), config.pooling, wanted)
        if init is not None:
            start_from(head, init, labels)
        texts = HeadEncoder(encoder.encode_prompts, tokenizer.bos_token_id, encoder.limit, rows_of(module), config.truncate)
        return cls(config, model, head, kind, base, layout, Labelled(config.label_field, labels, texts, prompt))

    @property
    def label_field(self) -> str | None:
        """The column that says which records take part and, of a head, their class; None where no label matters."""
        return self.config.label_field if self.labelled.labels else None

    def texts(self) -> list[str]:
        """The templates that rows are put into."""
        return [self.config.prompt, *([target_of(self.config)] if self.config.mode == "generation" else [])]

    def meta(self) -> dict[str, Any]:
        """The weights' description, but for what training adds."""
        found = {"base": self.base, **self.layout}
        if self.config.mode == "generation":
            return found
        config, limit = self.config, self.labelled.encoder.limit
        head = {"labels": list(self.labelled.labels), "pooling": config.pooling, "max_length": limit}
        return {**found, META: {**head, "truncate": config.truncate, "prompt": config.prompt}}

    def notes(self, usable: Sources) -> list[str]:
        """What did not go as one would wish, in counts."""
        notes = []
        for name, counts in self.labelled.counts.items():
            if counts.unknown:
                notes.append(f"{counts.unknown} {name} records have a label that is not on the list: left out")
            if counts.empty:
                notes.append(f"{counts.empty} {name} records have a text without tokens: left out")
            notes += cut_note(counts.cut, self.config, f"of {name} records ")
        if self.config.mode == "head" and len({e[1][0] for examples in usable.values() for e in examples}) == 1:
            notes.append(f"only one of {len(self.labelled.labels)} labels occurs: there is nothing to tell apart")
        return notes


def _schema(context: Context, config: TaskTrainerConfig) -> RecordSchema | None:
    """The data set's; None where the task descends from none, as with rows that a model made of nothing, and needs no label."""
    try:
        return context.schema()
    except (ConfigError, RefusedError):
        if config.target is None:
            raise
        return None


def target_of(config: TaskTrainerConfig) -> str:
    """The template of what is written: as given, else the label."""
    return config.target if config.target is not None else f"{{{{ {config.label_field} }}}}"


def task_problems(config: TaskTrainerConfig, schema: RecordSchema | None) -> list[str]:
    """What is wrong with a configuration, before anything is loaded."""
    found = engine_problems(config)
    if not config.own_weight + config.augmented_weight:
        found.append("own_weight, augmented_weight: one of them must be more than 0")
    if config.labels is not None and (len(config.labels) < 2 or len(set(config.labels)) < len(config.labels)):
        found.append("labels: must be two or more, all different")
    if config.mode == "head":
        found += ["target: is used in the mode 'generation' only"] if config.target is not None else []
        found += ["processes: a head is trained in one process; set processes: 1"] if config.processes > 1 else []
    if schema is None:
        return found
    for key, text in (("prompt", config.prompt), ("target", config.target)):
        found += check_slots(text, schema.fields, key) if text is not None else []
    if config.label_field not in schema.fields:
        if config.mode == "head" or config.target is None or config.labels is not None:
            more = "; or give 'target', and no 'labels': then no label is needed" if config.mode == "generation" else ""
            known = ", ".join(schema.fields)
            found.append(f"label_field: the records have no field {config.label_field!r}; known: {known}{more}")
    elif config.mode == "head" and not labels_of(schema, config.label_field, config.labels):
        found.append(f"labels: {config.label_field!r} has no domain, so list the labels")
    return found
