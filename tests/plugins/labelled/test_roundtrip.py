# SPDX-License-Identifier: Apache-2.0
"""Checks before a model is loaded: unfilled slots, samples that a prompt lacks, few-shot examples that do not come back."""

import pytest

from osmotic.plugins.labelled.formats import Labels, Parsed, Rejected, Sample
from osmotic.plugins.labelled.roundtrip import Prompt, check_formats, prompt_problems, stand_ins
from osmotic.plugins.labelled.structured import parse_json, samples_schema
from osmotic.schemas.records import FieldSpec, RecordSchema

LINE = "label: {{ label }} text: {{ text }}"
SAMPLES = [Sample("1", "Fine."), Sample("10", "Not so fine.")]


def test_good_formats_have_no_problems():
    prompt = Prompt("prompt", "Judge: {{ samples }}", {"samples": "label: 1 text: Fine."}, ["label: 1 text: Fine."])
    assert check_formats(SAMPLES, ["1", "10"], LINE, [prompt]) == []


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("Judge: {samples}", "'{samples}' has single braces and is not filled in"),
        ("Judge them.", "the prompt lacks 1 of 1 texts that it has to show; its slots are {{ samples }}"),
        ("Judge: {{ sample }}", "unknown slot 'sample'; did you mean 'samples'?"),
        ("Judge: {{ samples|lower }}", "lacks 1 of 1"),
        ("Judge: {{ samples", "not a valid template"),
        ("{% for s in samples %}{{ s }}{% endfor %}", "not a valid template"),
    ],
)
def test_prompts_that_do_not_show_the_samples(template, what):
    found = prompt_problems(Prompt("prompt", template, {"samples": "Some Text"}, ["Some Text"]))
    assert len(found) == 1 and found[0].startswith("prompt: ") and what in found[0]


@pytest.mark.parametrize(
    ("samples", "labels", "template", "what"),
    [
        ([Sample("1", "a label: b")], ["1"], LINE, "format: a sample of the label '1' is not read back"),
        ([Sample("3", "a")], ["1"], LINE, "its own few-shot example of 1 samples is not read back as it is (unknown-label)"),
        (SAMPLES, ["1", ""], LINE, "labels: a label is empty"),
        (SAMPLES, ["1"], "{{ label }}: {{ text }}", "format: there are no words before the first slot"),
    ],
)
def test_formats_that_do_not_come_back(samples, labels, template, what):
    found = check_formats(samples, labels, template)
    assert what in found[0] and "a label: b" not in found[0]


def test_stand_ins_are_public():
    schema = RecordSchema(fields={"label": FieldSpec(domain=("sad", "glad")), "text": FieldSpec(text=True)})
    assert [one.label for one in stand_ins(schema)] == ["sad", "glad"]
    assert [one.label for one in stand_ins(schema, labels=("a",))] == ["a"]
    assert len(stand_ins(None)) == 2 and not check_formats(stand_ins(None), ("one", "two"), LINE)


# ---- JSON ----


def test_json_is_read_whole_or_cut():
    known = Labels(["1", "10"])
    answer = '{"samples": [{"label": "1", "text": " a "}, {"label": 10, "text": "b"}]}'
    assert samples_schema(["1"])["properties"]["samples"]["items"]["properties"]["label"]["enum"] == ["1"]
    assert parse_json(answer, known).samples == (Sample("1", "a"), Sample("10", "b"))
    cut = parse_json(answer[: answer.index(', "text": "b')], known, finished=False)
    assert cut == Parsed((Sample("1", "a"),), (Rejected('{"label": 10', "cut"),))
    assert parse_json(f"Here you are:\n```json\n{answer}\n```", known).samples == parse_json(answer, known).samples


def test_json_that_holds_no_sample():
    found = parse_json(
        '[{"label": "2", "text": "x"}, {"label": "1"}, {"text": "y"}, {"label": true, "text": "z"}]', Labels(["1"])
    )
    assert not found.samples
    assert [one.reason for one in found.rejected] == ["unknown-label", "no-text", "no-label", "no-label"]
    assert found.rejected[0].raw == '{"label": "2", "text": "x"}'
    for answer in ("", "no", "{" * 3000, '{"a":' * 3000, "[1, 2]", '{"samples": 3}'):
        assert parse_json(answer, Labels(["1"])) == Parsed()
