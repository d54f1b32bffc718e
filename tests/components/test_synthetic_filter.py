# SPDX-License-Identifier: Apache-2.0
"""Which synthetic texts stay: length, labels, duplicates, label words, a scorer, shares; what is said when none does."""

from typing import Any

import pytest

from osmotic.components.synthetic_filter import SyntheticFilter, SyntheticFilterConfig
from osmotic.plugins.contract import Outputs, Records, input_ports
from osmotic.plugins.testing import FakeContext, FakeScorer, check_component, run_component
from osmotic.schemas.errors import ComponentError, ConfigError, DataError
from osmotic.schemas.records import FieldSpec, RecordSchema, numbered

SCHEMA = RecordSchema(fields={"label": FieldSpec(domain=("sport", "food", "3")), "text": FieldSpec(text=True)})
SPORT = "the team won its first match of the year in front of a full house"
FOOD = "we ordered two bowls of soup with bread and they came hot within minutes"
OTHER = "three of the reviewers said that nothing about this thing was worth a second look"


def table(*rows: tuple[str, str]) -> Records:
    return Records([{"id": numbered(i), "label": a, "text": b} for i, (a, b) in enumerate(rows)], ["id", "label", "text"])


def sort(texts: Records, context: FakeContext | None = None, **config: Any) -> Outputs:
    return run_component(SyntheticFilter, config, {"texts": texts}, context or FakeContext(record_schema=SCHEMA))


def reasons(out: Outputs) -> dict[str, str]:
    return {row["id"]: row["reason"] for row in out["rejected"]}


def test_there_is_no_port_for_records() -> None:
    """A near-copy filter would need one: a text left out tells that a record is there."""
    assert list(input_ports(SyntheticFilter)) == ["texts"]


def test_valid_texts_keep_ids_order_and_content() -> None:
    texts = table(("sport", SPORT + "."), ("food", " - - - "), ("food", FOOD), ("3", OTHER))
    out = sort(texts)
    assert out["valid"].rows == [texts.rows[0], texts.rows[2], texts.rows[3]]
    assert reasons(out) == {numbered(1): "empty"}
    values = out["report"].values
    assert (values["texts"], values["valid"], values["valid_share"], values["rejected_empty"]) == (4, 3, 0.75, 1)
    assert values["silent_labels"] == 0 and 0.9 < values["distinct_2"] <= 1 and out["report"].notes == {}
    check_component(SyntheticFilter, {}, {"texts": texts}, lambda: FakeContext(record_schema=SCHEMA))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"), (" -._~/\\*|# \n", "empty"), ("# " * 30, "empty"), ("*** . " * 12, "empty"),
        ("one two three four five six seven eight nine", "too-short"), ("- one two. three | * # ~ / .. a b c d", "too-short"),
        ("one two three four five six seven eight nine ten", None), ("w " * 40, "too-long"),
    ],
)  # fmt: skip
def test_words_are_counted_and_marks_are_not(text: str, reason: str | None) -> None:
    out = sort(table(("sport", SPORT), ("food", text)), max_words=30)
    assert reasons(out) == ({numbered(1): reason} if reason else {})


def test_labels_that_are_none_are_named() -> None:
    out = sort(table(("sport", SPORT), ("Sport", FOOD), ("33", OTHER), ("x" * 300, OTHER + " again")))
    assert set(reasons(out).values()) == {"unknown-label"} and len(out["valid"]) == 1
    assert out["report"].notes["unknown labels"].startswith("not a label: '33', 'Sport', 'xxx")
    assert len(sort(table(("a", SPORT)), FakeContext(), labels=["a"])["valid"]) == 1  # no schema is asked for


def test_duplicates_go_and_the_first_stays() -> None:
    out = sort(
        table(("sport", SPORT), ("food", SPORT.upper()), ("sport", SPORT + " again"), ("food", FOOD)), near_duplicate=0.8
    )
    assert reasons(out) == {numbered(1): "duplicate", numbered(2): "duplicate"}
    assert len(sort(table(("sport", SPORT), ("food", SPORT)), near_duplicate=None)["valid"]) == 2


def test_label_words_are_whole_words() -> None:
    texts = table(("sport", SPORT), ("food", FOOD.replace("soup", "soupy")), ("3", OTHER))
    out = sort(texts, label_words={"sport": ["MATCH"], "food": ["soup", "cold bread"]})
    assert reasons(out) == {numbered(1): "label-words"}


def by_topic(prompt: str, target: str) -> float:
    """sport is -1 where a team plays, else -3; food the other way round; 3 is always -2."""
    plays = "team" in prompt
    return {"sport": -1.0 if plays else -3.0, "food": -3.0 if plays else -1.0, "3": -2.0}[target.strip()]


@pytest.mark.parametrize(("margin", "kept"), [(0.0, 2), (0.99, 2), (1.0, 3), (2.0, 4)])
def test_the_scorer_keeps_what_is_likeliest_or_nearly_so(margin: float, kept: int) -> None:
    context = FakeContext(record_schema=SCHEMA, models={"judge": FakeScorer(by_topic)})
    texts = table(("sport", SPORT), ("food", FOOD), ("3", OTHER), ("sport", FOOD + " and so it went on and on"))
    out = sort(texts, context, scorer="judge", margin=margin)
    assert len(out["valid"]) == kept and set(reasons(out).values()) <= {"inconsistent"}


def test_the_scorer_sees_only_what_is_left_and_scores_a_token_where_asked() -> None:
    judge = FakeScorer(by_topic)
    sort(table(("sport", SPORT), ("food", "")), FakeContext(record_schema=SCHEMA, models={"judge": judge}), scorer="judge")
    assert len(judge.pairs) == 3 and {prompt for prompt, _ in judge.pairs} == {f"{SPORT}\nLabel:"}
    long = FakeScorer(lambda prompt, target: {"a": -2.0, "b b b": -3.0}[target.strip()])
    for score, label in (("sum", "a"), ("token_mean", "b b b")):
        context = FakeContext(models={"judge": long})
        out = sort(table(("a", SPORT), ("b b b", FOOD)), context, labels=["a", "b b b"], scorer="judge", label_score=score)
        assert [row["label"] for row in out["valid"]] == [label]


def test_no_label_has_more_than_its_share() -> None:
    rows = [("sport", f"{SPORT} {' '.join(f'n{i}{j}' for j in range(12))}") for i in range(8)] + [("food", FOOD), ("3", OTHER)]
    out = sort(table(*rows), max_share=0.5)
    assert [row["label"] for row in out["valid"]] == ["sport", "sport", "food", "3"]
    assert set(reasons(out).values()) == {"share"} and [row["id"] for row in out["valid"]][:2] == [numbered(0), numbered(1)]
    assert len(sort(table(*rows), max_share=0.1)["valid"]) == 3  # cannot be: then alike
    assert len(sort(table(*rows[:8]), max_share=0.5)["valid"]) == 8  # one label alone


def test_a_label_without_a_valid_text_is_named_with_samples() -> None:
    out = sort(table(("sport", SPORT), ("food", "too short"), ("food", "")))
    assert out["report"].values["silent_labels"] == 2
    said = list(out["report"].notes.values())
    assert said == ["label 'food': 1 too-short, 1 empty, e.g. 'too short', ''", "label '3': no text came"]


def test_nothing_valid_is_an_error_with_labels_and_samples() -> None:
    with pytest.raises(ComponentError, match="none of 3 synthetic texts is valid") as caught:
        sort(table(("sport", "goal"), ("food", "soup soup"), ("food", "")))
    said = str(caught.value)
    assert "label 'sport': 1 too-short, e.g. 'goal'" in said and "label 'food'" in said and "label '3': no text came" in said
    with pytest.raises(ComponentError, match="none of 0"):
        sort(table())


def test_damaged_tables_are_refused() -> None:
    with pytest.raises(DataError, match="have no 'label'"):
        sort(Records([{"id": numbered(0), "text": SPORT}]))
    with pytest.raises(DataError, match="more than once"):
        sort(Records(table(("sport", SPORT)).rows * 2))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": "{{ record }}"}, "unknown slot 'record'"),
        ({"target": "{{ text }}"}, "unknown slot 'text'"),
        ({"label_field": "colour"}, "no field 'colour' with a domain"),
        ({"label_field": "text"}, "no field 'text' with a domain"),
        ({"label_words": {"sprot": ["ball"]}}, "'sprot' is no label"),
    ],
)
def test_the_plan_says_what_is_wrong(changes: dict[str, Any], said: str) -> None:
    (problem,) = SyntheticFilter.check(SyntheticFilterConfig(**changes), SCHEMA)
    assert said in problem


def test_bounds_that_cannot_be_kept() -> None:
    with pytest.raises(ConfigError, match="min_words 10 is more than max_words 5"):
        sort(table(("sport", SPORT)), max_words=5)
    assert not SyntheticFilter.check(SyntheticFilterConfig(labels=("a",)), SCHEMA)
