# SPDX-License-Identifier: Apache-2.0
"""Selection by IFS: the order on a model with known losses, the weights that judge, ties, resuming, mistakes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from osmotic.components.ifs_selector import IfsSelector, IfsSelectorConfig
from osmotic.plugins.contract import Document, Outputs, Records, Weights
from osmotic.plugins.testing import FakeContext, check_component, run_component
from osmotic.schemas.errors import ComponentError, ConfigError, DataError
from osmotic.schemas.records import numbered

BARE = "### Instruction:\n\n### Response:"
# response -> (mean loss a token with its instruction, without it); IFS: .5, 2, .2, 1, .9
LOSSES = {"a b": (1.0, 2.0), "c d e": (2.0, 1.0), "f": (0.2, 1.0), "g h": (3.0, 3.0), "i": (0.9, 1.0)}
SYNTHETIC = Records(
    [{"id": numbered(i), "instruction": f"do {i}", "response": text, "label": "x"} for i, text in enumerate(LOSSES)]
)


def weights(value: float) -> Weights:
    return Weights({"a": np.full(2, value, dtype=np.float32)}, {"base": "b"})


class Judge:
    """A Scorer with known losses, or with others for other weights. pairs: what it was asked; dies: after so many calls."""

    def __init__(self, swap: bool = False, dies: int | None = None) -> None:
        self.swap, self.dies = swap, dies
        self.pairs: list[tuple[str, str]] = []
        self.used: list[Weights] = []

    def with_weights(self, given: Weights) -> "Judge":
        """The local adapter (1.0) has the losses above; any other has them with and without turned around."""
        self.used.append(given)
        return Judge(swap=bool(given.tensors["a"][0] != 1.0))

    def log_likelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
        if self.dies is not None and len(self.pairs) >= self.dies:
            raise KeyboardInterrupt
        self.pairs += pairs
        return [(-self._loss(prompt, text) * len(text.split()), len(text.split())) for prompt, text in pairs]

    def _loss(self, prompt: str, text: str) -> float:
        told, bare = LOSSES[text]
        return bare if (prompt == BARE) != self.swap else told


def select(model: Any = None, given: Weights | None = None, synthetic: Records = SYNTHETIC, context: FakeContext | None = None,
           **changes: Any) -> Outputs:  # fmt: skip
    context = context or FakeContext(models={"base": model or Judge()})
    inputs: dict[str, Any] = {"synthetic": synthetic} | ({"weights": given} if given is not None else {})
    return run_component(IfsSelector, {"model": "base", "keep": 2, **changes}, inputs, context)


def chosen(outputs: Outputs) -> list[str]:
    made = outputs["selected"]
    assert isinstance(made, Records)
    return [row["id"][-1] for row in made]


def report(outputs: Outputs) -> dict[str, Any]:
    found = outputs["report"]
    assert isinstance(found, Document)
    return dict(found.data)


def test_the_lowest_stay_in_the_order_in_which_they_came() -> None:
    made = select()
    assert chosen(made) == ["0", "2"] and made["selected"].columns == ["id", "instruction", "response"]
    scores = {row["id"]: row for row in made["scores"]}
    assert [scores[numbered(i)]["ifs"] for i in range(5)] == pytest.approx([0.5, 2.0, 0.2, 1.0, 0.9])
    assert scores["n0000001"] == {"id": "n0000001", "ifs": 2.0, "loss": 2.0, "bare_loss": 1.0, "kept": False}
    assert [row["id"] for row in made["scores"]] == [row["id"] for row in SYNTHETIC]
    found = report(made)
    assert found["ifs_kept"] == pytest.approx(0.35) and found["ifs_left"] == pytest.approx(3.9 / 3) and found["notes"] == []
    assert (found["rows"], found["kept"], found["order"]) == (5, 2, "lowest")
    assert [chosen(select(keep=n)) for n in (1, 3, 4)] == [["2"], ["0", "2", "4"], ["0", "2", "3", "4"]]


def test_the_ablations() -> None:
    assert chosen(select(order="highest")) == ["1", "3"]
    drawn = [chosen(select(order="random", context=FakeContext(models={"base": Judge()}, seed=s))) for s in range(40)]
    assert len({tuple(one) for one in drawn}) > 5 and all(len(one) == 2 for one in drawn)
    assert drawn[3] == chosen(select(order="random", context=FakeContext(models={"base": Judge()}, seed=3)))
    assert {number for one in drawn for number in one} == set("01234")
    by_weights = select(given=weights(1.0), order="random", context=FakeContext(models={"base": Judge()}, seed=3))
    assert chosen(by_weights) == drawn[3]  # the same in all arms, whatever their adapters have become


def test_the_judge_is_the_model_with_the_weights_given() -> None:
    """W^l, and not the model as it is or the shared adapter: these would choose otherwise."""
    judge, local, shared = Judge(), weights(1.0), weights(0.0)
    assert chosen(select(judge, local)) == ["0", "2"] and judge.used == [local] and judge.pairs == []
    assert chosen(select(Judge(), shared)) == ["1", "3"]  # with the losses turned around: IFS 2, .5, 5, 1, 1.1
    with pytest.raises(ComponentError, match="takes no trained weights here"):
        select(type("Remote", (), {"log_likelihood": Judge().log_likelihood})(), local)


def test_the_response_is_scored_after_its_instruction_and_after_the_bare_prompt() -> None:
    judge = Judge()
    select(judge)
    assert judge.pairs[:5] == [(f"### Instruction:\ndo {i}\n### Response:", text) for i, text in enumerate(LOSSES)]
    assert judge.pairs[5:] == [(BARE, text) for text in LOSSES]

    class Other(Judge):
        def _loss(self, prompt: str, text: str) -> float:
            return 1.0

    other = Other()
    select(other, prompt="Q {{ instruction }} A:", bare="A:", target=" {{ response }}")
    assert other.pairs[0] == ("Q do 0 A:", " a b") and other.pairs[5] == ("A:", " a b")


def test_equal_scores_keep_the_first_and_certain_responses_stay_finite() -> None:
    class Flat(Judge):
        def _loss(self, prompt: str, text: str) -> float:
            return 0.0 if "f" in text else 1.0

    made = select(Flat(), keep=3)
    assert chosen(made) == ["0", "1", "2"] and all(math.isfinite(row["ifs"]) for row in made["scores"])
    assert [row["ifs"] for row in made["scores"]] == [1.0, 1.0, 0.0, 1.0, 1.0]


def test_a_kill_and_batches_change_nothing() -> None:
    whole = select()
    context = FakeContext(models={"base": Judge(dies=4)})
    with pytest.raises(KeyboardInterrupt):
        select(context=context, batch=2)
    again = Judge()
    context.models = {"base": again}
    assert select(context=context, batch=2)["scores"].rows == whole["scores"].rows
    assert len(again.pairs) == 6  # four of ten were kept
    check_component(IfsSelector, {"model": "base"}, {"synthetic": SYNTHETIC}, lambda: FakeContext(models={"base": Judge()}))


def test_fewer_than_asked_all_stay_with_a_note() -> None:
    made = select(keep=9)
    assert chosen(made) == list("01234") and report(made)["notes"] == ["5 examples, fewer than keep (9): all stay"]
    assert "ifs_left" not in report(made)


# ---- mistakes ----


def test_tables_and_models_that_cannot_be() -> None:
    with pytest.raises(DataError, match="there is no synthetic example to choose from"):
        select(synthetic=Records([], ["id", "instruction", "response"]))
    with pytest.raises(DataError, match="1 of 2 synthetic rows have a blank text"):
        select(synthetic=Records([SYNTHETIC.rows[0], {"id": "n0000009", "instruction": "x", "response": " "}]))
    with pytest.raises(DataError, match="have no 'response'"):
        select(synthetic=Records([{"id": "n0000000", "instruction": "x"}]))
    with pytest.raises(ComponentError, match="gives no log-likelihoods"):
        select(object())
    with pytest.raises(ComponentError, match=r"the prompt of L\(y\) is empty"):
        select(prompt="{{ instruction }}")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": "{{ question }}"}, "prompt: unknown slot 'question'"),
        ({"prompt": "Response:"}, "prompt: does not show 'instruction'"),
        ({"target": "Response"}, "target: does not show 'response'"),
        ({"bare": "{{ instruction }}"}, "bare: unknown slot 'instruction'"),
        ({"prompt": "{{ instruction }}"}, "bare: is empty"), ({"bare": " "}, "bare: is empty"),
    ],
)  # fmt: skip
def test_the_plan_says_what_is_wrong(changes: dict[str, Any], said: str) -> None:
    found = IfsSelector.check(IfsSelectorConfig(model="base", **changes), None)
    assert any(said in one for one in found), found


def test_defaults() -> None:
    assert IfsSelector.check(IfsSelectorConfig(model="base"), None) == []
    assert (IfsSelectorConfig(model="base").keep, IfsSelectorConfig(model="base").order) == (16, "lowest")
    with pytest.raises(ConfigError):
        select(order="best")
