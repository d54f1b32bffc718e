# SPDX-License-Identifier: Apache-2.0
"""The certificate: true claims hold, false ones are caught, whether in the number or the rows."""

import math
import tracemalloc

import numpy as np
import pytest

from osmotic.plugins.certificate import (
    Card,
    certify,
    retention_bound,
)
from osmotic.plugins.contract import Space
from osmotic.plugins.fake_mechanism import MatrixMechanism as Table
from osmotic.plugins.fake_mechanism import matrix_mechanism as table
from osmotic.plugins.mechanisms.list_rr import ListRandomisedResponse, ListRrConfig
from osmotic.schemas.errors import ComponentError, ConfigError


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


def test_retention_bound_falsifies_a_false_claim() -> None:
    card = certify(table([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9]], claim=1.0))
    assert card.self_retention > retention_bound(1.0, 3) and not card.holds
    assert retention_bound(1.0, 1) == 1.0
