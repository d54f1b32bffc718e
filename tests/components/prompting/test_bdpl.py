# SPDX-License-Identifier: Apache-2.0
"""The mathematics of bdpl: projection by hand and by search, the gradient by enumeration, what weights must be."""

import itertools
import random

import numpy as np
import pytest

from osmotic.components.prompting import bdpl
from osmotic.components.prompting.prompts import Prompt
from osmotic.components.templates import compile_template
from osmotic.plugins.contract import Records, Weights
from osmotic.schemas.errors import DataError

PHRASES = ["plain", "very good", "bad"]
FRAME = "{{ phrases }} [[text: {{ text }} answer:]]"


def test_projection_by_hand():
    """To the simplex: (1, .5, -1) loses .25 twice, and what would be negative is 0."""
    assert np.allclose(bdpl.project(np.array([[1.0, 0.5, -1.0]]), 0.0), [[0.75, 0.25, 0.0]])
    assert np.allclose(bdpl.project(np.array([[5.0, 0.0], [0.25, 0.75]]), 0.0), [[1, 0], [0.25, 0.75]])
    assert np.allclose(bdpl.project(np.array([[5.0, 0.0]]), 0.1), [[0.9, 0.1]])
    assert np.allclose(bdpl.project(np.array([[5.0, 0.0]]), 0.5), [[0.5, 0.5]])


@pytest.mark.parametrize("floor", [0.0, 0.05, 0.3])
def test_no_distribution_is_nearer_than_the_projection(floor):
    """Against every point of a grid over three phrases."""
    grid = np.linspace(0, 1, 201)
    points = np.array([(a, b, 1 - a - b) for a in grid for b in grid if a + b <= 1 + 1e-12])
    points = points[points.min(axis=1) >= floor - 1e-12]
    for row in np.random.Generator(np.random.PCG64(0)).normal(0.3, 1.0, (40, 3)):
        found = bdpl.project(row[None], floor)[0]
        assert found.sum() == pytest.approx(1) and found.min() >= floor - 1e-12
        assert np.linalg.norm(found - row) <= np.linalg.norm(points - row, axis=1).min() + 1e-9


def test_projection_forgets_what_is_added_to_a_whole_position():
    rows = np.random.Generator(np.random.PCG64(1)).normal(size=(5, 9))
    assert np.allclose(bdpl.project(rows, 0.01), bdpl.project(rows + np.arange(5)[:, None], 0.01))
    once = bdpl.project(rows, 0.01)
    assert np.allclose(bdpl.project(once, 0.01), once)


@pytest.mark.parametrize("samples", [2, 3])
def test_the_gradient_is_right_on_average(samples):
    """Its exact expectation over all draws: the gradient of the expected loss, less the expected loss itself."""
    rng = np.random.Generator(np.random.PCG64(2))
    table = bdpl.project(rng.uniform(size=(2, 3)), 0.05)
    loss = {
        chosen: float(value) for chosen, value in zip(itertools.product(range(3), repeat=2), rng.uniform(size=9), strict=True)
    }
    chance = {chosen: float(np.prod([table[i, j] for i, j in enumerate(chosen)])) for chosen in loss}
    mean = sum(chance[one] * loss[one] for one in loss)
    slope = np.zeros((2, 3))
    for position, phrase in itertools.product(range(2), range(3)):
        fixed = [one for one in loss if one[position] == phrase]
        slope[position, phrase] = sum(chance[one] * loss[one] for one in fixed) / table[position, phrase]
    expected = np.zeros((2, 3))
    for together in itertools.product(loss, repeat=samples):
        found = bdpl.gradient(table, together, [loss[one] for one in together])
        expected += np.prod([chance[one] for one in together]) * found
    assert np.allclose(expected, slope - mean)


def test_draws_follow_the_distributions():
    table, rng = np.array([[0.7, 0.2, 0.1], [0.0, 0.0, 1.0]]), random.Random(0)
    drawn = np.array([bdpl.draw(table, rng) for _ in range(20_000)])
    shares = np.bincount(drawn[:, 0], minlength=3) / len(drawn)
    assert np.allclose(shares, table[0], atol=0.015) and set(drawn[:, 1]) == {2}  # 4 standard deviations


def test_clipping_scales_the_whole():
    long = np.full((4, 4), 3.0)
    assert np.linalg.norm(bdpl.clipped(long, 3.0)) == pytest.approx(3) and bdpl.clipped(long, 99.0) is long


def test_weights_come_back():
    table = bdpl.project(np.random.Generator(np.random.PCG64(3)).uniform(size=(4, 3)), 0.01)
    base = bdpl.base_of(PHRASES, FRAME)
    weights = Weights.from_files(bdpl.packed(table, base, {}).to_files())
    assert weights.tensors["probabilities"].dtype == np.float32
    again = bdpl.unpacked(weights, base, 3)
    assert np.allclose(again, table, atol=1e-6) and np.allclose(again.sum(axis=1), 1, atol=1e-12)


@pytest.mark.parametrize(
    ("tensors", "meta", "what"),
    [
        ({"probabilities": np.ones((2, 3), "float32") / 3}, {"base": "other", "layout": "bdpl"}, "other phrases"),
        ({"probabilities": np.ones((2, 3), "float32") / 3}, {"layout": "lora"}, "no distributions over"),
        ({"other": np.ones((2, 3), "float32") / 3}, {"layout": "bdpl"}, "no distributions over"),
        ({"probabilities": np.ones((2, 4), "float32") / 4}, {"layout": "bdpl"}, "shape"),
        ({"probabilities": np.ones((2, 3), "float32")}, {"layout": "bdpl"}, "no distributions"),
        ({"probabilities": np.array([[2, -1, 0]], "float32")}, {"layout": "bdpl"}, "no distributions"),
        ({"probabilities": np.full((2, 3), np.nan, "float32")}, {"layout": "bdpl"}, "no distributions"),
    ],
)
def test_what_is_no_distribution_is_refused(tensors, meta, what):
    base = bdpl.base_of(PHRASES, FRAME)
    with pytest.raises(DataError, match=what):
        bdpl.unpacked(Weights(tensors, {"base": base} | meta), base, 3)


@pytest.mark.parametrize("texts", [["one"], ["a", "a"], ["a", "{{ text }}"], ["a", "b  c"], ["a", ""], ["a", "[[b"]])
def test_what_is_no_phrase_is_refused(texts):
    with pytest.raises(DataError):
        bdpl.phrases_of(Records([{"id": str(i), "text": text} for i, text in enumerate(texts)]))


def test_a_phrase_cannot_show_more_of_a_record():
    assert bdpl.filled(FRAME, ["very good", "bad"]).template == "very good bad text: {{ text }} answer:"
    assert bdpl.filled(FRAME, PHRASES, ["bad"]).free != bdpl.filled(FRAME, PHRASES).free


@pytest.mark.parametrize(
    "frame", [FRAME, "Mood:{{phrases}}, now [[{{ text }}]]!", "[[a {{ phrases }} b ]] {{ text }}{{ phrases2 }}"]
)
def test_what_is_asked_while_tuning_is_the_prompt_that_is_decoded(frame):
    row = {"text": "so {{ so }}", "phrases2": "x"}
    asked = compile_template(Prompt.parse(frame).template).render(bdpl.with_phrases(row, ["very good", "bad"]))
    assert asked == compile_template(bdpl.filled(frame, ["very good", "bad"], ["bad"]).template).render(row)


@pytest.mark.parametrize(
    ("frame", "what"),
    [
        ("text: {{ text }}", "0 times"),
        ("{{ phrases }} {{ phrases }} {{ text }}", "2 times"),
        ("{{ phrases }} answer:", "no field of a record"),
        ("{{ phrases }} {{ label }}", "shows the label"),
        ("{{ phrases }} {{ txet }}", "did you mean"),
        ("{{ phrases }} [[ {{ text }}", "not closed"),
        ("{{ phrases }} {% if text %}", "prompt"),
    ],
)
def test_wrong_frames(frame, what):
    found = bdpl.frame_problems(frame, ["text", "label"], "label")
    assert len(found) == 1 and what in found[0]
    assert bdpl.frame_problems(FRAME, ["text", "label"], "label") == []
