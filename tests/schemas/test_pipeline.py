# SPDX-License-Identifier: Apache-2.0
"""The pipeline document: short forms, limits, and messages that come from one member of a union only."""

from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from osmotic.schemas.errors import ConfigError
from osmotic.schemas.generate import generate
from osmotic.schemas.pipeline import Pipeline, RepeatSpec, TaskSpec
from osmotic.schemas.source import parse, validate

GOOD = """\
osmotic: 1
name: tiny
parties: {server: hub, clients: [north, south]}
models:
  teacher: {type: markov, at: server, config: {order: 2}}
matrix: {arm: [a, 2, 0.5, true]}
tasks:
  records: {component: record_loader, at: clients, config: {data: notes}}
  sanitized:
    component: dp_sanitizer
    at: clients
    inputs: {records: records, extra: {from: records, waive: measured on public data}}
    vary: {arm: {a: {inputs: {extra: null}, config: {k: 1}}, "2": {skip: true}}}
  rounds:
    repeat: {times: 3, carry: {weights: {from: student, start: sanitized}}, until: {metric: "exam.metrics:right", at_least: 1}}
    tasks:
      student: {component: trainer, at: clients, inputs: {weights: carry.weights}}
report: {table: rounds.student, metrics: {accuracy: Accuracy}}
"""


def load(text: str) -> Pipeline:
    return validate(Pipeline, parse(text, "p.yaml"))


def problems(text: str) -> dict[str, str]:
    """path -> 'line:column what | fix'."""
    with pytest.raises(ConfigError) as caught:
        load(text)
    return {
        p.path: f"{p.where.removeprefix('p.yaml:')} {p.what}{f' | {p.fix}' if p.fix else ''}" for p in caught.value.problems
    }


def accepted_by_json_schema(text: str) -> bool:
    return jsonschema.Draft202012Validator(generate()["pipeline"]).is_valid(parse(text, "p").value)


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def test_a_whole_pipeline() -> None:
    pipeline = load(GOOD)
    assert pipeline.parties == {"server": ("hub",), "clients": ("north", "south")}
    assert pipeline.matrix["arm"] == ("a", 2, 0.5, True)
    task, group = pipeline.tasks["sanitized"], pipeline.tasks["rounds"]
    assert isinstance(task, TaskSpec) and isinstance(group, RepeatSpec)
    records, extra = task.inputs["records"], task.inputs["extra"]
    assert records and extra and (records.source, records.waive) == ("records", None)
    assert extra.waive == "measured on public data"
    assert task.vary["arm"]["a"].inputs == {"extra": None} and task.vary["arm"]["2"].skip
    assert group.repeat.until and group.repeat.until.at_least == 1.0
    assert Pipeline.model_validate(pipeline) == pipeline
    assert accepted_by_json_schema(GOOD)


@pytest.mark.parametrize(
    ("parties", "names"),
    [("1", ("party-0",)), ("11", tuple(f"party-{i:02d}" for i in range(11))), ("solo", ("solo",)), ("[b, a]", ("b", "a"))],
)
def test_parties_in_short(parties: str, names: tuple[str, ...]) -> None:
    text = changed("[north, south]", parties)
    assert load(text).parties["clients"] == names and accepted_by_json_schema(text)


@pytest.mark.parametrize("parties", ["0", "-1", "100001", "[]", "[North]", "{a: b}", "null", "true", "1.5"])
def test_parties_that_are_none(parties: str) -> None:
    text = changed("[north, south]", parties)
    assert next(iter(problems(text))).startswith("parties.clients")
    assert not accepted_by_json_schema(text)


def test_a_party_stands_once_in_a_role() -> None:
    assert problems(changed("[north, south]", "[north, north]")) == {"parties.clients": "3:24 a party stands twice: north"}


def test_errors_of_a_task_do_not_speak_of_repeats() -> None:
    text = changed("config: {data: notes}", "confg: {data: notes}, each: partei")
    assert problems(text) == {
        "tasks.records.confg": "8:52 unknown key | did you mean 'config'?",
        "tasks.records.each": "8:74 must be 'party' (got 'partei') | did you mean 'party'?",
    }


def test_errors_of_a_repeat_do_not_speak_of_tasks() -> None:
    text = changed("times: 3", "times: 0, tims: 3").replace("component: trainer, ", "")
    assert problems(text) == {
        "tasks.rounds.repeat.times": "15:14 must be greater than or equal to 1 (got 0)",
        "tasks.rounds.repeat.tims": "15:24 unknown key | did you mean 'times'?",
        "tasks.rounds.tasks.student.component": "17:7 this key is required",
    }


def test_a_task_that_is_called_like_a_key() -> None:
    old = "  records: {component: record_loader, at: clients, config: {data: notes}}"
    text = changed(old, "  repeat: {component: x}\n  config: {at: server, modle: 1}")
    assert problems(text) == {
        "tasks.repeat.at": "8:3 this key is required",
        "tasks.config.component": "9:3 this key is required",
        "tasks.config.modle": "9:24 unknown key | known: at, component, config, each, inputs, matrix, require, vary",
    }


def test_inputs_that_are_none() -> None:
    text = changed("{records: records,", "{records: 3, other: [a], third: {frm: x}, fourth: {from: x, waive: short},")
    assert problems(text) == {
        "tasks.sanitized.inputs.records": "12:14 must be a mapping (got 3)",
        "tasks.sanitized.inputs.other": "12:26 must be a mapping (got a list)",
        "tasks.sanitized.inputs.third.from": "12:38 this key is required",
        "tasks.sanitized.inputs.third.frm": "12:46 unknown key | did you mean 'from'?",
        "tasks.sanitized.inputs.fourth.waive": "12:73 must have at least 10 characters (got 'short')",
    }
    assert not accepted_by_json_schema(text)


def test_axis_values_speak_with_one_voice() -> None:
    (message,) = problems(changed("[a, 2, 0.5, true]", "[a, [b]]")).values()
    assert message == "6:19 must be a string, an integer, a number or true or false (got a list)"


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("osmotic: 1", "osmotic: 2", "osmotic"),
        ("osmotic: 1\n", "", "osmotic"),
        ("osmotic: 1", "osmotic: '1'", "osmotic"),
        ("name: tiny", "name: Tiny", "name"),
        ("name: tiny", "name: 2024-01-01", "name"),
        ("name: tiny", f"name: {'x' * 65}", "name"),
        ("name: tiny", "name: tiny\nseed: -1", "seed"),
        ("name: tiny", "name: tiny\nseed: 1.0", "seed"),
        ("name: tiny", "name: tiny\nnoise_seed: yes", "noise_seed"),
        ("  rounds:", "  Bad Name:", "tasks.Bad Name"),
        ("at: server", "at: [server]", "models.teacher.at"),
        ("times: 3", "times: 10001", "tasks.rounds.repeat.times"),
        ("report: {", "report: {tabel: x, ", "report.tabel"),
    ],
)
def test_every_mistake_is_found_at_its_path(old: str, new: str, path: str) -> None:
    text = changed(old, new)
    assert list(problems(text)) == [path]
    if path != "seed":  # JSON Schema takes 1.0 for an integer
        assert not accepted_by_json_schema(text)


def test_tasks_may_not_be_empty() -> None:
    for tasks in ("{}", "null", "[]", "3"):
        assert list(problems(f"osmotic: 1\nname: x\nparties: {{server: hub}}\ntasks: {tasks}\n")) == ["tasks"]


def test_the_models_are_frozen_and_strict() -> None:
    pipeline: Any = load(GOOD)
    with pytest.raises(ValidationError):
        pipeline.name = "other"
    with pytest.raises(ValidationError):
        Pipeline.model_validate({**pipeline.model_dump(by_alias=True), "seed": "3"})


def test_a_dump_can_be_read_again() -> None:
    pipeline = load(GOOD)
    assert Pipeline.model_validate(pipeline.model_dump(by_alias=True)) == pipeline
    assert Pipeline.model_validate_json(pipeline.model_dump_json(by_alias=True)) == pipeline
