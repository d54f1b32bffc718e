# SPDX-License-Identifier: Apache-2.0
"""Rationales come home to their own records, by id, or the decoder says how many do not."""

import random

import pytest

from osmotic import testing
from osmotic.components.rationale_decoder import RationaleDecoder, RationaleDecoderConfig
from osmotic.plugins.contract import Records
from osmotic.schemas.errors import ComponentError, ConfigError, DataError
from osmotic.schemas.records import FieldSpec, RecordSchema

TEMPLATE = "Q: {{ perturbed }}\nA: {{ rationale }}\nQ: {{ sign }}\nA:"
EXPONENTIAL = {"strategy": "exponential", "model": "slm", "template": TEMPLATE}


def tables(count):
    """Records, key and rationales of `count` records; the last two in other orders."""
    records = [{"id": f"r{i}", "sign": f"s{i}"} for i in range(count)]
    key = [{"released": f"x{i}", "id": f"r{i}"} for i in range(count)]
    rationales = [{"id": f"x{i}", "prompt": f"p{i}", "rationale": f"because {i}", "finished": i % 2 == 0} for i in range(count)]
    random.Random(1).shuffle(key)
    random.Random(2).shuffle(rationales)
    return {"records": Records(records), "key": Records(key), "rationales": Records(rationales)}


def run(config, inputs, context=None):
    return testing.run_component(RationaleDecoder, config, inputs, context)["rationales"]


def test_identity_brings_each_rationale_to_its_record():
    assert run({}, tables(40)).rows == [
        {"id": f"r{i}", "rationale": f"because {i}", "prompt": f"p{i}", "finished": i % 2 == 0, "problem": ""}
        for i in range(40)
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["rationales"].rows.pop(), "1 of 9 prompts have no rationales: 'x"),
        (lambda t: t["rationales"].rows.append({**t["rationales"].rows[0]}), "1 rationales came more than once"),
        (lambda t: t["rationales"].rows[0].update(id="zz"), "1 of 9 rationales belong to no prompt: 'zz'"),
        (lambda t: t["key"].rows.pop(), "rationales belong to no prompt"),
        (lambda t: t["records"].rows.pop(), "1 of 9 prompts belong to no record: 'r8'"),
        (lambda t: t["records"].rows.append({"id": "r9", "sign": "s"}), "1 of 10 records have no prompts: 'r9'"),
        (lambda t: t["key"].rows[0].update(id=t["key"].rows[1]["id"]), "record ids of the key came more than once"),
        (lambda t: t["rationales"].rows.clear(), r"9 of 9 prompts have no rationales: .* and 4 more"),
        (lambda t: t["rationales"].rows[0].pop("finished"), "have no 'finished'"),
        (lambda t: t["key"].rows[0].pop("released"), "have no 'released'"),
    ],
)
def test_anything_but_one_answer_a_prompt_is_told(change, message):
    inputs = tables(9)
    change(inputs)
    with pytest.raises(DataError, match=message):
        run({}, inputs)


def subset(*left_out):
    """Tables of nine records; the second attempt left some out of key and rationales."""
    inputs = tables(9)
    for name, column in (("key", "released"), ("rationales", "id")):
        inputs[name].rows[:] = [row for row in inputs[name] if row[column] not in left_out]
    return inputs


def test_a_partial_key_says_which_records_are_meant():
    rows = run({"partial": True}, subset("x0", "x4", "x8")).rows
    assert rows == [
        {"id": f"r{i}", "rationale": f"because {i}", "prompt": f"p{i}", "finished": i % 2 == 0, "problem": ""}
        for i in (1, 2, 3, 5, 6, 7)
    ]
    assert run({"partial": True}, tables(9)).rows == run({}, tables(9)).rows
    model = testing.FakeTextGenerator(lambda prompt: prompt.splitlines()[2])
    decoded = run({**EXPONENTIAL, "partial": True}, subset("x0"), testing.FakeContext(models={"slm": model})).rows
    assert [(row["id"], row["rationale"]) for row in decoded] == [(f"r{i}", f"Q: s{i}") for i in range(1, 9)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["rationales"].rows.pop(), "1 of 6 prompts have no rationales: 'x"),
        (lambda t: t["key"].rows.pop(), "1 of 6 rationales belong to no prompt"),
        (lambda t: t["records"].rows.pop(1), "1 of 6 prompts belong to no record: 'r1'"),
        (lambda t: t["records"].rows.append({"id": "r0", "sign": "s"}), "1 records came more than once: 'r0'"),
    ],
)
def test_a_partial_key_lets_nothing_else_pass(change, message):
    inputs = subset("x0", "x4", "x8")
    with pytest.raises(DataError, match="3 of 9 records have no prompts: 'r0', 'r4', 'r8'"):
        run({}, inputs)
    change(inputs)
    with pytest.raises(DataError, match=message):
        run({"partial": True}, inputs)


def test_exponential_shows_the_demonstration_and_the_real_question():
    model = testing.FakeTextGenerator(lambda prompt: " fits " + prompt.splitlines()[2])
    context = testing.FakeContext(models={"slm": model})
    decoded = run(EXPONENTIAL, tables(20), context).rows
    assert decoded[7] == {
        "id": "r7", "rationale": "fits Q: s7", "prompt": "Q: p7\nA: because 7\nQ: s7\nA:", "finished": True, "problem": "",
    }  # fmt: skip
    assert context.log[-1][:2] == (20, 20)


def test_a_cut_answer_is_marked_and_not_hidden():
    model = testing.FakeTextGenerator(lambda prompt: "one two three four")
    rows = run({**EXPONENTIAL, "max_new_tokens": 2}, tables(1), testing.FakeContext(models={"slm": model})).rows
    assert rows[0]["rationale"] == "one two" and rows[0]["finished"] is False
    assert rows[0]["problem"] == "decoded-too-long"


def test_after_a_kill_no_prompt_is_asked_again():
    asked = []

    def answer(prompt):
        asked.append(prompt)
        if len(asked) == 20:
            raise KeyboardInterrupt
        return "yes"

    context = testing.FakeContext(models={"slm": testing.FakeTextGenerator(answer)})
    with pytest.raises(KeyboardInterrupt):
        run(EXPONENTIAL, tables(40), context)
    assert len(run(EXPONENTIAL, tables(40), context)) == 40
    assert len(asked) == 4 + 40  # the batch that was torn is asked again, the first sixteen are not


def test_a_model_that_loses_an_answer_is_found_out():
    class Lossy:
        def generate(self, prompts, how):
            return testing.FakeTextGenerator(str.upper).generate(prompts, how)[1:]

    with pytest.raises(ComponentError, match="3 answers to 4 prompts"):
        run(EXPONENTIAL, tables(4), testing.FakeContext(models={"slm": Lossy()}))


@pytest.mark.parametrize(
    "config",
    [
        {"strategy": "exponential"}, {"strategy": "exponential", "model": "slm"}, {"model": "slm"}, {"template": "x"},
        {"strategy": "magic"}, {"max_new_tokens": 0}, {"alpha": 1}, {"partial": "yes"}, {"strategy": "encoder-decoder"},
        {"strategy": "substitution", "model": "slm"}, {"strategy": "substitution", "ambiguous": "last"}, {"ambiguous": "first"},
    ],
)  # fmt: skip
def test_wrong_configurations_are_refused(config):
    with pytest.raises(ConfigError):
        run(config, tables(1))


def test_slots_are_checked_before_anything_runs():
    schema = RecordSchema(fields={"sign": FieldSpec(text=True)})
    check = RationaleDecoder.check
    assert check(RationaleDecoderConfig(**EXPONENTIAL), schema) == []
    wrong = RationaleDecoderConfig(strategy="exponential", model="m", template="{{ perturbd }}")
    assert check(wrong, schema) == ["template: unknown slot 'perturbd'; did you mean 'perturbed'?"]
    blind = RationaleDecoderConfig(strategy="exponential", model="m", template="{{ perturbed }}")
    assert [text.partition(",")[0] for text in check(blind, schema)] == [
        "template: it does not show {{ rationale }}", "template: it shows no field of the record"
    ]  # fmt: skip
    assert check(RationaleDecoderConfig(names=["sing"]), schema) == ["names: unknown field 'sing'; did you mean 'sign'?"]
    assert check(RationaleDecoderConfig(names=["sign"]), schema) == check(RationaleDecoderConfig(), schema) == []


def test_it_fits_the_contract():
    context = lambda: testing.FakeContext(models={"slm": testing.FakeTextGenerator(str.upper)})  # noqa: E731
    testing.check_component(RationaleDecoder, EXPONENTIAL, tables(5), context)
    empty = {name: Records([], table.columns) for name, table in tables(1).items()}
    assert run({}, empty).columns == ["id", "rationale", "prompt", "finished", "problem"]
