# SPDX-License-Identifier: Apache-2.0
"""The filter of synthetic instructions: form, repeats, near-copies, splitting, and what it reads."""

from typing import Any

import pytest

from osmotic.components.instruction_filter import InstructionFilter, InstructionFilterConfig
from osmotic.components.metrics import rouge_l
from osmotic.plugins.contract import Document, Outputs, Records, input_ports
from osmotic.plugins.testing import FakeContext, check_component, run_component
from osmotic.schemas.errors import ComponentError, ConfigError, DataError
from osmotic.schemas.records import numbered

PATTERN = r"(?s)instruction: (?P<instruction>.*?) response: (?P<response>.*)"


def table(*pairs: tuple[str, str]) -> Records:
    rows = [{"id": numbered(i), "instruction": a, "response": b, "label": "x"} for i, (a, b) in enumerate(pairs)]
    return Records(rows, ["id", "instruction", "response", "label"])


def sort(synthetic: Records, against: Records | None = None, **config: Any) -> Outputs:
    inputs: dict[str, Any] = {"synthetic": synthetic} | ({"against": against} if against is not None else {})
    return run_component(InstructionFilter, config, inputs, FakeContext())


def reasons(outputs: Outputs) -> dict[str, str]:
    left = outputs["rejected"]
    assert isinstance(left, Records)
    return {row["id"]: row["reason"] for row in left}


def report(outputs: Outputs) -> dict[str, Any]:
    found = outputs["report"]
    assert isinstance(found, Document)
    return dict(found.data)


def test_every_rule_has_its_reason_and_what_is_kept_stays_as_it_is() -> None:
    rows = [
        ("Boil seven cups of tea", "Done."), ("", "Done."), ("Boil tea", "Done."), ("Fold the big map", " \n"),
        ("As a chatbot, fold a map", "Done."), ("I'm sorry, I cannot help with that", "Done."),
        ("Wash the red car", "I'm sorry, but I can't help."), ("boil SEVEN cups of tea!", "Other."),
        ("Sell the old car ### Response: no", "Done."), ("Paint a long fence", "It is painted."),
    ]  # fmt: skip
    made = sort(table(*rows))
    assert reasons(made) == {
        "n0000001": "instruction-empty", "n0000002": "instruction-too-short", "n0000003": "response-empty",
        "n0000004": "instruction-persona", "n0000005": "instruction-refusal", "n0000006": "response-refusal",
        "n0000007": "repeat", "n0000008": "marker",
    }  # fmt: skip
    assert made["kept"].columns == ["id", "instruction", "response"]
    assert [row["id"] for row in made["kept"]] == ["n0000000", "n0000009"]
    found = report(made)
    assert (found["rows"], found["kept"], found["compared"]) == (10, 2, False)
    assert found["rejected"]["repeat"] == 1 and found["notes"][0].startswith("2 of 10 examples were kept; rejected: 1 ")
    assert (
        reasons(sort(table(("Boil seven cups of tea", "Done."), ("Go on with it", "a b c d e")), max_words=5, min_words=1))
        == {}
    )
    assert len(reasons(sort(table(("Boil seven cups of tea", "Done."), ("Go on with it", "a b c d e f")), max_words=5))) == 1


LOCAL = Records(
    [{"id": "p", "instruction": "one two three four five six seven eight nine ten", "response": "a b c d e f g h i j"}]
)


def shared(same: int, words: str) -> str:
    return " ".join(words.split()[:same] + [f"other{i}" for i in range(10 - same)])


@pytest.mark.parametrize("field", ["instruction", "response"])
def test_exactly_seven_tenths_is_kept_and_more_is_not(field: str) -> None:
    own = {"instruction": "say what you think of ships", "response": "They sail."}
    local = LOCAL.rows[0][field]
    examples = [{**own, "instruction": f"{own['instruction']} and {i}", field: shared(7 + i, local)} for i in range(3)]
    made = sort(table(*((e["instruction"], e["response"]) for e in examples)), LOCAL)
    assert rouge_l([local], [shared(7, local)])[0] == pytest.approx(0.7, abs=1e-12)
    assert reasons(made) == {"n0000001": "near-local", "n0000002": "near-local"} and report(made)["compared"] is True
    loose = sort(table(*((e["instruction"], e["response"]) for e in examples)), LOCAL, rouge_l=0.8)
    assert reasons(loose) == {"n0000002": "near-local"}


def test_both_together_may_be_near_where_neither_is() -> None:
    local = Records([{"id": "p", "instruction": "a b c d e f g h i j", "response": "k"}])
    mine = table(("a b c d e f g x y z", "k"), ("some thing quite other", "k k k"))
    assert reasons(sort(mine, local)) == {"n0000000": "near-local"}  # .7, 1 for a single word, 16/22 together
    assert reasons(sort(mine)) == {}


def test_a_run_of_words_within_a_long_text() -> None:
    text = "please write to the bank and say one two three four five six and nothing else of any kind to anybody there"
    assert reasons(sort(table((text, "Done."), ("Boil some more tea", "Done.")), LOCAL)) == {}
    assert reasons(sort(table((text, "Done."), ("Boil some more tea", "Done.")), LOCAL, longest_run=5)) == {
        "n0000000": "near-local"
    }


def test_without_local_records_there_is_no_port_through_which_they_could_come() -> None:
    """The DP path: the output is a function of the synthetic rows; no model, data set or stream is asked for."""
    ports = input_ports(InstructionFilter)
    assert set(ports) == {"synthetic", "against"} and ports["against"].optional

    class Nothing(FakeContext):
        def __getattribute__(self, name: str) -> Any:
            if name in ("rng", "model", "dataset", "schema", "journal", "release"):
                raise AssertionError(name)
            return super().__getattribute__(name)

    synthetic = table(("Boil seven cups of tea", "Done."))
    run_component(InstructionFilter, {}, {"synthetic": synthetic}, Nothing())
    check_component(InstructionFilter, {}, {"synthetic": synthetic})


def test_texts_of_a_generator_are_split_by_a_pattern() -> None:
    texts = ["kind: instruction: boil the tea now response: done.\nat once", "no such thing", "instruction:  response: x"]
    synthetic = Records([{"id": numbered(i), "label": "l", "text": text} for i, text in enumerate(texts)])
    made = sort(synthetic, pattern=PATTERN)
    assert made["kept"].rows == [{"id": "n0000000", "instruction": "boil the tea now", "response": "done.\nat once"}]
    assert reasons(made) == {"n0000001": "unsplit", "n0000002": "instruction-empty"}
    with pytest.raises(DataError, match="the synthetic rows have one text, not two") as error:
        sort(synthetic)
    assert error.value.problems[0].path == "pattern" and "(?P<instruction>" in error.value.problems[0].fix


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"pattern": "(?P<instruction>.*)"}, "must have the named groups"), ({"pattern": "("}, "not a regular expression"),
        ({"pattern": PATTERN + "(?P<more>x)"}, "and no others"), ({"max_words": 2}, "max_words is less than"),
        ({"rouge_l": 7}, "less than or equal to 1"),
    ],
)  # fmt: skip
def test_configurations_that_cannot_be(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        sort(table(("Boil seven cups of tea", "Done.")), **config)


def test_when_nothing_is_left_the_counts_are_told() -> None:
    rows = table((LOCAL.rows[0]["instruction"], "x"), ("Tea", "x"), (LOCAL.rows[0]["instruction"] + " eleven", "x"))
    with pytest.raises(
        ComponentError, match="none of 3 synthetic examples is of use: 2 near-local, 1 instruction-too-short"
    ) as error:
        sort(rows, LOCAL)
    assert "one two three" not in str(error.value)
    with pytest.raises(ComponentError, match="there are none"):
        sort(table())
    with pytest.raises(DataError, match="came more than once"):
        sort(Records([{"id": "a", "instruction": "x", "response": "y"}] * 2))
    with pytest.raises(DataError, match="1 of 1 records have no 'instruction'"):
        sort(table(("Boil seven cups of tea", "Done.")), Records([{"id": "p", "text": "x"}]))
    assert InstructionFilterConfig().rouge_l == 0.7
