# SPDX-License-Identifier: Apache-2.0
"""`prompt_tuner` and input that is wrong or odd: located errors that can be mended, or a note."""

import pytest

from osmotic.components.prompt_tuner import PromptTuner, PromptTunerConfig
from osmotic.components.prompting.prompts import Prompt
from osmotic.plugins.contract import Answer, Document, Records
from osmotic.plugins.testing import FakeContext, FakeMaskedLM, FakeTextGenerator, validated
from osmotic.schemas.errors import ComponentError, ConfigError, DataError
from osmotic.schemas.records import FieldSpec, RecordSchema

SCHEMA = RecordSchema(fields={"text": FieldSpec(text=True), "label": FieldSpec(domain=("a", "b"))})
VOCABULARY = ("say", "it", "now", "well", "fine", "good", "odd", "plain")
BASE = {"prompt": "say it {{ text }}", "model": "llm", "masked": "mlm", "labels": ["a", "b"], "top_k": 4, "iterations": 6}
ROWS = Records([{"id": f"r{i}", "text": f"text {i} {'ab'[i % 2]}", "label": "ab"[i % 2]} for i in range(12)])


def problems(schema=SCHEMA, **config):
    return list(PromptTuner.check(validated(PromptTunerConfig, {**BASE, **config}, "task"), schema))


def tuned(data=ROWS, public=None, prompt=None, answers=lambda prompt: "a", vocabulary=VOCABULARY, model=None, **config):
    on = FakeContext(models={"llm": model or FakeTextGenerator(answers), "mlm": FakeMaskedLM(vocabulary)}, record_schema=SCHEMA)
    return PromptTuner(validated(PromptTunerConfig, {**BASE, **config}, "task")).run(on, data, public, prompt)


def test_a_good_configuration():
    assert problems() == [] and problems(schema=None) == []
    assert problems(labels={"a": "yes", "b": "no"}, prompt="say yes or no {{ text }}") == []


@pytest.mark.parametrize(("config", "says"), [
    ({"prompt": "say it"}, "prompt: it shows no field"), ({"prompt": "[[say {{ text }}]] a"}, "nothing to tune"),
    ({"prompt": "say {{ txt }}"}, "prompt: unknown slot 'txt'"),
    ({"prompt": "say {{ text }} {{ label }}"}, "it shows the label"),
    ({"prompt": "say [[ {{ text }}"}, "prompt: a frozen stretch is not closed"),
    ({"prompt": "say {{ text"}, "prompt: not a valid"),
    ({"labels": {"a": "good", "b": "not good"}}, "labels: 'good' and 'not good' cannot be told apart"),
    ({"labels": ["a"]}, "labels: a single class"), ({"labels": {"a": "x", "c": "y"}}, "labels: no word for the class 'b'"),
    ({"label_field": "lable"}, "label_field: the records have no field 'lable'"),
    ({"proposals": "llm_editor"}, "editor: needed"),
    ({"editor_prompt": "{{ text }}"}, "editor_prompt: unknown slot"), ({"max_tokens": 2}, "prompt: 3 tokens; max_tokens is 2"),
])  # fmt: skip
def test_the_plan_refuses(config, says):
    found = problems(**config)
    assert any(says in problem for problem in found), found


@pytest.mark.parametrize(("config", "path"), [
    ({"queries": 0}, "queries"), ({"alpha": 1.0}, "alpha"), ({"held_out": 1.0}, "held_out"), ({"tau": 0}, "tau"),
    ({"rho": float("inf")}, "rho"), ({"labels": "a, b"}, "labels"), ({"iterations": 0}, "iterations"), ({"top": 3}, "top"),
])  # fmt: skip
def test_wrong_values(config, path):
    with pytest.raises(ConfigError) as raised:
        validated(PromptTunerConfig, {**BASE, **config}, "task")
    assert any(problem.path.startswith(path) for problem in raised.value.problems)


def spoilt(**change):
    return Records([{**ROWS.rows[0], **change}, *ROWS.rows[1:]])


@pytest.mark.parametrize(("inputs", "error", "path", "says"), [
    ({"data": Records([], ["id", "text", "label"])}, DataError, "records", "no records"),
    ({"data": spoilt(label="c")}, DataError, "records", "class 'c', which has no word"),
    ({"public": Records([{"id": "p", "text": "x"}])}, DataError, "public", "no field 'label'"),
    ({"public": Records([{"id": "p", "text": "x", "label": "z"}])}, DataError, "public", "class 'z'"),
    ({"data": Records([{"id": "p", "label": "a"}])}, DataError, "prompt", "cannot be filled in"),
    ({"prompt": Document({"tokens": []})}, DataError, "prompt", "not a prompt"),
    ({"prompt": Document(Prompt.parse("say [[it]] {{ text }}").to_json())}, DataError, "prompt", "frozen tokens are not those"),
    ({"prompt": Document(Prompt.parse("say it {{ label }}").to_json())}, DataError, "prompt", "frozen tokens are not those"),
    ({"prompt": Document(Prompt.parse("[[say {{ text }}]] it").to_json())}, DataError, "prompt", "frozen tokens are not those"),
    ({"vocabulary": ("say", "it", "now")}, ConfigError, "masked", "3 usable words, 4 are needed"),
    ({"vocabulary": ("say", "now", "well", "fine")}, ConfigError, "prompt", "does not know 'it'"),
    ({"prompt": Document(Prompt.parse("it " * 198 + "{{ text }}").to_json())}, ConfigError, "prompt", "199 tokens; max_tokens"),
    ({"prompt": Document(Prompt.parse("{{ text }}").to_json())}, ConfigError, "prompt", "nothing to tune"),
    ({"model": object()}, ConfigError, "model", "writes no text"),
])  # fmt: skip
def test_wrong_input_is_located(inputs, error, path, says):
    with pytest.raises(error, match=says) as raised:
        tuned(**inputs)
    assert raised.value.problems[0].path == path


@pytest.mark.parametrize(("answer", "notes"), [
    ("b", {"answers": "every answer was b"}), ("dunno", {"answers": "no answer named a label"}),
    ("I'm sorry, but I cannot answer that", {"answers": "no answer named a label", "refused": "all"}),
])  # fmt: skip
def test_a_model_that_always_says_the_same_is_noted(answer, notes):
    outputs = tuned(answers=lambda prompt: answer, max_new_tokens=20)
    found, values = outputs["metrics"].notes, outputs["metrics"].values
    assert found["answers"] == notes["answers"] and ("refused" in found) == ("refused" in notes)
    assert Prompt.of_json(outputs["prompt"].data).template == BASE["prompt"]
    assert values["accuracy_best"] == values["accuracy_start"] and (answer == "b" or values["batch_start"] == 0)


def test_a_rate_limited_endpoint_is_an_error_with_its_reason():
    class Limited:
        def stream(self, prompts, how):
            yield from ((i, Answer("", False, 0, problem="overloaded")) for i in range(len(prompts)))

    with pytest.raises(ComponentError, match="prompts got no answer") as raised:
        tuned(model=Limited())
    assert raised.value.problems[0].path == "model" and "kept" in raised.value.problems[0].fix


def test_odd_clients_are_served():
    one = tuned(Records(ROWS.rows[:1]))
    assert one["metrics"].notes["held_out"].startswith("no records held out") and "accuracy_start" not in one["metrics"].values
    alone = tuned(Records(ROWS.rows[::2]))["metrics"]
    assert alone.notes["classes"] == "all records are of the class a"
    assert alone.notes["proposals"].startswith("nothing left to gain") and alone.values["queries"] == 6
    same = tuned(prompt=Document(Prompt.parse("it it it it {{ text }}").to_json()))
    assert same["upload"].data["ids"] == [1, 1, 1, 1, -1]


def test_everything_tried_is_noted():
    outputs = tuned(vocabulary=("say", "it"), top_k=2, iterations=50)
    assert outputs["metrics"].notes["proposals"].startswith("nothing left to propose after")
    assert outputs["metrics"].values["iterations"] < 50


def test_classes_that_are_numbers_are_told_by_their_names():
    rows = Records([{**row, "label": "ab".index(row["label"])} for row in ROWS])
    outputs = tuned(rows, answers=lambda prompt: prompt.split()[-1], labels={"0": "a", "1": "b"})
    assert outputs["metrics"].values["accuracy_start"] == 1
