# SPDX-License-Identifier: Apache-2.0
"""bdpl from phrases to a prompt, against scripted models: finds what decides, averages, budgets, kills, odd models, errors."""

import numpy as np
import pytest

from osmotic.components.aggregator import Aggregator
from osmotic.components.bdpl_decoder import BdplDecoder, BdplDecoderConfig
from osmotic.components.bdpl_tuner import BdplTuner, BdplTunerConfig
from osmotic.components.prompting.bdpl import unpacked
from osmotic.components.prompting.judging import SpentError
from osmotic.components.prompting.prompts import Prompt
from osmotic.plugins.contract import Answer, Records, Weights
from osmotic.plugins.testing import FakeContext, FakeScorer, FakeTextGenerator, check_component, run_component
from osmotic.schemas.errors import ComponentError, ConfigError, DataError
from osmotic.schemas.records import FieldSpec, RecordSchema

WORDS = ["please", "judge", "the", "mood", "of", "this", "sentence", "as", "a", "critic"]
PHRASES = Records([{"id": f"n{i:07d}", "text": word, "pmi": 0.0} for i, word in enumerate(WORDS)])
RECORDS = Records([{"id": f"r{i}", "text": f"{'fine' if i % 2 else 'poor'} {i}", "label": str(i % 2)} for i in range(8)])
SETTINGS = {
    "model": "llm", "prompt": "{{ phrases }} [[text: {{ text }} answer:]]", "labels": {"0": "bad", "1": "good"}, "length": 3,
    "samples": 12, "iterations": 25, "batch": 4, "learning_rate": 0.2, "queries": None,
}  # fmt: skip
SCHEMA = RecordSchema(fields={"text": FieldSpec(text=True), "label": FieldSpec(domain=("0", "1"))})


def decided(prompt: str) -> str:
    """Right if and only if the prompt says "mood"."""
    right = "good" if "fine" in prompt else "bad"
    return right if "mood" in prompt else {"good": "bad", "bad": "good"}[right]


def context(model: object = decided, seed: int = 0, **more) -> FakeContext:
    return FakeContext(models={"llm": FakeTextGenerator(model) if callable(model) else model}, seed=seed, **more)


def tune(where: FakeContext | None = None, inputs: dict | None = None, **changes):
    given = {"records": RECORDS, "phrases": PHRASES} | (inputs or {})
    return run_component(BdplTuner, SETTINGS | changes, given, where or context())


def decode(weights: Weights) -> Prompt:
    config = {"prompt": SETTINGS["prompt"], "labels": SETTINGS["labels"]}
    found = run_component(BdplDecoder, config, {"weights": weights, "phrases": PHRASES})
    assert [one["phrase"] for one in found["positions"].data["positions"]] == decode_words(found["prompt"].data)
    return Prompt.of_json(found["prompt"].data)


def decode_words(data: dict) -> list[str]:
    return [token["text"] for token in data["tokens"] if not token["frozen"]]


def test_it_finds_the_phrase_that_decides():
    """In 10 seeds of 10 (by chance a prompt has the word with probability .27)."""
    for seed in range(10):
        made = tune(context(seed=seed))
        prompt = decode(made["weights"])
        assert "mood" in prompt.template.split("text:")[0], seed
        assert made["metrics"].values["loss_last"] < made["metrics"].values["loss_first"]


def test_it_conforms():
    check_component(BdplTuner, SETTINGS | {"iterations": 2}, {"records": RECORDS, "phrases": PHRASES}, context)
    weights = tune(iterations=1)["weights"]
    check_component(BdplDecoder, {"prompt": SETTINGS["prompt"]}, {"weights": weights, "phrases": PHRASES})


def test_distributions_stay_distributions_when_averaged():
    made = {}
    for seed in range(3):
        weights = tune(context(seed=seed), iterations=4)["weights"]
        table = weights.tensors["probabilities"]
        assert table.shape == (3, 10) and table.dtype == np.float32
        assert np.allclose(table.sum(axis=1), 1, atol=1e-6) and table.min() >= 0.05 / 10 - 1e-7
        made[f"client-{seed}"] = weights
    assert len({weights.tensors["probabilities"].tobytes() for weights in made.values()}) == 3
    mean = run_component(Aggregator, {}, {"models": made, "previous": made["client-0"]})["weights"]
    table = unpacked(mean, mean.meta["base"], 10)
    assert np.allclose(table.sum(axis=1), 1) and table.min() >= 0.05 / 10 - 1e-6
    expected = np.mean([weights.tensors["probabilities"] for weights in made.values()], axis=0)
    assert np.allclose(mean.tensors["probabilities"], expected, atol=1e-6)
    again = tune(inputs={"weights": mean}, iterations=1)["weights"]  # the next round goes on from there
    assert again.meta["base"] == mean.meta["base"]


def test_clients_with_other_phrases_are_named():
    other = Records(PHRASES.rows[::-1])
    mine, theirs = tune(iterations=1)["weights"], tune(inputs={"phrases": other}, iterations=1)["weights"]
    with pytest.raises(ComponentError, match="south"):
        run_component(Aggregator, {}, {"models": {"north": mine, "south": theirs}})
    with pytest.raises(DataError, match="other phrases"):
        tune(inputs={"weights": theirs})


def test_rounds_draw_anew_and_seeds_decide():
    first, second = (tune(context(round=i), iterations=2) for i in range(2))
    assert first["curve"].data != second["curve"].data
    again = tune(context(round=0), iterations=2)
    assert again["curve"].data == first["curve"].data


def test_a_kill_pays_nothing_twice():
    whole = context()
    expected = tune(whole, iterations=6)
    asked = len(whole.models["llm"].prompts)
    assert expected["metrics"].values["queries"] == asked == len(set(whole.models["llm"].prompts))

    class Dies(FakeTextGenerator):
        """Gives up after so many answers."""

        def generate(self, prompts, how):
            if len(self.prompts) > asked // 2:
                raise ComponentError("killed")
            return super().generate(prompts, how)

    killed = context(Dies(decided))
    with pytest.raises(ComponentError, match="killed"):
        tune(killed, iterations=6)
    paid = killed.models["llm"].prompts
    killed.models["llm"] = FakeTextGenerator(decided)
    again = tune(killed, iterations=6)
    more = killed.models["llm"].prompts
    assert not set(paid[: asked // 2]) & set(more) and len(paid) + len(more) == asked
    assert again["curve"].data == expected["curve"].data
    assert again["weights"].to_files() == expected["weights"].to_files()
    assert again["metrics"].values == expected["metrics"].values


def test_the_budget_is_never_passed():
    where = context()
    made = tune(where, queries=150)
    assert len(where.models["llm"].prompts) == made["metrics"].values["queries"] <= 150
    assert 1 <= made["metrics"].values["iterations"] < 25
    where = context()
    with pytest.raises(SpentError) as caught:
        tune(where, queries=10)
    assert caught.value.problems[0].path == "queries" and where.models["llm"].prompts == []


def test_public_records_count_with_their_weight():
    public = Records([{"id": "p0", "text": "odd", "label": "1"}])

    def model(prompt):
        return "bad" if "odd" in prompt else decided(prompt + " mood")

    losses = [tune(context(model), {"public": public}, iterations=1, rho=rho)["curve"].data for rho in (0, 1, 4)]
    assert [step["iterations"][0]["loss"] for step in losses] == [0, pytest.approx(1 / 5), pytest.approx(4 / 8)]


def test_likelihood_is_the_loss_of_a_scorer():
    """-log of the right word's share: log(1 + e^d), d by which the wrong word is likelier; 2 label words a prompt are paid."""

    class Scores(FakeScorer):
        def generate(self, prompts, how):
            raise AssertionError("nothing is to be written")

    def score(prompt, target):
        right = target == (" good" if "fine" in prompt else " bad")
        return -1.0 if right == ("mood" in prompt) else -3.0

    model = Scores(score)
    where = FakeContext(models={"llm": model})
    made = tune(where, loss="likelihood", iterations=20, learning_rate=0.2)
    assert made["metrics"].values["queries"] == len(model.pairs) == len(set(model.pairs))
    steps = made["curve"].data["iterations"]
    assert steps[0]["best"] >= np.log1p(np.exp(-2)) - 1e-9 and steps[0]["worst"] <= np.log1p(np.exp(2)) + 1e-9
    assert steps[-1]["loss"] < steps[0]["loss"] and "mood" in decode(made["weights"]).template
    paid = len(model.pairs)
    tune(where, loss="likelihood", iterations=20, learning_rate=0.2)
    assert len(model.pairs) == paid  # the same task again: everything is known
    with pytest.raises(SpentError):
        tune(FakeContext(models={"llm": Scores(score)}), loss="likelihood", queries=5)
    with pytest.raises(ComponentError, match="no log-likelihoods"):
        tune(context(), loss="likelihood")


@pytest.mark.parametrize(
    ("said", "note"), [("good", "every answer was good"), ("I cannot help with that.", "no answer named a label")]
)
def test_a_model_that_always_says_the_same_teaches_nothing(said, note):
    """Nothing is learned, and it is said; the distributions stay where they were."""
    balanced = Records(RECORDS.rows[:4])
    made = tune(context(lambda prompt: said), {"records": balanced}, iterations=3)
    assert np.allclose(made["weights"].tensors["probabilities"], 0.1)
    assert made["metrics"].notes["answers"] == note and "nothing was learned" in made["metrics"].notes["feedback"]


def test_a_model_that_does_not_answer_loses_nothing():
    class Limited(FakeTextGenerator):
        """Rate-limited after a while."""

        limit = 100

        def generate(self, prompts, how):
            if len(self.prompts) + len(prompts) > self.limit:
                return [Answer("", False, 0, problem="overloaded")] * len(prompts)
            return super().generate(prompts, how)

    model = Limited(decided)
    where = context(model)
    with pytest.raises(ComponentError, match="overloaded"):
        tune(where, iterations=8, at_once=16)
    paid = len(model.prompts)
    model.limit = 10**6
    assert tune(where, iterations=8, at_once=16)["metrics"].values["queries"] == len(model.prompts) == len(set(model.prompts))
    assert paid and len(model.prompts) > paid


def test_wrong_inputs():
    with pytest.raises(ComponentError, match="no records"):
        tune(inputs={"records": Records([], ["id", "text", "label"])})
    with pytest.raises(DataError, match="without a label word"):
        tune(labels={"0": "bad", "2": "good"})
    with pytest.raises(DataError, match="no field"):
        tune(label_field="lable")
    with pytest.raises(DataError, match="positions"):
        tune(inputs={"weights": tune(iterations=1)["weights"]}, length=4)
    one = Records(RECORDS.rows[:1])
    assert tune(inputs={"records": one}, iterations=1)["metrics"].values["iterations"] == 1


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"prompt": "[[{{ text }}]]"}, "prompt: needs the slot"),
        ({"prompt": "{{ phrases }} {{ label }}"}, "shows the label"),
        ({"prompt": "{{ phrases }} {{ txt }}"}, "unknown slot 'txt'"),
        ({"labels": {"0": "good", "1": "very good"}}, "cannot be told apart"),
        ({"label_field": "lable"}, "label_field"),
        ({"labels": {"0": "bad", "2": "good"}}, "no word for the class '1'"),
        ({"target": "{{ word }}"}, "target"),
    ],
)
def test_wrong_settings(changes, what):
    found = BdplTuner.check(BdplTunerConfig(**SETTINGS | changes), SCHEMA)
    assert len(found) == 1 and what in found[0]
    assert not BdplTuner.check(BdplTunerConfig(**SETTINGS), SCHEMA) and not BdplTuner.check(BdplTunerConfig(**SETTINGS), None)


def test_numbers_out_of_bounds():
    for changes in ({"samples": 1}, {"queries": 0}, {"explore": 0.0}, {"clip": 0.0}, {"rho": -1.0}, {"length": 0}):
        with pytest.raises(ConfigError):
            tune(**changes)


def test_decoder_settings():
    good = BdplDecoderConfig(prompt=SETTINGS["prompt"])
    assert not BdplDecoder.check(good, SCHEMA)
    assert BdplDecoder.check(BdplDecoderConfig(prompt="{{ text }}", labels=("a",)), SCHEMA)
