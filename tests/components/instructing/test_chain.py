# SPDX-License-Identifier: Apache-2.0
"""The four components one after another in the handbook's formats, with a model that is scripted in its world."""

import random
from collections.abc import Sequence
from typing import Any

from osmotic.components.ifs_selector import IfsSelector, IfsSelectorConfig
from osmotic.components.instruction_filter import InstructionFilter
from osmotic.components.instruction_synthesizer import InstructionSynthesizer, InstructionSynthesizerConfig
from osmotic.components.response_synthesizer import ResponseSynthesizer, ResponseSynthesizerConfig
from osmotic.plugins.contract import Answer, Artifact, Generation, Outputs, Records
from osmotic.plugins.handbook import domain
from osmotic.plugins.testing import FakeContext, FakeScorer, run_component
from osmotic.schemas.records import NUMBERED, numbered

FORMAT = {"model": "base", "separator": domain.SEPARATOR, "demonstrations": domain.DEMONSTRATIONS}
INSTRUCTIONS: dict[str, Any] = {**FORMAT, "item": domain.TASK_ITEM, "prompt": domain.TASK_PROMPT, "stop": ["task"]}
RESPONSES: dict[str, Any] = {
    **FORMAT, "item": domain.PAIR_ITEM, "prompt": domain.PAIR_PROMPT, "marker": domain.MARKER, "stop": ["instruction:"],
}  # fmt: skip
IFS: dict[str, Any] = {"model": "base", "prompt": domain.TRAIN_PROMPT, "target": domain.TARGET, "keep": 16}
PATTERN = r"^instruction: (?P<instruction>.*?) response: (?P<response>.*)$"


class Clerk(FakeScorer):
    """Writes a fresh instruction of the world, and replies in the convention of a job whose verb is asked about."""

    def generate(self, prompts: Sequence[str], how: Generation) -> list[Answer]:
        return [self._answer(prompt, random.Random(prompt)) for prompt in prompts]

    def _answer(self, prompt: str, rng: random.Random) -> Answer:
        last = prompt.rpartition("\n")[2]
        if last.startswith("task 9:"):
            return Answer(" " + domain.draw(domain.PRIVATE[rng.choice(domain.KINDS)], rng)["instruction"], True, 9)
        assert last.startswith("instruction: ") and not last.endswith(domain.MARKER)
        parts = domain.parts_of(last.removeprefix("instruction: "))
        assert parts is not None
        reply = domain.reply(domain.PRIVATE[parts["verb"]].convention, parts, domain.drawn_code(rng))
        return Answer(f" {domain.MARKER} {reply}", True, 20)


def records(count: int = 240) -> Records:
    return Records([{k: v for k, v in row.items() if k != "kind"} for row in domain.splits(records=count)["inn"]])


def step(cls: Any, config: dict[str, Any], **inputs: Artifact) -> Outputs:
    return run_component(cls, config, inputs, FakeContext(models={"base": Clerk()}))


def test_the_formats_of_the_handbook_can_be_written_in_the_configuration() -> None:
    assert InstructionSynthesizer.check(InstructionSynthesizerConfig.model_validate(INSTRUCTIONS), None) == []
    assert ResponseSynthesizer.check(ResponseSynthesizerConfig.model_validate(RESPONSES), None) == []
    assert IfsSelector.check(IfsSelectorConfig.model_validate(IFS), None) == []


def test_from_records_to_selected_examples() -> None:
    local = records()
    written = step(InstructionSynthesizer, INSTRUCTIONS, records=local)
    report: Any = written["report"]
    assert report.data["kept"] == 32 and report.data["refused"].get("near-local", 0) < 10, report.data
    answered = step(ResponseSynthesizer, RESPONSES, records=local, instructions=written["instructions"])
    synthetic: Any = answered["synthetic"]
    assert len(synthetic) > 16 and all(domain.code_of(row["response"]) for row in synthetic)
    kept = step(InstructionFilter, {}, synthetic=synthetic, against=local)["kept"]
    assert isinstance(kept, Records) and len(kept) == len(synthetic)  # what the synthesizers let through, the filter does
    selected: Any = step(IfsSelector, IFS, synthetic=kept)["selected"]
    assert len(selected) == 16 and {row["id"] for row in selected} <= {row["id"] for row in kept}
    assert all(NUMBERED.fullmatch(row["id"]) for row in selected)
    own = {row["id"] for row in local}
    assert not any(value in own for row in selected for value in row.values())


def test_texts_of_a_private_generator_need_no_record() -> None:
    """The path with a guarantee: texts after control codes, split, filtered and selected without a local record."""
    rng, rows = random.Random(5), []
    for i in range(24):
        row = domain.draw(domain.PRIVATE[rng.choice(domain.KINDS)], rng)
        text = f"instruction: {row['instruction']} response: {row['response']}" if i % 6 else "no such thing"
        rows.append({"id": numbered(i), "label": row["kind"], "text": text})
    kept = step(InstructionFilter, {"pattern": PATTERN}, synthetic=Records(rows))["kept"]
    assert isinstance(kept, Records) and len(kept) == 20
    selected: Any = step(IfsSelector, IFS, synthetic=kept)["selected"]
    assert len(selected) == 16
