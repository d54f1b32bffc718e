# SPDX-License-Identifier: Apache-2.0
"""The teacher's generator: order, resume by journal, alike prompts, settings that reach the model, slots."""

import pytest

from osmotic.components.teacher_generator import TeacherGenerator, TeacherGeneratorConfig
from osmotic.plugins.contract import Answer, Generation, Records
from osmotic.plugins.testing import FakeContext, FakeTextGenerator, check_component
from osmotic.schemas.errors import ComponentError, DataError
from osmotic.schemas.records import FieldSpec, RecordSchema

PROMPTS = Records([{"id": f"p{i}", "sign": f"sign{i}"} for i in range(7)])


class Flaky(FakeTextGenerator):
    """Dies when it is asked for one prompt."""

    dies_at = ""

    def generate(self, prompts, how):
        if self.dies_at in prompts:
            raise ComponentError("the endpoint went away")
        return super().generate(prompts, how)


def run(model, prompts: Records = PROMPTS, context: FakeContext | None = None, **changes) -> Records:
    config = TeacherGeneratorConfig(model="teacher", template="Explain {{ sign }}", **changes)
    context = context or FakeContext(models={"teacher": model})
    return TeacherGenerator(config).run(context, prompts)["rationales"]


def test_same_ids_same_order():
    rows = run(FakeTextGenerator(lambda prompt: f"  about {prompt} ")).rows
    assert [row["id"] for row in rows] == [f"p{i}" for i in range(7)]
    assert rows[2] == {
        "id": "p2", "prompt": "Explain sign2", "rationale": "about Explain sign2", "finished": True, "tokens": 3,
    }  # fmt: skip


def test_cut_answers_are_marked():
    assert not run(FakeTextGenerator(lambda prompt: "a b c d"), max_new_tokens=3).rows[0]["finished"]


def test_a_killed_task_asks_only_for_what_is_missing():
    model = Flaky(lambda prompt: prompt.upper())
    model.dies_at = "Explain sign5"
    context = FakeContext(models={"teacher": model})
    with pytest.raises(ComponentError, match="went away"):
        run(model, context=context, batch=2)
    assert len(model.prompts) == 4
    model.dies_at = ""
    rows = run(model, context=context, batch=2).rows
    assert model.prompts == [f"Explain sign{i}" for i in range(7)]
    assert rows == run(FakeTextGenerator(lambda prompt: prompt.upper())).rows
    assert context.log[-1][:2] == (7, 7)
    count = len(model.prompts)
    assert run(model, context=context).rows == rows and len(model.prompts) == count


def test_alike_prompts_are_asked_once():
    model = FakeTextGenerator(lambda prompt: "x")
    rows = run(model, Records([{"id": str(i), "sign": "same"} for i in range(5)])).rows
    assert len(model.prompts) == 1 and [row["id"] for row in rows] == list("01234")


def test_settings_reach_the_model():
    class Noted(FakeTextGenerator):
        def generate(self, prompts, how):
            self.how = how
            return super().generate(prompts, how)

    model = Noted(lambda prompt: "x")
    run(model, max_new_tokens=9, temperature=0.5, top_p=0.9, stop=("\n",))
    assert model.how == Generation(9, 0.5, 0.9, ("\n",), model.how.seed) and model.how.seed > 0


def test_missing_answers_are_an_error():
    class Short:
        def generate(self, prompts, how):
            return [Answer("x", True, 1)]

    with pytest.raises(ComponentError, match="7 prompts were asked, 1 answers came"):
        run(Short())


def test_no_prompts_and_missing_fields():
    empty = run(FakeTextGenerator({}), Records([]))
    assert not len(empty) and empty.columns == ["id", "prompt", "rationale", "finished", "tokens"]
    with pytest.raises(DataError):
        run(FakeTextGenerator({}), Records([{"id": "a", "other": "x"}]))


def test_check_and_contract():
    schema = RecordSchema(fields={"sign": FieldSpec(text=True)})
    config = TeacherGeneratorConfig(model="teacher", template="{{ sing }}")
    assert "'sing'" in TeacherGenerator.check(config, schema)[0]
    model = FakeTextGenerator(lambda prompt: "x")
    check_component(
        TeacherGenerator,
        {"model": "teacher", "template": "{{ sign }}"},
        {"prompts": PROMPTS},
        lambda: FakeContext(models={"teacher": model}),
    )
