# SPDX-License-Identifier: Apache-2.0
"""Noise of secure sums: the law of a share, of the sum, what it is charged as, beside independent computations."""

import hashlib
import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr
from scipy.stats import chi2, norm

from osmotic.plugins import gaussian_noise
from osmotic.plugins.accounting import compose, epsilon_of
from osmotic.runtime.secure import discrete, noise
from osmotic.runtime.secure.client import ClientSession
from osmotic.runtime.secure.discrete import add_noise
from osmotic.runtime.secure.grid import MARGIN
from osmotic.runtime.secure.plan import SumPlan
from osmotic.schemas.errors import ConfigError

NAMES = tuple(f"c{i}" for i in range(10))


def plan(**changed: Any) -> SumPlan:
    given = {"session": bytes(16), "names": NAMES, "receiver": "hub", "shapes": {"w": (1000,)}, "at_least": 3, "clip": 1.0}
    return SumPlan(**(given | {"noise_multiplier": 1.0} | changed))


def drawn(bits: int, count: int, secret: bytes) -> np.ndarray:
    words = np.zeros(count, dtype=np.uint32)
    add_noise(words, bits, hashlib.sha256(secret).digest())
    return words.view(np.int32)


# one share


def test_every_integers_chance_is_the_discrete_gaussians():
    """Chi-square of 2,000,000 draws of deviation 2^8 over all integers to 3 deviations, tails pooled; level 1e-4.

    Power: a deviation 1% off moves the statistic by 2 n 1e-4 = 400, 7 of its standard deviations.
    """
    draws, s = drawn(8, 2_000_000, b"law"), 256
    reach = 3 * s
    weights = np.exp(-0.5 * (np.arange(-14 * s, 14 * s + 1) / s) ** 2)
    chances = weights / weights.sum()
    inner = chances[14 * s - reach : 14 * s + reach + 1]
    wanted = np.concatenate([[chances[: 14 * s - reach].sum()], inner, [chances[14 * s + reach + 1 :].sum()]]) * len(draws)
    counts = np.bincount(np.clip(draws, -reach - 1, reach + 1) + reach + 1, minlength=2 * reach + 3)
    assert ((counts - wanted) ** 2 / wanted).sum() < chi2.ppf(1 - 1e-4, len(wanted) - 1)
    assert abs(counts[reach + 1] - wanted[reach + 1]) < 5 * math.sqrt(wanted[reach + 1])  # zero is not drawn twice as often


@pytest.mark.parametrize("bits", [8, 16, 24, 26])
def test_a_million_draws_of_any_size_follow_the_normal_law(bits):
    """Kolmogorov-Smirnov, level 1e-3 (a scale 0.5% off: power above 0.99); variance, low bits, neighbours."""
    count = 1_000_000
    draws = drawn(bits, count, b"size")
    x = np.sort((draws + 0.5) / 2.0**bits)
    wanted, at = ndtr(x), np.arange(count) / count
    if bits > 8:
        assert max((wanted - at).max(), (at + 1 / count - wanted).max()) < 1.95 / math.sqrt(count)
    scaled = draws / 2.0**bits
    assert abs(scaled.mean()) < 4 / math.sqrt(count) and abs(scaled.var() - 1) < 4 * math.sqrt(2 / count)
    low = np.bincount(draws & 31, minlength=32)
    assert ((low - count / 32) ** 2 * 32 / count).sum() < 31 + 5 * math.sqrt(62)
    assert abs(np.corrcoef(scaled[:-1], scaled[1:])[0, 1]) < 4.5 / math.sqrt(count)
    beyond = int((np.abs(scaled) > 4).sum())
    assert abs(beyond - 63.3) < 4.5 * math.sqrt(63.3)


def test_the_first_bits_of_a_coin_decide_only_where_every_place_of_the_cell_would():
    packed, heights = discrete._tables()
    of_slot, again = gaussian_noise.cells()
    assert np.array_equal(packed & 0xFF, of_slot) and np.array_equal(heights, again) and len(heights) < 256
    ends = (np.arange(len(heights)) + 1) / 16
    chances = np.exp(-0.5 * ends**2) * heights * discrete.COIN
    sure = np.array([(packed >> 8)[np.argmax(of_slot == cell)] for cell in range(len(heights))])
    assert (sure <= chances).all() and (sure > chances - 2).all() and sure.max() < discrete.COIN


def test_ties_are_decided_by_further_bits(monkeypatch):
    """With a coin of one value all is tied, and the law is still the same."""
    real = discrete._tables
    monkeypatch.setattr(discrete, "COIN", 1)
    monkeypatch.setattr(discrete, "_tables", lambda: (real()[0] & 0xFF, real()[1]))
    monkeypatch.setattr(discrete, "_proposed", _with_no_coins(discrete._proposed))
    scaled = drawn(16, 300_000, b"ties") / 2.0**16
    assert abs(scaled.var() - 1) < 4 * math.sqrt(2 / 300_000) and abs(scaled.mean()) < 4 / math.sqrt(300_000)


def _with_no_coins(proposed: Any) -> Any:
    def changed(buffer: bytearray, count: int, bits: int, entropy: Any) -> Any:
        buffer[2 * count : 4 * count] = bytes(2 * count)
        return proposed(buffer, count, bits, entropy)

    return changed


def test_the_same_secret_draws_the_same_noise_and_another_other():
    one, again, two = drawn(20, 100_000, b"a"), drawn(20, 100_000, b"a"), drawn(20, 100_000, b"b")
    assert np.array_equal(one, again) and not np.array_equal(one, two)
    words = np.full(10, 2**32 - 1, dtype=np.uint32)
    add_noise(words, 20, hashlib.sha256(b"a").digest())
    assert np.array_equal((words + np.uint32(1)).view(np.int32), drawn(20, 10, b"a"))  # modulo 2^32


def test_deviations_that_are_not_drawn():
    for bits in (7, 27):
        with pytest.raises(ValueError, match=r"in 8\.\.26"):
            add_noise(np.zeros(1, dtype=np.uint32), bits, bytes(32))


def test_clients_draw_from_the_operating_system():
    assert ClientSession(plan(), "c0")._secret("noise") != ClientSession(plan(), "c0")._secret("noise")


# the sum


@pytest.mark.parametrize(("deviation", "count"), [(0.5, 2), (0.5, 5), (0.7, 3), (1.0, 2), (1.0, 6)])
def test_a_sum_of_discrete_gaussians_is_one_within_the_published_bound(deviation, count):
    """Exact convolution: the largest log ratio to the discrete Gaussian of the same variance stays below tau."""
    reach = 60
    one = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    one /= one.sum()
    total = one
    for _ in range(count - 1):
        total = np.convolve(total, one)
    middle = len(total) // 2
    k = np.arange(-12, 13)
    wanted = np.exp(-0.5 * k**2 / (count * deviation**2))
    wide = np.arange(-reach * count, reach * count + 1)
    wanted /= np.exp(-0.5 * wide**2 / (count * deviation**2)).sum()
    within = np.abs(k) <= 5 * deviation * math.sqrt(count)
    worst = np.abs(np.log(total[middle - 12 : middle + 13] / wanted))[within].max()
    assert worst <= noise.tau(deviation, count)
    assert noise.tau(256.0, 1000) == 0.0


def test_the_discrete_gaussian_is_the_rounded_one_within_the_bound():
    """log of (mass of a cell of the normal law / density at its middle, normalised), to 14 deviations, in 60 digits."""
    from decimal import Decimal, getcontext

    getcontext().prec = 60
    s = Decimal(1 << 6)
    worst = Decimal(0)
    for k in (0, 1, 64, 300, 14 * 64):
        steps, u = 200, Decimal(0)
        for i in range(steps):  # the integral over the cell, relative to the density at k: midpoint rule
            t = Decimal(2 * i + 1 - steps) / (2 * steps)
            u += (-(2 * k * t + t * t) / (2 * s * s)).exp() / steps
        worst = max(worst, abs(u.ln()))
    assert worst * s * s <= Decimal(str(noise.ROUNDING))


@pytest.mark.parametrize(("at_least", "colluding", "lost"), [(3, 0, 0), (8, 2, 0), (8, 2, 2), (10, 3, 0)])
def test_the_noise_of_honest_survivors_alone_has_the_deviation_that_is_charged(at_least, colluding, lost):
    """Vectors of zero; what the fewest honest survivors add, from their own secrets: variance within 5 standard errors."""
    made = plan(at_least=at_least, colluding=colluding, shapes={"w": (50_000,)}, noise_multiplier=2.0, clip=0.5)
    total = np.zeros(made.size, dtype=np.int64)
    for name in NAMES[: made.honest]:
        words = np.zeros(made.size, dtype=np.uint32)
        add_noise(words, made.grid.bits or 0, ClientSession(made, name)._secret("noise"))
        total += words.view(np.int32)
    got = (total * made.step).var()
    assert abs(got - 1.0) < 5 * math.sqrt(2 / made.size)
    assert noise.deviation(made, made.honest) == pytest.approx(1.0)
    assert noise.deviation(made, made.fewest + lost) >= 1.0
    assert made.honest == made.fewest - colluding and made.fewest == max(at_least, (10 + colluding) // 2 + 1)


def test_no_sum_wraps_around():
    """Room for 14 deviations of all noise beside all ranges: the tail bound 2 exp(-14^2 / 2) is below 2^-139."""
    for multiplier in (0.3, 1.0, 100.0):
        for names in (NAMES, tuple(map(str, range(200)))):
            made = plan(noise_multiplier=multiplier, names=names, range=0.5)
            room = 2**31 - len(names) * made.grid.limit
            assert room >= 14 * math.sqrt(len(names)) * 2**made.grid.bits
    assert 2 * math.exp(-(14**2) / 2) < 2.0**-139


# the charge


def delta_of(epsilon: float, mu: float) -> float:
    """Balle and Wang 2018, theorem 8: the Gaussian mechanism's delta, written out."""
    left = log_ndtr(mu / 2 - epsilon / mu)
    right = epsilon + log_ndtr(-mu / 2 - epsilon / mu)
    return float(math.exp(left) - math.exp(right))


def exact_epsilon(mu: float, delta: float) -> float:
    return float(brentq(lambda e: delta_of(e, mu) - delta, 0, 500, xtol=1e-13)) if delta_of(0, mu) > delta else 0.0


@pytest.mark.parametrize(("multiplier", "rounds"), [(0.5, 1), (1.0, 1), (1.0, 20), (4.0, 3), (30.0, 1)])
def test_the_charge_agrees_with_the_gaussian_mechanism_computed_independently(multiplier, rounds):
    event = noise.event(plan(noise_multiplier=multiplier, range=0.5))
    wanted = exact_epsilon(math.sqrt(rounds) / multiplier, 1e-6)
    charged = compose([event] * rounds, 1e-6)["add-or-remove-one"]
    assert wanted <= charged <= wanted * 1.01 + 1e-3
    assert event["parameters"] == {"noise_multiplier": multiplier} and event["kind"] == "gaussian"


def test_alone_is_what_one_clients_own_noise_gives():
    made = plan(at_least=9, colluding=0)
    alone = noise.event(made, alone=True)["parameters"]["noise_multiplier"]
    assert alone == pytest.approx(1 / 3) == pytest.approx(noise.own_multiplier(made))
    assert epsilon_of([noise.event(made, alone=True)], 1e-5) > 2.5 * epsilon_of([noise.event(made)], 1e-5)


def test_what_a_server_could_measure_is_below_the_charge():
    """Black box: the statistic <sum, direction> of 4000 sums with and without a client; power: half the noise would be seen.

    With half the noise mu would be 4 where 2 is charged: a threshold in the middle is right 97.7% of the time, and
    (delta 0.01) epsilon above 4 follows from the bounds; the bound of the real one must stay below the charge.
    """
    made = plan(names=NAMES[:4], shapes={"w": (16,)}, noise_multiplier=0.5, at_least=4)
    direction = np.full(16, 0.25)
    words = np.zeros(4000 * 16, dtype=np.uint32)
    for name in range(4):
        add_noise(words, made.grid.bits or 0, hashlib.sha256(f"server {name}".encode()).digest())
    without = (words.view(np.int32) * made.step).reshape(4000, 16) @ direction
    with_ = without[::-1] + (1 - MARGIN)
    cut = 0.5
    true, false = np.mean(with_ > cut), np.mean(without > cut)
    assert abs(true - norm.cdf(1.0)) < 5 * math.sqrt(0.14 / 4000) and abs(false - norm.cdf(-1.0)) < 5 * math.sqrt(0.14 / 4000)
    charged = compose([noise.event(made)], 0.01)["add-or-remove-one"]
    assert math.log((true - 0.01) / false) < charged < math.log((norm.cdf(2.0) - 0.01) / norm.cdf(-2.0)) + 3


def test_what_numbers_on_a_grid_add_is_within_what_the_clip_norm_leaves_free():
    """The charge is of multiplier z, vectors are 1e-4 shorter than clip: 4e-5 of epsilon at least is left (theorem 8)."""
    assert noise.numerical_epsilon(plan(shapes={"w": (2_500_000,)})) < 1e-7
    assert noise.MOST <= 4e-5 * 0.01 + 1e-12
    for mu in (0.003, 0.01, 0.1, 1.0, 10.0):
        for delta in (1e-12, 1e-5, 1e-3):
            charged = exact_epsilon(mu, delta)
            if charged > 0.01:
                assert charged - exact_epsilon(mu * (1 - MARGIN / 2), delta) >= 4e-5 * charged
    with pytest.raises(ConfigError, match="too coarse for its guarantee"):
        noise.event(plan(shapes={"w": (1 << 30,)}, noise_multiplier=0.1, names=tuple(map(str, range(60)))))


def test_without_noise_there_is_no_event():
    with pytest.raises(ConfigError, match="without noise has no event"):
        noise.event(plan(noise_multiplier=None))
    assert noise.numerical_epsilon(plan(noise_multiplier=None)) == 0.0 == noise.own_multiplier(plan(noise_multiplier=None))
