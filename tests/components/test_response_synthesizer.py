# SPDX-License-Identifier: Apache-2.0
"""Responses by demonstrations: the marker, three strikes, near-copies, ids, resuming, mistakes."""

import random
import re
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import pytest

from osmotic.components.metrics import rouge_l
from osmotic.components.response_synthesizer import ResponseSynthesizer, ResponseSynthesizerConfig
from osmotic.plugins.contract import Answer, Document, Generation, Outputs, Records, Weights
from osmotic.plugins.testing import FakeContext, check_component, run_component
from osmotic.schemas.errors import ComponentError, DataError
from osmotic.schemas.records import FieldSpec, RecordSchema

SCHEMA = RecordSchema(fields={"instruction": FieldSpec(text=True), "response": FieldSpec(text=True)})
LOCAL = Records(
    [
        {"id": f"r{i}", "instruction": f"tell me of {word}", "response": " ".join(f"{word}{n}" for n in range(10))}
        for i, word in enumerate("ant bee cow dog elk fox gnu hen ibis jay".split())  # noqa: SIM905
    ]
)
ASKED = Records([{"id": f"n{i:07d}", "instruction": f"praise the number {i}"} for i in range(4)])
CONFIG: dict[str, Any] = {"model": "base", "batch": 3}
WEIGHTS = Weights({"a": np.ones(2, dtype=np.float32)}, {"base": "b"})
Say = Callable[[str, int], str]


def number_of(prompt: str) -> int:
    """Of the instruction that a prompt asks about."""
    return int(re.findall(r"praise the number (\d)", prompt)[-1])


def good(prompt: str, attempt: int) -> str:
    return f"### Response:\nvery fine {number_of(prompt)} {random.Random(prompt).randrange(10**6)}"


class Model:
    """Answers by a function of the prompt and how often that instruction was asked before."""

    def __init__(self, say: Say = good, dies: int | None = None, finished: bool = True) -> None:
        self.say, self.dies, self.finished = say, dies, finished
        self.prompts: list[str] = []
        self.weights: list[Weights] = []

    def with_weights(self, weights: Weights) -> Self:
        self.weights.append(weights)
        return self

    def generate(self, prompts: Sequence[str], how: Generation) -> list[Answer]:
        return [self._answer(prompt) for prompt in prompts]

    def _answer(self, prompt: str) -> Answer:
        if self.dies is not None and len(self.prompts) >= self.dies:
            raise KeyboardInterrupt
        before = sum(number_of(one) == number_of(prompt) for one in self.prompts)
        self.prompts.append(prompt)
        return Answer(f"\n{self.say(prompt, before)}\n", self.finished, 3, 10)


def run(model: Any, context: FakeContext | None = None, weights: Weights | None = None, asked: Records = ASKED,
        records: Records = LOCAL, **changes: Any) -> Outputs:  # fmt: skip
    context = context or FakeContext(models={"base": model}, record_schema=SCHEMA)
    given: dict[str, Any] = {"records": records, "instructions": asked}
    given |= {"weights": weights} if weights is not None else {}
    return run_component(ResponseSynthesizer, {**CONFIG, **changes}, given, context)


def rows(outputs: Outputs, name: str = "synthetic") -> list[dict[str, Any]]:
    found = outputs[name]
    assert isinstance(found, Records)
    return found.rows


def report(outputs: Outputs) -> dict[str, Any]:
    found = outputs["report"]
    assert isinstance(found, Document)
    return dict(found.data)


def test_what_follows_the_marker_is_the_response() -> None:
    model = Model()
    made = run(model, weights=WEIGHTS)
    assert model.weights == [WEIGHTS]
    plain = Model()
    run(plain)
    assert plain.prompts == model.prompts  # chance is the same in all arms, whatever their adapters have become
    assert [(row["id"], row["instruction"]) for row in rows(made)] == [(r["id"], r["instruction"]) for r in ASKED]
    assert all(re.fullmatch(rf"very fine {i} \d+", row["response"]) for i, row in enumerate(rows(made)))
    assert rows(made, "rejected") == [] and made["rejected"].columns == ["id", "instruction", "response", "reason"]
    for i, prompt in enumerate(model.prompts):
        parts = prompt.split("### Instruction:\n")[1:]
        assert len(parts) == 9 and parts[-1] == f"praise the number {i}"
        shown = [tuple(part.strip().split("\n### Response:\n")) for part in parts[:-1]]
        assert len(set(shown)) == 8 and set(shown) <= {(row["instruction"], row["response"]) for row in LOCAL}


def test_three_strikes_and_an_instruction_is_out() -> None:
    """Number 0 never has the marker, 1 has it at the third attempt, 2 at the second; 3 at once."""
    needed = {0: 99, 1: 2, 2: 1, 3: 0}
    model = Model(lambda prompt, before: good(prompt, 0) if before >= needed[number_of(prompt)] else "no such thing")
    made = run(model)
    assert [row["instruction"][-1] for row in rows(made)] == ["1", "2", "3"]
    assert [row["id"] for row in rows(made)] == ["n0000000", "n0000001", "n0000002"]
    assert rows(made, "rejected") == [
        {"id": "n0000000", "instruction": "praise the number 0", "response": "no such thing", "reason": "no-marker"}
    ]
    assert sorted(number_of(prompt) for prompt in model.prompts) == [0, 0, 0, 1, 1, 1, 2, 2, 3]
    assert len(set(model.prompts)) == 9  # the demonstrations are drawn again
    found = report(made)
    assert found["refused"] == {"no-marker": 6} and found["left"] == {"no-marker": 1} and found["prompts"] == 9
    assert found["notes"] == ["3 of 4 instructions were kept; the others ended as: 1 no-marker"]
    twice = run(Model(lambda prompt, before: good(prompt, 0) if before >= needed[number_of(prompt)] else "no"), attempts=2)
    assert len(rows(twice)) == 2


def near(same: int) -> str:
    """`same` of the ten words of a local response and as many others as ten leave: ROUGE-L is same / 10."""
    return " ".join(LOCAL.rows[4]["response"].split()[:same] + [f"new{i}" for i in range(10 - same)])


def test_seven_tenths_of_a_local_response_is_kept_and_more_discarded_at_once() -> None:
    assert rouge_l([LOCAL.rows[4]["response"]], [near(7)])[0] == pytest.approx(0.7, abs=1e-12)
    model = Model(lambda prompt, _: f"### Response: {near(8 if number_of(prompt) == 1 else 7)}")
    made = run(model)
    assert len(rows(made)) == 3 and all(row["response"] == near(7) for row in rows(made))
    assert [row["reason"] for row in rows(made, "rejected")] == ["near-local"] and rows(made, "rejected")[0]["response"]
    assert len(model.prompts) == 4  # a near-copy is not asked for until it passes
    assert len(rows(run(Model(lambda *_: f"### Response: {near(10)}"), compare=False))) == 4


def test_a_whole_example_may_be_near_where_its_response_is_not() -> None:
    local = Records(
        [*LOCAL.rows, {"id": "s", "instruction": "name the seven hills of the old city now", "response": "one two"}]
    )
    asked = Records([{"id": "n0000000", "instruction": "name the seven hills of the old city now"}])
    model = Model()
    model._answer = lambda prompt: Answer("### Response: one three", True, 3)  # type: ignore[method-assign]
    with pytest.raises(ComponentError, match="1 near-local in 1 prompts"):  # the response alone: .5; both: .9
        run(model, asked=asked, records=local)


@pytest.mark.parametrize(
    ("text", "finished", "reason"),
    [
        ("### Response:", True, "empty"), ("### Response: I'm sorry, I can't help with that.", True, "refusal"),
        ("### Response: one ### Response: two", True, "marker-twice"), ("### Response: and then", False, "cut"),
    ],
)  # fmt: skip
def test_other_answers_that_will_not_do(text: str, finished: bool, reason: str) -> None:
    with pytest.raises(ComponentError, match=f"none of 4 instructions is of use: 12 {reason} in 12 prompts"):
        run(Model(lambda *_: text, finished=finished))


def test_a_marker_that_is_never_answered_is_named_with_a_sample() -> None:
    with pytest.raises(ComponentError, match=r"12 no-marker.*\n.*'I like cows'.*\n.*let 'marker' be what 'item' has"):
        run(Model(lambda *_: "I like cows"))
    made = run(Model(lambda *_: "I like cows"), marker=None)
    assert [row["response"] for row in rows(made)] == ["I like cows"] * 4


@pytest.mark.parametrize("dies", [1, 4, 5, 6])
def test_a_kill_pays_for_nothing_twice(dies: int) -> None:
    def say(prompt: str, _: int) -> str:
        return good(prompt, 0) if random.Random(f"ok {prompt}").random() < 0.4 else "no"

    whole = Model(say)
    wanted = run(whole, batch=1)
    first, again = Model(say, dies=dies), Model(say)
    context = FakeContext(models={"base": first})
    with pytest.raises(KeyboardInterrupt):
        run(None, context, batch=1)
    context.models = {"base": again}
    made = run(None, context, batch=1)
    assert rows(made) == rows(wanted) and report(made) == report(wanted)
    assert first.prompts + again.prompts == whole.prompts


def test_the_same_seed_gives_the_same() -> None:
    inputs = {"records": LOCAL, "instructions": ASKED}
    check_component(ResponseSynthesizer, CONFIG, inputs, lambda: FakeContext(models={"base": Model()}))
    assert rows(run(Model())) == rows(run(Model(), batch=1))
    assert rows(run(None, FakeContext(models={"base": Model()}, seed=1))) != rows(run(Model()))


# ---- mistakes ----


def test_too_few_records_no_instruction_missing_columns() -> None:
    with pytest.raises(DataError, match="8 demonstrations are asked, and there are 3 usable records"):
        run(Model(), records=Records(LOCAL.rows[:3]))
    with pytest.raises(DataError, match="there is no instruction to be answered"):
        run(Model(), asked=Records([], ["id", "instruction"]))
    with pytest.raises(DataError, match="10 of 10 records have no 'output'"):
        run(Model(), response_field="output")
    with pytest.raises(DataError, match="1 of 1 instructions have no 'instruction'"):
        run(Model(), asked=Records([{"id": "n0000000", "text": "x"}]))
    with pytest.raises(ComponentError, match="takes no trained weights"):
        run(type("Remote", (), {"generate": Model().generate})(), weights=WEIGHTS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"item": "{{ instruction }}"}, "item: does not show 'response'"),
        ({"prompt": "{{ demonstrations }} ### Instruction:"}, "prompt: does not show 'instruction'"),
        ({"prompt": "{{ demonstrations }} {{ question }}"}, "prompt: unknown slot 'question'"),
        ({"marker": "### Answer:"}, "marker: '### Answer:' does not stand in 'item'"),
        ({"prompt": "{{ demonstrations }} {{ instruction }}\n### Response:"}, "marker: the prompt ends with it"),
        ({"response_field": "answer"}, "response_field: the records have no field 'answer'"),
    ],
)
def test_the_plan_says_what_is_wrong(changes: dict[str, Any], said: str) -> None:
    found = ResponseSynthesizer.check(ResponseSynthesizerConfig(**{**CONFIG, **changes}), SCHEMA)
    assert any(said in one for one in found), found


def test_a_right_configuration_has_no_problems() -> None:
    assert ResponseSynthesizer.check(ResponseSynthesizerConfig(**CONFIG), SCHEMA) == []
    bare = {"marker": None, "prompt": "{{ demonstrations }} {{ instruction }} response:"}
    assert ResponseSynthesizer.check(ResponseSynthesizerConfig(**{**CONFIG, **bare}), None) == []
