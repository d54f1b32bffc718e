# SPDX-License-Identifier: Apache-2.0
"""The evaluator's input `prompt`: filled in for each record, named where it is not used, known to the plan."""

import pytest

from osmotic.components.evaluator import Evaluator, EvaluatorConfig
from osmotic.components.prompting.prompts import Prompt
from osmotic.plugins.contract import Document, Records
from osmotic.plugins.testing import FakeContext, FakeScorer, FakeTextGenerator, check_component
from osmotic.schemas.errors import ComponentError, DataError
from osmotic.schemas.records import FieldSpec, RecordSchema

RECORDS = Records([{"id": f"r{i}", "text": f"{'fine' if i % 2 else 'poor'} {i}", "label": "good" if i % 2 else "bad"}
                   for i in range(4)])  # fmt: skip
SETTINGS = {"model": "llm", "label_prompt": "{{ prompt }}", "label_target": "{{ label }}", "modes": ["label"]}
SCHEMA = RecordSchema(fields={"text": FieldSpec(text=True), "label": FieldSpec(domain=("bad", "good"))})
TUNED = Document(Prompt.parse("Judge it: [[text: {{ text }}\nanswer:]]").to_json())


def answer(prompt: str) -> str:
    return ("good" if "fine" in prompt else "bad") if prompt.startswith("Judge it") else "no idea"


def run(model=None, records=RECORDS, prompt=TUNED, **changes):
    context = FakeContext(models={"llm": model or FakeTextGenerator(answer)})
    return Evaluator(EvaluatorConfig(**SETTINGS | changes)).run(context, records, None, prompt)["metrics"]


def test_the_prompt_is_filled_in_for_each_record():
    model = FakeTextGenerator(answer)
    assert run(model).values["accuracy_label"] == 1
    assert model.prompts[1] == "Judge it: text: fine 1\nanswer:"
    model = FakeTextGenerator({f"Judge it: text: {row['text']}\nanswer: (one word)": row["label"] for row in RECORDS})
    assert run(model, label_prompt="{{ prompt }} (one word)").values["accuracy_label"] == 1


def test_every_mode_has_it():
    model = FakeScorer(lambda prompt, target: -1.0 if target == answer(prompt) else -2.0)
    assert run(model, modes=["choice"], choices=["bad", "good"]).values["accuracy_choice"] == 1
    assert run(modes=["rationale"], label_prompt="x", rationale_prompt="{{ prompt }}").values["accuracy_rationale"] == 1


def test_a_tuned_prompt_is_asked_anew():
    """The same task with another prompt asks again; with the same one everything is known."""
    context = FakeContext(models={"llm": FakeTextGenerator(answer)})
    evaluator, other = Evaluator(EvaluatorConfig(**SETTINGS)), Document(Prompt.parse("Say: [[{{ text }}]]").to_json())
    values = [evaluator.run(context, RECORDS, None, one)["metrics"].values["accuracy_label"] for one in (TUNED, other, TUNED)]
    assert values == [1, 0, 1] and len(context.models["llm"].prompts) == 8


def test_it_conforms():
    def fresh():
        return FakeContext(models={"llm": FakeTextGenerator(answer)})

    check_component(Evaluator, SETTINGS, {"records": RECORDS, "prompt": TUNED}, fresh)


def test_the_slot_without_the_prompt():
    with pytest.raises(ComponentError) as caught:
        run(prompt=None)
    assert caught.value.problems[0].path == "label_prompt" and "input 'prompt'" in caught.value.problems[0].fix


def test_the_prompt_without_a_slot():
    with pytest.raises(ComponentError) as caught:
        run(label_prompt="{{ text }}")
    assert caught.value.problems[0].path == "label_prompt" and "no template" in caught.value.problems[0].what


def test_records_that_have_such_a_field():
    own = Records([{**row, "prompt": f"Judge it, {row['text']}"} for row in RECORDS])
    assert run(records=own, prompt=None).values["accuracy_label"] == 1  # the field, as before
    with pytest.raises(ComponentError, match="told apart"):
        run(records=own)


@pytest.mark.parametrize("data", [None, {}, {"tokens": []}, {"tokens": [{"text": "a"}], "template": "a"}, ["a"], "{{ text }}"])
def test_what_is_no_prompt(data):
    with pytest.raises(DataError) as caught:
        run(prompt=Document(data))
    assert (caught.value.problems[0].path or "").startswith("prompt")


def test_a_prompt_of_other_records():
    with pytest.raises(DataError) as caught:
        run(prompt=Document(Prompt.parse("[[{{ sentence }}]]").to_json()))
    assert caught.value.problems[0].path == "prompt.template" and "text" in caught.value.problems[0].fix


def test_the_plan_knows_the_slot():
    def found(**changes):
        return Evaluator.check(EvaluatorConfig(**SETTINGS | changes), SCHEMA)

    assert not found() and not found(modes=["rationale"], rationale_prompt="{{ prompt }}")
    assert "label_target: unknown slot 'prompt'" in found(label_target="{{ prompt }}")[0]
    assert "unknown slot 'promt'" in found(label_prompt="{{ promt }}")[0]


def test_a_prompt_that_shows_the_gold_label_is_refused():
    """Whoever made it: every answer could be copied from it."""
    telling = Document(Prompt.parse("Judge it: {{ text }} [[({{ label }})]] now").to_json())
    with pytest.raises(ComponentError, match="the prompt shows the gold label") as caught:
        run(prompt=telling)
    assert caught.value.problems[0].path == "prompt"
    assert run(label_target="{{ label }}{{ text }}", prompt=TUNED, choices=None).values["accuracy_label"] == 0
