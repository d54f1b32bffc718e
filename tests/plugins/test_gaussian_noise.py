# SPDX-License-Identifier: Apache-2.0
"""Integer Gaussian noise: its law, exactly where that can be computed, and by tests of stated power; clipping on the grid."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from osmotic.plugins import gaussian_noise
from osmotic.plugins.entropy import SeededEntropy, SystemEntropy
from osmotic.plugins.gaussian_noise import PLACES, STEPS, GridSum, rounded_gaussian
from osmotic.schemas.errors import ComponentError
from osmotic.schemas.noise import ClientNoise


def normal(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


def test_every_integers_chance_is_the_normal_densitys():
    """Slots of a cell x its height is one constant, so proposals that are kept have density exp(-x^2/2); no chance passes 1."""
    slots, heights = gaussian_noise.cells()
    shares = np.bincount(slots, minlength=len(heights))
    assert len(slots) == 65536 and (shares > 0).all() and len(heights) * PLACES == 14 * STEPS
    assert np.ptp(shares * heights) / (shares * heights).max() < 2.0**-50
    tops = np.exp(-0.5 * (np.arange(len(heights)) / 16) ** 2)
    assert (tops * heights).max() <= 1.0
    kept = np.array([normal((i + 1) / 16) - normal(i / 16) for i in range(len(heights))])
    chance = shares / 65536 * heights * kept * math.sqrt(2 * math.pi) * 16
    assert np.allclose(chance / chance.sum(), kept / kept.sum(), rtol=1e-12)
    assert chance.sum() > 0.9  # few proposals are lost


def test_a_coin_decides_at_once_only_where_every_place_of_the_cell_would():
    """What is kept at once is below the chance of the cell's rarest place, by less than two units of the coin's 20 bits."""
    slots, heights = gaussian_noise.cells()
    chances = np.exp(-0.5 * ((np.arange(len(heights)) + 1) / 16) ** 2) * heights * gaussian_noise.COIN
    sure = gaussian_noise._sure()
    assert (sure <= chances).all() and (sure > chances - 2).all()
    assert 0.85 < (sure[slots] / gaussian_noise.COIN).mean() < 1.0


def test_a_million_draws_follow_the_normal_law():
    """Kolmogorov-Smirnov at level 1e-3, and a variance that finds a scale 0.5% off with power above 0.999; the tail counted.

    (0.5% of scale is 1% of variance, 7 standard errors away, where 4 are borne.)
    """
    draws = np.sort(rounded_gaussian(1_000_000, SeededEntropy("law")) / STEPS)
    n = len(draws)
    wanted = 0.5 * np.vectorize(math.erfc)(-draws / math.sqrt(2.0))
    at = np.arange(n) / n
    distance = max((wanted - at).max(), (at + 1 / n - wanted).max())
    assert distance < 1.95 / math.sqrt(n)
    beyond = int((np.abs(draws) > 4).sum())
    assert abs(beyond - 63.3) < 4.5 * math.sqrt(63.3)
    assert abs(draws.mean()) < 4 / math.sqrt(n) and abs(draws.var() - 1) < 4 * math.sqrt(2 / n)


def test_low_bits_are_uniform_and_signs_even():
    draws = rounded_gaussian(400_000, SeededEntropy("bits"))
    counts = np.bincount(np.abs(draws) & 63, minlength=64)
    assert ((counts - 6250) ** 2 / 6250).sum() < 63 + 5 * math.sqrt(2 * 63)
    assert abs((draws > 0).sum() - 200_000) < 4.5 * math.sqrt(100_000)
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 4.5 / math.sqrt(len(draws))


def test_system_draws_differ_and_are_not_far_off():
    one, two = (rounded_gaussian(50_000, SystemEntropy()) for _ in range(2))
    assert not np.array_equal(one, two)
    assert abs(one.var() / STEPS**2 - 1) < 7 * math.sqrt(2 / 50_000)  # false alarms: below 1e-11


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(-12, 12), st.floats(0.01, 100), st.floats(0.001, 100))
def test_no_vector_is_longer_than_the_clip_norm_on_the_grid(seed: int, size: float, clip: float, z: float):
    """Exactly, in whole numbers; a shorter vector is kept, up to one step a coordinate."""
    generator = np.random.default_rng(seed)
    vector = {"a": (generator.normal(size=(7, 5)) * 10.0**size).astype("float32"), "b": generator.normal(size=3) * 10.0**size}
    total = GridSum({name: tensor.shape for name, tensor in vector.items()}, clip, z)
    total.add(vector)
    square = sum(int(k) ** 2 for tensor in total.integers().values() for k in tensor.reshape(-1).tolist())
    assert square * total.step**2 <= clip**2 * (1 + 1e-12) and square <= (STEPS / z) ** 2
    norm = math.sqrt(sum(float((tensor.astype("float64") ** 2).sum()) for tensor in vector.values()))
    for name, tensor in vector.items():
        wanted = tensor.astype("float64") * min(1.0, clip / norm)
        assert np.abs(total.integers()[name] * total.step - wanted).max() <= total.step + 2e-6 * min(clip, norm)


def test_what_is_given_out_is_whole_steps_whatever_the_sum():
    """No value tells by its low bits what was added: each is the float32 of a whole number of steps."""
    total = GridSum({"a": (1000,)}, 1.0, 1.0)
    total.add({"a": np.full(1000, 1 / 3 / math.sqrt(1000))})
    noise = rounded_gaussian(1000, SeededEntropy("x"))
    assert np.array_equal(
        total.noisy(SeededEntropy("x"))["a"], ((total.integers()["a"] + noise) * total.step).astype("float32")
    )


def test_vectors_that_do_not_fit_are_refused():
    def total() -> GridSum:
        return GridSum({"a": (2,)}, 1.0, 1.0)

    for bad in ({"a": np.zeros(3)}, {"b": np.zeros(2)}, {"a": np.zeros(2), "b": np.zeros(2)}, {"a": np.array([1.0, np.nan])}):
        with pytest.raises(ComponentError):
            total().add(bad)

    class Shifting(dict):
        def __getitem__(self, name: str) -> np.ndarray:
            self.read = getattr(self, "read", 0) + 1
            return np.full(2, 10.0 ** (self.read // 3))

    with pytest.raises(ComponentError, match="changed while"):
        total().add(Shifting(a=0))
    with pytest.raises(ComponentError, match="above 0"):
        GridSum({"a": (2,)}, 1.0, 1e-12)
    with pytest.raises(ComponentError, match="too long"):
        total().add({"a": np.array([1e200, 1.0])})  # and no warning on the way
    crowded = GridSum({"a": (1,)}, 1.0, 1e-3)
    crowded.count = int(crowded._room)
    with pytest.raises(ComponentError, match="more vectors"):
        crowded.add({"a": np.ones(1)})


@pytest.mark.parametrize("clip", [1e-320, 1e-170, 1e31, math.inf, math.nan])
def test_a_clip_norm_that_float64_cannot_hold_to_is_refused(clip: float):
    """With clip 1e-170, a vector of norm 1e-165 has squares of zero: it was not clipped, and moved the sum by 100,000 clips."""
    with pytest.raises(ComponentError, match="clip must be in"):
        GridSum({"a": (2,)}, clip, 1.0)
    with pytest.raises(ValidationError):
        ClientNoise(clip=clip, noise_multiplier=1)
