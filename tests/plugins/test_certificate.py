# SPDX-License-Identifier: Apache-2.0
"""The certificate: true claims hold, false ones are caught, whether in the number, the rows or the sampler."""

import importlib
import importlib.util
import inspect
import math
import sys
import tracemalloc
import types
from collections.abc import Iterator
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


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Mechanism]]:
    """A mechanism in a package of its own, which imports a constant and a helper."""
    package = {
        "__init__.py": "", "numbers_of_it.py": "SHARE = 0.0\n", "deep/__init__.py": "", "deep/more.py": "MORE = 1\n",
        "deep/mine.py": "from ..numbers_of_it import SHARE\n" + CODE,
    }  # fmt: skip
    write(tmp_path / "strangers_pack", package)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("strangers_pack.deep.mine").Mine
    for name in [name for name in sys.modules if name.startswith("strangers_pack")]:
        del sys.modules[name]


@pytest.mark.parametrize("changed", ["__init__.py", "numbers_of_it.py", "deep/more.py", "deep/mine.py", "deep/new.py"])
def test_code_digest_covers_the_whole_package_constants_too(stranger: type[Mechanism], tmp_path: Path, changed: str) -> None:
    first = code_digest(stranger)
    assert first == code_digest(stranger)
    write(tmp_path, {"strangers_pack/README.md": "not code", "beside.py": "not of the package"})
    assert first == code_digest(stranger)
    write(tmp_path / "strangers_pack", {changed: "SHARE = 0.9\n"})
    assert first != code_digest(stranger)


def test_code_digest_does_not_depend_on_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for place in ("here", "there"):
        write(tmp_path / place / "placed_pack", {"__init__.py": "", "mine.py": CODE})
        with monkeypatch.context() as patch:
            patch.syspath_prepend(tmp_path / place)
            digests.append(code_digest(importlib.import_module("placed_pack.mine").Mine))
            for name in ("placed_pack", "placed_pack.mine"):
                del sys.modules[name]
    assert digests[0] == digests[1]


def test_code_digest_of_a_lone_module_follows_its_imports_beside_it(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"lone.py": "if 0:\n    import lone_a\n" + CODE, "lone_a.py": "from lone_b import X\n", "lone_b.py": "X = 1\n"},
    )
    try:
        cls = load(tmp_path / "lone.py", "lone_module")
        first = code_digest(cls)
        write(tmp_path, {"other.py": "Y = 1\n"})
        assert code_digest(cls) == first
        write(tmp_path, {"lone_b.py": "X = 2.5\n"})
        assert code_digest(cls) != first
    finally:
        del sys.modules["lone_module"]


def test_code_digest_covers_builtins_beside_one_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from osmotic.plugins.mechanisms import list_rr as home

    before = code_digest(ListRandomisedResponse)
    assert before != code_digest(Exponential)
    for file in Path(home.__file__).parent.glob("*.py"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(home, "__file__", str(tmp_path / "list_rr.py"))
    assert code_digest(ListRandomisedResponse) == before
    with (tmp_path / "shared.py").open("a") as file:
        file.write("# changed\n")
    assert code_digest(ListRandomisedResponse) != before


def test_code_digest_without_a_file_takes_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class typed in at a prompt: what `inspect` knows of it is what is hashed."""
    module = types.ModuleType("typed_in")
    monkeypatch.setitem(sys.modules, "typed_in", module)
    exec(CODE, vars(module))
    with pytest.raises(ConfigError, match="cannot be read"):
        code_digest(module.Mine)
    digests = []
    for text in (CODE, CODE, CODE + "    more = 1\n"):
        monkeypatch.setattr(inspect, "getsource", lambda cls, text=text: text)
        digests.append(code_digest(module.Mine))
    assert digests[0] == digests[1] != digests[2]


def test_retention_bound_falsifies_a_false_claim() -> None:
    card = certify(table([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9]], claim=1.0))
    assert card.self_retention > retention_bound(1.0, 3) and not card.holds
    assert retention_bound(1.0, 1) == 1.0
