# SPDX-License-Identifier: Apache-2.0
"""The adaptive exponential mechanism: the filter never overspends, epsilons follow what was released only, and exactly B."""

import itertools
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osmotic.plugins.certificate import certify
from osmotic.plugins.contract import Slot, Space
from osmotic.plugins.entropy import SeededEntropy
from osmotic.plugins.exact import choose, coins
from osmotic.plugins.fakes import FakeNextToken, FakeScorer
from osmotic.plugins.mechanisms.adaptive_exponential import AdaptiveExponential, AdaptiveExponentialConfig
from osmotic.plugins.mechanisms.importance import Plan, Prefix
from osmotic.plugins.mechanisms.list_rr import ListRandomisedResponse, ListRrConfig
from osmotic.plugins.testing import small_space
from osmotic.schemas.errors import ComponentError, ConfigError, DataError

LETTERS = ("x", "y", "z")


def fields(count=2, symbols=LETTERS):
    return [Slot(f"f{i}", False, Space(f"f{i}", symbols)) for i in range(count)]


def make(slots, lm=None, /, **config):
    settings_ = {"epsilon": 4.0, "k": 1, "lists": "order", **config}
    return AdaptiveExponential(AdaptiveExponentialConfig.model_validate(settings_), slots, lambda name: lm)


def moody():
    """A model whose next-word entropy hangs on the last released letter: nearly none after x, all of it after z."""

    def logits(text):
        return [{"x": 5.0, "y": 2.0}.get(text[-1:], 0.0), 0.0, 0.0, 0.0]

    return FakeNextToken(logits=logits)


def modelled(slots, **config):
    return make(slots, moody(), weights="model", model="public", **config)


# ---- the filter ------------------------------------------------------------------------------------------------------


@given(
    budget=st.floats(0.01, 500),
    floor=st.floats(0, 50),
    above=st.floats(0, 50),
    weights=st.lists(
        st.tuples(st.floats(0, 1e9), st.floats(0, 1e9) | st.sampled_from([0.0, 1e-300, 1e300])), min_size=1, max_size=60
    ),
)
@settings(max_examples=200, deadline=None)
def test_no_weights_make_a_document_overspend(budget, floor, above, weights):
    plan, spent, n = Plan(budget, floor, floor + above), np.zeros(1), len(weights)
    least = min(floor, budget / n)
    for i, (weight, rest) in enumerate(weights):
        epsilon = plan.share(spent, np.array([weight]), np.array([rest]), np.array([n - i]))
        assert 0 <= epsilon[0] <= max(plan.ceiling, 0) + 1e-12
        assert epsilon[0] >= min(least, plan.ceiling) - 1e-9 * budget
        spent = spent + epsilon
        plan.check(spent)
    assert spent[0] <= budget * (1 + 1e-12)


def test_overspending_stops_everything(monkeypatch):
    monkeypatch.setattr(Plan, "share", lambda self, spent, *_: np.full(len(spent), 3.0))
    with pytest.raises(ComponentError, match="more than its budget"):
        make(fields()).sample([("x", "y")], SeededEntropy(1))
    with pytest.raises(ComponentError):
        Plan(1.0, 0.0, 1.0).check(np.array([math.nan]))


def test_uniform_is_an_even_split_and_declared_a_weighted_one():
    slots = fields(4)
    for weights, wanted in (("uniform", [1, 1, 1, 1]), ({"f0": 3.0, "f3": 3.0}, [1.5, 0.5, 0.5, 1.5])):
        mechanism = make(slots, weights=weights)
        rows, layout = mechanism._encode([("x", "y", "z", "x")])
        assert mechanism._adapt(rows, layout, SeededEntropy(1))[0].tolist() == pytest.approx(wanted)


def test_ceiling_and_floor_bind():
    mechanism = make(fields(4), weights={"f0": 1000.0}, ceiling=2.5, floor=0.4)
    rows, layout = mechanism._encode([("x", "y", "z", "x")])
    assert mechanism._adapt(rows, layout, SeededEntropy(1))[0].tolist() == pytest.approx([2.5, 0.5, 0.5, 0.5])


# ---- what epsilons depend on -----------------------------------------------------------------------------------------


def profiles(mechanism, documents, released):
    """Epsilons when the same symbols are released, whatever the documents are."""
    rows, layout = mechanism._encode(documents)
    script = iter(range(10**6))

    def draw(rows, slots, epsilons, entropy):
        step = next(script)
        return np.array([released[d][step] for d in range(len(released)) if step < len(released[d])], dtype=np.int64)

    mechanism._draw = draw
    return mechanism._adapt(rows, layout, SeededEntropy(1))[0]


@given(st.lists(st.tuples(*[st.sampled_from(LETTERS)] * 4), min_size=3, max_size=3), st.integers(0, 80))
@settings(max_examples=20, deadline=None)
def test_the_same_released_prefix_gives_the_same_epsilons_whatever_is_private(documents, number):
    released = [[(number // 3**i + d) % 3 for i in range(4)] for d in range(3)]
    first = profiles(modelled(fields(4)), documents, released)
    other = profiles(modelled(fields(4)), [("x",) * 4] * 3, released)
    assert first.tolist() == other.tolist()
    alone = [profiles(modelled(fields(4)), documents[d : d + 1], released[d : d + 1]).tolist() for d in range(3)]
    assert list(itertools.chain(*alone)) == first.tolist()
    assert first.reshape(3, 4).sum(axis=1) == pytest.approx([4.0] * 3)


def test_the_model_sees_released_text_only_and_equal_prefixes_once():
    model = moody()
    mechanism = make(fields(2), model, weights="model", model="public", template="first {{ f0 }}, then {{ f1 }}.", epsilon=1e-3)
    mechanism.sample([("x", "x")] * 50, SeededEntropy(3))  # so little is spent that releases are uniform
    assert set(model.prompts) == {"first", "first x, then", "first y, then", "first z, then"}
    assert len(model.prompts) == 4


def test_epsilons_follow_what_was_released():
    after = {}
    for symbol in range(3):
        after[LETTERS[symbol]] = profiles(modelled(fields(3)), [("x", "x", "x")], [[symbol, 0, 0]])[1]
    assert after["x"] < after["y"] < after["z"]


# ---- exactly B -------------------------------------------------------------------------------------------------------


def joint(mechanism, plan):
    """P(y0, y1 | x0, x1) [9, 9] of two positions, by the closed form and the epsilons of each released prefix."""

    @lru_cache
    def table(epsilon):
        return np.exp(
            ListRandomisedResponse(ListRrConfig(epsilon=epsilon, k=1, lists="order"), fields()[0].space).log_prob(np.arange(3))
        )

    weights = mechanism._weigher()
    one, two = weights.expected
    share = lambda spent, w, rest, left: float(plan.share(*(np.array([v]) for v in (spent, w, rest, left)))[0])  # noqa: E731
    first = share(0.0, weights.weigh([Prefix(0, ())])[0], two, 2)
    out = np.zeros((9, 9))
    for (a, b), (x, y) in itertools.product(itertools.product(range(3), repeat=2), repeat=2):
        second = share(first, weights.weigh([Prefix(1, (LETTERS[x],))])[0], 0.0, 1)
        out[3 * a + b, 3 * x + y] = table(first)[a, x] * table(second)[b, y]
    assert one > 0
    return out


@pytest.mark.parametrize("ceiling", [16.0, 2.5])
def test_the_joint_distribution_of_two_positions_is_exactly_b_private(ceiling):
    mechanism = modelled(fields(), ceiling=ceiling)
    table = joint(mechanism, Plan(4.0, 0.0, min(ceiling, 4.0)))
    assert table.sum(axis=1) == pytest.approx(np.ones(9))
    loss = float((np.log(table).max(axis=0) - np.log(table).min(axis=0)).max())
    assert loss <= 4.0 + 1e-9
    assert loss == pytest.approx(4.0, abs=1e-6) or ceiling < 4


def test_the_sampler_follows_the_joint_distribution():
    """Chi-square over 9 outcomes, 10,000 draws an input: an outcome off by .03 in probability is found with 0.99."""
    mechanism = modelled(fields())
    table, n = joint(mechanism, Plan(4.0, 0.0, 4.0)), 10_000
    for number, document in ((0, ("x", "x")), (5, ("y", "z"))):
        drawn = mechanism.sample([document] * n, SeededEntropy(number))
        counts = np.bincount([3 * LETTERS.index(d.texts[0]) + LETTERS.index(d.texts[1]) for d in drawn], minlength=9)
        wanted = table[number] * n
        assert ((counts - wanted) ** 2 / wanted).sum() < 32  # 8 degrees of freedom: exceeded once in 10,000
        assert {d.epsilon for d in drawn} == {4.0} and drawn[0].symbols == (1, 1)


def test_parts_hold_at_the_ceiling_and_the_charge_is_whole():
    slots = fields(3)
    mechanism = modelled(slots, epsilon=40.0, ceiling=9.0)
    assert [certify(part).holds for part in mechanism.parts()] == [True] * 3
    assert {part.guarantee().epsilon for part in mechanism.parts()} == {9.0}
    assert str(mechanism.guarantee()) == "certified, epsilon 40 a document"
    drawn = mechanism.sample([("x", "y", "z")], SeededEntropy(1))
    assert drawn[0].epsilon == 40.0  # though 3 x 9 were spent


def test_the_shuffled_control_permutes_epsilons_and_pays_twice():
    mechanism = modelled(fields(6), shuffled=True)
    assert mechanism.guarantee().epsilon == 8.0 and make(fields(6), shuffled=True).guarantee().epsilon == 4.0
    seen = []
    draw = mechanism._draw
    mechanism._draw = lambda rows, slots, eps, entropy: (seen.append(eps.copy()), draw(rows, slots, eps, entropy))[1]
    drawn = mechanism.sample([("x",) * 6], SeededEntropy(2))
    ghost, final = [float(e[0]) for e in seen[:6]], seen[6].tolist()
    assert sorted(ghost) == sorted(final) and ghost != final and len(seen) == 7
    assert drawn[0].epsilon == 8.0


# ---- text, influence, bad input --------------------------------------------------------------------------------------


def test_texts_are_positions_a_token_and_unknown_ones_never_come_out():
    space = small_space()
    slots = [Slot("kind", False, Space("kind", LETTERS)), Slot("note", True, space)]
    mechanism = make(slots, moody(), weights="model", model="m", k=2, epsilon=20.0)
    documents = [("x", " ".join(space.symbols[:5])), ("y", "Kestrel ☃ 7731"), ("z", "")]
    drawn = mechanism.sample(documents, SeededEntropy(1))
    assert [d.symbols for d in drawn][2] == (1, 0)
    assert drawn[1].symbols == (1, 6)  # a word, a sign, four digits
    assert all(word in space.symbols for d in drawn for word in d.texts[1].split())
    assert {d.epsilon for d in drawn} == {20.0}
    assert mechanism.sample([], SeededEntropy(1)) == []


def test_influence_finds_the_field_that_the_answer_hangs_on():
    def logits(text):
        return [8.0 * (text.split()[1] == letter) for letter in LETTERS] + [-9.0]

    slots, model = fields(3), FakeNextToken((*LETTERS, "."), logits)
    mechanism = make(slots, model, weights="model", model="m", importance="influence", question="ward:")
    rows, layout = mechanism._encode([("x", "y", "z")])
    profile = mechanism._adapt(rows, layout, SeededEntropy(1))[0]
    assert profile.tolist() == pytest.approx([0, 4, 0], abs=1e-6)
    assert all(text.endswith(" ward:") and len(text.split()) == 4 for text in model.prompts)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"epsilon": 0}, "greater than 0"), ({"epsilon": math.nan}, "epsilon"), ({"epsilon": True}, "epsilon"),
        ({"epsilon": "4"}, "epsilon"), ({"weights": {"f0": 0.0}}, "weights"),
        ({"weights": "model"}, "'model' is needed"), ({"model": "m"}, "'model' is needed"),
        ({"weights": "model", "model": "m", "importance": "influence"}, "'question' is needed"),
        ({"floor": 20.0}, "more than ceiling"), ({"template": "{{ f0 }}"}, "are for 'weights: model'"),
    ],
)  # fmt: skip
def test_bad_configurations_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveExponentialConfig.model_validate({"epsilon": 4.0, **config})


def test_what_does_not_fit_is_located():
    with pytest.raises(ConfigError, match="k must be smaller"):
        make(fields(), k=3)
    with pytest.raises(ConfigError, match=r"'f9' is not released[\s\S]*known: f0, f1"):
        make(fields(), weights={"f9": 2.0})
    with pytest.raises(ConfigError, match="once, in the order"):
        modelled(fields(), template="{{ f1 }} {{ f0 }}")
    with pytest.raises(ConfigError, match="no table"):
        make([Slot("note", True, None)])
    with pytest.raises(ConfigError, match="no next-token distributions"):
        make(fields(), FakeScorer(), weights="model", model="m").sample([("x", "y")], SeededEntropy(1))
    with pytest.raises(DataError, match="outside the domain"):
        make(fields()).sample([("x", "secret")], SeededEntropy(1))
    with pytest.raises(ComponentError, match="no numbers"):
        broken = FakeNextToken(logits=lambda text: [math.nan] * 4)
        make(fields(), broken, weights="model", model="m").sample([("x", "y")], SeededEntropy(1))


# ---- exact draws -----------------------------------------------------------------------------------------------------


class Scripted:
    def __init__(self, *digits):
        self.digits = list(digits)

    def integers(self, high, count):
        return np.array([self.digits.pop(0) for _ in range(count)], dtype=np.int64)


def test_coins_are_exact_however_rare():
    rare = 3 * 2.0**-106
    assert coins(np.array([rare]), Scripted(0, 2)).tolist() == [True]
    assert coins(np.array([rare]), Scripted(0, 3)).tolist() == [False]
    assert coins(np.array([rare]), Scripted(1)).tolist() == [False]
    assert coins(np.array([0.0, 1.0]), Scripted()).tolist() == [False, True]
    hits = coins(np.repeat([0.2, 0.7], 100_000), SeededEntropy(1)).reshape(2, -1).mean(axis=1)
    assert hits == pytest.approx([0.2, 0.7], abs=0.006)  # four standard errors


def test_choosing_follows_the_weights_and_reaches_the_rarest():
    weights = np.array([[1.0, 5.0, 0.0, 2.0, 1e-12]] * 80_000)
    counts = np.bincount(choose(weights, SeededEntropy(2)), minlength=5) / 80_000
    assert counts == pytest.approx([0.125, 0.625, 0, 0.25, 0], abs=0.007)
    tiny = np.array([[1.0, 2.0**-80]])
    assert choose(tiny, Scripted(0, 2**26 + 1)).tolist() == [0]
    assert choose(tiny, Scripted(0, 2**26 - 1)).tolist() == [1]
    assert choose(np.array([[3.0]]), SeededEntropy(1)).tolist() == [0]


# ---- real models -----------------------------------------------------------------------------------------------------


def test_the_clinic_finds_its_own_important_fields(monkeypatch):
    from osmotic.plugins import spaces
    from osmotic.plugins.clinic import domain
    from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel

    monkeypatch.setattr("osmotic.plugins.mechanisms.importance.GHOSTS", 2)
    schema = spaces.load_schema("osmotic:clinic/data/schema.yaml", Path())
    slots = [Slot(name, False, spaces.space_of(name, schema.fields[name], Path())) for name in domain.SLOTS]
    student = TransformersModel(TransformersConfig(path="osmotic:clinic/student")).build()
    template = domain.PUBLIC_TEMPLATE.format_map({name: "{{ " + name + " }}" for name in domain.SLOTS})
    config = {"weights": "model", "model": "student", "template": template, "importance": "influence", "question": "predict:"}
    mechanism = make(slots, student, **config, epsilon=24.0, k=8, lists="nearest")
    documents = [tuple(record[name] for name in domain.SLOTS) for record in domain.private_splits()["north"][:3]]
    rows, layout = mechanism._encode(documents)
    profile = mechanism._adapt(rows, layout, SeededEntropy(1))[0].reshape(3, 6)
    assert profile.sum(axis=1) == pytest.approx(np.full(3, 24.0))
    assert profile[:, 4:].mean() > 2 * profile[:, :4].mean()
    assert mechanism.sample(documents, SeededEntropy(1))[0].symbols == (1,) * 6
