# SPDX-License-Identifier: Apache-2.0
"""Quality of texts: numbers with known answers, what falls when texts get worse, odd inputs."""

import random

import numpy as np
import pytest

from osmotic.components import text_quality as quality
from osmotic.components.text_evaluator import TextEvaluator, TextEvaluatorConfig
from osmotic.plugins.contract import Records
from osmotic.plugins.testing import FakeContext, FakeEmbedder, check_component, run_component
from osmotic.schemas.errors import ComponentError, DataError
from osmotic.schemas.records import FieldSpec, RecordSchema

SIDES = {"good": ["dry", "warm", "light", "roomy", "solid"], "bad": ["leaky", "cold", "heavy", "cramped", "flimsy"]}
FRAMES = (
    "the tent is {} and {} .",
    "i find my tent {} , also {} .",
    "{} poles , {} floor , says my aunt .",
    "so {} and so {} !",
)


def table(count: int, seed: int, wrong: float = 0.0, words: dict[str, list[str]] = SIDES) -> Records:
    """Reviews with two opinion words of their label; `wrong`: share of rows with the other label."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        label = rng.choice(sorted(words))
        text = rng.choice(FRAMES).format(*rng.sample(words[label], 2))
        shown = label if rng.random() >= wrong else next(other for other in words if other != label)
        rows.append({"id": f"n{i:07d}", "label": shown, "text": text})
    return Records(rows, ["id", "label", "text"])


def context(seed: int = 0) -> FakeContext:
    return FakeContext(models={"words": FakeEmbedder(24)}, seed=seed)


def scores(texts: Records, real: Records, **config):
    return run_component(TextEvaluator, {"embedder": "words", **config}, {"texts": texts, "real": real}, context())["metrics"]


# ---- numbers with known answers --------------------------------------------------------------------------------------


def test_frechet_of_normal_laws_is_the_textbooks():
    """N(0, I) and N((3, 0), diag(4, 1)) in the plane: 9 + (1 - 2)^2 = 10; 20,000 draws each, so within 0.3."""
    rng = np.random.default_rng(0)
    left = rng.normal(size=(20_000, 2))
    right = rng.normal(size=(20_000, 2)) * [2, 1] + [3, 0]
    assert quality.frechet(left, right) == pytest.approx(10, abs=0.3)
    assert quality.frechet(left, left) == pytest.approx(0, abs=1e-9)
    assert quality.frechet(left, right) == pytest.approx(quality.frechet(right, left), rel=1e-6)


def test_frechet_has_a_value_for_two_texts_in_many_dimensions():
    rng = np.random.default_rng(0)
    assert 0 < quality.frechet(rng.normal(size=(2, 300)), rng.normal(size=(3, 300))) < 1e4
    same = np.ones((4, 7))
    assert quality.frechet(same, same) == pytest.approx(0, abs=1e-12)


def test_the_interval_of_frechet_holds_what_is_true():
    """The distance of two laws is 1 + bias of the samples; 40 trials: the true 1.0 lies in at least 34 of 40 intervals of 95%
    (30 or fewer would be found with power above 0.95)."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(40):
        left, right = rng.normal(size=(150, 3)), rng.normal(size=(150, 3)) + np.array([1, 0, 0])
        low, high = quality.frechet_interval(left, right, rng, 60)
        assert low <= quality.frechet(left, right) <= high
        hits += low <= 1.0 <= high
    assert hits >= 34


def test_mauve_like_is_high_for_alike_and_low_for_apart():
    rng = np.random.default_rng(0)
    real, same, off = rng.normal(size=(300, 4)), rng.normal(size=(300, 4)), rng.normal(size=(300, 4)) + 8
    half = np.concatenate([same[:150], off[:150]])
    found = [quality.mauve_like(one, real, 20, np.random.default_rng(2)) for one in (same, half, off)]
    assert found[0] > 0.9 > 0.75 > found[1] > 0.1 > found[2] >= 0


def test_kmeans_finds_clusters_that_are_apart_and_survives_equal_points():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(50, 2)) * 0.1 + centre for centre in ([0, 0], [9, 0], [0, 9])])
    where = quality.kmeans(points, 3, rng)
    assert [len(set(where[i : i + 50])) for i in (0, 50, 100)] == [1, 1, 1] and len(set(where)) == 3
    assert len(quality.kmeans(np.ones((5, 2)), 4, rng)) == 5


def test_distinct_counts_ngrams():
    texts = [["a", "b", "a"], ["a", "b"]]
    assert [quality.distinct(texts, n) for n in (1, 2, 3, 4)] == [2 / 5, 2 / 3, 1.0, 0.0]


def test_longest_copies_agree_with_looking_everywhere():
    rng = random.Random(0)
    for _ in range(60):
        known = [[rng.choice("abc") for _ in range(rng.randint(0, 12))] for _ in range(rng.randint(0, 5))]
        text = [rng.choice("abc") for _ in range(rng.randint(0, 12))]
        runs = {tuple(one[i:j]) for one in known for i in range(len(one)) for j in range(i + 1, len(one) + 1)}
        pieces = [text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1)]
        assert quality.Copies(known).longest(text) == max((len(p) for p in pieces if tuple(p) in runs), default=0)


def test_the_largest_gap_of_two_distributions():
    assert quality.largest_gap([1, 2, 3], [1, 2, 3]) == 0
    assert quality.largest_gap([1, 2], [3, 4]) == 1
    assert quality.largest_gap([1, 2, 3, 4], [3, 4, 5, 6]) == 0.5


# ---- the component ---------------------------------------------------------------------------------------------------


def test_worse_texts_score_worse():
    real, good, wrong = table(200, 1), table(60, 2), table(60, 3, wrong=0.5)
    other = table(60, 4, words={"good": ["loud", "clear", "crisp"], "bad": ["tinny", "hollow", "dull"]})
    found = {name: scores(one, real).values for name, one in (("good", good), ("wrong", wrong), ("other", other))}
    assert found["good"]["label_consistency"] > 0.95 > 0.75 > found["wrong"]["label_consistency"]
    assert found["good"]["transfer_accuracy"] > 0.95 and found["other"]["transfer_accuracy"] < 0.9
    assert found["good"]["label_consistency_real"] > 0.95
    assert found["good"]["frechet"] < 2 * found["good"]["frechet_floor"] < found["other"]["frechet"]
    assert found["good"]["mauve_like"] > found["other"]["mauve_like"]
    for one in found.values():
        assert one["frechet_low"] <= one["frechet"] <= one["frechet_high"]


def test_copies_are_told():
    real = table(50, 1)
    mixed = Records([*real.rows[:10], *({**row, "text": f"{row['text']} really"} for row in real.rows[10:20])])
    mixed.rows[0] = {**mixed.rows[0], "text": mixed.rows[0]["text"].upper()}
    made = scores(mixed, real, metrics=["copies"])
    assert made.values["copied"] == 0.5 and made.outcomes["copied"] == [1.0] * 10 + [0.0] * 10
    assert made.values["longest_copy"] > 0.9 and "frechet" not in made.values
    fresh = Records([{"id": "n0000000", "label": "good", "text": "nothing of this stood anywhere"}])
    assert scores(fresh, real, metrics=["copies"]).values["longest_copy_words"] == 0


def test_outcomes_are_one_a_text_or_one_a_record():
    made = scores(table(30, 2), table(50, 1))
    sizes = {name: len(values) for name, values in made.outcomes.items()}
    assert sizes["label_consistency"] == sizes["copied"] == sizes["words"] == 30 and sizes["transfer_accuracy"] == 50
    for name, values in made.outcomes.items():
        assert made.values[name] == pytest.approx(np.mean(values))
    small = scores(table(30, 2), table(50, 1), most=20)
    assert len(small.outcomes["transfer_accuracy"]) == 20 and small.values["real"] == 50


def test_odd_tables_have_numbers_or_notes():
    one = Records([{"id": "n0000000", "label": "good", "text": ""}])
    made = scores(one, table(20, 1))
    assert made.notes == {"frechet": "needs two texts of each", "mauve_like": "needs two texts of each"}
    assert made.values["words"] == 0 and made.values["distinct_1"] == 0
    same = Records([{"id": f"n{i:07d}", "label": "good", "text": "dry"} for i in range(5)])
    assert scores(same, same).values["frechet"] == pytest.approx(0, abs=1e-9)
    numbers = Records([{"id": f"r{i}", "stars": i % 2, "body": None if i == 3 else f"text {i}"} for i in range(8)])
    assert scores(table(6, 1), numbers, label_field="stars", text_field="body").values["label_distance"] == 1.0


def test_what_is_missing_is_said():
    with pytest.raises(ComponentError, match="no rows in 'texts'"):
        scores(Records([], ["label", "text"]), table(3, 1))
    with pytest.raises(DataError, match="'real' have no field 'body'"):
        scores(table(3, 1), table(3, 1), text_field="body")
    schema = RecordSchema(fields={"label": FieldSpec(domain=("good", "bad")), "text": FieldSpec(text=True)})
    config = TextEvaluatorConfig.model_validate({"label_field": "lable"})
    found = TextEvaluator.check(config, schema)
    assert any(text.startswith("embedder: needed for") for text in found) and any("'lable'" in text for text in found)
    assert not TextEvaluator.check(TextEvaluatorConfig.model_validate({"metrics": ["copies", "lengths"]}), schema)


def test_fits_the_contract():
    inputs = {"texts": table(12, 1), "real": table(20, 2)}
    check_component(TextEvaluator, {"embedder": "words", "resamples": 5}, inputs, context)


class Vectors:
    """An embedder that gives one array, whatever it is asked."""

    def __init__(self, given) -> None:
        self.given = np.asarray(given, dtype=float)

    def embed(self, texts):
        return self.given


@pytest.mark.parametrize("given", [np.ones((1, 3)), np.ones(3), np.full((4, 3), np.nan)])
def test_vectors_that_are_none_are_refused(given):
    rows = Records([{"id": f"n{i:07d}", "label": "a", "text": f"t {i}"} for i in range(4)])
    with pytest.raises(ComponentError, match="the embedder gave"):
        run_component(
            TextEvaluator, {"embedder": "e"}, {"texts": rows, "real": rows}, FakeContext(models={"e": Vectors(given)})
        )


def test_fewer_points_than_clusters():
    points = np.repeat(np.eye(2), 3, axis=0)
    assert len(set(quality.kmeans(points, 50, np.random.default_rng(0)).tolist())) == 2
    assert quality.mauve_like(points, points, 50, np.random.default_rng(0)) == pytest.approx(1)
