# SPDX-License-Identifier: Apache-2.0
"""Answer synthetic instructions in the manner of local examples (FedPIT, arXiv 2403.06131, "synthesize", part 2).

Each prompt shows local instructions with their responses, drawn anew, then one instruction to be answered. The answer must
carry the response `marker`; what follows it is the response. Where it does not, or is empty, cut or refusing, other
demonstrations are drawn; after `attempts` (three) the instruction is discarded. A response, or a whole example, whose ROUGE-L
with some local one is strictly above 0.7 is discarded at once (`compare`).

No guarantee, as for `instruction_synthesizer`: what comes out depends on the records that were shown, and what is missing on
all of them. It is as private as `records`, and crosses only where a waiver says so.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from osmotic.components.instructing.demonstrations import Layout, Prompts, examples_of, field_problems
from osmotic.components.instructing.forms import form_reason
from osmotic.components.instructing.nearness import Known
from osmotic.components.instructing.rounds import COPY, CUT, MARKER_TWICE, NO_MARKER, Drawn, draw
from osmotic.components.instructing.settings import SynthesisConfig, weighted
from osmotic.components.teaching.asking import Asking, Reply
from osmotic.plugins.contract import Component, Context, Document, Out, Outputs, Records, Weights
from osmotic.schemas.errors import DataError, Problem
from osmotic.schemas.records import RecordSchema, numbered

COLUMNS = ("id", "instruction", "response")
STREAM = "responses"  # of chance: the same in every arm, another in every round
Example = Mapping[str, str]


class ResponseSynthesizerConfig(SynthesisConfig):
    """How responses are asked for, and which will do."""

    response_field: str = Field("response", description="The records' field with the response.")
    item: str = Field(
        "### Instruction:\n{{ instruction }}\n### Response:\n{{ response }}",
        description="Jinja2 over `index` (from 1), `instruction` and `response`: one demonstration.",
    )
    separator: str = Field("\n\n", description="Stands between demonstrations.")
    prompt: str = Field(
        "{{ demonstrations }}\n\n### Instruction:\n{{ instruction }}",
        description="Jinja2 over `demonstrations`, `index` (the number after theirs) and `instruction`, the one to be "
        "answered: ends before the marker.",
    )
    marker: str | None = Field(
        "### Response:", min_length=1, description="What an answer must carry before the response; null: all of it is one."
    )
    stop: tuple[str, ...] = Field(
        ("### Instruction:",), strict=False, description="What ends an answer: the beginning of the next item."
    )
    max_new_tokens: int = Field(256, ge=1)
    min_words: int = Field(1, ge=1, description="A response of fewer words will not do.")


class ResponseSynthesizer(Component[ResponseSynthesizerConfig]):
    """Private records, instructions and the shared adapter in; `synthetic` examples, `rejected` ones and a `report` out."""

    name = "response_synthesizer"
    outputs = {"synthetic": Out(Records), "rejected": Out(Records), "report": Out(Document)}

    @classmethod
    def check(cls, config: ResponseSynthesizerConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Slots of the templates, the fields, a marker that no answer would carry."""
        found = _layout(config).problems(["instruction", "response"], ["instruction"])
        if not found and config.marker is not None and config.marker not in config.item:
            found.append(f"marker: {config.marker!r} does not stand in 'item': no answer would carry it; null asks for none")
        if not found and config.marker is not None and config.prompt.rstrip().endswith(config.marker.rstrip()):
            found.append("marker: the prompt ends with it, so that no answer would; end the prompt before it, or write null")
        names = {"instruction_field": config.instruction_field, "response_field": config.response_field}
        return [*found, *field_problems(names, schema)]

    def run(self, context: Context, records: Records, instructions: Records, weights: Weights | None = None) -> Outputs:
        """`synthetic`: rows of id (numbered), instruction, response; `rejected`: of id, instruction, response (what the last
        answer was), reason. instructions: rows with ``instruction``. weights: of the model (default: as it is).

        The report is that of `instruction_synthesizer`. Raises DataError for fewer usable records than demonstrations or no
        instruction, ComponentError when no answer will do, or the model fails to answer.
        """
        config = self.config
        local = examples_of(records, {"instruction": config.instruction_field, "response": config.response_field})
        asked = examples_of(instructions, {"instruction": "instruction"}, "instructions")
        if not asked:
            what = "there is no instruction to be answered"
            raise DataError(Problem(what, path="instructions", fix="connect the instructions of instruction_synthesizer"))
        drawn, responses = self._drawn(context, local, asked, weights)
        if not responses:
            raise drawn.none_kept("instructions")
        rows = [{"instruction": asked[i]["instruction"], "response": text} for i, text in sorted(responses.items())]
        left = [
            {"instruction": asked[i]["instruction"], "response": text, "reason": reason}
            for i, (reason, text) in sorted(drawn.left.items())
        ]
        return {
            "synthetic": _table(rows, COLUMNS),
            "rejected": _table(left, (*COLUMNS, "reason")),
            "report": Document(drawn.report(len(rows), "instructions")),
        }

    def _drawn(
        self, context: Context, local: Sequence[Example], asked: Sequence[Example], weights: Weights | None
    ) -> tuple[Drawn, dict[int, str]]:
        """(what became of every instruction, number of an instruction -> its response)."""
        config = self.config
        prompts = Prompts(_layout(config), local, config.demonstrations)
        model = weighted(context.model(config.model), config.model, weights)
        compared = local if config.compare else []
        single = Known([row["response"] for row in compared], config.rouge_l, config.longest_run)
        whole = Known([_whole(row) for row in compared], config.rouge_l, config.longest_run)
        how = config.how(config.max_new_tokens, config.stop)
        asking = Asking[int](config.model, how, config.batch, max_failures=config.max_failures, stream=STREAM, asked=model)
        responses: dict[int, str] = {}

        def written(attempt: int) -> list[str]:
            return prompts.written(context.rng(f"demonstrations of {STREAM} {attempt}"), asked)

        def take(number: int, reply: Reply) -> str:
            text, reason = self._read(reply)
            if not reason and (single.has(text) or whole.has(_whole({**asked[number], "response": text}))):
                reason = COPY
            if not reason:
                responses[number] = text
            return reason

        return draw(context, asking, config.attempts, written, take, final=(COPY,)), responses

    def _read(self, reply: Reply) -> tuple[str, str]:
        """(the response of an answer, why it will not do)."""
        config, text = self.config, reply.text
        if config.marker is not None:
            _, there, text = text.partition(config.marker)
            if not there:
                return "", NO_MARKER
            if config.marker in text:
                return "", MARKER_TWICE
        text = text.strip()
        reason = form_reason(text, config.min_words, config.refusals, config.personas)
        return text, reason or ("" if reply.finished else CUT)


def _layout(config: ResponseSynthesizerConfig) -> Layout:
    return Layout(config.item, config.separator, config.prompt)


def _whole(row: Example) -> str:
    """An example as one text."""
    return f"{row['instruction']}\n{row['response']}"


def _table(rows: list[dict[str, Any]], columns: Sequence[str]) -> Records:
    return Records([{"id": numbered(i), **row} for i, row in enumerate(rows)], columns)
