# SPDX-License-Identifier: Apache-2.0
"""Ask the teacher for a rationale of each prompt (FedCoT, arXiv 2406.12403, step "teach").

Every answer is written down as it comes: a task that was killed asks only for what is missing. Prompts that read alike are
asked once and share the answer. Guarantee: that of the prompts; answering reads nothing else.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from osmotic.components.templates import check_slots, compile_template
from osmotic.plugins.contract import Component, Config, Context, Generation, Journal, ModelName, Out, Outputs, Records
from osmotic.schemas.errors import ComponentError, Problem
from osmotic.schemas.records import RecordSchema

COLUMNS = ("id", "prompt", "rationale", "finished", "tokens")


class TeacherGeneratorConfig(Config):
    """What is asked, and how long an answer may be."""

    model: ModelName
    template: str = Field(description="Jinja2 over the record's fields: what the teacher reads.")
    max_new_tokens: int = Field(64, ge=1)
    temperature: float = Field(0.0, ge=0, description="0: the likeliest answer.")
    top_p: float = Field(1.0, gt=0, le=1)
    stop: tuple[str, ...] = Field((), strict=False, description="Strings that end an answer; not part of it.")
    batch: int = Field(32, ge=1, description="Prompts asked at a time.")


class TeacherGenerator(Component[TeacherGeneratorConfig]):
    """Prompts in, rationales out: same ids, same order."""

    name = "teacher_generator"
    outputs = {"rationales": Out(Records)}

    @classmethod
    def check(cls, config: TeacherGeneratorConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Slots of the template."""
        return check_slots(config.template, schema.fields, "template") if schema else ()

    def run(self, context: Context, prompts: Records) -> Outputs:
        """Rows of id, prompt (as asked), rationale, finished (false: cut by the length limit), tokens."""
        template = compile_template(self.config.template, "template")
        asked = [template.render(row) for row in prompts]
        journal = context.journal()
        known = {text: answer for text in dict.fromkeys(asked) if (answer := journal.get(_key(text))) is not None}
        self._ask(context, [text for text in dict.fromkeys(asked) if text not in known], known, journal)
        rows = [{"id": row["id"], "prompt": text, **known[text]} for row, text in zip(prompts, asked, strict=True)]
        return {"rationales": Records(rows, COLUMNS)}

    def _ask(self, context: Context, missing: list[str], known: dict[str, dict[str, Any]], journal: Journal) -> None:
        """Ask for what is missing, batch by batch; every answer is written to the journal at once."""
        seed, config, total = context.rng("teacher").getrandbits(32), self.config, len(known) + len(missing)
        how = Generation(config.max_new_tokens, config.temperature, config.top_p, config.stop, seed)
        model = context.model(config.model) if missing else None
        context.progress(len(known), total)
        for start in range(0, len(missing), config.batch):
            texts = missing[start : start + config.batch]
            answers = model.generate(texts, how) if model else []
            if len(answers) != len(texts):
                what = f"{len(texts)} prompts were asked, {len(answers)} answers came"
                raise ComponentError(Problem(what, why=f"model {config.model!r}", fix="run again: answers so far are kept"))
            for text, answer in zip(texts, answers, strict=True):
                known[text] = {"rationale": answer.text.strip(), "finished": answer.finished, "tokens": answer.tokens}
                journal.put(_key(text), known[text])
            context.progress(len(known), total)


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
