# SPDX-License-Identifier: Apache-2.0
"""Synthetic texts: how many of which label, ids, seeds, resuming; a real model draws apart where prompts read alike."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmotic.components.text_synthesizer import TextSynthesizer, TextSynthesizerConfig, apportioned
from osmotic.plugins.contract import Answer, Generation, Records, Weights
from osmotic.plugins.testing import FakeContext, check_component, run_component
from osmotic.schemas.errors import ComponentError, ConfigError, DataError
from osmotic.schemas.records import NUMBERED, FieldSpec, RecordSchema

SCHEMA = RecordSchema(
    fields={
        "label": FieldSpec(domain=("1", "2", "10")), "product": FieldSpec(domain=("tea", "cup")), "text": FieldSpec(text=True)
    }
)  # fmt: skip
WEIGHTS = Weights({}, {"base": "b"})
CONFIG: dict[str, Any] = {"model": "generator", "prompt": "label {{ label }}:", "per_label": 4}


class Writer:
    """Writes its prompt and its seed; may fail, or be killed after some answers."""

    def __init__(self, kill_after: int | None = None, problems: dict[str, str] | None = None) -> None:
        self.kill_after, self.problems = kill_after, problems or {}
        self.asked: list[tuple[str, Generation]] = []
        self.weights: list[Weights] = []

    def with_weights(self, weights: Weights) -> Self:
        self.weights.append(weights)
        return self

    def generate(self, prompts: Sequence[str], how: Generation) -> list[Answer]:
        return [self._answer(prompt, how.of(i)) for i, prompt in enumerate(prompts)]

    def _answer(self, prompt: str, how: Generation) -> Answer:
        if self.kill_after is not None and len(self.asked) >= self.kill_after:
            raise KeyboardInterrupt
        self.asked.append((prompt, how))
        if prompt in self.problems:
            return Answer("", False, 0, problem=self.problems[prompt])
        return Answer(f"  {prompt} {how.seed}\n", True, 3)


class Streamer(Writer):
    """The same, answers last prompt first."""

    def stream(self, prompts: Sequence[str], how: Generation) -> Iterator[tuple[int, Answer]]:
        for i in reversed(range(len(prompts))):
            yield i, self._answer(prompts[i], how.of(i))


def context_of(model: Any, **more: Any) -> FakeContext:
    return FakeContext(models={"generator": model}, record_schema=SCHEMA, **more)


def write(model: Any, counts: Records | None = None, context: FakeContext | None = None, **changes: Any) -> Records:
    context = context or context_of(model)
    given: dict[str, Any] = {"weights": WEIGHTS} | ({"counts": counts} if counts is not None else {})
    return run_component(TextSynthesizer, {**CONFIG, **changes}, given, context)["synthetic"]


def test_every_label_of_the_domain_gets_its_texts_under_numbered_ids() -> None:
    made = write(Writer())
    assert made.columns == ["id", "label", "text"] and len(made) == 12
    assert [row["id"] for row in made] == [f"n{i:07d}" for i in range(12)] and all(NUMBERED.fullmatch(r["id"]) for r in made)
    assert [row["label"] for row in made] == ["1"] * 4 + ["2"] * 4 + ["10"] * 4
    assert all(row["text"].startswith(f"label {row['label']}: ") for row in made)
    assert len({row["text"] for row in made}) == 12  # prompts that read alike are asked with seeds of their own


def test_the_weights_and_the_settings_reach_the_model() -> None:
    model = Writer()
    write(model, max_new_tokens=7, temperature=0.5, top_k=3, top_p=0.8, stop=["x"], batch=5)
    assert model.weights == [WEIGHTS]
    how = model.asked[0][1]
    assert (how.max_new_tokens, how.temperature, how.top_k, how.top_p, how.stop) == (7, 0.5, 3, 0.8, ("x",))
    default = TextSynthesizerConfig(**CONFIG)
    assert (default.max_new_tokens, default.temperature, default.top_k, default.top_p) == (256, 1.0, 50, 0.9)


def test_batches_and_order_of_answers_change_nothing_and_the_seed_does() -> None:
    one = write(Writer()).rows
    assert one == write(Writer(), batch=1).rows == write(Writer(), batch=7).rows == write(Streamer()).rows
    assert one != write(None, context=context_of(Writer(), seed=1)).rows
    check_component(TextSynthesizer, CONFIG, {"weights": WEIGHTS}, lambda: context_of(Writer()))


@pytest.mark.parametrize("kind", [Writer, Streamer])
def test_a_kill_loses_nothing_that_was_answered(kind: type[Writer]) -> None:
    whole, first = write(Writer()).rows, kind(kill_after=7)
    context = context_of(first)
    with pytest.raises(KeyboardInterrupt):
        write(first, context=context, batch=3)
    again = kind()
    context.models = {"generator": again}
    assert write(again, context=context, batch=3).rows == whole
    assert len(again.asked) == (5 if kind is Streamer else 6)  # a batch of three is kept whole or not at all
    assert context.log[-1][:2] == (12, 12)


# ---- counts ----


def counts(**values: float) -> Records:
    return Records([{"value": name.strip("_"), "count": count} for name, count in values.items()], ["value", "count"])


def test_counts_share_the_total_and_negative_ones_are_none() -> None:
    made = write(Writer(), counts(_1=30, _2=-4, _10=10), total=12, per_label=None)
    assert Counter(row["label"] for row in made) == {"1": 9, "10": 3}
    assert len(write(Writer(), counts(_1=30, _2=-4, _10=10))) == 12  # per_label is what each gets on average
    alike = write(Writer(), counts(_1=-1, _2=-4, _10=0))
    assert Counter(row["label"] for row in alike) == {"1": 4, "2": 4, "10": 4}
    part = write(Writer(), counts(_2=5.0))
    assert Counter(row["label"] for row in part) == {"2": 12}
    with pytest.raises(DataError, match="of other values than the labels"):
        write(Writer(), counts(red=3))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.integers(0, 5000))
def test_the_number_of_texts_does_not_depend_on_the_counts(shares: list[float], total: int) -> None:
    parts = apportioned(shares, total)
    assert sum(parts) == total and min(parts) >= 0
    positive = [max(0.0, share) for share in shares]
    if sum(positive) > 0:
        assert all(abs(part - total * share / sum(positive)) < 1 + 1e-6 for part, share in zip(parts, positive, strict=True))


# ---- labels ----


def test_odd_labels_come_back_as_they_are() -> None:
    labels = ("10", "9", "", "x" * 300, "a|b", "Ünï\ncode", "{{ label }}")
    schema = RecordSchema(fields={"label": FieldSpec(domain=labels)})
    context = FakeContext(models={"generator": Writer()}, record_schema=schema)
    made = write(None, context=context, per_label=2)
    assert [row["label"] for row in made][::2] == list(labels)
    assert made.rows[-1]["text"].startswith("label {{ label }}:")


def test_one_label_and_labels_of_ones_own() -> None:
    assert {row["label"] for row in write(Writer(), labels=["2"])} == {"2"}
    made = write(Writer(), context=FakeContext(models={"generator": Writer()}), labels=["a", "b"])  # no schema is asked for
    assert [row["label"] for row in made] == ["a"] * 4 + ["b"] * 4


def test_other_fields_are_constant_or_go_through_their_values() -> None:
    model = Writer()
    write(model, prompt="{{ product }} {{ label }}:")
    assert [prompt for prompt, _ in model.asked][:4] == ["tea 1:", "cup 1:", "tea 1:", "cup 1:"]
    fixed = Writer()
    write(fixed, prompt="{{ product }} {{ label }}:", constants={"product": "cup"})
    assert {prompt.split()[0] for prompt, _ in fixed.asked} == {"cup"}


# ---- what goes wrong ----


def test_empty_texts_stay_and_a_prompt_without_an_answer_is_named_with_its_label() -> None:
    class Silent(Writer):
        def _answer(self, prompt: str, how: Generation) -> Answer:
            return Answer(" \n", True, 1)

    assert [row["text"] for row in write(Silent())] == [""] * 12
    with pytest.raises(ComponentError, match=r"4 of 12 texts could not be written") as caught:
        write(Streamer(problems={"label 10:": "too-long"}))
    assert "too-long; labels: '10'" in str(caught.value)


def test_a_model_elsewhere_takes_no_weights() -> None:
    with pytest.raises(ComponentError, match="takes no trained weights"):
        write(object())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": "{{ lable }}"}, "unknown slot 'lable'"),
        ({"prompt": "{{ text }} {{ label }}"}, "unknown slot 'text'"),
        ({"prompt": "write:"}, "all labels would get the same texts"),
        ({"label_field": "colour"}, "no field 'colour' with a domain"),
        ({"label_field": "text"}, "no field 'text' with a domain"),
        ({"labels": ["1", "3"]}, "labels: '3' is outside the domain"),
        ({"constants": {"product": "pot"}}, "constants.product: 'pot' is outside the domain"),
    ],
)
def test_the_plan_says_what_is_wrong(changes: dict[str, Any], said: str) -> None:
    (problem, *_) = TextSynthesizer.check(TextSynthesizerConfig(**{**CONFIG, **changes}), SCHEMA)
    assert said in problem


def test_a_right_configuration_has_no_problems() -> None:
    assert not TextSynthesizer.check(TextSynthesizerConfig(**CONFIG), SCHEMA)
    assert not TextSynthesizer.check(TextSynthesizerConfig(**{**CONFIG, "labels": ["2"], "prompt": "write:"}), SCHEMA)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"total": 3}, "'per_label' or 'total'"),
        ({"per_label": None}, "'per_label' or 'total'"),
        ({"labels": ["1", "1"]}, "stands twice"),
        ({"constants": {"label": "1"}}, "which is the label"),
        ({"temperature": 0.0}, "greater than 0"),
    ],
)
def test_configurations_that_cannot_be(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        write(Writer(), **changes)


def test_more_texts_than_ids_are_refused() -> None:
    with pytest.raises(ConfigError, match="have an id"):
        write(Writer(), per_label=4_000_000)
