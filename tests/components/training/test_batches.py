# SPDX-License-Identifier: Apache-2.0
"""Batches: order, truncation that spares the cue, targets that do not fit, re-drawing, held-out records, state."""

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from osmotic.components.templates import compile_template
from osmotic.components.training.batches import Encoder, Order, Redraw, StepFeed, Task, cue_of
from osmotic.schemas.errors import ComponentError

END = 0
ROWS = [{"id": str(i), "word": f"{10 + i}", "gold": f"{90 - i}"} for i in range(7)]


class Numbers:
    """A tokenizer of numbers: "5 6" is [5, 6]."""

    eos_token_id = END

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}


def encoder(limit: int = 16, **changes: Any) -> Encoder:
    tokenizer = Numbers()

    def prompts(texts: Sequence[str]) -> list[list[int]]:
        return [tokenizer(text)["input_ids"] for text in texts]

    return Encoder(prompts, tokenizer, limit, **changes)


def task(rows: Sequence[Any] = ROWS, redraw: Redraw | None = None, prompt: str = "1 {{ word }} 2", **changes: Any) -> Task:
    templates = compile_template(prompt, "prompt"), compile_template("{{ gold }}", "target")
    return Task(*templates, rows, random.Random(3), redraw, changes.pop("encoder", encoder()), **changes)


def test_order_visits_every_wanted_record_once_an_epoch():
    order = Order(random.Random(0), [i != 3 for i in range(7)])
    seen = order.take(12)
    assert sorted(seen[:6]) == sorted(seen[6:]) == [0, 1, 2, 4, 5, 6]
    with pytest.raises(ComponentError, match="no record"):
        Order(random.Random(0), [False, False])


def test_targets_end_with_the_end_token_and_are_never_cut():
    pairs, short = encoder().pairs(["1 2 3"], ["4 5"], [0])
    assert pairs == [([1, 2, 3], [4, 5, END])] and short == 0


@pytest.mark.parametrize("cut", ["left", "middle"])
@pytest.mark.parametrize("apart", [False, True])
def test_a_long_prompt_keeps_its_cue_whatever_it_loses(cut, apart):
    prompt = list(range(1, 41))
    text = " ".join(map(str, prompt))
    for cue in range(10):
        pairs, short = encoder(cut=cut, apart=apart).pairs([text], ["4 5 6"], [0], cue)
        head, tail = pairs[0]
        room = 16 if apart else 12
        assert tail == [4, 5, 6, END] and short == 1 and len(head) == room
        kept = max(cue, 8)
        assert head[-kept:] == prompt[-kept:]
        assert (head[0] == 1) == (cut == "middle" and room - kept > 1)
        assert sorted(head) == head and set(head) <= set(prompt)


@pytest.mark.parametrize("cut", ["left", "middle"])
def test_a_long_prompt_keeps_the_start_token_that_the_model_puts_before_it(cut):
    made = encoder(cut=cut)
    made.tokenizer.bos_token_id = 99
    long = [99, *range(1, 41)]
    for cue in range(13):
        head = made.pairs([" ".join(map(str, long))], ["4 5 6"], [0], cue)[0][0][0]
        kept = max(cue, 8)
        assert len(head) == 12 and head[-kept:] == long[-kept:] and (head[0] == 99) == (kept < 12)
    assert made.pairs([" ".join(map(str, long[1:]))], ["4 5 6"], [0])[0][0][0][0] == (29 if cut == "left" else 1)


def test_a_prompt_that_just_fits_is_whole():
    text = " ".join(map(str, range(1, 13)))
    assert encoder().pairs([text], ["4 5 6"], [0]) == ([(list(range(1, 13)), [4, 5, 6, END])], 0)
    assert encoder().pairs([text + " 13"], ["4 5 6"], [0])[1] == 1


def test_a_target_that_is_too_long_names_its_record_and_not_its_text():
    long = " ".join(["777"] * 8)
    with pytest.raises(ComponentError, match="the target of record 5 is too long") as caught:
        encoder().pairs(["1", "1"], ["4", long], [2, 4])
    assert "777" not in str(caught.value) and "9 tokens" in str(caught.value)
    with pytest.raises(ComponentError, match="11 of the prompt"):
        encoder().pairs(["1"], ["4 5 6 7 8"], [0], cue=11)
    assert encoder(apart=True).pairs(["1"], [long], [0], cue=11)[1] == 0
    with pytest.raises(ComponentError, match="too long"):
        encoder(apart=True).pairs(["1"], [long + " " + long], [0])


def test_a_prompt_without_tokens_names_its_record():
    with pytest.raises(ComponentError, match="the prompt of record 3 has no tokens"):
        encoder().pairs(["1", " "], ["4", "4"], [0, 2])


def test_the_cue_is_what_follows_the_last_slot():
    assert cue_of("a {{ x }} b {{ y|lower }} the answer:") == " the answer:"
    assert cue_of("no slot") == "no slot" and cue_of("{{ x }}") == ""
    long = [{**row, "word": " ".join(["10"] * 30)} for row in ROWS]
    made = task(long, prompt="1 {{ word }} 2 3 4 5 6 7 8 9 10 11 12 13", encoder=encoder(cut="middle"))
    assert all(head[-12:] == list(range(2, 14)) for head, _ in made.batch(7)) and made.short == 7


def test_held_out_records_are_never_taken():
    made = task(held=frozenset({1, 4}))
    taken = made.batch(50)
    words = {head[1] for head, _ in taken}
    assert words == {10, 12, 13, 15, 16}
    assert sorted(head[1] for head, _ in made.held_out) == [11, 14]


def test_records_that_take_no_part_are_left_out():
    rows = [row if i in (2, 5) else None for i, row in enumerate(ROWS)]
    made = task(rows, held=frozenset({5}))
    assert {head[1] for head, _ in made.batch(9)} == {12} and [head[1] for head, _ in made.held_out] == [15]


def test_redrawing_changes_prompts_and_leaves_the_rest():
    redraw = Redraw(random.Random(1), {"word": ("50", "51")}, 1.0)
    made = task(redraw=redraw, held=frozenset({0}))
    taken = made.batch(12)
    assert {head[1] for head, _ in taken} == {50, 51} and {tail[0] for _, tail in taken} == {89, 88, 87, 86, 85, 84}
    assert made.held_out == [([1, 10, 2], [90, END])]  # as it stands
    never = task(redraw=Redraw(random.Random(1), {"word": ("50",)}, 0.0))
    assert never.batch(7) == task().batch(7)


def test_redrawing_fields_that_no_template_names_changes_nothing():
    redraw = Redraw(random.Random(1), {"age": ("50", "51")}, 1.0)
    assert task(redraw=redraw).batch(20) == task().batch(20)


def test_texts_that_stay_are_encoded_once():
    calls: list[int] = []
    made = encoder()
    inner = made.encode_prompts
    made.encode_prompts = lambda texts: calls.append(len(texts)) or inner(texts)
    one = task(encoder=made)
    before = list(calls)
    one.batch(40)
    assert calls == before and sum(calls) == len(ROWS) + 1  # and the cue


@pytest.mark.parametrize("redraw", [False, True])
def test_a_feed_goes_on_where_its_state_was_taken_through_json(redraw):
    def feed() -> StepFeed:
        again = Redraw(random.Random(1), {"word": ("50", "51", "52")}, 0.5) if redraw else None
        return StepFeed({"label": task(redraw=again), "rationale": task(ROWS[:4])}, 3)

    whole = feed()
    steps = [whole.take() for _ in range(9)]
    half = feed()
    for _ in range(4):
        half.take()
    state = json.loads(json.dumps(half.state()))
    half.take()  # what is taken afterwards does not change a state that was taken
    other = feed()
    other.restore(state)
    assert [other.take() for _ in range(5)] == steps[4:]
