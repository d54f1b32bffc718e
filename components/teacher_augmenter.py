# SPDX-License-Identifier: Apache-2.0
"""The teacher writes new labelled texts after the example of synthetic ones (FDKT, arXiv 2405.14212, step "augment").

A prompt shows `few_shot_per_label` samples of every label that has any, in the form of `format`, and asks for `per_prompt`
more. The answer is read back with the same format (or as JSON), without an echo of the prompt. Labels outside the list are
rejected; copies of what came in, texts that came twice, and those that are nearly so are dropped; all is counted, and `audit`
keeps the raw text of what was rejected.

For the server: it reads what crossed, so its outputs are as protected as `texts` is. Every template is rendered, and its own
few-shot example read back, before a model is asked for. Answers are paid once: see `asking`.
"""

from collections.abc import Callable, Sequence

from pydantic import Field, model_validator

from osmotic.components.teaching.asking import Asking, Replies, Reply, ask_each
from osmotic.components.teaching.copies import Texts
from osmotic.components.teaching.rows import labelled_rows
from osmotic.components.teaching.taking import ASKED_AGAIN, Deck, Request, Shown, Taken, usable
from osmotic.components.templates import compile_template
from osmotic.plugins.contract import (
    Answer,
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
)
from osmotic.plugins.labelled import (
    Labels,
    Parsed,
    PlainTemplate,
    Prompt,
    Sample,
    SampleFormat,
    check_formats,
    slot_problems,
    stand_ins,
)
from osmotic.plugins.labelled.structured import parse_json, samples_schema
from osmotic.schemas.errors import ConfigError, DataError, Problem
from osmotic.schemas.records import RecordSchema, numbered

FORMAT = "label: {{ label }} text: {{ text }}"
EXAMPLES = """Here are examples of labelled texts. The labels are: {{ labels }}.

{{ examples }}

"""
PROMPT = EXAMPLES + (
    'Write {{ count }} new texts of the label "{{ label }}" in exactly the same form, each with its label. They should be like '
    "the examples in kind and length, but about something else: copy none of them."
)
JSON_PROMPT = EXAMPLES + (
    'Write {{ count }} new texts of the label "{{ label }}". They should be like the examples in kind and length, but about '
    'something else: copy none of them. Answer with JSON: {"samples": [{"label": "{{ label }}", "text": "..."}]}'
)
COLUMNS = ("id", "label", "text")
LEAST_TAIL = 20  # characters of a prompt's last line that nobody says by chance
Reader = Callable[[Request, str, bool], Parsed]
EXAMPLES_FIX = "write {{ examples }} as it is, without a filter"


class TeacherAugmenterConfig(Config):
    """Configuration of `teacher_augmenter`."""

    model: ModelName = Field(description="The teacher, a text generator.")
    format: str = Field(FORMAT, description="How a sample is shown and read: plain slots label and text, once each.")
    prompt: str | None = Field(
        None, description="Template over examples (all of them), labels, label (the one wanted) and count (how many texts)."
    )
    prefix: str | None = Field(
        None, description="Beginning of a block, over label: ends the prompt and begins the answer, 'label: {{ label }} text:'."
    )
    labels: tuple[str, ...] = Field((), strict=False, description="The public list; default: the labels that come in.")
    few_shot_per_label: int = Field(2, ge=1, le=64, description="Examples of every label in a prompt.")
    per_label: int = Field(32, ge=1, description="Texts wanted of each label, at most.")
    per_prompt: int = Field(4, ge=1, le=64, description="Texts asked for at a time.")
    temperature: float = Field(0.8, ge=0, strict=False)
    top_p: float = Field(0.9, gt=0, le=1, strict=False)
    max_new_tokens: int = Field(512, ge=1)
    stop: tuple[str, ...] = Field((), strict=False, description="Strings that end an answer; not part of it.")
    near_copies: float = Field(
        0.7, gt=0, le=1, strict=False,
        description="Similarity to another text (Jaccard, of pairs of words) from which one is dropped; 1: the same words.",
    )  # fmt: skip
    attempts: int = Field(2, ge=1, le=10, description="How often a prompt is asked that gives nothing new to read.")
    json_: bool = Field(False, alias="json", description="Hold the model to JSON, where it can be.")
    batch: int = Field(32, ge=1, description="Prompts asked at a time, of a model that cannot stream its answers.")
    max_failures: float = Field(
        0.05, ge=0, le=1, strict=False, description="Share of prompts that may stay without an answer; past it the task fails."
    )

    @property
    def template(self) -> str:
        """The prompt, or the default one for the form of the answer."""
        return self.prompt or (JSON_PROMPT if self.json_ else PROMPT)

    @model_validator(mode="after")
    def _one_form(self) -> "TeacherAugmenterConfig":
        if self.json_ and self.prefix is not None:
            raise ValueError("'prefix' begins a block of the format; with 'json' there is none")
        return self


class TeacherAugmenter(Component[TeacherAugmenterConfig]):
    """Labelled texts in, new ones out, written by the teacher: `augmented` with numbered ids, label and text."""

    name = "teacher_augmenter"
    outputs = {"augmented": Out(Records), "report": Out(Metrics), "audit": Out(Document)}

    @classmethod
    def check(cls, config: TeacherAugmenterConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Templates that cannot be filled in or turned around, or do not show the examples; labels that are alike."""
        return _problems(config, stand_ins(schema, labels=config.labels), config.labels)

    def run(self, context: Context, texts: Records) -> Outputs:
        """At most `per_label` texts of each label, also of one without examples as long as another has some.

        `report`: rows and what of them could not be shown, prompts, samples read, rejected, dropped, `short` (wanted and not
        had), tokens, cost. `audit`: raw texts that were rejected and why, labels without examples, numbers a label. Raises
        ConfigError for templates whose round trip is not exact, DataError where no text has a label of the list, ComponentError
        past `max_failures`; answers are kept.
        """
        rows = labelled_rows(texts)
        labels = tuple(label.strip() for label in self.config.labels) or tuple(sorted({row["label"].strip() for row in rows}))
        form = self._form(labels) if labels else SampleFormat(self.config.format)
        shown = usable(form, rows, labels)
        if rows and shown.foreign == len(rows):
            what = f"none of the {len(rows)} texts has a label of the list"
            raise DataError(Problem(what, path="labels", why=f"the list has {len(labels)}", fix="write labels as the texts do"))
        requests = self._requests(form, shown, context)
        near = self.config.near_copies
        taken = Taken(labels, Texts((row["text"] for row in rows), near), Texts((), near), self.config.per_label)
        read = self._reader(form, labels)
        replies = self._ask(context, requests, read, taken)
        for number, request in enumerate(requests):
            reply = replies.known.get(number) or replies.rejected.get(number)
            if reply is not None:
                _take(taken, request, reply, read)
        made = [{"id": numbered(i), "label": s.label, "text": s.text} for i, s in enumerate(taken.samples)]
        values = {"rows": len(texts), "empty": len(texts) - len(rows), **shown.counts(), **taken.counts()}
        values |= _spent(replies) | {"short": self.config.per_label * len(labels) - len(made)}
        notes = {"labels_without_examples": ", ".join(shown.missing)} if shown.missing else {}
        audit = {"rejected": taken.rejected, "labels_without_examples": list(shown.missing), "labels": taken.by_label(shown)}
        report = Metrics({name: float(value) for name, value in values.items()}, notes=notes)
        return {"augmented": Records(made, COLUMNS), "report": report, "audit": Document(audit)}

    def _form(self, labels: tuple[str, ...]) -> SampleFormat:
        """The format, once all templates are checked with the labels at hand; raises ConfigError."""
        problems = _problems(self.config, stand_ins(None, labels=labels), labels)
        if problems:
            raise ConfigError(*problems)
        return SampleFormat(self.config.format)

    def _requests(self, form: SampleFormat, shown: Shown, context: Context) -> list[Request]:
        """What is asked: for each label as many prompts as its texts need; nothing without an example. Raises ConfigError."""
        config, rng = self.config, context.rng("demonstrations")
        decks = {label: Deck(samples, rng) for label, samples in shown.by_label.items()}
        requests = []
        for label in shown.labels if decks else ():
            for start in range(0, config.per_label, config.per_prompt):
                demos = [one for deck in decks.values() for one in deck.draw(config.few_shot_per_label)]
                rng.shuffle(demos)
                blocks = [form.render(one.label, one.text) for one in demos]
                values = _values(form, blocks, shown.labels, label, min(config.per_prompt, config.per_label - start))
                requests.append(self._request(form, blocks, values, label))
        return requests

    def _request(self, form: SampleFormat, blocks: list[str], values: dict[str, str], label: str) -> Request:
        text = compile_template(self.config.template, "prompt").render(values)
        if any(block not in text for block in blocks):
            raise ConfigError(Problem("the prompt lacks an example that it has to show", path="prompt", fix=EXAMPLES_FIX))
        prefix = PlainTemplate(self.config.prefix, "prefix").fill({"label": label}) if self.config.prefix else ""
        tail = text.rstrip().rpartition("\n")[2].strip()
        if len(tail) < LEAST_TAIL or form.opening.strip() in tail or any(tail in block for block in blocks):
            tail = ""
        return Request(form.join([text, prefix]) if prefix else text, prefix, label, tail)

    def _reader(self, form: SampleFormat, labels: tuple[str, ...]) -> Reader:
        """(request, answer, finished) -> what the answer holds, as JSON where that is asked for and came."""
        known = Labels(labels)

        def read(request: Request, answer: str, finished: bool) -> Parsed:
            text = request.answer(answer)
            found = parse_json(text, known, finished) if self.config.json_ else Parsed()
            return found if found != Parsed() else form.parse(text, known, finished)

        return read

    def _ask(self, context: Context, requests: list[Request], read: Reader, taken: Taken) -> Replies[int]:
        config = self.config
        schema = samples_schema(taken.labels) if config.json_ else None
        how = Generation(config.max_new_tokens, config.temperature, config.top_p, config.stop, json_schema=schema)

        def says(number: int, answer: Answer) -> bool:
            return any(map(taken.fresh, read(requests[number], answer.text, answer.finished).samples))

        asking = Asking(config.model, how, config.batch, config.attempts, config.max_failures, None, says)
        return ask_each(context, [request.prompt for request in requests], asking)


def _take(taken: Taken, request: Request, reply: Reply, read: Reader) -> None:
    """Take what an answer holds; the raw texts of what it does not hold, or of a prompt's earlier answers, are kept."""
    for text in reply.earlier:
        taken.reject(request.label, text, ASKED_AGAIN)
    taken.take(request.label, read(request, reply.text, reply.finished), reply.text)


def _problems(config: TeacherAugmenterConfig, samples: Sequence[Sample], labels: Sequence[str]) -> list[str]:
    """What is wrong with the templates, tried on samples; nothing is asked of a model."""
    found = check_formats(samples, labels or [one.label for one in samples], config.format)
    if found:
        return found
    form = SampleFormat(config.format)
    blocks = [form.render(one.label, one.text) for one in samples]
    values = _values(form, blocks, labels or [one.label for one in samples], samples[0].label, config.per_prompt)
    found = check_formats((), (), prompts=[Prompt("prompt", config.template, values, blocks)])
    return found + _prefix_problems(config, samples[0], blocks[0])


def _prefix_problems(config: TeacherAugmenterConfig, sample: Sample, block: str) -> list[str]:
    """A prefix that a block of the format does not begin with."""
    if config.prefix is None:
        return []
    try:
        plain = PlainTemplate(config.prefix, "prefix")
        found = slot_problems(plain, (), ("label",))
    except ConfigError as error:
        found = error.problems
    if not found and not block.startswith(plain.fill({"label": sample.label}).rstrip()):
        found = [Problem(f"no block of the format {config.format!r} begins so")]
    return ["prefix: " + "; ".join(line for line in (p.what, p.why, p.fix) if line) for p in found]


def _values(form: SampleFormat, blocks: Sequence[str], labels: Sequence[str], label: str, count: int) -> dict[str, str]:
    return {"examples": form.join(blocks), "labels": ", ".join(labels), "label": label, "count": str(count)}


def _spent(replies: Replies[int]) -> dict[str, float]:
    """Prompts, those without an answer, answers that were not the first, and what all cost."""
    read, written, cost = replies.spent()
    return {
        "prompts": len(replies.rows),
        "unanswered": len(replies.failed),
        "asked_again": replies.asked_again(),
        "prompt_tokens": read,
        "tokens": written,
        "cost": cost,
    }
