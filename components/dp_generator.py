# SPDX-License-Identifier: Apache-2.0
"""Train a language model on private (label, text) with differential privacy; it then writes texts like them (FDKT, "fit").

FDKT, arXiv 2405.14212, and Yue et al. 2023 (control codes): the prompt, such as ``Product type: {{ product }} | Review score:
{{ label }}``, says which text is wanted and carries no loss; the text does, with the model's own end token after it.

Guarantee: (epsilon, delta) a record, neighbours that differ in one record (there, or adding nothing), against everybody
outside the party: DP-SGD by the host, which binds Poisson sampling, clipping, noise and accounting in one plan and charges it
before the first gradient. The weights are a release, and whatever is computed from them and from public things (synthetic
texts, their filter, a teacher's additions) has the same guarantee. Void: when the noise is seeded; for settings that were tried
on these records without being charged (learning rate, steps, prompts); for a base model that had seen them before.

There is no early stopping and no choice of a checkpoint: how well a model does on held-out private records depends on those, so
choosing by it would be part of the mechanism, and unpaid. The weights of the last step are given out. `curve` (batch sizes,
losses) is private and stays.
"""

import re
from collections.abc import Sequence

from pydantic import Field

from osmotic.components.private_jobs import DEEPSPEED, Learning, PrivateConfig, language_job, privacy_problems
from osmotic.components.templates import check_slots, compile_template, slots
from osmotic.plugins.contract import Component, Context, Document, Out, Outputs, OwnModelName, Records, Weights
from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.records import RecordSchema


class DpGeneratorConfig(PrivateConfig):
    """What is trained, on which prompts and texts, under which guarantee."""

    model: OwnModelName
    prompt: str = Field(description="Jinja2 over the record's fields that have a domain: the control code. It carries no loss.")
    target: str = Field("{{ text }}", description="Jinja2 over the record's fields: what is learned, the end token after it.")


class DpGenerator(Component[DpGeneratorConfig]):
    """Private records in, weights that may cross out, and the private curve."""

    name = "dp_generator"
    trains = True
    outputs = {"weights": Out(Weights, label="release"), "curve": Out(Document)}

    @classmethod
    def check(cls, config: DpGeneratorConfig, schema: RecordSchema | None) -> Sequence[str]:
        """The engine, the templates and their slots, and privacy settings that no data set could make right."""
        found = privacy_problems(config)
        return found if schema is None else [*found, *_check_templates(config, schema)]

    def run(self, context: Context, records: Records) -> Outputs:
        """Train on every record. Raises what `Context.private_training` raises, ConfigError for a label that is too long."""
        config = self.config
        if config.engine == "deepspeed":
            raise ConfigError(Problem(DEEPSPEED))
        job = language_job(
            context.model(config.model),
            compile_template(config.prompt, "prompt"),
            compile_template(config.target, "target"),
            context.schema(),
            Learning.of(config),
        )
        weights, curve = context.private_training(records, job, config.privacy.model_dump())
        return {"weights": weights, "curve": curve}


def _check_templates(config: DpGeneratorConfig, schema: RecordSchema) -> list[str]:
    found = [*check_slots(config.prompt, schema.fields, "prompt"), *check_slots(config.target, schema.fields, "target")]
    if found:
        return found
    asked, told = slots(config.prompt), slots(config.target)
    if not re.sub(r"\{\{.*?\}\}", "", config.prompt, flags=re.DOTALL).strip():
        found.append("prompt: needs words of its own, such as 'Label: {{ label }}': a value may be empty")
    if not told:
        found.append("target: has no slot, so there is nothing to learn; '{{ text }}', say")
    for name in sorted(asked & told):
        found.append(f"target: {name!r} stands in the prompt already; what is asked for is not learned as text")
    for name in sorted(name for name in asked if schema.fields[name].text):
        found.append(f"prompt: {name!r} is free text, which nobody could ask for; use fields with a domain")
    return found
