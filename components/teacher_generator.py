# SPDX-License-Identifier: Apache-2.0
"""Ask the teacher for a rationale of each prompt (FedCoT, arXiv 2406.12403, step "teach").

Every answer is written down as it comes: a task that was killed asks only for what is missing. Prompts that read alike are
asked once and share the answer. A row that gets no answer is reported with the reason and asked again when the task is run
again; the others go on. Guarantee: that of the prompts; answering reads nothing else, and which rows fail follows from the
prompts, the server and chance.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from pydantic import Field

from osmotic.components.templates import check_slots, compile_template
from osmotic.plugins.contract import (
    PROBLEMS,
    Answer,
    Component,
    Config,
    Context,
    Document,
    Generation,
    Journal,
    ModelName,
    Out,
    Outputs,
    Records,
)
from osmotic.schemas.errors import ComponentError, Problem
from osmotic.schemas.records import RecordSchema

COLUMNS = ("id", "prompt", "rationale", "finished", "tokens", "problem")
NONE = {"rationale": "", "finished": False, "tokens": 0}
Known = dict[str, dict[str, Any]]


class TeacherGeneratorConfig(Config):
    """What is asked, how long an answer may be, and how many rows may stay without one."""

    model: ModelName
    template: str = Field(description="Jinja2 over the record's fields: what the teacher reads.")
    max_new_tokens: int = Field(64, ge=1)
    temperature: float = Field(0.0, ge=0, description="0: the likeliest answer.")
    top_p: float = Field(1.0, gt=0, le=1)
    stop: tuple[str, ...] = Field((), strict=False, description="Strings that end an answer; not part of it.")
    json_schema: dict[str, Any] | None = Field(
        None, description="Ask for JSON of this schema, where the model can be held to it."
    )
    batch: int = Field(32, ge=1, description="Prompts asked at a time, of a model that cannot stream its answers.")
    attempts: int = Field(1, ge=1, le=10, description="How often a prompt is asked whose answer is empty or does not come.")
    max_failures: float = Field(
        0.05, ge=0, le=1, strict=False,
        description="Share of rows that may stay without an answer (the reason in 'problem'); past it the task fails.",
    )  # fmt: skip


class TeacherGenerator(Component[TeacherGeneratorConfig]):
    """Prompts in, rationales out: same ids, same order; a `report` of what failed, tokens and cost."""

    name = "teacher_generator"
    outputs = {"rationales": Out(Records), "report": Out(Document)}

    @classmethod
    def check(cls, config: TeacherGeneratorConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Slots of the template."""
        return check_slots(config.template, schema.fields, "template") if schema else ()

    def run(self, context: Context, prompts: Records) -> Outputs:
        """Rows of id, prompt (as asked), rationale, finished (false: cut by the length limit), tokens, problem ('': none).

        Raises ComponentError when more than `max_failures` of the rows have no answer; what was answered is kept.
        """
        template = compile_template(self.config.template, "template")
        asked = [template.render(row) for row in prompts]
        journal, rows = context.journal(), Counter(asked)
        known = {text: answer for text in rows if (answer := journal.get(_key(text))) is not None}
        failed = self._ask(context, rows, known, journal)
        made = [
            {"id": row["id"], "prompt": text, **_row(known.get(text)), "problem": failed.get(text, "")}
            for row, text in zip(prompts, asked, strict=True)
        ]
        return {"rationales": Records(made, COLUMNS), "report": Document(_report(rows, known, failed))}

    def _ask(self, context: Context, rows: Counter[str], known: Known, journal: Journal) -> dict[str, str]:
        """Ask for what is missing; every answer is written to the journal at once. Returns prompt -> why it has no answer."""
        config, spent, failed = self.config, dict[str, tuple[int, int, float]](), dict[str, str]()
        seed = context.rng("teacher").getrandbits(32)
        how = Generation(config.max_new_tokens, config.temperature, config.top_p, config.stop, seed, config.json_schema)
        context.progress(len(known), len(rows))
        for attempt in range(config.attempts):
            missing = [text for text in rows if text not in known]
            if not missing:
                break
            failed, last = {}, attempt + 1 == config.attempts
            with closing(self._answers(context, missing, replace(how, seed=(seed + attempt) % 2**32))) as answers:
                for batch in answers:
                    made: Known = {}
                    for text, answer in batch:
                        spent[text] = _sum(spent.get(text), answer)
                        if answer.problem:
                            failed[text] = answer.problem if answer.problem in PROBLEMS else "bad-answer"
                        elif answer.text.strip() or last:
                            made[text] = _entry(answer, spent[text])
                    if made:
                        journal.put_many({_key(text): entry for text, entry in made.items()})
                        known |= made
                    context.progress(len(known), len(rows), f"{len(failed)} without an answer" if failed else "")
                    if last and any(answer.problem for _, answer in batch):
                        self._check(rows, failed)
        return failed

    def _answers(self, context: Context, texts: list[str], how: Generation) -> Generator[list[tuple[str, Answer]], None, None]:
        """(prompt, answer), those together that came together, each once. Raises ComponentError for more or fewer."""
        model, seen = context.model(self.config.model), set[int]()
        with closing(_batches(model, texts, how, self.config.batch)) as batches:
            for batch in batches:
                for index, _ in batch:
                    if index in seen or not 0 <= index < len(texts):
                        what = "an answer came that nobody asked for"
                        raise ComponentError(Problem(what, why=f"model {self.config.model!r}"))
                    seen.add(index)
                yield [(texts[index], answer) for index, answer in batch]
        if len(seen) < len(texts):
            what = f"{len(texts)} prompts were asked, {len(seen)} answers came"
            raise ComponentError(Problem(what, why=f"model {self.config.model!r}", fix="run again: answers so far are kept"))

    def _check(self, rows: Counter[str], failed: dict[str, str]) -> None:
        """Raise ComponentError when more rows have no answer than may."""
        reasons = _reasons(rows, failed)
        count, most = sum(reasons.values()), self.config.max_failures
        if count > most * rows.total():
            what = f"{count} of {rows.total()} rows got no answer: {', '.join(f'{n} {word}' for word, n in reasons.items())}"
            why = f"max_failures is {most:g} of the rows"
            raise ComponentError(Problem(what, path="max_failures", why=why, fix="run again: answers so far are kept"))


def _batches(model: Any, texts: list[str], how: Generation, batch: int) -> Generator[list[tuple[int, Answer]], None, None]:
    """(index, answer) of a model, as they come where it can do that, and those together that came together."""
    if hasattr(model, "batches") or hasattr(model, "stream"):
        together = hasattr(model, "batches")
        inner = model.batches(texts, how) if together else model.stream(texts, how)
        try:
            for one in inner:
                yield one if together else [one]
        finally:
            if hasattr(inner, "close"):
                inner.close()
        return
    for start in range(0, len(texts), batch):
        part = texts[start : start + batch]
        answers = model.generate(part, how)
        if len(answers) != len(part):  # which answer is whose is not known
            what = f"{len(part)} prompts were asked, {len(answers)} answers came"
            raise ComponentError(Problem(what, fix="run again: answers so far are kept"))
        yield list(enumerate(answers, start))


def _sum(before: tuple[int, int, float] | None, answer: Answer) -> tuple[int, int, float]:
    """(tokens read, tokens written, cost) of all attempts."""
    asked, made, cost = before or (0, 0, 0.0)
    more = answer.cost if math.isfinite(answer.cost) else 0.0
    return asked + answer.prompt_tokens, made + answer.tokens, cost + more


def _entry(answer: Answer, spent: tuple[int, int, float]) -> dict[str, Any]:
    """An answer as the journal has it."""
    shown = {"rationale": answer.text.strip(), "finished": answer.finished, "tokens": answer.tokens}
    return {**shown, "spent": list(spent)}


def _row(known: dict[str, Any] | None) -> dict[str, Any]:
    return {key: (known or NONE)[key] for key in NONE}


def _reasons(rows: Counter[str], failed: dict[str, str]) -> dict[str, int]:
    """Reason -> rows."""
    counts: Counter[str] = Counter()
    for text, word in failed.items():
        counts[word] += rows[text]
    return dict(sorted(counts.items()))


def _report(rows: Counter[str], known: Known, failed: dict[str, str]) -> dict[str, Any]:
    """Counts of rows; tokens and cost of what was asked for them, alike prompts once."""
    spent = [known[text]["spent"] for text in rows if text in known]
    return {
        "rows": rows.total(),
        "prompts": len(rows),
        "failed": _reasons(rows, failed),
        "empty": sum(count for text, count in rows.items() if text in known and not known[text]["rationale"]),
        "unfinished": sum(count for text, count in rows.items() if text in known and not known[text]["finished"]),
        "prompt_tokens": sum(one[0] for one in spent),
        "tokens": sum(one[1] for one in spent),
        "cost": math.fsum(one[2] for one in spent),
    }


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
