# SPDX-License-Identifier: Apache-2.0
"""How well a student answers: asked for the label, for a rationale that ends with it, by each choice's likelihood, by a head.

Answers and gold labels are compared after folding case and white space (`accuracy`) or as written (`exact`). Every record
counts: an answer that cannot be parsed is wrong, and counted as unparsed. Generated answers and scores are written down as they
come: a run that was killed does not ask again. Mode `head` is for weights that task_trainer gave a head of classes. With the
input `prompt` (a tuned prompt) the two prompts may have the slot ``{{ prompt }}``: that prompt, filled in for the record.
Guarantee: none. Scores on private records are themselves a release of them.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from osmotic.components import metrics as score
from osmotic.components.metrics import named, normal, parse
from osmotic.components.patterns import sound
from osmotic.components.prompting.prompts import Prompt
from osmotic.components.scoring import likeliest, scored
from osmotic.components.templates import check_slots, compile_template, slots
from osmotic.components.training.heads import META, HeadModel
from osmotic.plugins.contract import (
    Component,
    Config,
    Context,
    Document,
    Generation,
    Metrics,
    ModelName,
    Out,
    Outputs,
    Records,
    Weights,
)
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ComponentError, DataError, Problem
from osmotic.schemas.records import RecordSchema

Mode = Literal["label", "rationale", "choice", "head"]
Metric = Literal["accuracy", "exact", "macro_f1", "rouge_l", "perplexity"]
Choices = list[list[str]] | None  # of each record
TEMPLATES = ("label_prompt", "label_target", "rationale_prompt", "rationale_target")
PROMPT = "prompt"  # the slot of a prompt that comes as an input
PROMPTS = ("label_prompt", "rationale_prompt")  # the templates that may have it


def _one_group(pattern: str) -> str:
    """Refuse a pattern that is wrong or does not have exactly one group."""
    try:
        groups = sound(pattern).groups
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    if groups != 1:
        raise ValueError(f"must have one group, the answer (it has {groups}); write (?:...) for the others")
    return pattern


class EvaluatorConfig(Config):
    """What is asked, and how an answer is read and scored."""

    model: ModelName
    label_prompt: str = Field(description="Jinja2 over the record's fields; {{ prompt }}: the input of that name.")
    label_target: str = Field(description="Jinja2 over the record's fields: the gold label.")
    rationale_prompt: str | None = Field(None, description="The same; for mode 'rationale'.")
    rationale_target: str | None = Field(
        None, description="Jinja2 over the record's fields: a reference, for rouge_l and perplexity of rationales."
    )
    answer_pattern: Annotated[str, AfterValidator(_one_group)] = Field(
        r"(\S+)\s*$", description="Regular expression with one group; its last match in a rationale is the answer."
    )
    choices: tuple[str, ...] | None = Field(
        None, strict=False, min_length=2, description="Templates of all that a label can be, as in label_target; an answer "
        "that names none is unparsed. Default for mode 'choice': the domain of label_target's one field.",
    )  # fmt: skip
    choice_score: Literal["sum", "token_mean"] = Field(
        "sum", description="choice: log-likelihood of a choice, or its mean a token (choices of unequal length)."
    )
    max_new_tokens_label: int = Field(8, ge=1)
    max_new_tokens_rationale: int = Field(64, ge=1)
    modes: tuple[Mode, ...] = Field(
        ("label", "rationale"), strict=False, min_length=1, description="'choice': the likeliest of `choices`, nothing "
        "written; 'head': the class by the weights' own head, and no other mode beside it.",
    )  # fmt: skip
    metrics: tuple[Metric, ...] = Field(
        ("accuracy",), strict=False, min_length=1, description="macro_f1 and rouge_l need the extra 'eval'."
    )
    batch: int = Field(128, ge=1, description="Prompts asked, or targets scored, at a time.")


class Evaluator(Component[EvaluatorConfig]):
    """Records and weights in, scores and the outcome of each record out."""

    name = "evaluator"
    version = 3
    outputs = {"metrics": Out(Metrics), "confusion": Out(Document)}

    @classmethod
    def check(cls, config: EvaluatorConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Slots of the templates; a prompt for each mode; choices and references where they are needed."""
        found = []
        if "rationale" in config.modes and config.rationale_prompt is None:
            found.append("rationale_prompt: needed for the mode 'rationale'")
        if "rouge_l" in config.metrics and "rationale" in config.modes and config.rationale_target is None:
            found.append("rationale_target: needed for rouge_l in the mode 'rationale'")
        if config.modes in (("choice",), ("head",)):
            text = "metrics: {!r} compares what was written, and the mode {!r} writes nothing"
            found += [text.format(metric, config.modes[0]) for metric in ("exact", "rouge_l") if metric in config.metrics]
        if "head" in config.modes:
            found += ["modes: 'head' stands alone: its weights can do nothing else"] if len(config.modes) > 1 else []
            found += ["metrics: a head of classes has no 'perplexity'"] if "perplexity" in config.metrics else []
        if schema is None:
            return found
        texts = {key: getattr(config, key) for key in TEMPLATES}
        texts |= {f"choices.{i}": text for i, text in enumerate(config.choices or ())}
        for key, text in texts.items():
            known = [*schema.fields, PROMPT] if key in PROMPTS else [*schema.fields]
            found += check_slots(text, known, key) if text is not None else []
        wrong = any(text.startswith("label_target:") for text in found)
        if "choice" in config.modes and config.choices is None and not wrong and not _domain(config, schema):
            found.append("choices: needed for the mode 'choice', as label_target is not one field with a domain")
        return found

    def run(
        self, context: Context, records: Records, weights: Weights | None = None, prompt: Document | None = None
    ) -> Outputs:
        """Metrics ``METRIC_MODE`` for each mode, ``unparsed_MODE`` (a share) and ``records``.

        Document ``confusion``: mode -> ``labels`` and ``counts`` [gold][answer], the last column for answers that are no label.

        Outcomes, one a record, for all but macro_f1; of perplexity it is ``nll_label``, mean negative log-likelihood a token.
        ``failed_MODE``: share of records that a model gave no answer to, where there are any; they count as unparsed, too.
        """
        config = self.config
        if not len(records):
            raise ComponentError(Problem("there are no records to evaluate on"))
        for metric in score.LIBRARIES.keys() & set(config.metrics):
            score.library(metric)
        records = self._prompted(records, prompt)
        gold = _rendered(records, config.label_target, "label_target")
        if "head" in config.modes:
            return self._outputs(self._headed(context, records, weights, gold))
        model = self._model(context, weights)
        choices = self._choices(context, records, gold)
        sheet = _Sheet(len(records))
        modes = config.modes if set(config.metrics) - {"perplexity"} else ()
        for done, mode in enumerate(modes):
            if mode == "choice":
                chosen: list[str | None] = list(self._chosen(context, model, records, choices or []))
                self._read(sheet, mode, gold, chosen, None)
                continue
            texts = self._texts(context, model, records, mode, done)
            answers = [self._answer(mode, text) for text in texts]
            self._read(sheet, mode, gold, answers, choices)
            self._written(sheet, mode, gold, texts, answers)
            if "rouge_l" in config.metrics:
                references = gold if mode == "label" else _rendered(records, config.rationale_target or "", "rationale_target")
                sheet.mean(f"rouge_l_{mode}", score.rouge_l(references, [text or "" for text in texts]))
        if "perplexity" in config.metrics:
            self._perplexity(context, model, records, sheet)
        return self._outputs(sheet)

    def _prompted(self, records: Records, prompt: Document | None) -> Records:
        """The records with the prompt filled in for each as the field `prompt`; as they are where no prompt came.

        Raises ComponentError for a slot without the input, the input without a slot, records that have such a field, and a
        prompt that shows the gold label.
        """
        templates = {key: text for key in PROMPTS if (text := getattr(self.config, key)) is not None}
        used = [key for key, text in templates.items() if PROMPT in slots(text, key)]
        own = PROMPT in records.columns
        if prompt is None:
            if used and not own:
                what, fix = "the slot {{ prompt }} has no prompt to show", "connect the input 'prompt'"
                raise ComponentError(Problem(what, path=used[0], fix=fix))
            return records
        if own:
            why = "the records have a field of that name"
            raise ComponentError(Problem("the input 'prompt' cannot be told apart", path="prompt", why=why, fix="rename it"))
        if not used:
            fix = "write {{ prompt }} into label_prompt"
            raise ComponentError(Problem("the input 'prompt' is used by no template", path="label_prompt", fix=fix))
        given, gold = Prompt.of_json(prompt.data), slots(self.config.label_target, "label_target")
        if gold and gold <= given.slots:
            what, why = "the prompt shows the gold label", f"it has the slot {', '.join(sorted(gold))}"
            raise ComponentError(Problem(what, path="prompt", why=why, fix="tune a prompt that does not ask for it"))
        shown = _rendered(records, given.template, "prompt.template")
        return Records([{**row, PROMPT: text} for row, text in zip(records, shown, strict=True)])

    def _outputs(self, sheet: "_Sheet") -> Outputs:
        metrics = Metrics({**sheet.values, "records": float(sheet.records)}, sheet.outcomes, sheet.notes)
        return {"metrics": metrics, "confusion": Document(sheet.confusion)}

    def _headed(self, context: Context, records: Records, weights: Weights | None, gold: list[str]) -> "_Sheet":
        """Scores of the classes that the weights' own head gives."""
        model, prompts = context.model(self.config.model), _rendered(records, self.config.label_prompt, "label_prompt")
        head, sheet = HeadModel.of(model, weights), _Sheet(len(records))
        table = head.log_probabilities(prompts, self.config.batch, lambda done: context.progress(done, len(prompts), "head"))
        answers: list[str | None] = [head.labels[i] for i in table.argmax(1).tolist()]
        if len({normal(label) for label in head.labels}) < len(head.labels):
            sheet.notes["labels"] = "labels that differ in case or blanks alone are taken for one"
        if head.prompt != self.config.label_prompt:
            sheet.notes["head"] = "asked with another prompt than it was trained on"
        self._read(sheet, "head", gold, answers, None)
        return sheet

    def _model(self, context: Context, weights: Weights | None) -> Any:
        model = context.model(self.config.model)
        if weights is None:
            return model
        if not hasattr(model, "with_weights"):
            raise ComponentError(Problem(f"the model {self.config.model!r} cannot take weights", fix="name a local model"))
        if META in weights.meta:
            fix = "modes: [head], or train with 'mode: generation'"
            raise ComponentError(Problem("the weights name a class by a head, and write nothing", path="modes", fix=fix))
        return model.with_weights(weights)

    def _choices(self, context: Context, records: Records, gold: list[str]) -> Choices:
        """The choices of each record; None where none are given. Raises DataError where the gold label is not among them."""
        config = self.config
        if config.choices is not None:
            templates = [compile_template(text, f"choices.{i}") for i, text in enumerate(config.choices)]
            found = [[template.render(row) for template in templates] for row in records]
        elif "choice" in config.modes:
            found = [_domain(config, context.schema())] * len(records)
        else:
            return None
        lost = sum(normal(label) not in map(normal, options) for label, options in zip(gold, found, strict=True))
        if lost:
            what = f"the gold label of {lost} of {len(gold)} records is not among its choices"
            raise DataError(Problem(what, path="choices", fix="write choices as label_target writes labels"))
        return found

    def _texts(self, context: Context, model: Any, records: Records, mode: Mode, done: int) -> list[str | None]:
        """What the model wrote to each record; None where it gave no answer."""
        config, label = self.config, mode == "label"
        prompts = _rendered(records, (config.label_prompt if label else config.rationale_prompt) or "", f"{mode}_prompt")
        how = Generation(config.max_new_tokens_label if label else config.max_new_tokens_rationale)
        journal, found = context.journal("answers"), list[str | None]()
        for start in range(0, len(prompts), config.batch):
            asked = prompts[start : start + config.batch]
            key = hashlib.sha256(canonical([mode, how.max_new_tokens, asked])).hexdigest()
            texts = journal.get(key)
            if texts is None:
                texts = _generated(model, asked, how)
                if None not in texts:
                    journal.put(key, texts)
            found += texts
            context.progress(done * len(prompts) + len(found), len(config.modes) * len(prompts), mode)
        if all(text is None for text in found):
            raise ComponentError(Problem("the model answered none of the prompts", why=f"model {config.model!r}"))
        return found

    def _answer(self, mode: Mode, text: str | None) -> str | None:
        """The answer in a text; None where there is none."""
        found = text if text is None or mode == "label" else parse(self.config.answer_pattern, text)
        return found if found is not None and found.strip() else None

    def _chosen(self, context: Context, model: Any, records: Records, choices: list[list[str]]) -> list[str]:
        """The likeliest choice of each record."""
        prompts = _rendered(records, self.config.label_prompt, "label_prompt")
        pairs = [(prompt, option) for prompt, options in zip(prompts, choices, strict=True) for option in options]
        scores = iter(scored(context, model, pairs, self.config.batch, "choice"))
        mean = self.config.choice_score == "token_mean"
        return [
            options[likeliest([next(scores) for _ in options], mean, prompt)]
            for prompt, options in zip(prompts, choices, strict=True)
        ]

    def _read(self, sheet: "_Sheet", mode: Mode, gold: list[str], answers: list[str | None], choices: Choices) -> None:
        """Scores of the answers as read: folded, and among the choices where there are any."""
        read = [None if answer is None else normal(answer) for answer in answers]
        if choices is not None:
            pairs = zip(answers, choices, strict=True)
            read = [None if answer is None else named(answer, options) for answer, options in pairs]
        labels = [normal(label) for label in gold]
        sheet.confusion[mode] = score.confusion(labels, read)
        if "accuracy" in self.config.metrics:
            sheet.mean(f"accuracy_{mode}", [float(a == g) for a, g in zip(read, labels, strict=True)])
        if "macro_f1" in self.config.metrics:
            sheet.values[f"macro_f1_{mode}"] = score.macro_f1(labels, read)
        sheet.values[f"unparsed_{mode}"] = sheet.share(read)

    def _written(
        self, sheet: "_Sheet", mode: Mode, gold: list[str], texts: list[str | None], answers: list[str | None]
    ) -> None:
        """Scores of the answers as written, and how many were not given at all."""
        if "exact" in self.config.metrics:
            pairs = zip(answers, gold, strict=True)
            sheet.mean(f"exact_{mode}", [float(a is not None and a.strip() == g.strip()) for a, g in pairs])
        if None in texts:
            sheet.values[f"failed_{mode}"] = sheet.share(texts)

    def _perplexity(self, context: Context, model: Any, records: Records, sheet: "_Sheet") -> None:
        config = self.config
        tasks = {"label": (config.label_prompt, config.label_target)}
        if config.rationale_prompt is not None and config.rationale_target is not None:
            tasks["rationale"] = (config.rationale_prompt, config.rationale_target)
        for name, (prompt, target) in tasks.items():
            prompts, targets = _rendered(records, prompt, f"{name}_prompt"), _rendered(records, target, f"{name}_target")
            scores = scored(context, model, list(zip(prompts, targets, strict=True)), config.batch, f"perplexity of the {name}")
            value, each = score.perplexity(scores)
            sheet.mean(f"nll_{name}", each)
            if value is None:
                sheet.notes[f"perplexity_{name}"] = "too large for a number"
            else:
                sheet.values[f"perplexity_{name}"] = value


class _Sheet:
    """What is found out about so many records."""

    def __init__(self, records: int) -> None:
        self.records = records
        self.values: dict[str, float] = {}
        self.outcomes: dict[str, list[float]] = {}
        self.notes: dict[str, str] = {}
        self.confusion: dict[str, Any] = {}

    def mean(self, name: str, outcomes: list[float]) -> None:
        """Outcomes and their mean."""
        self.outcomes[name] = outcomes
        self.values[name] = sum(outcomes) / len(outcomes)

    def share(self, found: Sequence[str | None]) -> float:
        """The share that is None."""
        return sum(one is None for one in found) / self.records


def _rendered(records: Records, template: str, path: str) -> list[str]:
    compiled = compile_template(template, path)
    return [compiled.render(row) for row in records]


def _generated(model: Any, prompts: list[str], how: Generation) -> list[str | None]:
    made = model.generate(prompts, how)
    if len(made) != len(prompts):
        raise ComponentError(Problem(f"{len(prompts)} prompts were asked, {len(made)} answers came"))
    return [None if answer.problem else answer.text for answer in made]


def _domain(config: EvaluatorConfig, schema: RecordSchema) -> list[str]:
    """label_target for each value of its one field's domain; nothing where it is not such a template."""
    found = sorted(slots(config.label_target))
    spec = schema.fields.get(found[0]) if len(found) == 1 else None
    if spec is None or spec.domain is None:
        return []
    template = compile_template(config.label_target, "label_target")
    return [template.render({found[0]: value}) for value in spec.domain]
