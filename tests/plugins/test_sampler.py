# SPDX-License-Identifier: Apache-2.0
"""The test of samplers: what does not follow its probabilities is caught, with stated power; what does passes."""

import numpy as np
import pytest

from osmotic.plugins.certificate import (
    certify,
    check_sampler,
)
from osmotic.plugins.contract import Entropy, Space
from osmotic.plugins.entropy import SeededEntropy
from osmotic.plugins.fake_mechanism import MatrixMechanism as Table
from osmotic.plugins.fake_mechanism import matrix_mechanism as table
from osmotic.plugins.mechanisms.list_rr import ListRandomisedResponse, ListRrConfig


def list_rr(epsilon: float = 3.0, k: int = 4, v: int = 50, unknown: bool = True) -> ListRandomisedResponse:
    space = Space("ring", tuple(f"w{i}" for i in range(v)), None, unknown)
    return ListRandomisedResponse(ListRrConfig(epsilon=epsilon, k=k, lists="order"), space)


class Leaky(ListRandomisedResponse):
    """Honest probabilities beside a sampler that lets one token in ten through."""

    share = 0.1

    def sample(self, rows: np.ndarray, entropy: Entropy) -> np.ndarray:
        through = (entropy.uniform(len(rows)) < self.share) & (rows < self.space.size)
        return np.where(through, rows, super().sample(rows, entropy))


class OneDraw(Table):
    """Right at the margin, but one random number for a whole batch."""

    def sample(self, rows: np.ndarray, entropy: Entropy) -> np.ndarray:
        return super().sample(rows, Repeat(entropy))


class Repeat:
    """An entropy source that repeats its first value."""

    def __init__(self, inner: Entropy) -> None:
        self.inner = inner

    def uniform(self, count: int) -> np.ndarray:
        return np.repeat(self.inner.uniform(1), count)

    def integers(self, high: int, count: int) -> np.ndarray:
        return np.repeat(self.inner.integers(high, 1), count)


class Wild(Table):
    """Draws that are no symbols."""

    def sample(self, rows: np.ndarray, entropy: Entropy) -> np.ndarray:
        return rows + 1


def test_a_leaky_sampler_is_caught() -> None:
    mechanism = Leaky(ListRrConfig(epsilon=3, k=4, lists="order"), list_rr().space)
    check = check_sampler(mechanism, SeededEntropy(1))
    assert not check.agrees and "more or less often" in check.why
    card = certify(mechanism)
    assert not card.holds and card.epsilon_true == pytest.approx(3)
    assert certify(mechanism, sampler=False).holds


def test_stated_power_of_the_sampler_check() -> None:
    """A leak of 1% raises self-retention by .008. Pooled, 20,000 draws from each of 51 rows find .0056 with probability .999:
    all of 10 seeds must, but for one chance in a hundred (seeded: it never flickers)."""
    Subtle = type("Subtle", (Leaky,), {"share": 0.01})
    mechanism = Subtle(ListRrConfig(epsilon=3, k=4, lists="order"), list_rr().space)
    found = [not check_sampler(mechanism, SeededEntropy(i)).agrees for i in range(10)]
    assert sum(found) == 10


def test_honest_samplers_pass_again_and_again() -> None:
    """A false alarm has probability 1e-9; 20 seeds at 2,000 draws give none."""
    assert all(check_sampler(list_rr(), SeededEntropy(i), draws=2000).agrees for i in range(20))


class Partly(ListRandomisedResponse):
    """Honest on `honest` rows, and the identity (with probability `share`) on all others."""

    honest: np.ndarray
    share = 1.0

    def sample(self, rows: np.ndarray, entropy: Entropy) -> np.ndarray:
        through = (entropy.uniform(len(rows)) < self.share) & ~self.honest[rows]
        return np.where(through, rows, super().sample(rows, entropy))


def partly(honest: np.ndarray, share: float = 1.0, v: int = 2000) -> Partly:
    space = Space("ring", tuple(f"w{i}" for i in range(v)), None, True)
    mechanism = Partly(ListRrConfig(epsilon=4, k=8, lists="order"), space)
    mechanism.honest, mechanism.share = honest, share
    mechanism.honest[v] = True
    return mechanism


def some(v: int, rows: np.ndarray) -> np.ndarray:
    mask = np.zeros(v + 1, dtype=bool)
    mask[rows] = True
    return mask


def test_honesty_on_the_rows_that_an_old_test_looked_at_is_not_enough() -> None:
    """64 evenly spread rows of 2,001 honest, the identity elsewhere; the rows tried are fresh each time."""
    honest = some(2000, np.linspace(0, 2000, 64).round().astype(np.int64))
    mechanism = partly(honest)
    assert not any(certify(mechanism).holds for _ in range(3)) and certify(mechanism, sampler=False).holds


@pytest.mark.parametrize("bad", [1, 20])
def test_one_dishonest_row_among_two_thousand_is_caught(bad: int) -> None:
    """Up to 2,048 input symbols all are tried: 128 draws that never leave x have probability P(x|x)^128 < 1e-100 each."""
    mechanism = partly(~some(2000, np.arange(1000, 1000 + bad)))
    for i in range(3):
        check = check_sampler(mechanism, SeededEntropy(i), 5_000)
        assert not check.agrees and check.wide_rows == 2001 and check.missed(bad / 2001, 2001) == 0


def test_stated_power_over_a_large_table() -> None:
    """V = 6,000: a wide sample of 2,048 misses 1% of dishonest rows with probability (1 - .34)^60 ~ 1e-11, one row with .66."""
    mechanism = partly(~some(6000, np.arange(0, 6000, 100)), v=6000)
    check = check_sampler(mechanism, SeededEntropy(1))
    assert not check.agrees and 1e-12 < check.missed(0.01, 6001) < 1e-10
    assert check.missed(1 / 6001, 6001) == pytest.approx(1 - 2048 / 6001)


def test_a_small_leak_on_the_rows_that_are_not_tried_deeply_is_caught() -> None:
    """3% of all tokens come out unchanged, but for 64 rows: pooled, that is .03 over 256,128 draws, with .03 expected."""
    found = [not check_sampler(partly(some(2000, np.arange(64)), 0.03), SeededEntropy(i)).agrees for i in range(5)]
    assert all(found)


def test_rows_and_batch_sizes_are_fresh_and_of_all_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, str, frozenset[int]]] = []

    class Spy(ListRandomisedResponse):
        def sample(self, rows: np.ndarray, entropy: Entropy) -> np.ndarray:
            seen.append((len(rows), type(entropy).__name__, frozenset(rows.tolist())))
            return super().sample(rows, entropy)

    mechanism = Spy(ListRrConfig(epsilon=4, k=8, lists="order"), list_rr(v=500).space)
    tried = []
    for _ in range(2):
        seen.clear()
        assert certify(mechanism).holds
        tried.append(seen[0][2])
        assert {name for _, name, _ in seen} == {"SystemEntropy"}
        assert min(size for size, _, _ in seen) < 8 and len({size for size, _, _ in seen}) > 50
    assert tried[0] != tried[1] and 500 in tried[0] & tried[1]  # the unknown symbol is always there
    assert frozenset().union(*(rows for _, _, rows in seen)) == frozenset(range(501))


def test_a_sampler_set_on_the_object_is_tested_too() -> None:
    mechanism = table([[0.6, 0.4], [0.4, 0.6]])
    assert certify(mechanism).holds
    mechanism.sample = lambda rows, entropy: rows
    assert not certify(mechanism).holds


def test_a_fixed_output_that_is_not_the_input_is_caught() -> None:
    class Signature(Partly):
        def sample(self, rows: np.ndarray, entropy: Entropy) -> np.ndarray:
            return np.where(self.honest[rows], super().sample(rows, entropy), (rows * 7 + 3) % self.space.size)

    for i in range(3):
        mechanism = partly(~some(2000, np.arange(500, 510)))
        mechanism.__class__ = Signature
        assert not check_sampler(mechanism, SeededEntropy(i)).agrees


@pytest.mark.parametrize("cls", [OneDraw, Wild])
def test_draws_that_are_dependent_or_no_symbols_are_caught(cls: type[Table]) -> None:
    mechanism = table([[0.8, 0.2], [0.5, 0.5]], cls=cls)
    assert not check_sampler(mechanism, SeededEntropy(1)).agrees and not certify(mechanism).holds


class Shared(ListRandomisedResponse):
    """Each draw by inverse CDF, from a uniform number that the places `apart` from one another share, two by two."""

    apart = 1
    first = 0

    def sample(self, rows: np.ndarray, entropy: Entropy) -> np.ndarray:
        draws, at = entropy.uniform(len(rows)), np.arange(self.first, len(rows) - self.apart)
        at = at[(at - self.first) // self.apart % 2 == 0]
        draws[at + self.apart] = draws[at]
        sums = np.cumsum(np.exp(self.log_prob(np.arange(self.space.size + 1))), axis=1)
        return np.minimum((sums[rows] < draws[:, None]).sum(axis=1), self.space.size - 1)


class Coin(ListRandomisedResponse):
    """Two neighbours in a batch share whether they stay themselves; what they become is drawn for each."""

    def sample(self, rows: np.ndarray, entropy: Entropy) -> np.ndarray:
        p = np.exp(self.log_prob(np.arange(self.space.size + 1)))
        itself = np.append(np.diag(p), 0.0)
        stays = np.repeat(entropy.uniform(len(rows) // 2 + 1), 2)[: len(rows)] < itself[rows]
        others = p.copy()
        others[np.arange(self.space.size), np.arange(self.space.size)] = 0.0
        sums = np.cumsum(others, axis=1)
        draws = entropy.uniform(len(rows)) * sums[rows, -1]
        return np.where(stays, rows, np.minimum((sums[rows] < draws[:, None]).sum(axis=1), self.space.size - 1))


def shared(cls: type[ListRandomisedResponse], k: int, v: int, epsilon: float = 2.0) -> ListRandomisedResponse:
    return cls(ListRrConfig(epsilon=epsilon, k=k, lists="order"), list_rr(k=1, v=v).space)


@pytest.mark.parametrize(("apart", "first"), [(1, 0), (1, 1), (2, 0), (2, 1)])
@pytest.mark.parametrize(("k", "v"), [(1, 2), (4, 40)])
def test_noise_that_is_shared_inside_a_batch_is_caught(apart: int, first: int, k: int, v: int) -> None:
    mechanism = shared(type("Other", (Shared,), {"apart": apart, "first": first}), k, v)
    for seed in range(2):
        check = check_sampler(mechanism, SeededEntropy(seed), 1_000)
        assert not check.agrees and "depend on one another" in check.why


def test_a_coin_that_neighbours_share_is_caught() -> None:
    assert all("depend" in check_sampler(shared(Coin, 4, 40), SeededEntropy(i), 1_000).why for i in range(3))


def test_noise_that_is_not_shared_passes() -> None:
    """The same inverse CDF, each place with a number of its own: 10 seeds, two spaces."""
    honest = type("Honest", (Shared,), {"apart": 1 << 20})
    assert all(
        check_sampler(shared(honest, k, v), SeededEntropy(i), 500).agrees for i in range(5) for k, v in ((1, 2), (4, 40))
    )


class Zeros:
    """Entropy at its end: the rarest outcome, wherever it has any probability."""

    def uniform(self, count: int) -> np.ndarray:
        return np.full(count, 2.0**-53)

    def integers(self, high: int, count: int) -> np.ndarray:
        return np.zeros(count, dtype=np.int64)


@pytest.mark.parametrize("epsilon", [3.0, 40.0, 400.0])
@pytest.mark.parametrize("rare", [0, 1])
def test_the_rarest_symbol_comes_out_however_rare(epsilon: float, rare: int) -> None:
    """An inverse CDF would never give a symbol of probability e^-40 that stands last."""
    odds = np.array([0.0, -epsilon] if rare else [-epsilon, 0.0])
    made = table([[0.5, 0.5], [0.5, 0.5]], epsilon)
    made.log_prob = lambda rows: np.tile(odds - np.logaddexp(*odds), (len(rows), 1))
    assert made.sample(np.array([0, 1, 0]), Zeros()).tolist() == [rare] * 3
