# SPDX-License-Identifier: Apache-2.0
"""Cards of the other classes: partitions, distances, priors, bounds; wrappers, threads, estimates."""

import math

import numpy as np
import pytest

from osmotic.plugins.certificate import (
    Card,
    card_key,
    certify,
    estimate,
    list_mass,
    list_mass_bound,
)
from osmotic.plugins.contract import Space
from osmotic.plugins.fake_mechanism import MatrixConfig as TableConfig
from osmotic.plugins.fake_mechanism import MatrixMechanism as Table
from osmotic.plugins.fake_mechanism import matrix_mechanism as table
from osmotic.plugins.mechanisms.list_rr import ListRandomisedResponse, ListRrConfig
from osmotic.schemas.errors import ComponentError, ConfigError


def list_rr(epsilon: float = 3.0, k: int = 4, v: int = 50, unknown: bool = True) -> ListRandomisedResponse:
    space = Space("ring", tuple(f"w{i}" for i in range(v)), None, unknown)
    return ListRandomisedResponse(ListRrConfig(epsilon=epsilon, k=k, lists="order"), space)


class Cells(Table):
    """Two cells of two symbols; the cell is released exactly."""

    where: np.ndarray

    def cells(self) -> np.ndarray:
        return self.where


HALF = [[0.8, 0.2, 0, 0], [0.2, 0.8, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 0.3, 0.7]]


def partition(matrix: list[list[float]], claim: float, where: list[int]) -> Cells:
    made = table(matrix, claim, "partition", Cells)
    assert isinstance(made, Cells)
    made.where = np.array(where, dtype=np.int64)
    return made


@pytest.mark.parametrize("block", [1, 3, None])
def test_a_partition_holds_inside_its_cells(block: int | None) -> None:
    order = [0, 2, 1, 3]  # cells interleaved
    matrix = np.array(HALF)[np.ix_(order, order)].tolist()
    card = certify(partition(matrix, math.log(4), [5, 1, 5, 1]), block=block)
    assert card.holds and card.epsilon_within == pytest.approx(math.log(4)) and card.epsilon_true == math.inf
    assert card.bayes_success == pytest.approx((0.8 + 0.8 + 0.5 + 0.7) / 4)
    assert card.retention_bound == pytest.approx(0.8) and not card.breaks_bound
    assert not certify(partition(matrix, 1.3, [5, 1, 5, 1]), block=block).holds
    wrong = certify(partition(matrix, math.log(4), [0, 0, 1, 1]), block=block)
    assert not wrong.holds and wrong.epsilon_within == math.inf


def test_an_attacker_of_a_partition_knows_the_cell() -> None:
    """The rows are uniform, but each symbol is alone in its cell: it is known for certain."""
    card = certify(partition(np.full((3, 3), 1 / 3).tolist(), 1.0, [0, 1, 2]))
    assert card.bayes_success == pytest.approx(1.0) and card.epsilon_true == 0.0


@pytest.mark.parametrize("where", [[0, 1, 2, 2], [5, 5, 5, 9]])
def test_a_cell_of_one_symbol_must_be_declared(where: list[int]) -> None:
    made = partition(np.full((4, 4), 0.25).tolist(), 1.0, where)
    assert not certify(made).holds and "in the clear" in certify(made).why
    made.cleartext = lambda: ("some",)
    assert certify(made).holds


def test_wrong_cells_are_the_plugin_authors_error() -> None:
    with pytest.raises(ComponentError, match=r"cells must give int64 \[4\]"):
        certify(partition(HALF, 1.0, [0, 1]))
    assert "no cells" in certify(table(HALF, 1.0, "partition")).why


class Line(Table):
    """Points on a line; the row decays by `rate` a unit of distance."""

    rate = 1.0

    def distances(self, rows: np.ndarray) -> np.ndarray:
        at = np.arange(self.space.size + self.space.unknown, dtype=np.float64)
        return np.abs(at[rows][:, None] - at)

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        scores = -self.rate * self.distances(rows)[:, : self.space.size]
        return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def line(rate: float, claim: float, v: int = 12) -> Line:
    made = Line(TableConfig(claim=claim, kind="metric"), Space("line", tuple(f"p{i}" for i in range(v))))
    made.rate = rate
    return made


def test_a_metric_claim_is_checked_over_all_pairs() -> None:
    card = certify(line(0.5, 1.0))
    assert card.holds and card.metric_pairs == 66 and 0.5 < card.metric_ratio <= 1
    assert card.retention_bound is None and card.epsilon_true > 1.0  # far points may be told apart
    false = certify(line(2.0, 1.0))
    assert not false.holds and false.metric_ratio > 1.5 and "times epsilon d" in false.why
    assert "no distances" in certify(table([[0.5, 0.5], [0.5, 0.5]], 1.0, "metric")).why


def test_a_metric_claim_of_a_large_space_is_checked_on_a_stated_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    from osmotic.plugins import ratios

    monkeypatch.setattr(ratios, "ALL", 100)
    card = certify(line(0.5, 1.0, 300))
    blocks = [48] * 6 + [12]
    assert card.holds and card.metric_pairs == sum(n * (n - 1) // 2 + 4 * n for n in blocks)
    assert not certify(line(2.0, 1.0, 300)).holds


def test_equal_points_must_have_equal_rows() -> None:
    class Same(Line):
        def distances(self, rows: np.ndarray) -> np.ndarray:
            return np.zeros((len(rows), self.space.size))

        def log_prob(self, rows: np.ndarray) -> np.ndarray:
            return Table.log_prob(self, rows)

    made = Same(TableConfig(claim=1.0, kind="metric"), Space("s", ("a", "b")))
    made.matrix = np.full((2, 2), 0.5)
    assert certify(made).metric_ratio == 0.0
    made.matrix = np.array([[0.5, 0.5], [0.4, 0.6]])
    assert certify(made).metric_ratio == math.inf and not certify(made).holds


def test_cleartext_classes_are_no_certified_claim() -> None:
    class Clear(Table):
        def cleartext(self) -> tuple[str, ...]:
            return ("punctuation",)

    card = certify(table([[0.5, 0.5], [0.5, 0.5]], cls=Clear))
    assert not card.holds and card.cleartext == ("punctuation",) and "in the clear" in card.why


def test_success_under_a_prior() -> None:
    mechanism = table([[0.8, 0.2], [0.5, 0.5]], claim=2.0)
    card = certify(mechanism, prior=np.array([0.9, 0.1]))
    assert card.prior_success == pytest.approx(0.9 * 0.8 + 0.9 * 0.2) and card.bayes_success == pytest.approx(0.65)
    cells = partition(HALF, 2.0, [0, 0, 1, 1])
    assert certify(cells, prior=np.array([0.5, 0.5, 0, 0])).prior_success == pytest.approx(0.8)
    for bad in ([0.5, 0.6], [1.5, -0.5], [1.0], [float("nan"), 1.0]):
        with pytest.raises(ConfigError, match="prior must"):
            certify(mechanism, prior=np.array(bad))


def test_the_bound_falsifies_at_the_declared_epsilon() -> None:
    card = certify(table(np.eye(4).tolist(), claim=1.0, kind="heuristic"))
    assert card.breaks_bound and card.retention_bound == pytest.approx(math.e / (math.e + 3)) and not card.holds


def test_mass_on_regular_lists() -> None:
    mechanism = list_rr(3.0, 4, 50)
    ring = (np.arange(50)[:, None] + np.array([0, 1, -1, 2])) % 50
    assert list_mass(mechanism, ring) == pytest.approx(list_mass_bound(3.0, 50, 4), rel=1e-12)
    hub = ring.copy()
    hub[3, 3] = 20
    with pytest.raises(ConfigError, match="not regular"):
        list_mass(mechanism, hub)
    found = [list_mass_bound(e, 11_000, 20) for e in (3, 6, 10)]
    assert found == pytest.approx([0.0353, 0.424, 0.976], rel=2e-3)


def test_two_threads_give_the_same_card(monkeypatch: pytest.MonkeyPatch) -> None:
    from osmotic.plugins import columns

    made, cards = list_rr(v=1500), []
    for threads in (1, 2):
        monkeypatch.setattr(columns, "threads_for", lambda _, n=threads: n)
        cards.append(certify(made, block=100, sampler=False).model_dump(exclude={"made", "seconds"}))
    assert cards[0] == cards[1]


def test_strangers_get_one_thread() -> None:
    from osmotic.plugins.columns import threads_for

    assert threads_for(table(np.eye(3).tolist())) == 1
    large = table(np.eye(3).tolist())
    large.space = Space("s", tuple(map(str, range(5000))))
    assert threads_for(large) == 1


def test_old_or_damaged_cards_are_made_anew() -> None:
    card = certify(list_rr())
    text = card.model_dump_json()
    assert Card.stored(text) == card and card.osmotic and card.made and card.seconds >= 0
    assert Card.stored(text.replace('"version":2', '"version":1')) is None
    assert Card.stored(text[:-5]) is None and Card.stored("") is None


def test_a_wrappers_key_has_the_inner_one_in_it() -> None:
    class Wrapper(ListRandomisedResponse):
        wraps = True

    def wrapped(epsilon: float) -> Wrapper:
        made = Wrapper(ListRrConfig(epsilon=3, k=4, lists="order"), list_rr().space)
        made.inner = list_rr(epsilon)
        return made

    assert card_key(wrapped(1.0)) == card_key(wrapped(1.0)) != card_key(wrapped(2.0))
    assert certify(wrapped(1.0)).inner == card_key(list_rr(1.0)) and certify(list_rr()).inner == ""


def test_the_estimate_is_of_the_right_size() -> None:
    assert 0 < estimate(list_rr()) < 10


@pytest.mark.parametrize("unit", ["document", "distance", "record", "client"])
def test_other_units_are_not_what_was_computed(unit: str) -> None:
    for kind, cls in (("certified", Table), ("partition", Cells)):
        made = cls(TableConfig(kind=kind, unit=unit), Space("s", ("a", "b")))
        made.matrix, made.where = np.full((2, 2), 0.5), np.zeros(2, dtype=np.int64)
        card = certify(made)
        assert not card.holds and f"unit {unit}: this claim is per token or field" in card.why


@pytest.mark.parametrize("v", [6, 300])
def test_distances_must_be_symmetric_and_finite(v: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from osmotic.plugins import ratios

    class Crooked(Line):
        def distances(self, rows: np.ndarray) -> np.ndarray:
            apart = super().distances(rows)
            return np.where(np.arange(self.space.size) > rows[:, None], 2 * apart, apart)

    class Endless(Line):
        def distances(self, rows: np.ndarray) -> np.ndarray:
            apart = super().distances(rows)
            return np.where(apart == 1, np.inf, apart)

    monkeypatch.setattr(ratios, "ALL", 100)
    made = line(0.5, 1.0, v)
    for cls, why in ((Crooked, "not symmetric"), (Endless, "finite")):
        made.__class__ = cls
        made.log_prob = lambda rows: np.full((len(rows), v), -math.log(v))
        with pytest.raises(ComponentError, match=why):
            certify(made)


def test_probabilities_that_rounding_loses_do_not_hold() -> None:
    assert certify(line(345.0, 690.0, 3)).holds  # e^-690 at the far end
    card = certify(line(400.0, 800.0, 3))
    assert not card.holds and "e^-800, is below what is drawn exactly" in card.why
    cells = partition([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1.0, 1e-306], [0, 0, 1.0, 1e-306]], 1.0, [0, 0, 1, 1])
    assert "below what is drawn exactly" in certify(cells).why


@pytest.mark.parametrize("claim", [0.0, -1.0, math.inf, math.nan])
def test_an_epsilon_that_is_no_number_above_zero_is_no_claim(claim: float) -> None:
    uniform = np.full((2, 2), 0.5).tolist()
    cards = [certify(table(np.eye(2).tolist(), claim)), certify(table(uniform, claim)), certify(line(0.1, claim, 2)),
             certify(partition(uniform, claim, [0, 0]))]  # fmt: skip
    assert not any(card.holds for card in cards) and all("finite number above 0" in card.why for card in cards)
