# SPDX-License-Identifier: Apache-2.0
"""custext and cleartext: epsilon inside a cell, the cell is public, every symbol has one."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from osmotic.plugins.building import build_token
from osmotic.plugins.certificate import certify
from osmotic.plugins.contract import Mechanism, Space
from osmotic.plugins.entropy import SeededEntropy
from osmotic.plugins.host import build_registry
from osmotic.plugins.mechanisms.cleartext import Cleartext, CleartextConfig
from osmotic.plugins.mechanisms.custext import CusText, CusTextConfig
from osmotic.plugins.mechanisms.list_rr import ListRandomisedResponse, ListRrConfig
from osmotic.plugins.mechanisms.santext import SanText, SanTextConfig
from osmotic.plugins.sampler import check_sampler
from osmotic.schemas.errors import ConfigError

WORDS = ("pain", ".", "B", "7", "the", "fever", ",", "a", "cough", "2024", "##ed", "rash", "The", "中")


def space(v: int, d: int = 4, unknown: bool = True, seed: int = 0) -> Space:
    vectors = np.random.default_rng(seed).standard_normal((v, d)).astype(np.float32)
    return Space("words", tuple(f"w{i}" for i in range(v)), vectors, unknown)


def custext(epsilon: float, k: int, where: Space, variant: str = "conservative", **more: str) -> CusText:
    return CusText(CusTextConfig(epsilon=epsilon, k=k, variant=variant, **more), where)


def texts(seed: int = 0) -> Space:
    return Space("texts", WORDS, np.random.default_rng(seed).standard_normal((len(WORDS), 3)).astype(np.float32), True)


def cleartext(where: Space, *classes: str, epsilon: float = 2.0) -> Cleartext:
    config = CleartextConfig(inner={"name": "list-rr", "epsilon": epsilon, "k": 2}, classes=classes)
    inner = ListRandomisedResponse(ListRrConfig(epsilon=epsilon, k=2), Cleartext.inner_space(config, where))
    return Cleartext(config, where, inner)


def spread_in_cells(mechanism: Mechanism) -> float:
    """The largest log ratio within a cell; rows of other cells share no output, and every cell's rows have one support."""
    cells = mechanism.cells()
    total = mechanism.space.size + mechanism.space.unknown
    assert cells is not None and cells.shape == (total,) and cells.dtype == np.int64
    table = mechanism.log_prob(np.arange(total))
    assert np.exp(table).sum(axis=1) == pytest.approx(1, abs=1e-9)
    largest, owner = 0.0, np.full(mechanism.space.size, -1)
    for cell in np.unique(cells):
        rows = table[cells == cell]
        support = np.isfinite(rows[0])
        assert (np.isfinite(rows) == support).all() and (owner[support] == -1).all()
        owner[support] = cell
        largest = max(largest, float(np.ptp(rows[:, support], axis=0).max()))
    assert (owner == cells[: mechanism.space.size]).all()  # what comes out says the cell, and no more
    return largest


@settings(max_examples=40, deadline=None)
@given(epsilon=st.floats(0.01, 30), v=st.integers(2, 40), k=st.integers(2, 40), unknown=st.booleans(), seed=st.integers(0, 9))
def test_epsilon_holds_inside_every_set(epsilon: float, v: int, k: int, unknown: bool, seed: int) -> None:
    mechanism = custext(epsilon, min(k, v), space(v, 3, unknown, seed))
    assert spread_in_cells(mechanism) <= epsilon + 1e-9
    sizes = np.bincount(mechanism.cells()[:v])
    assert (sizes[:-1] == min(k, v)).all() and min(k, v) <= sizes[-1] < 2 * min(k, v)
    assert mechanism.guarantee().mechanism_class == "partition"


def test_sets_are_made_in_public_order_of_the_nearest_free_symbols() -> None:
    """Against the plain definition, word by word."""
    where = space(50, 5, seed=4)
    unit = where.vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    free, expected = list(range(50)), []
    while len(free) >= 14:
        first = free[0]
        free.sort(key=lambda y: (y != first, np.linalg.norm(unit[y] - unit[first])))
        expected.append(set(free[:7]))
        free = sorted(free[7:])
    expected.append(set(free))
    cells = custext(1, 7, where).cells()
    assert [set(np.flatnonzero(cells[:50] == c).tolist()) for c in range(len(expected))] == expected
    assert cells[50] == len(expected) - 1


def test_a_file_of_frequencies_decides_who_chooses_first_and_is_named_by_its_digest(tmp_path: Path) -> None:
    file = tmp_path / "counts.tsv"
    file.write_text("w9\t50\nother\t7\nw3\t40\n", encoding="utf-8")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    cells = custext(1, 3, space(12), frequencies=str(file), sha256=digest).cells()
    assert cells[9] == 0 and cells[3] in (0, 1) and cells[0] <= 2
    with pytest.raises(ConfigError, match=f"sha256: {digest}"):
        custext(1, 3, space(12), frequencies=str(file), sha256="0" * 64)
    with pytest.raises(ConfigError, match="cannot be read"):
        custext(1, 3, space(12), frequencies=str(tmp_path / "none"), sha256=digest)
    file.write_text("w9 50\n", encoding="utf-8")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(ConfigError, match=r"counts.tsv:1: *not SYMBOL|not SYMBOL<tab>COUNT"):
        custext(1, 3, space(12), frequencies=str(file), sha256=digest)


def test_unknown_hides_in_the_last_set_within_half_of_epsilon() -> None:
    mechanism = custext(4, 5, space(23))
    table, cells = mechanism.log_prob(np.arange(24)), mechanism.cells()
    last = np.flatnonzero(cells[:23] == cells[23])
    assert np.exp(table[23, last]) == pytest.approx(1 / len(last))
    assert np.abs(table[last][:, last] - table[23, last]).max() <= 2 + 1e-9


@pytest.mark.parametrize("variant", ["conservative", "aggressive"])
def test_custext_draws_what_it_says(variant: str) -> None:
    """20,000 draws a row: an event that is off by .05 is found with probability .999; false alarms 1e-9."""
    check = check_sampler(custext(5, 4, space(30), variant), SeededEntropy("custext"))
    assert check.agrees and check.detects < 0.05, check


def test_aggressive_sets_are_each_symbols_own_and_heuristic() -> None:
    mechanism = custext(3, 4, space(20), "aggressive")
    table = mechanism.log_prob(np.arange(21))
    assert (np.isfinite(table[:20]).sum(axis=1) == 4).all() and np.exp(table[20]) == pytest.approx(1 / 20)
    assert mechanism.cells() is None and mechanism.guarantee().mechanism_class == "heuristic"
    assert not (np.isfinite(table[:20]) == np.isfinite(table[0])).all()


def test_sets_must_fit_the_space() -> None:
    for k, variant in ((6, "conservative"), (5, "aggressive")):
        with pytest.raises(ConfigError, match="k: a set cannot be larger"):
            custext(1, k, space(5), variant)
    assert spread_in_cells(custext(1, 5, space(5))) <= 1
    for bad in ({"k": 1}, {"k": 2.5}, {"variant": "bold"}, {"epsilon": 0}):
        with pytest.raises(ValidationError):
            CusTextConfig(**{"epsilon": 1, **bad})


# ---- cleartext -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "passing"),
    [
        (["punctuation"], {".", ","}),
        (["digits"], {"7", "2024"}),
        (["letters"], {"B", "a"}),
        (["stopwords"], {"the", "The", "a"}),
        (["punctuation", "digits", "letters", "stopwords"], {".", ",", "7", "2024", "B", "a", "the", "The"}),
    ],
)
def test_declared_classes_pass_and_nothing_else(classes: list[str], passing: set[str]) -> None:
    mechanism = cleartext(texts(), *classes)
    table = mechanism.log_prob(np.arange(len(WORDS) + 1))
    kept = {w for i, w in enumerate(WORDS) if table[i, i] == 0}
    assert kept == passing and mechanism.cleartext() == tuple(classes)
    out = mechanism.sample(np.arange(len(WORDS)).repeat(300), SeededEntropy(1)).reshape(-1, 300)
    for i, word in enumerate(WORDS):
        assert (out[i] == i).all() if word in passing else not set(out[i].tolist()) & {WORDS.index(w) for w in passing}


@settings(max_examples=25, deadline=None)
@given(
    epsilon=st.floats(0.01, 20),
    classes=st.sets(st.sampled_from(["punctuation", "digits", "letters", "stopwords"]), min_size=1),
)
def test_epsilon_holds_given_the_pattern(epsilon: float, classes: set[str]) -> None:
    mechanism = cleartext(texts(), *sorted(classes), epsilon=epsilon)
    assert spread_in_cells(mechanism) == pytest.approx(epsilon, abs=1e-9)
    claim = mechanism.guarantee()
    assert (claim.mechanism_class, claim.epsilon, claim.unit) == ("partition", epsilon, "token")
    cells = mechanism.cells()
    sampled = [i for i in range(len(WORDS)) if np.exp(mechanism.log_prob(np.array([i])))[0, i] < 1]
    assert len(set(cells[[*sampled, len(WORDS)]].tolist())) == 1


def test_cells_of_an_inner_partition_stay_apart() -> None:
    where = texts(2)
    config = CleartextConfig(inner={"name": "custext"}, classes=("punctuation", "digits"))
    mechanism = Cleartext(config, where, custext(3, 3, Cleartext.inner_space(config, where)))
    assert spread_in_cells(mechanism) <= 3 + 1e-9
    assert len(np.unique(mechanism.cells())) == 4 + len(np.unique(mechanism.inner.cells()))


def test_cleartext_draws_what_it_says() -> None:
    """20,000 draws a row: an event that is off by .05 is found with probability .999; false alarms 1e-9."""
    check = check_sampler(cleartext(texts(), "punctuation", "stopwords"), SeededEntropy("clear"))
    assert check.agrees and check.detects < 0.05, check


def test_inner_spaces_keep_vectors_and_what_has_no_partition_class_is_heuristic() -> None:
    where = texts()
    config = CleartextConfig(inner={}, classes=["punctuation"])
    inside = Cleartext.inner_space(config, where)
    assert inside.unknown and inside.tokenizer is None and "." not in inside.symbols
    assert (inside.vectors == where.vectors[[i for i, w in enumerate(WORDS) if w not in ".,"]]).all()
    claim = Cleartext(config, where, SanText(SanTextConfig(epsilon=1), inside)).guarantee()
    assert (claim.mechanism_class, claim.unit) == ("heuristic", "token")


def test_cleartext_refuses_what_cannot_be_wrapped() -> None:
    where = texts()
    config = CleartextConfig(inner={}, classes=("punctuation",))
    with pytest.raises(ConfigError, match="inner: cleartext needs"):
        Cleartext(config, where)
    with pytest.raises(ConfigError, match="inner: cleartext needs"):
        Cleartext(config, where, ListRandomisedResponse(ListRrConfig(epsilon=1, k=2), where))
    with pytest.raises(ConfigError, match="nothing is left to sample"):
        Cleartext.inner_space(config, Space("marks", (".", ",")))
    for bad in ([], ["words"], "punctuation"):
        with pytest.raises(ValidationError):
            CleartextConfig(inner={}, classes=bad)


def test_the_host_builds_and_certifies_both() -> None:
    """By name, as in a pipeline; partition holds within cells, though outputs of other cells have probability 0."""
    inner = {"name": "custext", "epsilon": 2, "k": 2}
    for mechanism in (inner, {"name": "cleartext", "classes": ["digits", "stopwords"], "inner": inner}):
        card = certify(build_token(build_registry([]), mechanism, texts()))
        assert card.holds and card.declared.mechanism_class == "partition" and card.declared.epsilon == 2
    assert card.cleartext == ("digits", "stopwords")
