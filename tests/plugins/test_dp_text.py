# SPDX-License-Identifier: Apache-2.0
"""Whole-text mechanisms: temperatures, the extreme pair and its proof by search, lengths, charges, models of the wrong kind."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osmotic.plugins.certificate import certify
from osmotic.plugins.contract import MaskedLM, NextToken, Slot, Space
from osmotic.plugins.entropy import SeededEntropy
from osmotic.plugins.exact import choose
from osmotic.plugins.fakes import FakeMaskedLM, FakeNextToken, FakeScorer, FakeTextGenerator
from osmotic.plugins.mechanisms.dp_mlm import DpMlm, DpMlmConfig
from osmotic.plugins.mechanisms.dp_prompt import DpPrompt, DpPromptConfig
from osmotic.plugins.mechanisms.encoder import Encoder, EncoderConfig, mixture, uniform_share
from osmotic.plugins.mechanisms.extreme import clipped_pair, clipped_weights, temperature
from osmotic.plugins.mechanisms.steady import cut, shortened, steady
from osmotic.plugins.testing import check_mechanism
from osmotic.schemas.errors import ComponentError, ConfigError, Problem
from osmotic.schemas.guarantees import Guarantee

TEXT = [Slot("note", True, None)]
PROMPT = (-19.2271, 7.4832)
MLM = (-3.2093, 16.3048)


def prompt(model, slots=TEXT, **config):
    return DpPrompt(DpPromptConfig(model="m", **{"epsilon": 5.0, "n_max": 6, **config}), slots, lambda name: model)


def mlm(model, slots=TEXT, **config):
    return DpMlm(DpMlmConfig(model="m", **{"epsilon": 5.0, **config}), slots, lambda name: model)


def encoder(model, slots=TEXT, **config):
    return Encoder(EncoderConfig.model_validate({"model": "m", **config}), slots, lambda name: model)


# ---- one token -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "epsilon", "wanted"), [(PROMPT, 10, 5.342), (PROMPT, 100, 0.534), (MLM, 10, 3.903), (MLM, 100, 0.390)]
)
def test_temperatures(box, epsilon, wanted):
    assert temperature(epsilon, *box) == pytest.approx(wanted, abs=5e-4)


def logs(logits, epsilon, box):
    weights = clipped_weights(np.asarray(logits, dtype=np.float32), epsilon, *box)
    return np.log(weights / weights.sum(axis=1, keepdims=True))


@given(st.sampled_from([0.5, 3.0, 10.0, 60.0]), st.integers(2, 40), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_no_pair_of_logits_is_worse_than_the_extreme_one(epsilon, symbols, seed):
    """Random logits, spread far beyond the box and pushed into its corners."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, rng.choice([1, 30, 1e6]), (24, symbols))
    corners = np.where(rng.random((24, symbols)) < rng.random((24, 1)), -np.inf, np.inf)
    table = logs(np.concatenate([logits, corners]), epsilon, MLM)
    found = float((table.max(axis=0) - table.min(axis=0)).max())
    pair = clipped_pair(epsilon, symbols)
    worst = certify(pair, sampler=False).epsilon_true
    assert found <= worst + 1e-9
    assert worst <= certify(clipped_pair(epsilon), sampler=False).epsilon_true + 1e-9 <= epsilon + 2e-9


@pytest.mark.parametrize("symbols", [2, 3, 50, 30_522])
def test_the_extreme_pair_is_attained(symbols):
    ends = np.full((2, symbols), [[-1e9], [1e9]])
    ends[:, 0] = 1e9, -1e9
    table = logs(ends, 7.0, PROMPT)
    assert table[0, 0] - table[1, 0] == pytest.approx(certify(clipped_pair(7.0, symbols), sampler=False).epsilon_true, abs=1e-9)


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 10.0, 100.0, 500.0])
def test_the_certified_part_holds_and_is_tight_where_it_matters(epsilon):
    for part in (clipped_pair(epsilon), encoder(None, mixed={"epsilon": epsilon}).parts()[0]):
        card = certify(part)
        assert card.holds and card.epsilon_true <= epsilon + 1e-6
        assert card.epsilon_true > 0.99 * epsilon or epsilon > 10


def test_the_part_is_sampled_by_the_sampler_of_tokens():
    part = clipped_pair(3.0, 5)
    card = check_mechanism(type(part), part.config.model_dump(), part.space)
    assert card.holds


# ---- dp-prompt -------------------------------------------------------------------------------------------------------


def test_all_of_n_max_is_charged_and_lengths_stay_private():
    model = FakeNextToken(("a", "b", "."), lambda text: [0, 0, 0])
    drawn = prompt(model).sample([("one",), ("two",)] * 100, SeededEntropy(1))
    lengths = [len(d.texts[0].split()) for d in drawn]
    assert min(lengths) == 0 and max(lengths) == 6
    assert {d.epsilon for d in drawn} == {30.0} and {d.symbols for d in drawn} == {(6,)}
    assert prompt(model).guarantee() == Guarantee(mechanism_class="certified", epsilon=30.0, unit="document")
    assert prompt(model, [*TEXT, Slot("more", True)]).guarantee().epsilon == 60.0
    assert set(model.batches) == {1}  # documents never meet in a batch


def test_tokens_follow_the_clipped_softmax():
    """Four standard errors at 10,000 draws: .02."""
    model = FakeNextToken(("a", "b", "."), lambda text: [1e9, -1e9, 0.0])
    mechanism = prompt(model, n_max=1, epsilon=2.0, b_min=-1.0, b_max=1.0)
    drawn = [d.texts[0] for d in mechanism.sample([("x",)] * 10_000, SeededEntropy(1))]
    weights = np.exp(np.array([1, -1, 0]) / 2.0)  # T = 2
    shares = np.array([drawn.count(word) for word in ("a", "b", "")]) / 10_000
    assert shares == pytest.approx(weights / weights.sum(), abs=0.02)


def test_the_prompt_has_the_text_and_the_answer_goes_on_from_it():
    model = FakeNextToken()
    prompt(model, template="Say it again: {{ text }} ->").sample([("hello",)], SeededEntropy(1))
    assert model.prompts == ["Say it again: example ->", "Say it again: hello ->"]  # a public one first


# ---- dp-mlm ----------------------------------------------------------------------------------------------------------


class Recording(FakeMaskedLM):
    def __init__(self, *args):
        super().__init__(*args)
        self.texts = []

    def logits(self, texts):
        self.texts.extend(texts)
        return super().logits(texts)


def test_each_word_is_masked_in_the_original_and_costs_epsilon():
    model = Recording()
    drawn = mlm(model, [*TEXT, Slot("more", True)]).sample([("The ward, 7 beds", ""), ("x", "y z")], SeededEntropy(1))
    assert model.texts[:6] == [
        "[MASK]", "[MASK] ward , 7 beds", "the [MASK] , 7 beds", "the ward [MASK] 7 beds", "the ward , [MASK] beds",
        "the ward , 7 [MASK]",
    ]  # fmt: skip
    assert [d.symbols for d in drawn] == [(5, 0), (1, 2)] and [d.epsilon for d in drawn] == [25.0, 15.0]
    assert all(word in model.vocabulary() for d in drawn for text in d.texts for word in text.split())
    assert mlm(model, n_max=3).guarantee().epsilon == 15.0
    assert mlm(model, n_max=3).sample([("a b c d e",)], SeededEntropy(1))[0].symbols == (3,)


def test_pieces_and_special_tokens_never_come_out():
    model = FakeMaskedLM(["good", "##ing", "", "bad"])
    texts = mlm(model).sample([("a " * 200,)], SeededEntropy(1))[0].texts[0].split()
    assert set(texts) == {"good", "bad"} and len(texts) == 128


def test_a_mask_in_the_text_is_only_text():
    assert mlm(FakeMaskedLM()).sample([("say [MASK] now",)], SeededEntropy(1))[0].symbols == (5,)


# ---- encoder ---------------------------------------------------------------------------------------------------------


def test_the_greedy_encoder_is_heuristic_without_end():
    drawn = encoder(FakeTextGenerator(str.upper), template="do: {{ text }}").sample([("a b",)], SeededEntropy(1))[0]
    assert drawn.texts == ("DO: A B",) and drawn.epsilon == math.inf
    made = encoder(None)
    assert made.parts() == () and made.guarantee().mechanism_class == "heuristic"
    text = made.guarantee().model_dump_json()
    assert Guarantee.model_validate_json(text) == made.guarantee() and "null" not in text, json.loads(text)


@given(st.floats(0.1, 30), st.floats(0.01, 0.95), st.integers(2, 60), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_no_pair_of_mixtures_is_worse_than_epsilon(epsilon, t_max, symbols, seed):
    rng = np.random.default_rng(seed)
    logits = np.concatenate([rng.normal(0, 30, (10, symbols)), np.eye(symbols)[: symbols // 2 + 1] * 1e9, [[np.inf] * symbols]])
    table = mixture(logits.astype(np.float32), epsilon, t_max)
    assert table.sum(axis=1) == pytest.approx(np.ones(len(table)))
    spread = np.log(table).max(axis=0) - np.log(table).min(axis=0)
    assert spread.max() <= epsilon + 1e-9
    assert 0 < uniform_share(epsilon, t_max, symbols) < 1


def test_the_mixture_attains_epsilon():
    table = mixture(np.array([[1e9, 0, 0], [0, 1e9, 1e9]], dtype=np.float32), 2.0, 0.6)
    assert math.log(table[0, 0] / table[1, 0]) == pytest.approx(2.0)


def test_the_mixed_encoder_charges_every_token():
    model = FakeNextToken()
    made = encoder(model, n_max=4, mixed={"epsilon": 2.0, "t_max": 0.5})
    drawn = made.sample([("a",), ("b",)], SeededEntropy(1))
    assert str(made.guarantee()) == "certified, epsilon 8 a document"
    assert [(d.epsilon, d.symbols) for d in drawn] == [(8.0, (4,))] * 2
    assert all(len(d.texts[0].split()) <= 4 for d in drawn)


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{"epsilon": 0.0}, {"epsilon": math.nan}, {"epsilon": True}, {"n_max": 0}, {"b_min": 9.0},
                                    {"b_max": math.inf}])  # fmt: skip
@pytest.mark.parametrize("cls", [DpPromptConfig, DpMlmConfig])
def test_bad_numbers_are_refused(cls, config):
    bound = {"b_min": 99.0} if "b_min" in config else config
    with pytest.raises(ValueError, match=next(iter(bound))):
        cls.model_validate({"model": "m", "epsilon": 1.0, **bound})


@pytest.mark.parametrize("build", [prompt, mlm, encoder])
def test_wrong_models_and_fields_are_located(build):
    with pytest.raises(ConfigError, match=r"mechanism\.model: the model 'm'"):
        build(FakeScorer()).sample([("x",)], SeededEntropy(1))
    with pytest.raises(ConfigError, match=r"'ward' has a domain"):
        build(None, [Slot("ward", False, Space("ward", ("a", "b")))])


def test_bad_templates_and_logits():
    with pytest.raises(ConfigError, match="must have the slot"):
        prompt(None, template="nothing")
    with pytest.raises(ComponentError, match="no numbers"):
        prompt(FakeNextToken(logits=lambda text: [math.nan] * 4)).sample([("x",)], SeededEntropy(1))
    with pytest.raises(ConfigError, match="no words"):
        mlm(FakeMaskedLM(["##a", "b"])).sample([("x",)], SeededEntropy(1))


class Failing(FakeNextToken):
    """Says nothing of a text with "secret" in it, or nothing more after some tokens."""

    def __init__(self, error=ComponentError, after=0):
        super().__init__(("a", "b", "c", "."), lambda text: [50.0, 0, 0, 0])
        self._error, self._after = error, after

    def _rows(self, texts):
        if any("secret" in text and text.count(" ") >= self._after for text in texts):
            raise self._error(Problem("no") if self._error is ComponentError else "no")
        return super()._rows(texts)


@pytest.mark.parametrize("error", [ComponentError, RuntimeError, IndexError, TypeError])
@pytest.mark.parametrize("build", [prompt, lambda model, **more: encoder(model, mixed={"epsilon": 5.0}, **more)])
def test_what_a_model_cannot_answer_is_a_uniform_token(build, error):
    """4 tokens, 4,000 draws: five standard errors of a share are .035; a text that is answered draws otherwise."""
    made = build(Failing(error), template="{{ text }}", n_max=1)
    texts = [drawn.texts[0] for drawn in made.sample([("secret",)] * 4000, SeededEntropy(1))]
    assert [texts.count(word) / 4000 for word in ("a", "b", "c", "")] == pytest.approx([0.25] * 4, abs=0.035)
    answered = prompt(Failing(), epsilon=100.0, n_max=1).sample([("x",)] * 9, SeededEntropy(1))
    assert {drawn.texts[0] for drawn in answered} == {"a"}
    later = build(Failing(error, after=2), template="{{ text }}", n_max=8)
    assert max(len(d.texts[0].split()) for d in later.sample([("secret",)] * 50, SeededEntropy(1))) == 8


def test_nan_and_odd_shapes_are_the_least_logits():
    rows = steady(np.array([[1.0, np.nan, np.inf]]), 1, 3)
    assert rows.tolist() == [[1.0, -np.inf, np.inf]]
    assert steady(np.zeros((1, 4)), 1, 3).tolist() == steady(None, 1, 3).tolist() == [[-np.inf] * 3]
    assert clipped_weights(steady(None, 1, 3), 2.0, -1.0, 1.0) == pytest.approx(np.full((1, 3), math.exp(-1)))
    assert mixture(steady(None, 1, 4), 2.0, 0.3) == pytest.approx(np.full((1, 4), 0.25))


class Short(FakeMaskedLM):
    """Room for five words; NaN for a mask beside "bad"."""

    def __init__(self):
        super().__init__()
        self.texts = []

    def fits(self, text):
        return len(text.split()) <= 5

    def logits(self, texts):
        if any(not self.fits(text) for text in texts):
            raise ComponentError(Problem("too long"))
        self.texts.extend(texts)
        return np.where(np.array(["bad" in text for text in texts])[:, None], np.nan, super().logits(texts))


def test_a_mask_keeps_the_words_around_it():
    model = Short()
    drawn = mlm(model, epsilon=400.0).sample([("a b c d e f g h",)], SeededEntropy(1))[0]
    assert drawn.symbols == (8,)
    assert model.texts[1:] == [
        "[MASK] b c d e", "a [MASK] c d e", "a b [MASK] d e", "b c [MASK] e f", "c d [MASK] f g", "d e [MASK] g h",
        "d e f [MASK] h", "d e f g [MASK]",
    ]  # fmt: skip
    many = mlm(Short(), epsilon=400.0).sample([("bad x",)] * 2000, SeededEntropy(1))
    first = [d.texts[0].split()[1] for d in many]
    assert [first.count(w) / 2000 for w in ("good", "bad", "great", "poor")] == pytest.approx([0.25] * 4, abs=0.05)


def test_a_text_is_cut_at_its_end_and_no_more_than_needed():
    assert cut("abcdef", lambda text: len(text) <= 4) == "abcd" and cut("ab", lambda text: len(text) <= 4) == "ab"
    assert cut("abc", lambda text: False) == "" == cut("", lambda text: False)


@pytest.mark.parametrize(("low", "high", "said"), [(0.0, 1e-4, "apart"), (-2e6, 0.0, "b_min"), (0.0, 2e6, "b_max")])
@pytest.mark.parametrize("cls", [DpPromptConfig, DpMlmConfig])
def test_a_box_where_rounding_would_decide_is_refused(cls, low, high, said):
    with pytest.raises(ValueError, match=said):
        cls.model_validate({"model": "m", "epsilon": 1.0, "b_min": low, "b_max": high})


@pytest.mark.parametrize("weights", [[0.0, 0.0, 0.0], [1.0, np.nan, 1.0], [np.inf, 1.0, 1.0], [1e308, 1e308, 1e308]])
def test_weights_without_a_sum_are_not_drawn(weights):
    with pytest.raises(ComponentError, match="finite sum"):
        choose(np.array([weights, [1.0, 2.0, 3.0]]), SeededEntropy(1))


# ---- real models -----------------------------------------------------------------------------------------------------


def test_texts_of_any_length_go_through_the_clinics_models():
    """128 positions: texts of hundreds of pieces, of none, and of odd characters are drawn like any others."""
    from osmotic.plugins.models.masked import MaskedConfig, TransformersMasked
    from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel

    student = TransformersModel(TransformersConfig(path="osmotic:clinic/student")).build()
    masked = TransformersMasked(MaskedConfig(path="osmotic:clinic/masked")).build()
    texts = [("fever " * 400,), ("",), ("\ud800 \x00" * 100,), ("x" * 1000,), ("[MASK] [PAD] <unk> " * 200,)]
    shape = {"template": "say {{ text }} explain:", "n_max": 20}
    for made in (prompt(student, **shape), encoder(student, mixed={"epsilon": 2.0}, **shape)):
        drawn = made.sample(texts, SeededEntropy(1))
        assert [d.symbols for d in drawn] == [(20,)] * 5 and all(isinstance(d.texts[0], str) for d in drawn)
    assert len(encoder(student, **shape).sample(texts[:1], SeededEntropy(1))) == 1  # greedy
    assert len(prompt(student, template="{{ text }}", n_max=3).sample([("",)], SeededEntropy(1))) == 1
    with pytest.raises(ConfigError, match="no room for the prompt and 500 tokens"):
        prompt(student, n_max=500).sample([("x",)], SeededEntropy(1))
    for drawn in mlm(masked, b_min=-6.0, b_max=12.0, n_max=140).sample(texts[:2], SeededEntropy(1)):
        assert drawn.symbols[0] <= 140 and drawn.epsilon == 5.0 * drawn.symbols[0]
    prompt_ids = student.encode_prompts([shortened(student, "say {}".format, "fever " * 2000, 20)])[0]
    assert 128 - 20 - 8 <= len(prompt_ids) <= 128 - 20  # as much as fits


def test_the_clinics_models_rewrite():
    from osmotic.plugins.clinic import domain
    from osmotic.plugins.models.masked import MaskedConfig, TransformersMasked
    from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel

    teacher = TransformersModel(TransformersConfig(path="osmotic:clinic/teacher")).build()
    masked = TransformersMasked(MaskedConfig(path="osmotic:clinic/masked")).build()
    assert isinstance(teacher, NextToken) and isinstance(masked, MaskedLM)
    text = domain.render(domain.private_splits()["exam"][0])
    explained = prompt(teacher, template="{{ text }} explain:", epsilon=400.0, n_max=28, b_min=-10.0, b_max=20.0)
    answer = explained.sample([(text,)], SeededEntropy(1))[0]
    assert re.search(r"goes to (\S+)$", answer.texts[0])  # hardly any noise
    rewritten = mlm(masked, epsilon=200.0, b_min=-6.0, b_max=12.0).sample([(text,)], SeededEntropy(1))[0]
    assert rewritten.texts[0].split()[0] == "patient" and "exposure" in rewritten.texts[0]
    loud = mlm(masked, epsilon=0.01, b_min=-6.0, b_max=12.0).sample([(text,)], SeededEntropy(1))[0]
    assert len(set(loud.texts[0].split()) & set(text.split())) < 6
