# SPDX-License-Identifier: Apache-2.0
"""Instructions by demonstrations: what is shown, what is refused, redraws, seeds, resuming, mistakes."""

import random
import re
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import pytest

from osmotic.components.instruction_synthesizer import InstructionSynthesizer, InstructionSynthesizerConfig
from osmotic.components.metrics import rouge_l, tokens
from osmotic.plugins.contract import Answer, Document, Generation, Outputs, Records, Weights
from osmotic.plugins.testing import FakeContext, check_component, run_component
from osmotic.schemas.errors import ComponentError, ConfigError, DataError
from osmotic.schemas.records import FieldSpec, RecordSchema

SCHEMA = RecordSchema(fields={"instruction": FieldSpec(text=True), "response": FieldSpec(text=True)})
VERBS = ("boil", "paint", "count", "mend", "fold", "sell", "wash", "draw", "lift", "pack", "sort", "burn")
LOCAL = Records(
    [
        {"id": f"r{i}", "instruction": f"{verb} seven {word}s near the {word} river before noon", "response": f"{verb}ed"}
        for i, (verb, word) in enumerate(zip(VERBS, "abcdefghijkl", strict=True))
    ]
)
CONFIG: dict[str, Any] = {"model": "base", "candidates": 6, "batch": 4}
WEIGHTS = Weights({"a": np.ones(2, dtype=np.float32)}, {"base": "b"})
Say = Callable[[str, int], str]


def fresh(prompt: str, seed: int) -> str:
    """Words that depend on all that was asked, and on nothing else."""
    rng = random.Random(prompt)
    return " ".join(rng.choice(VERBS) + str(rng.randrange(1000)) for _ in range(6))


class Model:
    """Answers by a function of the prompt and the number of answers before; may be killed. weights: what it was given."""

    def __init__(self, say: Say = fresh, dies: int | None = None, finished: bool = True) -> None:
        self.say, self.dies, self.finished = say, dies, finished
        self.asked: list[tuple[str, Generation]] = []
        self.weights: list[Weights] = []

    def with_weights(self, weights: Weights) -> Self:
        self.weights.append(weights)
        return self

    def generate(self, prompts: Sequence[str], how: Generation) -> list[Answer]:
        return [self._answer(prompt, how.of(i)) for i, prompt in enumerate(prompts)]

    def _answer(self, prompt: str, how: Generation) -> Answer:
        if self.dies is not None and len(self.asked) >= self.dies:
            raise KeyboardInterrupt
        self.asked.append((prompt, how))
        text = self.say(prompt, len(self.asked) - 1)
        problem = text.removeprefix("problem ") if text.startswith("problem ") else ""
        return Answer("" if problem else f" {text}\n", self.finished, 3, 10, problem=problem)


def run(model: Any, context: FakeContext | None = None, weights: Weights | None = None, records: Records = LOCAL,
        seed: int = 0, **changes: Any) -> Outputs:  # fmt: skip
    context = context or FakeContext(models={"base": model}, record_schema=SCHEMA, seed=seed)
    given: dict[str, Any] = {"records": records} | ({"weights": weights} if weights is not None else {})
    return run_component(InstructionSynthesizer, {**CONFIG, **changes}, given, context)


def texts(outputs: Outputs) -> list[str]:
    made = outputs["instructions"]
    assert isinstance(made, Records)
    return [row["instruction"] for row in made]


def report(outputs: Outputs) -> dict[str, Any]:
    found = outputs["report"]
    assert isinstance(found, Document)
    return dict(found.data)


def test_eight_local_instructions_are_shown_and_the_ninth_is_written() -> None:
    model = Model()
    made = run(model)
    assert [row["id"] for row in made["instructions"]] == [f"n{i:07d}" for i in range(6)]
    assert made["instructions"].columns == ["id", "instruction"] and len(set(texts(made))) == 6
    for prompt, how in model.asked:
        shown = re.findall(r"^Task (\d+): (.+)$", prompt, re.MULTILINE)
        assert [int(number) for number, _ in shown] == list(range(1, 9)) and prompt.endswith("\nTask 9:")
        assert len({text for _, text in shown}) == 8 and {text for _, text in shown} <= {r["instruction"] for r in LOCAL}
        assert how.temperature == 0 and how.stop == ("\nTask ",)
        assert not any(row["response"] in prompt.split() for row in LOCAL)
    assert len({prompt for prompt, _ in model.asked}) == 6  # drawn anew for each
    assert report(made) == {
        "asked": 6, "kept": 6, "prompts": 6, "refused": {}, "left": {}, "prompt_tokens": 60, "tokens": 18, "cost": 0.0,
        "notes": [],
    }  # fmt: skip
    assert InstructionSynthesizerConfig(model="m").candidates == 32


def test_the_weights_given_are_those_that_write() -> None:
    model = Model()
    run(model, weights=WEIGHTS)
    assert model.weights == [WEIGHTS]
    other = Weights({"a": np.zeros(2, dtype=np.float32)}, {"base": "b"})
    again = Model()
    run(again, weights=other)
    assert again.asked == model.asked  # chance is the same in all arms, whatever their adapters have become
    with pytest.raises(ComponentError, match="takes no trained weights here"):
        run(type("Remote", (), {"generate": Model().generate})(), weights=WEIGHTS)


def test_the_same_seed_gives_the_same_whatever_the_batch_and_another_seed_does_not() -> None:
    assert texts(run(Model())) == texts(run(Model(), batch=1)) != texts(run(Model(), seed=1))
    check_component(InstructionSynthesizer, CONFIG, {"records": LOCAL}, lambda: FakeContext(models={"base": Model()}))


# ---- what is refused ----


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("", "empty"), ("...", "empty"), ("boil it", "too-short"), ("I'm sorry, but I cannot help with that", "refusal"),
        ("As a virtual assistant you boil water", "persona"), (LOCAL.rows[3]["instruction"].upper() + "!", "near-local"),
        ("problem too-long", "too-long"),
    ],
)  # fmt: skip
def test_a_bad_answer_is_refused_and_other_demonstrations_are_drawn(bad: str, reason: str) -> None:
    model = Model(lambda prompt, number: bad if number in (1, 4) else fresh(prompt, number))
    made = run(model)
    assert len(texts(made)) == 6 and bad not in texts(made)
    assert report(made)["refused"] == {reason: 2} and report(made)["prompts"] == 8 == len(model.asked)
    assert len({prompt for prompt, _ in model.asked}) == 8  # a greedy model is not asked the same again


def test_a_cut_answer_and_repeats_are_refused() -> None:
    with pytest.raises(ComponentError, match=r"none of 6 candidates is of use: 18 cut in 18 prompts\n.*raise max_new_tokens"):
        run(Model(finished=False))
    made = run(Model(lambda prompt, number: "Fold  the paper twice." if number % 2 else "fold the PAPER twice"))
    assert texts(made) == ["fold the PAPER twice"]
    found = report(made)
    assert found["refused"] == {"repeat": 15} and found["left"] == {"repeat": 5}
    assert found["notes"] == ["1 of 6 candidates were kept; the others ended as: 5 repeat"]


def boundary(same: int) -> str:
    """`same` of the 10 words of the first local instruction, and as many others as 10 leaves."""
    words = LOCAL.rows[0]["instruction"].split()
    assert len(words) == 9
    return " ".join(words[:same] + [f"other{i}" for i in range(11 - same)])


def test_exactly_seven_tenths_is_kept_and_more_is_refused() -> None:
    at, above = boundary(7), boundary(8)  # 2 * 7 / (9 + 11) = .7, 2 * 8 / 20 = .8
    assert rouge_l([LOCAL.rows[0]["instruction"]], [at])[0] == pytest.approx(0.7, abs=1e-12)
    assert texts(run(Model(lambda *_: at), candidates=1)) == [at]
    with pytest.raises(ComponentError, match="3 near-local"):
        run(Model(lambda *_: above), candidates=1)
    assert texts(run(Model(lambda *_: above), candidates=1, rouge_l=0.8)) == [above]


def test_without_comparison_no_local_text_decides() -> None:
    copy = LOCAL.rows[0]["instruction"]
    assert texts(run(Model(lambda *_: copy), candidates=1, compare=False)) == [copy]


def test_when_every_answer_repeats_a_record_the_counts_and_the_way_out_are_told() -> None:
    def parrot(prompt: str, number: int) -> str:
        return re.findall(r"^Task \d+: (.+)$", prompt, re.MULTILINE)[number % 8]

    with pytest.raises(ComponentError) as error:
        run(Model(parrot))
    said = str(error.value)
    assert (
        "none of 6 candidates is of use: 18 near-local in 18 prompts" in said and "the model repeats the local records" in said
    )
    assert not any(row["instruction"] in said for row in LOCAL)


def test_no_payload_is_nearer_to_a_record_than_the_filter_allows() -> None:
    """A model that mixes and quotes what it was shown: 200 candidates, both rules."""

    def quotes(prompt: str, number: int) -> str:
        rng, shown = random.Random(prompt), re.findall(r"^Task \d+: (.+)$", prompt, re.MULTILINE)
        one, other = (shown[i].split() for i in rng.sample(range(8), 2))
        cut = rng.randrange(1, 8)
        return " ".join([*one[:cut], *(f"x{rng.randrange(99)}" for _ in range(rng.randrange(6))), *other[cut : cut + 3]])

    rng = random.Random(7)
    local = [" ".join(f"w{rng.randrange(60)}" for _ in range(9)) for _ in range(30)]
    records = Records([{"id": str(i), "instruction": text} for i, text in enumerate(local)])
    made = texts(run(Model(quotes), records=records, candidates=200, longest_run=4))
    assert len(made) > 20
    assert max(max(rouge_l(local, [text] * len(local))) for text in made) <= 0.7 + 1e-12
    runs = {tuple(words[i : i + 5]) for words in map(tokens, local) for i in range(len(words) - 4)}
    assert not any(tuple(words[i : i + 5]) in runs for words in map(tokens, made) for i in range(len(words) - 4))
    loose = texts(run(Model(quotes), records=records, candidates=200))
    assert any(tuple(words[i : i + 5]) in runs for words in map(tokens, loose) for i in range(len(words) - 4))


# ---- asking ----


@pytest.mark.parametrize("dies", [1, 5, 7, 11])
def test_a_kill_pays_for_nothing_twice(dies: int) -> None:
    def say(prompt: str, number: int) -> str:
        return "boil it" if random.Random(f"bad {prompt}").random() < 0.5 else fresh(prompt, number)

    whole = Model(say)
    wanted = run(whole, batch=1)
    first, again = Model(say, dies=dies), Model(say)
    context = FakeContext(models={"base": first})
    with pytest.raises(KeyboardInterrupt):
        run(None, context, batch=1)
    context.models = {"base": again}
    made = run(None, context, batch=1)
    assert texts(made) == texts(wanted) and report(made) == report(wanted)
    assert [p for p, _ in first.asked] + [p for p, _ in again.asked] == [p for p, _ in whole.asked]


def test_a_model_that_fails_is_named_and_some_failures_may_be_borne() -> None:
    model = Model(lambda prompt, number: "problem timeout" if number == 2 else fresh(prompt, number))
    with pytest.raises(ComponentError, match="1 of 6 prompts got no answer: 1 timeout") as error:
        run(model)
    assert error.value.problems[0].path == "max_failures" and "run again" in error.value.problems[0].fix
    model = Model(lambda prompt, number: "problem timeout" if number == 2 else fresh(prompt, number))
    made = run(model, max_failures=0.2)
    assert len(texts(made)) == 6 and report(made)["refused"] == {"timeout": 1}


def test_a_pattern_takes_the_instruction_out_of_an_answer() -> None:
    model = Model(lambda prompt, number: f"Sure! <task>{fresh(prompt, number)}</task>" if number else "Sure!")
    made = run(model, answer_pattern="<task>(.*)</task>")
    assert all("Sure" not in text for text in texts(made)) and report(made)["refused"] == {"no-match": 1}
    with pytest.raises(ComponentError, match=r"18 no-match.*\n.*answers such as 'Sure!'"):
        run(Model(lambda *_: "Sure!"), answer_pattern="<task>(.*)</task>")


# ---- mistakes ----


def test_three_records_where_eight_demonstrations_are_asked() -> None:
    few = Records([*LOCAL.rows[:3], {"id": "blank", "instruction": " ", "response": "x"}])
    with pytest.raises(DataError, match="8 demonstrations are asked, and there are 3 usable records") as error:
        run(Model(), records=few)
    assert error.value.problems[0].path == "demonstrations" and "lower demonstrations" in error.value.problems[0].fix
    assert len(texts(run(Model(), records=few, demonstrations=3))) == 6


def test_records_without_the_field() -> None:
    with pytest.raises(DataError, match="12 of 12 records have no 'task'"):
        run(Model(), instruction_field="task")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"item": "Task {{ index }}: {{ question }}"}, "item: unknown slot 'question'"),
        ({"item": "Task {{ index }}:"}, "item: does not show 'instruction'"),
        ({"prompt": "Task 9:"}, "prompt: does not show 'demonstrations'"),
        ({"prompt": "{{ demonstrations"}, "prompt: not a valid template"),
        ({"instruction_field": "instructions"}, "instruction_field: the records have no field 'instructions'"),
        ({"answer_pattern": "(a)(b)"}, "answer_pattern: must have one group"),
        ({"answer_pattern": "("}, "answer_pattern: not a regular expression"),
    ],
)
def test_the_plan_says_what_is_wrong(changes: dict[str, Any], said: str) -> None:
    config = InstructionSynthesizerConfig(**{**CONFIG, **changes})
    assert any(said in one for one in InstructionSynthesizer.check(config, SCHEMA))


def test_right_configurations_have_no_problems_and_wrong_values_are_refused() -> None:
    assert InstructionSynthesizer.check(InstructionSynthesizerConfig(**CONFIG), SCHEMA) == []
    assert InstructionSynthesizer.check(InstructionSynthesizerConfig(**CONFIG), None) == []
    for changes in ({"candidates": 0}, {"demonstrations": 0}, {"rouge_l": 0}, {"rouge_l": 1.1}, {"attempts": 0}, {"keep": 3}):
        with pytest.raises(ConfigError):
            run(Model(), **changes)
