# SPDX-License-Identifier: Apache-2.0
"""The certificate: true claims hold, false ones are caught, whether in the number, the rows or the sampler."""

import importlib.util
import math
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from osmotic.plugins.certificate import Card, card_key, certify, check_sampler, code_digest, retention_bound, space_digest
from osmotic.plugins.contract import Config, Entropy, Guarantee, Mechanism, Space
from osmotic.plugins.entropy import SeededEntropy
from osmotic.plugins.mechanisms.exponential import Exponential, ExponentialConfig
from osmotic.plugins.mechanisms.list_rr import ListRandomisedResponse, ListRrConfig
from osmotic.schemas.errors import ComponentError, ConfigError


class TableConfig(Config):
    """What the mechanism claims, and what it does."""

    claim: float = 1.0
    kind: str = "certified"


class Table(Mechanism[TableConfig]):
    """Log-probabilities from a matrix."""

    name = "table"
    matrix: np.ndarray

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.log(self.matrix[rows])

    def guarantee(self) -> Guarantee:
        return Guarantee(mechanism_class=self.config.kind, epsilon=self.config.claim)


def table(matrix: list[list[float]], claim: float = 1.0, kind: str = "certified", cls: type[Table] = Table) -> Table:
    values = np.array(matrix)
    v = values.shape[1]
    mechanism = cls(TableConfig(claim=claim, kind=kind), Space("s", tuple(f"s{i}" for i in range(v)), None, len(values) > v))
    mechanism.matrix = values
    return mechanism


def list_rr(epsilon: float = 3.0, k: int = 4, v: int = 50, unknown: bool = True) -> ListRandomisedResponse:
    space = Space("ring", tuple(f"w{i}" for i in range(v)), None, unknown)
    return ListRandomisedResponse(ListRrConfig(epsilon=epsilon, k=k, lists="order"), space)


def test_epsilon_of_a_small_matrix_by_hand() -> None:
    card = certify(table([[0.8, 0.2], [0.5, 0.5]], claim=math.log(2.5)))
    assert card.holds and card.epsilon_true == pytest.approx(math.log(2.5))
    assert card.self_retention == pytest.approx(0.65) and card.bayes_success == pytest.approx((0.8 + 0.5) / 2)
    assert card.symbols == 2 and card.declared.epsilon == pytest.approx(math.log(2.5))


def test_the_unknown_row_counts_for_epsilon_but_not_for_the_attack() -> None:
    rows = [[0.5, 0.5], [0.5, 0.5]]
    assert certify(table(rows)).epsilon_true == 0
    card = certify(table([*rows, [0.9, 0.1]], claim=2.0))
    assert card.epsilon_true == pytest.approx(math.log(5)) and card.bayes_success == pytest.approx(0.5)


def test_identity_and_uniform_are_the_ends_of_the_scale() -> None:
    nothing, all_ = certify(table(np.full((4, 4), 0.25).tolist())), certify(table(np.eye(4).tolist()))
    assert (nothing.bayes_success, nothing.self_retention, nothing.epsilon_true) == (0.25, 0.25, 0.0)
    assert (all_.bayes_success, all_.self_retention, all_.epsilon_true, all_.holds) == (1.0, 1.0, math.inf, False)


@pytest.mark.parametrize(
    ("matrix", "claim", "kind"),
    [
        ([[0.8, 0.2], [0.5, 0.5]], 0.9, "certified"),  # log 2.5 = .916
        ([[0.8, 0.2], [0.5, 0.5]], math.log(2.5) - 2e-6, "certified"),
        ([[0.5, 0.5], [0.5, 0.4]], 1.0, "certified"),  # does not sum to 1
        ([[1.0, 0.0], [1.0, 0.0]], 1.0, "certified"),  # zero probabilities
        ([[0.5, float("nan")], [0.5, 0.5]], 1.0, "certified"),
        ([[1e300, 1e300], [1e300, 1e300]], 1.0, "certified"),
        ([[0.5, 0.5], [0.5, 0.5]], 1.0, "heuristic"),  # never shown as differential privacy
    ],
)
def test_false_claims_do_not_hold(matrix: list[list[float]], claim: float, kind: str) -> None:
    assert not certify(table(matrix, claim, kind)).holds


@pytest.mark.parametrize("block", [1, 7, 50, 51, 512])
def test_blocks_change_nothing_but_memory(block: int) -> None:
    seen: list[tuple[int, int]] = []
    card = certify(list_rr(), block=block, progress=lambda done, total: seen.append((done, total)))
    whole = certify(list_rr())
    assert card.self_retention == pytest.approx(whole.self_retention, rel=1e-12)
    assert card.epsilon_true == whole.epsilon_true and card.holds
    assert seen[-1] == (51, 51) and len(seen) == -(-51 // block)


def test_memory_is_that_of_a_block() -> None:
    """V = 4,000: the whole matrix would be 128 MB."""
    mechanism = list_rr(v=4000)
    tracemalloc.start()
    certify(mechanism, block=64, sampler=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_a_card_survives_json() -> None:
    for card in (certify(list_rr()), certify(table(np.eye(3).tolist()))):
        assert Card.model_validate_json(card.model_dump_json()) == card


def test_wrong_shapes_are_the_plugin_authors_error() -> None:
    class Flat(Table):
        def log_prob(self, rows: np.ndarray) -> np.ndarray:
            return super().log_prob(rows)[:, 0]

    with pytest.raises(ComponentError, match="log_prob must give float64"):
        certify(table([[0.5, 0.5], [0.5, 0.5]], cls=Flat))


def test_repeated_symbols_would_hide_a_leak() -> None:
    """Two outputs that read the same are one output; their probabilities must be added before anything is certified."""
    mechanism = table([[0.5, 0.5], [0.5, 0.5]])
    mechanism.space = Space("s", ("same", "same"))
    with pytest.raises(ConfigError, match="stands twice"):
        certify(mechanism)


# ---- samplers --------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("cls", [OneDraw, Wild])
def test_draws_that_are_dependent_or_no_symbols_are_caught(cls: type[Table]) -> None:
    mechanism = table([[0.8, 0.2], [0.5, 0.5]], cls=cls)
    assert not check_sampler(mechanism, SeededEntropy(1)).agrees and not certify(mechanism).holds


# ---- identity --------------------------------------------------------------------------------------------------------


def test_space_digest_covers_content_not_name() -> None:
    vectors = np.eye(2, dtype=np.float32)
    base = Space("a", ("x", "y"), vectors)
    assert space_digest(base) == space_digest(Space("b", ("x", "y"), vectors.copy()))
    assert space_digest(base) == space_digest(Space("b", ("x", "y"), np.asfortranarray(vectors)))
    others = [
        Space("a", ("y", "x"), vectors),
        Space("a", ("x", "y"), vectors * 2),
        Space("a", ("x", "y"), None),
        Space("a", ("x", "y"), vectors, True),
        Space("a", ('x", "y',), None),
        Space("a", ("\ud800", "y"), None),
    ]
    assert len({space_digest(s) for s in [base, *others]}) == 7


def test_card_key_changes_with_code_parameters_and_space() -> None:
    exponential = Exponential(ExponentialConfig(epsilon=3), list_rr().space)
    keys = [card_key(m) for m in (list_rr(), list_rr(epsilon=4), list_rr(k=5), list_rr(v=51), exponential)]
    assert len(set(keys)) == 5 and keys[0] == card_key(list_rr(epsilon=3.0))


def load(path: Path, name: str) -> type[Mechanism]:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.Mine


CODE = """
from osmotic.plugins.contract import Config, Guarantee, Mechanism
class MineConfig(Config):
    epsilon: float = 1.0
class Mine(Mechanism[MineConfig]):
    name = "mine"
    def log_prob(self, rows): return None
    def guarantee(self): return Guarantee(mechanism_class="certified", epsilon=1.0)
"""


def test_code_digest_follows_the_source(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(CODE)
    try:
        first = code_digest(load(file, "stranger_mine"))
        file.write_text(CODE + "# changed\n")
        assert code_digest(load(file, "stranger_mine")) != first
        file.unlink()
        with pytest.raises(ConfigError, match="source of mechanism 'Mine' cannot be read"):
            code_digest(sys.modules["stranger_mine"].Mine)
    finally:
        del sys.modules["stranger_mine"]


def test_code_digest_covers_helpers_of_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from osmotic.plugins.mechanisms import shared

    before = code_digest(ListRandomisedResponse)
    changed = tmp_path / "shared.py"
    changed.write_text(Path(shared.__file__).read_text() + "# changed\n")
    monkeypatch.setattr(shared, "__file__", str(changed))
    assert code_digest(ListRandomisedResponse) != before


def test_retention_bound_falsifies_a_false_claim() -> None:
    card = certify(table([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9]], claim=1.0))
    assert card.self_retention > retention_bound(1.0, 3) and not card.holds
    assert retention_bound(1.0, 1) == 1.0
