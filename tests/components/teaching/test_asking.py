# SPDX-License-Identifier: Apache-2.0
"""Prompts asked each with a seed of its own: seeds, journals, attempts that go on after a kill, in any order of answers."""

import random
from collections import Counter

import pytest

from osmotic.components.teaching.asking import Asking, ask, ask_each
from osmotic.plugins.contract import Answer, Generation
from osmotic.plugins.testing import FakeContext
from osmotic.schemas.errors import ComponentError

HOW = Generation(8, 1.0)


class Shuffled:
    """Answers one by one in an order of chance, with the seed; dies after so many. asked: (prompt, seed) of every answer."""

    def __init__(self, order: int, dies: int | None = None) -> None:
        self.order, self.dies, self.asked = random.Random(order), dies, []

    def stream(self, prompts, how):
        places = list(range(len(prompts)))
        self.order.shuffle(places)
        for place in places:
            if self.dies == len(self.asked):
                raise KeyboardInterrupt
            self.asked.append((prompts[place], how.of(place).seed))
            yield place, Answer(f"{prompts[place]} {how.of(place).seed}", True, 1, 1, 0.25)


def even(number: int, answer: Answer) -> bool:
    return int(answer.text.split()[-1]) % 2 == 0


def test_order_of_answers_and_kills_change_nothing():
    prompts = ["a", "b", "a", "a", "c", "b", "a"]
    asking = Asking[int]("m", HOW, attempts=3, accept=even)
    whole = ask_each(FakeContext(models={"m": Shuffled(0)}), prompts, asking)
    assert len({reply.text for reply in whole.came()}) == len(prompts)
    for dies in range(1, 10):
        first, second = Shuffled(dies, dies), Shuffled(dies + 50)
        context = FakeContext(models={"m": first})
        with pytest.raises(KeyboardInterrupt):
            ask_each(context, prompts, asking)
        context.models = {"m": second}
        found = ask_each(context, prompts, asking)
        assert found.known == whole.known and found.spent() == whole.spent()
        assert not set(first.asked) & set(second.asked)  # nothing is paid twice


def test_alike_prompts_are_asked_once_or_each():
    model = Shuffled(0)
    ask(FakeContext(models={"m": model}), Counter(["a", "a", "b"]), Asking[str]("m", HOW))
    assert sorted(prompt for prompt, _ in model.asked) == ["a", "b"] and len({seed for _, seed in model.asked}) == 1
    model = Shuffled(0)
    ask_each(FakeContext(models={"m": model}), ["a", "a", "b"], Asking[int]("m", HOW))
    assert sorted(prompt for prompt, _ in model.asked) == ["a", "a", "b"] and len({seed for _, seed in model.asked}) == 3


def test_failures_are_a_share_of_all_prompts():
    class Fails:
        def stream(self, prompts, how):
            lost = Answer("", False, 0, 2, 0.5, "timeout")
            yield from ((place, lost if prompt == "b" else Answer("x", True, 1)) for place, prompt in enumerate(prompts))

    context = FakeContext(models={"m": Fails()})
    prompts = ["a"] * 19 + ["b"]
    found = ask_each(context, prompts, Asking[int]("m", HOW))
    assert found.failed == {19: "timeout"} and found.spent() == (2, 19, 0.5)
    with pytest.raises(ComponentError, match="1 of 20 rows got no answer: 1 timeout"):
        ask_each(context, prompts, Asking[int]("m", HOW, max_failures=0.04))


def test_nothing_is_asked_where_there_is_nothing():
    assert ask_each(FakeContext(), [], Asking[int]("m", HOW)).came() == []
