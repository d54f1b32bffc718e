# SPDX-License-Identifier: Apache-2.0
"""Answers as classes, asked once, kept over kills and failures, within a budget."""

import pytest

from osmotic.components.prompting.judging import Judge, SpentError, Verbalizer, label_problems
from osmotic.plugins.contract import Answer, Generation
from osmotic.plugins.testing import FakeContext, FakeTextGenerator
from osmotic.schemas.errors import ComponentError, ConfigError

LABELS = {"0": "bad", "1": "good"}
TEMPLATE = "rate {{ text }}"


@pytest.mark.parametrize(("answer", "name"), [
    ("good", "1"), ("GOOD.", "1"), ("It is not bad, but good", "0"), ("badly goods", None), ("", None), ("**Bad**", "0"),
    ("\uff47\uff4f\uff4f\uff44", "1"), ("good_", None), ("I cannot say", None),
])  # fmt: skip
def test_the_first_whole_word_counts(answer, name):
    assert Verbalizer.of(LABELS).read(answer) == name


def test_words_with_spaces_and_marks():
    reader = Verbalizer.of({"a": "very  good", "b": "+", "c": "so-so"})
    assert [reader.read(text) for text in ("Very good!", "it is +", "so-so", "good")] == ["a", "b", "c", None]


@pytest.mark.parametrize(("labels", "says"), [
    (["Good", "good"], "same word"), ({"a": "good", "b": "not good"}, "cannot be told apart"), (["a"], "single class"),
    ({"a": "so-so", "b": "so"}, "cannot be told apart"), ({"a": " ", "b": "x"}, "empty word"), ([], "no classes"),
    (["a", "a"], "stands twice"), ({"x": "Stra\u00dfe", "y": "STRASSE"}, "same word"),
])  # fmt: skip
def test_words_that_cannot_be_told_apart(labels, says):
    assert any(says in problem for problem in label_problems(labels))
    with pytest.raises(ConfigError, match=says) as raised:
        Verbalizer.of(labels)
    assert raised.value.problems[0].path == "labels"


def judge(context, budget=None, **how):
    return Judge(context, "llm", Verbalizer.of(LABELS), Generation(**{"max_new_tokens": 4, **how}), 2, budget)


def rows(*texts):
    return [{"text": text} for text in texts]


def test_alike_texts_are_asked_once_and_a_second_judge_asks_nothing():
    model = FakeTextGenerator(lambda prompt: "Good" if "sun" in prompt else "hm")
    context = FakeContext(models={"llm": model})
    first = judge(context)
    assert first.answers(TEMPLATE, rows("sun", "rain", "sun")) == ["1", None, "1"]
    assert (first.queries, first.cached) == (2, 1)
    second = judge(context)
    assert second.answers(TEMPLATE, rows("sun", "rain")) == ["1", None] and len(model.prompts) == 2
    assert second.queries == 2  # of the task, not of this attempt: a budget holds over a kill
    judge(context, stop=("x",)).answers(TEMPLATE, rows("sun"))
    assert len(model.prompts) == 3  # asked in another way, it is another question


def test_the_budget_is_never_passed():
    model = FakeTextGenerator(lambda prompt: "good")
    one = judge(FakeContext(models={"llm": model}), budget=3)
    one.answers(TEMPLATE, rows("a", "b"))
    with pytest.raises(SpentError, match="2 queries are needed, 1 of 3"):
        one.answers(TEMPLATE, rows("c", "d"))
    assert one.answers(TEMPLATE, rows("a", "c")) == ["1", "1"] and len(model.prompts) == 3 and one.left == 0
    assert one.answers(TEMPLATE, rows("a", "b", "c")) == ["1"] * 3


class Ailing:
    """Streams answers; `problems`: text -> what goes wrong, this often. `asked`: how often each text was asked."""

    def __init__(self, problems) -> None:
        self.problems, self.asked = dict(problems), dict[str, int]()

    def stream(self, prompts, how):
        for index, prompt in enumerate(prompts):
            self.asked[prompt] = self.asked.get(prompt, 0) + 1
            problem, times = self.problems.get(prompt, ("", 0))
            yield index, Answer("", False, 0, problem=problem) if self.asked[prompt] <= times else Answer("bad", True, 1)


def test_rate_limits_and_timeouts_are_asked_again():
    model = Ailing({"rate a": ("overloaded", 1), "rate b": ("timeout", 2)})
    one = judge(FakeContext(models={"llm": model}))
    assert one.answers(TEMPLATE, rows("a", "b", "c")) == ["0"] * 3
    assert model.asked == {"rate a": 2, "rate b": 3, "rate c": 1} and one.queries == 3


def test_a_dead_endpoint_is_an_error_and_loses_nothing():
    model = Ailing({"rate a": ("server-error", 3)})
    context = FakeContext(models={"llm": model})
    with pytest.raises(ComponentError, match="1 of 2 prompts got no answer") as raised:
        judge(context).answers(TEMPLATE, rows("a", "b"))
    problem = raised.value.problems[0]
    assert problem.path == "model" and "1 server-error" in problem.why and "kept" in problem.fix
    assert judge(context).answers(TEMPLATE, rows("a", "b")) == ["0", "0"]
    assert model.asked == {"rate a": 4, "rate b": 1}


def test_what_a_server_will_never_answer_is_wrong_and_asked_once():
    model = Ailing({"rate a": ("refused-request", 99), "rate b": ("too-long", 99)})
    context = FakeContext(models={"llm": model})
    assert judge(context).answers(TEMPLATE, rows("a", "b", "c")) == [None, None, "0"]
    again = judge(context)
    assert again.answers(TEMPLATE, rows("a", "b", "c")) == [None, None, "0"]
    assert max(model.asked.values()) == 1 and again.notes()["refused"] == "2 of 3"


@pytest.mark.parametrize(("answer", "notes"), [
    ("good", {"answers": "every answer was good"}), ("who knows", {"answers": "no answer named a label"}),
    ("I'm sorry, as an AI I cannot", {"answers": "no answer named a label", "refused": "3 of 3"}),
    ("", {"answers": "no answer named a label"}),
])  # fmt: skip
def test_an_llm_that_always_says_the_same(answer, notes):
    one = judge(FakeContext(models={"llm": FakeTextGenerator(lambda prompt: answer)}), max_new_tokens=20)
    one.answers(TEMPLATE, rows("a", "b", "c"))
    assert one.notes() == notes


def test_a_model_that_writes_nothing():
    with pytest.raises(ConfigError, match="writes no text"):
        judge(FakeContext(models={"llm": object()})).answers(TEMPLATE, rows("a"))
