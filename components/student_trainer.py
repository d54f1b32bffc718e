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

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from osmotic.components.templates import check_slots, compile_template
from osmotic.components.training import loop
from osmotic.components.training.batches import Encoder, Redraw, StepFeed, Task
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
from osmotic.components.training.losses import kind_of
from osmotic.components.training.parts import Step
from osmotic.plugins.contract import Component, Config, Context, Document, Out, Outputs, OwnModelName, Records, Weights
from osmotic.schemas.errors import ComponentError, Problem
from osmotic.schemas.records import RecordSchema

CHECKPOINT_SECONDS = 30.0


class RedrawConfig(Config):
    """Fields that carry no answer, drawn anew from their public domains at every step, in every arm alike."""

    fields: tuple[str, ...] = Field(strict=False, min_length=1, description="Fields with a domain.")
    probability: float = Field(0.8, ge=0, le=1, description="Of drawing a field anew, each field for itself.")


class StudentTrainerConfig(TrainerConfig):
    """What is trained, on which prompts and targets, for how long."""

    model: OwnModelName
    label_prompt: str = Field(description="Jinja2 over the record's fields.")
    label_target: str = Field(description="Jinja2 over the record's fields.")
    rationale_prompt: str = Field(description="Jinja2 over the record's fields.")
    rationale_target: str = Field("{{ rationale }}", description="Jinja2 over the record's fields and `rationale`.")
    label_weight: float = Field(1.0, ge=0)
    rationale_weight: float = Field(1.0, ge=0)
    redraw: RedrawConfig | None = None
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
        found = engine_problems(config)
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
        model, module, tokenizer, base = trainable_of(context, self.config.model)
        if init is not None:
            check_base(init, base, layout_of(module))
            put_in(trained(module), init)
        held = held_out_of(context, self.config.held_out, len(records))
        joined = self._join(context, records, rationales, held)
        tasks = self._tasks(context, records, joined, encoder_of(model, module, tokenizer, self.config), held)
        apart = {name: task.held_out for name, task in tasks.items() if task.held_out}
        notes = self._notes(tasks, rationales)
        if held and not apart:
            notes.append("no record held out has a rationale: training was not stopped early")
        weights = {name: getattr(self.config, f"{name}_weight") for name in tasks}
        result = loop.train(
            module,
            StepFeed(tasks, self.config.batch),
            settings_of(context, self.config, model, kind_of(module, self.config.packing), weights),
            context.scratch(),
            key_of(self.config, base, [records.rows, sorted(joined.items())], init),
            context.progress,
            Step(apart) if apart else None,
            checkpoint_seconds=CHECKPOINT_SECONDS,
        )
        tensors = finite_tensors(module)
        meta = {"base": base, "steps": result.best or len(result.curve), **layout_of(module)}
        if self.config.declare_examples:
            meta["examples"] = len(records) - len(held)
        return {"weights": Weights(tensors, meta), "curve": Document(told_of(result, notes))}

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

    def _notes(self, tasks: dict[str, Task], rationales: Records | None) -> list[str]:
        """What did not go as one would wish, in counts."""
        notes = []
        if rationales is not None and self.config.rationale_weight > 0 and "rationale" not in tasks:
            notes.append("there are no rationales to train on: trained on labels alone")
        for name, task in tasks.items():
            notes += cut_note(task.short, self.config, f"of the {name} task ")
        return notes
