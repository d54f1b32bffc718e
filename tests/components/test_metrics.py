# SPDX-License-Identifier: Apache-2.0
"""Scores against cases worked out by hand, and what happens where a library is not installed."""

import builtins
import math
from collections import Counter

import pytest

from osmotic.components import metrics
from osmotic.components.rationale_rules import words
from osmotic.components.scoring import likeliest, scored
from osmotic.plugins.testing import FakeContext, FakeScorer
from osmotic.schemas.errors import ComponentError, ConfigError


def test_macro_f1_by_hand():
    """a: precision 2/3, recall 1, F1 .8; b: 1, 1/2, 2/3; c: never right, 0. Answers of no class and none make no class."""
    gold = ["a", "a", "b", "b", "c", "c"]
    answers = ["a", "a", "a", "b", "no such class", None]
    assert metrics.macro_f1(gold, answers) == pytest.approx((0.8 + 2 / 3 + 0) / 3)
    assert metrics.macro_f1(["a"], ["a"]) == 1.0 and metrics.macro_f1(["a"], [None]) == 0.0


def test_rouge_l_by_hand():
    """Longest common subsequence 'police the gunman' is 3 of 4 and 3 of 5 words: F = 2 * .75 * .6 / 1.35."""
    found = metrics.rouge_l(
        ["Police killed the gunman.", "a b", "", "肺の病気"], ["police the big gunman ran", "", "", "肺の病"]
    )
    assert found == pytest.approx([2 * 0.75 * 0.6 / 1.35, 0.0, 0.0, 2 * 1 * 0.75 / 1.75])


def test_the_tokenizer_gives_what_the_library_gives_on_ascii_text():
    from rouge_score.rouge_scorer import RougeScorer

    pairs = [("The cat's well-known b2 mat, 3.5 m_n!", "a cat s WELL known 5 m n mat"), ("one", "two")]
    plain = [RougeScorer(["rougeL"]).score(a, b)["rougeL"].fmeasure for a, b in pairs]
    assert metrics.rouge_l(*map(list, zip(*pairs, strict=True))) == pytest.approx(plain)


def test_perplexity_by_hand():
    """Over all tokens: exp((1 + 5) / (1 + 3)), not the mean of two; a record's own is its mean a token."""
    value, each = metrics.perplexity([(-1.0, 1), (-5.0, 3)])
    assert value == pytest.approx(math.exp(1.5)) and each == pytest.approx([1.0, 5 / 3])
    assert metrics.perplexity([(-9000.0, 2)]) == (None, [4500.0])


def test_named_choices():
    choices = [" (A)", " (B)", "oak", "oak ward", "C++", "C"]
    read = {"(A)": "(a)", " (b) fridge": "(b)", "B.": "(b)", "Oak Ward": "oak ward", "oak, I think": "oak", "oaks": None,
            "oak ward it is": "oak ward", "": None, "c++": "c++", "C": "c", "(": None, "not (A)": None}  # fmt: skip
    assert {text: metrics.named(text, choices) for text in read} == read
    assert metrics.named("x", ["(x)", "[x]"]) is None  # both, so neither


@pytest.mark.parametrize(("metric", "package"), [("macro_f1", "scikit-learn"), ("rouge_l", "rouge-score")])
def test_a_missing_library_is_named_with_the_line_that_installs_it(monkeypatch, metric, package):
    def absent(name, *_):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(metrics.importlib, "import_module", absent)
    with pytest.raises(ConfigError, match=package) as error:
        metrics.library(metric)
    assert error.value.problems[0].fix == "pip install 'osmotic[eval]'" and builtins.__import__


def test_scores_are_asked_once_and_bad_ones_are_refused():
    pairs = [(f"p{i}", "a b") for i in range(5)]
    context, model = FakeContext(), FakeScorer(lambda prompt, target: -float(prompt[1:]))
    found = scored(context, model, pairs, 2, "note")
    assert found == [(-float(i), 2) for i in range(5)] and context.log[-1] == (5, 5, "note")
    assert scored(context, model, pairs, 2, "note") == found and len(model.pairs) == 5  # nothing is asked again
    for bad in (math.nan, 0.5, -math.inf):
        with pytest.raises(ComponentError, match="1 of 1 scores are none"):
            scored(FakeContext(), FakeScorer(lambda *_, bad=bad: bad), pairs[:1], 2, "")
    with pytest.raises(ComponentError, match="no log-likelihoods"):
        scored(FakeContext(), object(), pairs, 2, "")


def test_an_empty_target_is_named_as_such():
    class Counted:
        def log_likelihood(self, pairs):
            return [(-1.0, len(target)) for _, target in pairs]

    with pytest.raises(ComponentError, match="1 of 2 targets have no token") as error:
        scored(FakeContext(), Counted(), [("p", "a"), ("p", "")], 2, "")
    assert "not empty" in error.value.problems[0].fix


def test_accents_and_vowel_signs_belong_to_their_words():
    """Composed or not, an answer is the same; vowel signs no longer cut words of Hindi and Thai into pieces."""
    assert metrics.normal("Cafe\N{COMBINING ACUTE ACCENT}") == metrics.normal("caf\N{LATIN SMALL LETTER E WITH ACUTE}")
    assert metrics.rouge_l(["caf\N{LATIN SMALL LETTER E WITH ACUTE}"], ["cafe\N{COMBINING ACUTE ACCENT}"]) == [1.0]
    book, how = "\u0915\u093f\u0924\u093e\u092c", "\u0915\u093f\u0924\u0928\u093e"
    assert metrics.rouge_l([book], [how]) == [0.0] and words(f"{book}, {how}") == [book, how]


def test_the_likeliest_by_sum_and_by_token():
    scores = [(-3.0, 1), (-4.0, 4), (-3.0, 2)]
    assert likeliest(scores[:2]) == 0 and likeliest(scores, per_token=True) == 1


def test_of_equal_choices_no_place_is_preferred():
    """The first one always gave a model that tells nothing apart the share of records whose answer is A (here all)."""
    scores = [(-1.0, 1), (-5.0, 1), (-1.0, 1), (-1.0, 1)]
    found = Counter(likeliest(scores, salt=f"prompt {i}") for i in range(3000))
    assert set(found) == {0, 2, 3} and all(abs(count - 1000) < 130 for count in found.values())  # 5 standard deviations
    assert likeliest(scores, salt="prompt 7") == likeliest(scores, salt="prompt 7")
