# SPDX-License-Identifier: Apache-2.0
"""Samplers against their probabilities, entropy against its law, and canaries by count, through every mechanism registered.

Counts are judged by the Chernoff bound n KL(count / n || p) <= ln(m / alpha), m tests, alpha = 1e-9: an honest mechanism fails
with probability at most alpha. Power: `reach(n, m)` is how far a probability must be off to be found with probability .999.
"""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osmotic.plugins.building import build_token
from osmotic.plugins.contract import Drawn, Entropy, Mechanism, Slot, Space
from osmotic.plugins.entropy import SystemEntropy, _Words
from osmotic.plugins.host import Registry, build_registry
from osmotic.plugins.mechanisms.list_rr import ListRandomisedResponse, ListRrConfig
from osmotic.plugins.sampler import check_sampler
from osmotic.plugins.spaces import decode, encode

ALPHA = 1e-9
INNER = {"name": "list-rr", "epsilon": 3.0, "k": 2}
MORE: dict[str, dict[str, Any]] = {
    "list-rr": {"k": 3},
    "rank-exponential": {"steps": [{"ranks": 1, "utility": 1.0}, {"ranks": 3, "utility": 0.6}]},
    "mixture": {"inner": INNER},
    "custext": {"k": 4},
}
NAMES = ("list-rr", "rank-exponential", "exponential", "calibrated", "mixture", "hierarchical")
CANARY = "Patient Bartholomew, ACCT-7731-KESTREL, saw Dr Oyelaran at 14 Elm Ave on 3 May. BP HIGH \N{PILL} \u60a3\u8005 is ok"
OUTSIDE = ("bartholomew", "oyelaran", "kestrel", "acct", "7731", "14", "\N{PILL}", "\u60a3", "\u8005")


@pytest.fixture(scope="module")
def registry() -> Registry:
    return build_registry([])


def words(more: int = 40) -> Space:
    """A small table: some words of the canary text, then others."""
    symbols = (
        "patient",
        "saw",
        "dr",
        "at",
        "on",
        "may",
        ".",
        ",",
        "-",
        "bp",
        "is",
        "ok",
        *(f"w{chr(97 + i)}" for i in range(more)),
    )
    vectors = np.random.default_rng(11).standard_normal((len(symbols), 6)).astype(np.float32)
    return Space("words", symbols, vectors, unknown=True)


def build(registry: Registry, name: str, epsilon: float = 3.0, space: Space | None = None) -> Mechanism[Any]:
    return build_token(registry, {"name": name, "epsilon": epsilon, **MORE.get(name, {})}, space or words())


def excess(count: float, n: int, p: float) -> float:
    """n KL(count/n || p), 0 where the count is not above what p says."""
    share = count / n
    if share <= p:
        return 0.0
    return n * (share * math.log(share / p) + ((1 - share) * math.log((1 - share) / (1 - p)) if share < 1 else 0.0))


def reach(n: int, tests: int) -> float:
    """By how much a probability must be too large to be found with probability .999 (Hoeffding's bound, twice)."""
    return math.sqrt(math.log(tests / ALPHA) / (2 * n)) + math.sqrt(math.log(1000) / (2 * n))


# ---- samplers --------------------------------------------------------------------------------------------------------


def test_every_certified_mechanism_is_tried_here(registry: Registry) -> None:
    certified = set()
    for name, registered in registry.mechanisms.items():
        if not issubclass(registered.cls, Mechanism) or name == "cleartext":  # cleartext's class is that of a partition
            continue
        if build(registry, name).guarantee().mechanism_class == "certified":
            certified.add(name)
    assert certified == set(NAMES)


@pytest.mark.parametrize("name", [*NAMES, "santext", "tem", "custext"])
def test_samplers_fit_their_probabilities(registry: Registry, name: str) -> None:
    """4,000 draws a row from rows that nobody knows: false alarms 1e-9, an event off by .1 is found with probability .999."""
    check = check_sampler(build(registry, name, 2.0, words(12)), SystemEntropy(), 4_000)
    assert check.agrees and check.detects < 0.1, check


class Generous(ListRandomisedResponse):
    """Keeps what it should not: one symbol in twelve that would have changed comes back."""

    def sample(self, rows: np.ndarray, entropy: Entropy) -> np.ndarray:
        out = super().sample(rows, entropy)
        return np.where((entropy.integers(12, len(rows)) == 0) & (rows < self.space.size), rows, out)


def test_a_generous_sampler_is_found() -> None:
    check = check_sampler(Generous(ListRrConfig(epsilon=2.0, k=3), words(12)), SystemEntropy(), 4_000)
    assert not check.agrees


@pytest.mark.parametrize("epsilon", [0.1, 3.0, 12.0, 60.0])
def test_list_rr_draws_its_three_probabilities(epsilon: float) -> None:
    """The symbol, the rest of its list, anything else: 400,000 draws, each off by less than .006 (false alarm 1e-9)."""
    n, mechanism = 400_000, ListRandomisedResponse(ListRrConfig(epsilon=epsilon, k=4), words())
    out, row = mechanism.sample(np.full(n, 7), SystemEntropy()), np.exp(mechanism.log_prob(np.array([7])))[0]
    lists, limit = mechanism.lists(np.array([7]))[0], math.log(6 / ALPHA)
    for symbols in ([7], lists[1:], np.setdiff1d(np.arange(mechanism.space.size), lists)):
        count, p = int(np.isin(out, symbols).sum()), float(row[symbols].sum())
        assert excess(count, n, p) <= limit and excess(n - count, n, 1 - p) <= limit, (symbols, count / n, p)
    assert reach(n, 6) < 0.009


def test_list_rr_draws_the_same_amount_for_every_symbol() -> None:
    """How much randomness is used depends on coins alone: for words, for the unknown symbol, with and without lists."""

    class Counted(SystemEntropy):
        asked = 0

        def integers(self, high: int, count: int) -> np.ndarray:
            self.asked += count
            return super().integers(high, count)

    mechanism = ListRandomisedResponse(ListRrConfig(epsilon=1.0, k=4), words())
    asked = []
    for row in (0, 5, mechanism.space.size):
        source = Counted()
        mechanism.sample(np.full(100, row), source)
        asked.append(source.asked)
    assert asked == [300, 300, 300]


# ---- entropy ---------------------------------------------------------------------------------------------------------


class Script(_Words):
    """Gives the words it was told to, then zeros; counts what was taken."""

    def __init__(self, words: list[int]) -> None:
        self.words, self.taken = words, 0

    def _words(self, count: int) -> np.ndarray:
        given = self.words[self.taken : self.taken + count]
        self.taken += count
        return np.array(given + [0] * (count - len(given)), dtype=np.uint64)


@settings(max_examples=200, deadline=None)
@given(high=st.integers(1, 1 << 63), words=st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=20))
def test_integers_keep_whole_multiples_of_the_range_only(high: int, words: list[int]) -> None:
    """What is kept is every word (or half) below the largest multiple of the range: each outcome has equally many words."""
    wide = high > 1 << 32
    units = words if wide else [half for word in words for half in (word & 0xFFFFFFFF, word >> 32)]
    whole = (1 << (64 if wide else 32)) // high * high
    expected = [unit % high for unit in units if unit < whole]
    got = Script(words).integers(high, len(units))
    assert got.min() >= 0 and got.max() < high
    if len(expected) == len(units):  # nothing rejected: one pass
        assert got.tolist() == expected
    assert got[: len(expected)].tolist() == expected


@settings(max_examples=60, deadline=None)
@given(high=st.integers(1, 1 << 63), count=st.integers(0, 70_000))
def test_system_integers_have_their_range_and_mean(high: int, count: int) -> None:
    """Hoeffding: the mean is off by more than sqrt(ln(2 * 60 / 1e-9) / 2n) of the range with probability 1e-9 in all tests."""
    drawn = SystemEntropy().integers(high, count)
    assert drawn.shape == (count,) and drawn.dtype == np.int64
    if count:
        assert drawn.min() >= 0 and drawn.max() < high
        share = (drawn.astype(np.float64) + 0.5).mean() / high
        assert abs(share - 0.5) <= math.sqrt(math.log(120 / ALPHA) / (2 * count))


@pytest.mark.parametrize("high", [2, 3, 7, 1000, (1 << 16) + 1, 3 << 30, (1 << 32) + 1, (1 << 62) + 5])
def test_system_integers_are_uniform_over_thirds_and_parities(high: int) -> None:
    """500,000 draws; a third of the range, or the odd numbers, off by more than .007 are found with probability .999."""
    n, drawn = 500_000, SystemEntropy().integers(high, 500_000)
    cut = high // 3
    events = [(drawn <= cut, (cut + 1) / high), (drawn >= high - 1 - cut, (cut + 1) / high), (drawn % 2 == 1, high // 2 / high)]
    for event, p in events:
        count = int(event.sum())
        assert max(excess(count, n, p), excess(n - count, n, 1 - p)) <= math.log(48 / ALPHA)
    assert reach(n, 48) < 0.008


def test_both_halves_of_a_word_are_independent() -> None:
    """Draws that share a word agree as often as others: 1/7, and in neighbouring pairs too (300,000 pairs, off by .01)."""
    drawn = SystemEntropy().integers(7, 600_000)
    for left, right in ((drawn[::2], drawn[1::2]), (drawn[1:-1:2], drawn[2::2])):
        count, n = int((left == right).sum()), len(left)
        assert max(excess(count, n, 1 / 7), excess(n - count, n, 6 / 7)) <= math.log(4 / ALPHA)


# ---- canaries by count -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [1.0, 3.0])
@pytest.mark.parametrize("name", NAMES)
def test_canaries_survive_no_more_often_than_computed(registry: Registry, name: str, epsilon: float) -> None:
    """4,000 releases of the canary text: what is outside never comes out; what is inside, position by position and in all, no
    more often than P(x|x). False alarm 1e-9; a symbol kept too often by .085 is found with probability .999.
    """
    mechanism, n = build(registry, name, epsilon), 4_000
    space = mechanism.space
    flat, lengths = encode(space, [CANARY])
    out = mechanism.sample(np.tile(flat, n), SystemEntropy())
    for text in set(decode(space, out, np.tile(lengths, n))):
        assert not [word for word in OUTSIDE if word in text.lower()]
    known = np.flatnonzero(flat < space.size)
    kept = (out.reshape(n, -1)[:, known] == flat[known]).sum(axis=0)
    p = np.exp(mechanism.log_prob(flat[known]))[np.arange(len(known)), flat[known]]
    limit = math.log((len(known) + 1) / ALPHA)
    assert 10 <= len(known) < len(flat)
    assert max(excess(int(count), n, float(one)) for count, one in zip(kept, p, strict=True)) <= limit
    assert excess(int(kept.sum()), n * len(known), float(p.mean())) <= limit
    assert reach(n, len(known) + 1) < 0.09


def test_the_canary_test_finds_a_leak() -> None:
    """A mechanism that lets one symbol in twelve pass fails the same bound."""
    mechanism, n = Generous(ListRrConfig(epsilon=1.0, k=3), words()), 4_000
    kept = int((mechanism.sample(np.full(n, 3), SystemEntropy()) == 3).sum())
    p = float(np.exp(mechanism.log_prob(np.array([3])))[0, 3])
    assert excess(kept, n, p) > math.log(20 / ALPHA)


def test_what_is_outside_comes_out_uniform(registry: Registry) -> None:
    """An unknown word is any symbol: 40,000 draws of each mechanism, no symbol above 1/V by more than .013 (alpha 1e-9)."""
    n = 40_000
    for name in NAMES:
        mechanism = build(registry, name)
        v = mechanism.space.size
        counts = np.bincount(mechanism.sample(np.full(n, v), SystemEntropy()), minlength=v)
        limit = math.log(2 * v * len(NAMES) / ALPHA)
        assert max(excess(int(c), n, 1 / v) for c in counts) <= limit, name
        assert max(excess(n - int(c), n, 1 - 1 / v) for c in counts) <= limit, name


def test_a_document_mechanism_keeps_what_is_outside_at_home(registry: Registry) -> None:
    cls = registry.mechanism("adaptive-exponential")
    from osmotic.plugins.contract import config_type

    slot = Slot("text", text=True, space=words())
    mechanism = cls(config_type(cls)(epsilon=60.0, k=3), [slot], lambda name: None)
    drawn: list[Drawn] = mechanism.sample([(CANARY,)] * 300, SystemEntropy())
    assert len(drawn) == 300 and max(one.epsilon for one in drawn) <= 60.0
    for one in drawn:
        assert not [word for word in OUTSIDE if word in one.texts[0].lower()]
