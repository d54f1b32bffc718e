# SPDX-License-Identifier: Apache-2.0
"""Exact-match accuracy of a student, asked in two ways: for the label alone, or for a rationale that ends with it.

Answers and gold labels are compared after folding case and white space. Every record counts; an answer that cannot be parsed is
wrong. Guarantee: none. Accuracy on private records is itself a release of them.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from osmotic.components.templates import check_slots, compile_template
from osmotic.plugins.contract import Component, Config, Context, Generation, Metrics, ModelName, Out, Outputs, Records, Weights
from osmotic.schemas.errors import ComponentError, Problem
from osmotic.schemas.records import RecordSchema

Mode = Literal["label", "rationale"]


def _one_group(pattern: str) -> str:
    """Refuse a pattern that is wrong or does not have exactly one group."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    if groups != 1:
        raise ValueError(f"must have one group, the answer (it has {groups}); write (?:...) for the others")
    return pattern


class EvaluatorConfig(Config):
    """What is asked, and how an answer is read."""

    model: ModelName
    label_prompt: str = Field(description="Jinja2 over the record's fields.")
    label_target: str = Field(description="Jinja2 over the record's fields: the gold label.")
    rationale_prompt: str | None = Field(None, description="Jinja2 over the record's fields; for mode 'rationale'.")
    answer_pattern: Annotated[str, AfterValidator(_one_group)] = Field(
        r"(\S+)\s*$", description="Regular expression with one group; its last match in a rationale is the answer."
    )
    max_new_tokens_label: int = Field(8, ge=1)
    max_new_tokens_rationale: int = Field(64, ge=1)
    modes: tuple[Mode, ...] = Field(("label", "rationale"), strict=False, min_length=1)
    batch: int = Field(128, ge=1, description="Prompts asked at a time.")


class Evaluator(Component[EvaluatorConfig]):
    """Records and weights in, accuracies and the outcome of each record out."""

    name = "evaluator"
    outputs = {"metrics": Out(Metrics)}

    @classmethod
    def check(cls, config: EvaluatorConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Slots of the templates; a prompt for each mode."""
        found = []
        if "rationale" in config.modes and config.rationale_prompt is None:
            found.append("rationale_prompt: needed for the mode 'rationale'")
        for key in ("label_prompt", "label_target", "rationale_prompt") if schema else ():
            text = getattr(config, key)
            found += check_slots(text, schema.fields, key) if text is not None and schema else []
        return found

    def run(self, context: Context, records: Records, weights: Weights | None = None) -> Outputs:
        """Metrics ``accuracy_label``, ``accuracy_rationale`` (of the modes asked for) and ``records``; outcomes 0 or 1."""
        if not len(records):
            raise ComponentError(Problem("there are no records to evaluate on"))
        model = context.model(self.config.model)
        if weights is not None:
            if not hasattr(model, "with_weights"):
                raise ComponentError(Problem(f"the model {self.config.model!r} cannot take weights", fix="name a local model"))
            model = model.with_weights(weights)
        target = compile_template(self.config.label_target, "label_target")
        gold = [normal(target.render(row)) for row in records]
        outcomes = {}
        for done, mode in enumerate(self.config.modes):
            answers = self._answers(context, model, records, mode, done)
            outcomes[f"accuracy_{mode}"] = [float(a == g) for a, g in zip(answers, gold, strict=True)]
        values = {name: sum(right) / len(right) for name, right in outcomes.items()}
        return {"metrics": Metrics({**values, "records": float(len(records))}, outcomes)}

    def _answers(self, context: Context, model: Any, records: Records, mode: Mode, done: int) -> list[str | None]:
        """The normalised answer to each record; None where there is none in the text."""
        config, label = self.config, mode == "label"
        template = compile_template((config.label_prompt if label else config.rationale_prompt) or "", f"{mode}_prompt")
        how = Generation(config.max_new_tokens_label if label else config.max_new_tokens_rationale)
        prompts, found = [template.render(row) for row in records], []
        for start in range(0, len(prompts), config.batch):
            texts = prompts[start : start + config.batch]
            made = model.generate(texts, how)
            if len(made) != len(texts):
                raise ComponentError(Problem(f"{len(texts)} prompts were asked, {len(made)} answers came"))
            found += [normal(answer.text) if label else parse(config.answer_pattern, answer.text) for answer in made]
            context.progress(done * len(prompts) + len(found), len(config.modes) * len(prompts), mode)
        return found


def normal(text: str) -> str:
    """Case folded, runs of white space as one space, none at the ends."""
    return " ".join(text.casefold().split())


def parse(pattern: str, text: str) -> str | None:
    """The group of the pattern's last match, normalised; None without a match."""
    matches = list(re.finditer(pattern, text))
    return normal(matches[-1].group(1)) if matches and matches[-1].group(1) is not None else None
