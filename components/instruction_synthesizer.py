# SPDX-License-Identifier: Apache-2.0
"""Write instructions like a client's own, by showing the model some of them (FedPIT, arXiv 2403.06131, "synthesize", part 1).

As in Self-Instruct (Wang et al. 2023): each prompt lists local instructions, drawn anew, as Task 1 to 8, and ends with an empty
Task 9. The model is the one with `weights` (the global adapter W^g), greedy by default. Refused are answers that are empty,
short, cut or refusing, that open as a persona, that repeat one taken before, and, with `compare`, those whose ROUGE-L with some
local instruction is strictly above 0.7; then other demonstrations are drawn, up to `attempts` times.

No guarantee: every answer depends on the records shown in its prompt, and, with `compare`, what is missing tells of the
records as well. What comes out is as private as `records`, and crosses only where a waiver says so. ROUGE-L keeps out
near-copies of whole instructions; a name or a number out of one passes it.
"""

from collections.abc import Sequence

from pydantic import Field

from osmotic.components.evolving.prompts import one_group
from osmotic.components.instructing.demonstrations import Layout, Prompts, examples_of, field_problems
from osmotic.components.instructing.forms import form_reason, plain
from osmotic.components.instructing.nearness import Known
from osmotic.components.instructing.rounds import COPY, CUT, NO_MATCH, REPEAT, draw
from osmotic.components.instructing.settings import SynthesisConfig, weighted
from osmotic.components.metrics import parse
from osmotic.components.teaching.asking import Asking, Reply
from osmotic.plugins.contract import Component, Context, Document, Out, Outputs, Records, Weights
from osmotic.schemas.records import RecordSchema, numbered

COLUMNS = ("id", "instruction")
STREAM = "instructions"  # of chance: the same in every arm, another in every round


class InstructionSynthesizerConfig(SynthesisConfig):
    """How many instructions, how they are asked for, and which will do."""

    candidates: int = Field(32, ge=1, le=1_000_000, description="Instructions to be made.")
    item: str = Field(
        "Task {{ index }}: {{ instruction }}", description="Jinja2 over `index` (from 1) and `instruction`: one demonstration."
    )
    separator: str = Field("\n", description="Stands between demonstrations.")
    prompt: str = Field(
        "Here is a list of tasks, no two of them alike.\n\n{{ demonstrations }}\nTask {{ index }}:",
        description="Jinja2 over `demonstrations` and `index` (the number after theirs): ends where the instruction begins.",
    )
    stop: tuple[str, ...] = Field(
        ("\nTask ",), strict=False, description="What ends an answer: the beginning of the next item."
    )
    max_new_tokens: int = Field(64, ge=1)
    answer_pattern: str | None = Field(
        None, description="Regular expression with one group; its last match in an answer is the instruction. null: all of it."
    )
    min_words: int = Field(3, ge=1, description="An instruction of fewer words will not do.")


class InstructionSynthesizer(Component[InstructionSynthesizerConfig]):
    """Private records and the shared adapter in, `instructions` out; a `report` of what was refused, and why."""

    name = "instruction_synthesizer"
    outputs = {"instructions": Out(Records), "report": Out(Document)}

    @classmethod
    def check(cls, config: InstructionSynthesizerConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Slots of the templates, the field, the pattern."""
        found = _layout(config).problems(["instruction"])
        found += field_problems({"instruction_field": config.instruction_field}, schema)
        if config.answer_pattern is not None:
            try:
                one_group(config.answer_pattern)
            except ValueError as error:
                found.append(f"answer_pattern: {error}")
        return found

    def run(self, context: Context, records: Records, weights: Weights | None = None) -> Outputs:
        """Rows of id (numbered), instruction. weights: of the model (default: the model as it is).

        The report: answers refused by reason, of all attempts (`refused`); candidates that never came by their last one
        (`left`), tokens, cost, and a note where fewer were kept than asked for. Raises DataError for fewer usable records than
        demonstrations, ComponentError when no answer will do, or the model fails to answer.
        """
        config = self.config
        local = examples_of(records, {"instruction": config.instruction_field})
        prompts = Prompts(_layout(config), local, config.demonstrations)
        model = weighted(context.model(config.model), config.model, weights)
        compared = [row["instruction"] for row in local] if config.compare else []
        known = Known(compared, config.rouge_l, config.longest_run)
        how = config.how(config.max_new_tokens, config.stop)
        asking = Asking[int](config.model, how, config.batch, max_failures=config.max_failures, stream=STREAM, asked=model)
        taken: dict[str, str] = {}

        def written(attempt: int) -> list[str]:
            return prompts.written(context.rng(f"demonstrations of {STREAM} {attempt}"), [{}] * config.candidates)

        def take(number: int, reply: Reply) -> str:
            text = self._text(reply)
            reason = NO_MATCH if text is None else self._reason(text, reply, known, taken)
            if text is not None and not reason:
                taken[plain(text)] = text
            return reason

        drawn = draw(context, asking, config.attempts, written, take)
        if not taken:
            raise drawn.none_kept("candidates")
        rows = [{"id": numbered(i), "instruction": text} for i, text in enumerate(taken.values())]
        return {"instructions": Records(rows, COLUMNS), "report": Document(drawn.report(len(rows), "candidates"))}

    def _text(self, reply: Reply) -> str | None:
        pattern = self.config.answer_pattern
        return reply.text.strip() if pattern is None else parse(pattern, reply.text)

    def _reason(self, text: str, reply: Reply, known: Known, taken: dict[str, str]) -> str:
        """Why an instruction will not do; "" where it will."""
        config = self.config
        reason = form_reason(text, config.min_words, config.refusals, config.personas)
        if reason or not reply.finished:
            return reason or CUT
        if plain(text) in taken:
            return REPEAT
        return COPY if known.has(text) else ""


def _layout(config: InstructionSynthesizerConfig) -> Layout:
    return Layout(config.item, config.separator, config.prompt)
