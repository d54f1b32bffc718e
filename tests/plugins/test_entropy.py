# SPDX-License-Identifier: Apache-2.0
"""Entropy sources: exact ranges, no bias, reproducible seeds, one code path for both."""

import numpy as np
import pytest

from osmotic.plugins.contract import Entropy
from osmotic.plugins.entropy import GRID, CipherEntropy, SeededEntropy, SystemEntropy, _Words

SOURCES = [SystemEntropy(), SeededEntropy("a test"), CipherEntropy(bytes(32), "a test")]


class Script(_Words):
    """Gives the words it was told to."""

    def __init__(self, *words: int) -> None:
        self.words = list(words)

    def _words(self, count: int) -> np.ndarray:
        taken, self.words = self.words[:count], self.words[count:]
        return np.array(taken, dtype=np.uint64)


@pytest.mark.parametrize("source", SOURCES)
def test_types_and_ranges(source: Entropy) -> None:
    uniform, integers = source.uniform(10_000), source.integers(7, 10_000)
    assert uniform.dtype == np.float64 and uniform.shape == (10_000,) and uniform.min() > 0 and uniform.max() < 1
    assert integers.dtype == np.int64 and set(integers.tolist()) == set(range(7))
    assert source.uniform(0).shape == source.integers(3, 0).shape == (0,)
    assert source.integers(1, 5).tolist() == [0] * 5


def test_uniform_never_gives_zero_or_one() -> None:
    """The smallest and the largest words that are kept give 2^-53 and 1 - 2^-53; the word that would give 1 is rejected."""
    whole = (1 << 64) // (GRID - 1) * (GRID - 1)
    assert Script(0, whole - 1).uniform(2).tolist() == [2.0**-53, 1 - 2.0**-53]
    assert Script((1 << 64) - 1, 0).uniform(1).tolist() == [2.0**-53]


def test_integers_reject_the_unfair_rest() -> None:
    """2^32 = 2^64 = 1 mod 3: the single last word must be drawn again. Ranges up to 2^32 take half a word, the lower first."""
    full = (1 << 32) - 1
    assert Script(full << 32 | full, 5).integers(3, 1).tolist() == [2]
    assert Script(full << 32 | 4, 5).integers(3, 2).tolist() == [1, 2]
    assert Script(full << 32 | full).integers(1 << 32, 2).tolist() == [full, full]
    assert Script((1 << 64) - 1).integers(1 << 63, 1).tolist() == [(1 << 63) - 1]
    odd = (1 << 32) + 1  # 2^64 = 1 modulo it
    assert Script((1 << 64) - 1, odd + 7).integers(odd, 1).tolist() == [7]


@pytest.mark.parametrize("high", [0, -1, (1 << 63) + 1])
def test_integers_refuse_a_range_they_cannot_give(high: int) -> None:
    with pytest.raises(ValueError, match="high must be"):
        SystemEntropy().integers(high, 1)


@pytest.mark.parametrize("high", [3, 1000])
def test_integers_are_uniform(high: int) -> None:
    """Chi-square at 6 standard deviations: an honest source fails with probability below 1e-8; seeded, so it never flickers."""
    n = 1_000_000
    counts = np.bincount(SeededEntropy(3).integers(high, n), minlength=high)
    chi = ((counts - n / high) ** 2 / (n / high)).sum()
    assert abs(chi - (high - 1)) < 6 * np.sqrt(2 * (high - 1))


def test_uniform_fits_its_distribution() -> None:
    """Kolmogorov-Smirnov by the DKW bound: a deviation of .004 anywhere is seen, a false alarm has probability 2e-14."""
    n = 1_000_000
    draws = np.sort(SeededEntropy("ks").uniform(n))
    assert np.abs(draws - np.arange(n) / n).max() < 0.004


def test_seeds_repeat_and_differ() -> None:
    first = SeededEntropy("x").integers(1 << 63, 100)
    assert (first == SeededEntropy("x").integers(1 << 63, 100)).all()
    others = [SeededEntropy("y"), SeededEntropy(1), SeededEntropy("1"), SystemEntropy()]
    streams = [tuple(s.integers(1 << 63, 4).tolist()) for s in others]
    assert len({*streams, tuple(first[:4].tolist())}) == 5
    assert SeededEntropy("\ud800 and \0").uniform(1).shape == (1,)


def test_names_say_where_it_comes_from() -> None:
    assert (SystemEntropy.name, SeededEntropy.name) == ("system", "seeded")
