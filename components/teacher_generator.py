# SPDX-License-Identifier: Apache-2.0
"""Ask the teacher for a rationale of each prompt (FedCoT, arXiv 2406.12403, step "teach").

Every answer is written down as it comes: a task that was killed asks only for what is missing. Prompts that read alike are
asked once and share the answer. A row that gets no answer is reported with the reason and asked again when the task is run
again; the others go on. Guarantee: that of the prompts; answering reads nothing else, and which rows fail follows from the
prompts, the server and chance.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import Field, field_validator

from osmotic.components.teaching.asking import Asking, Replies, Reply, ask
from osmotic.components.templates import check_slots, compile_template
from osmotic.plugins.contract import Component, Config, Context, Document, Generation, ModelName, Out, Outputs, Records
from osmotic.schemas.records import RecordSchema

COLUMNS = ("id", "prompt", "rationale", "finished", "tokens", "problem")
NONE = {"rationale": "", "finished": False, "tokens": 0}


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

    @field_validator("json_schema")
    @classmethod
    def _is_schema(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        from jsonschema import SchemaError, validators

        try:
            if value is not None:
                validators.validator_for(value, validators.Draft202012Validator).check_schema(value)
        except SchemaError as error:
            place = ".".join(map(str, error.absolute_path))
            at = f" at {place!r}" if place else ""
            raise ValueError(f"not a JSON Schema{at}: {error.message[:200]}") from error
        return value


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
        config = self.config
        how = Generation(config.max_new_tokens, config.temperature, config.top_p, config.stop, 0, config.json_schema)
        asking = Asking[str](config.model, how, config.batch, config.attempts, config.max_failures)
        replies = ask(context, Counter(asked), asking)
        made = [
            {"id": row["id"], "prompt": text, **_row(replies.known.get(text)), "problem": replies.failed.get(text, "")}
            for row, text in zip(prompts, asked, strict=True)
        ]
        return {"rationales": Records(made, COLUMNS), "report": Document(_report(replies))}


def _row(reply: Reply | None) -> dict[str, Any]:
    return {"rationale": reply.text, "finished": reply.finished, "tokens": reply.tokens} if reply else dict(NONE)


def _report(replies: Replies[str]) -> dict[str, Any]:
    """Counts of rows; tokens and cost of what was asked for them, alike prompts once."""
    rows, known = replies.rows, replies.known
    read, written, cost = replies.spent()
    return {
        "rows": rows.total(),
        "prompts": len(rows),
        "failed": replies.reasons(),
        "empty": sum(count for text, count in rows.items() if text in known and not known[text].text),
        "unfinished": sum(count for text, count in rows.items() if text in known and not known[text].finished),
        "prompt_tokens": read,
        "tokens": written,
        "cost": cost,
    }
