# SPDX-License-Identifier: Apache-2.0
"""Batches and noise: their laws by tests of stated power, independence between steps and records, the same again."""

import math

import numpy as np
import pytest

from osmotic.plugins.dp_sgd.plan import ExecutionPlan
from osmotic.plugins.entropy import CipherEntropy
from osmotic.plugins.gaussian_noise import STEPS
from osmotic.schemas.errors import ConfigError

SECRET = bytes(range(32))


def plan_of(records: int = 1000, batch: int = 50, **more: float) -> ExecutionPlan:
    given = {"steps": 100, "clip": 1.0, "noise_multiplier": 1.0, "epsilon": 1.0, "delta": 1e-6, **more}
    return ExecutionPlan(records, batch, **given)


def test_a_stream_is_its_secret_purpose_and_step():
    def first(*given: object) -> bytes:
        return CipherEntropy(*given).words(4).tobytes()

    streams = [first(SECRET, "a", 0), first(SECRET, "a", 1), first(SECRET, "b", 0), first(SECRET[::-1], "a", 0)]
    assert len(set(streams)) == 4 and streams[0] == first(SECRET, "a", 0)
    one, pieces = CipherEntropy(SECRET, "a"), CipherEntropy(SECRET, "a")
    assert np.array_equal(one.words(10), np.concatenate([pieces.words(3), pieces.words(7)]))


def test_words_are_uniform():
    """Chi-square over 256 values of each byte of 100,000 words, level 1e-4."""
    octets = CipherEntropy(SECRET, "law").words(100_000).view(np.uint8)
    counts = np.bincount(octets, minlength=256)
    assert ((counts - 3125) ** 2 / 3125).sum() < 255 + 4 * math.sqrt(2 * 255)


def test_batch_sizes_are_binomial():
    """2,000 batches: mean, variance (a share 15% off is found with power 0.999), every record equally often."""
    sampler = plan_of().sampler(SECRET)
    sizes = np.array([len(sampler.batch(step)) for step in range(2000)])
    q, n = 0.05, 1000
    assert abs(sizes.mean() - n * q) < 4 * math.sqrt(n * q * (1 - q) / 2000)
    assert abs(sizes.var() / (n * q * (1 - q)) - 1) < 4 * math.sqrt(2 / 2000)
    assert len(set(sizes.tolist())) > 20
    often = np.bincount(np.concatenate([sampler.batch(step) for step in range(2000)]), minlength=n)
    assert ((often - 2000 * q) ** 2 / (2000 * q * (1 - q))).sum() < n + 4.5 * math.sqrt(2 * n)


def test_batches_of_two_steps_are_independent():
    sampler = plan_of().sampler(SECRET)
    both = [len(np.intersect1d(sampler.batch(s), sampler.batch(s + 1))) for s in range(0, 2000, 2)]
    assert abs(np.mean(both) - 2.5) < 4 * math.sqrt(2.5 / 1000)


def test_a_batch_may_be_empty_and_comes_again():
    sampler = plan_of(records=2, batch=1).sampler(SECRET)
    drawn = [sampler.batch(step).tolist() for step in range(400)]
    counts = [drawn.count(kind) for kind in ([], [0], [1], [0, 1])]
    assert sum(counts) == 400 and all(abs(count - 100) < 4.5 * math.sqrt(75) for count in counts)
    assert drawn == [plan_of(records=2, batch=1).sampler(SECRET).batch(step).tolist() for step in range(400)]


def test_a_probability_of_one_draws_everybody():
    assert plan_of(records=5, batch=5).sampler(SECRET).batch(3).tolist() == [0, 1, 2, 3, 4]


def test_another_record_changes_no_draw():
    """The same rate over 1,000 and over 1,001 records: the first 1,000 are drawn alike."""
    fewer, more = (plan_of(records=n, batch=n // 2).sampler(SECRET) for n in (1000, 1002))
    assert fewer.batch(0).tolist() == [i for i in more.batch(0).tolist() if i < 1000]


def test_noise_of_nothing_has_the_planned_deviation():
    """200,000 coordinates of a zero sum: chi-square of the variance and of 64 cells (equal shares), level 1e-4.

    A scale 1% off moves the variance by 2%, six standard errors: found with power above 0.97.
    """
    plan = plan_of(clip=0.5, noise_multiplier=1.7)
    drawn = plan.noise(SECRET).mean(np.zeros(200_000), 0)
    sigma = 1.7 * 0.5 / 50
    assert drawn.dtype == np.float32
    assert abs(drawn.astype(np.float64).var() / sigma**2 - 1) < 4 * math.sqrt(2 / 200_000)
    shares = 0.5 * np.vectorize(math.erfc)(-drawn / sigma / math.sqrt(2))
    counts = np.bincount(np.floor(shares * 64).astype(int), minlength=64)
    assert ((counts - 3125) ** 2 / 3125).sum() < 63 + 4 * math.sqrt(2 * 63)


def test_noise_of_other_steps_and_coordinates_is_independent():
    noise = plan_of().noise(SECRET)
    first, second = (noise.mean(np.zeros(100_000), step) for step in (0, 1))
    assert np.array_equal(first, noise.mean(np.zeros(100_000), 0))
    for one, other in ((first, second), (first[:-1], first[1:])):
        assert abs(np.corrcoef(one, other)[0, 1]) < 4.5 / math.sqrt(100_000)


def test_noise_is_not_the_batches_words():
    assert CipherEntropy(SECRET, "dp-sgd noise", 0).words(1) != CipherEntropy(SECRET, "dp-sgd batch", 0).words(1)


def test_what_comes_out_is_a_whole_number_of_grid_steps():
    """In float64 before the last rounding: the sum's own low bits are gone."""
    plan = plan_of(batch=50)
    noise, total = plan.noise(SECRET), np.full(1000, math.pi / 3)
    shift = np.rint(total / noise.step).astype(np.int64)
    with_sum, without = noise.mean(total.copy(), 0), noise.mean(np.zeros(1000), 0)
    assert noise.step == 1.0 / STEPS
    assert np.abs((with_sum - without).astype(np.float64) * 50 - shift * noise.step).max() < 1e-6


def test_the_limit_leaves_room_for_rounding():
    noise = plan_of(clip=2.0).noise(SECRET)
    assert 2.0 * 0.998 < noise.limit(10_000_000) < 2.0 * 0.999
    with pytest.raises(ConfigError, match="no exact grid"):
        plan_of(noise_multiplier=1e5).noise(SECRET).limit(100_000_000)
