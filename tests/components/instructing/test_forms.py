# SPDX-License-Identifier: Apache-2.0
"""Rules that look at one text: empty, short, refusing, a persona's opening; prompts of demonstrations."""

import random

import pytest

from osmotic.components.instructing.demonstrations import Layout, Prompts, examples_of, field_problems
from osmotic.components.instructing.forms import PERSONAS, form_reason, plain
from osmotic.components.rationale_rules import REFUSALS
from osmotic.plugins.contract import Records
from osmotic.schemas.errors import DataError
from osmotic.schemas.records import FieldSpec, RecordSchema


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"), (" \n", "empty"), ("...", "empty"), ("boil it", "too-short"), ("Boil two cups of water.", ""),
        ("I'm sorry, but I can\N{RIGHT SINGLE QUOTATION MARK}t help with that task.", "refusal"),
        ("As an AI, I cannot do so.", "refusal"), ("As a virtual assistant, write a poem.", "persona"),
        ("You are a helpful assistant that writes poems.", "persona"), ("Pretend you are my doctor now.", "persona"),
        ("Tell me what my name is in French.", ""), ("Explain how a language works, model by model.", ""),
        ("one two three four five six seven eight", "too-many-words"),
    ],
)  # fmt: skip
def test_the_form_of_a_text(text: str, reason: str) -> None:
    assert form_reason(text, 3, REFUSALS, PERSONAS, 7 if reason == "too-many-words" else None) == reason


def test_lists_of_ones_own() -> None:
    assert form_reason("Ahoy there my friend", 1, (), ("ahoy",)) == "persona"
    assert form_reason("As an AI I will.", 1, (), ()) == ""
    assert plain("Boil  the\nWATER!") == plain("boil the water") != plain("boil water")


# ---- demonstrations ----

ROWS = [{"id": str(i), "q": f"question {i}", "a": f"answer {i}"} for i in range(5)]


def test_prompts_list_different_examples_and_end_with_an_empty_one() -> None:
    layout = Layout("Task {{ index }}: {{ instruction }}", "\n", "{{ demonstrations }}\nTask {{ index }}:")
    assert layout.problems(["instruction"]) == []
    prompts = Prompts(layout, examples_of(Records(ROWS), {"instruction": "q"}), 3)
    made = prompts.written(random.Random(1), [{}] * 40)
    for text in made:
        lines = text.split("\n")
        assert [line.partition(":")[0] for line in lines] == ["Task 1", "Task 2", "Task 3", "Task 4"] and lines[-1] == "Task 4:"
        shown = [line.partition(": ")[2] for line in lines[:-1]]
        assert len(set(shown)) == 3 and set(shown) <= {row["q"] for row in ROWS}
    assert len(set(made)) > 20 and made == prompts.written(random.Random(1), [{}] * 40)
    assert {line.partition(": ")[2] for text in made for line in text.split("\n")[:-1]} == {row["q"] for row in ROWS}


def test_texts_of_records_are_shown_as_they_are() -> None:
    odd = [{"id": "1", "instruction": "{{ secret }} {% if %}"}]
    prompts = Prompts(
        Layout("{{ instruction }}", "", "{{ demonstrations }}:"), examples_of(Records(odd), {"instruction": "instruction"}), 1
    )
    assert prompts.written(random.Random(0), [{}]) == ["{{ secret }} {% if %}:"]


def test_templates_that_cannot_be_filled_or_show_nothing() -> None:
    found = Layout("{{ question }}", "", "{{ demonstration }}").problems(["instruction"])
    assert any("item: unknown slot 'question'" in one for one in found)
    assert any("prompt: unknown slot 'demonstration'" in one and "demonstrations" in one for one in found)
    assert (
        Layout("Task", "", "{{ demonstrations }}").problems(["instruction"])[0].startswith("item: does not show 'instruction'")
    )
    assert (
        Layout("{{ instruction }}", "", "{{ demonstrations }}")
        .problems(["instruction"], ["instruction"])[0]
        .startswith("prompt: does")
    )


def test_records_without_texts() -> None:
    with pytest.raises(DataError, match="5 of 5 records have no 'instruction'"):
        examples_of(Records(ROWS), {"instruction": "instruction"})
    with pytest.raises(DataError, match="1 of 2 records have no text in 'q'") as error:
        examples_of(Records([{"id": "1", "q": None}, {"id": "2", "q": "secret"}]), {"instruction": "q"})
    assert "secret" not in str(error.value)
    blank = Records([{"id": "1", "q": " "}, {"id": "2", "q": "x"}])
    assert examples_of(blank, {"instruction": "q"}) == [{"instruction": "x"}]  # blank ones show nothing
    schema = RecordSchema(fields={"question": FieldSpec(text=True)})
    assert field_problems({"instruction_field": "questions"}, schema)[0].startswith(
        "instruction_field: the records have no field"
    )
    assert field_problems({"instruction_field": "question"}, schema) == [] == field_problems({"instruction_field": "x"}, None)
