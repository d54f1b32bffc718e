# SPDX-License-Identifier: Apache-2.0
"""Claims that are none, and cards of whole documents."""

import math

import numpy as np
import pytest

from osmotic.plugins.certificate import (
    card_key,
    certify,
    certify_document,
)
from osmotic.plugins.contract import DocumentMechanism, Drawn, Entropy, Guarantee, Mechanism, Slot, Space
from osmotic.plugins.fake_mechanism import MatrixConfig as TableConfig
from osmotic.plugins.fake_mechanism import matrix_mechanism as table
from osmotic.plugins.mechanisms.list_rr import ListRandomisedResponse, ListRrConfig


def list_rr(epsilon: float = 3.0, k: int = 4, v: int = 50, unknown: bool = True) -> ListRandomisedResponse:
    space = Space("ring", tuple(f"w{i}" for i in range(v)), None, unknown)
    return ListRandomisedResponse(ListRrConfig(epsilon=epsilon, k=k, lists="order"), space)


class Document(DocumentMechanism[TableConfig]):
    """A document mechanism made of given parts."""

    name = "document"
    made_of: tuple[Mechanism, ...] = ()

    def guarantee(self) -> Guarantee:
        return Guarantee(mechanism_class=self.config.kind, epsilon=self.config.claim, unit="document")

    def parts(self) -> tuple[Mechanism, ...]:
        return self.made_of

    def sample(self, documents: list[tuple[str, ...]], entropy: Entropy) -> list[Drawn]:
        return [Drawn(texts, 0.0, (0,)) for texts in documents]


class Composed(Document):
    """Each symbol through its part."""

    spent = 0.0

    def sample(self, documents: list[tuple[str, ...]], entropy: Entropy) -> list[Drawn]:
        space = self.slots[0].space
        rows = np.array([space.symbols.index(texts[0]) for texts in documents])
        out = self.made_of[0].sample(rows, entropy)
        return [Drawn((space.symbols[y],), self.spent, (1,)) for y in out.tolist()]


def honest_document(epsilon: float) -> Composed:
    made = document(list_rr(epsilon))
    made.__class__ = Composed
    return made


def document(*parts: Mechanism, kind: str = "certified") -> Document:
    slot = Slot("kind", False, list_rr(unknown=False).space)
    made = Document(TableConfig(claim=4.0, kind=kind), [slot], lambda name: None)
    made.made_of = parts
    return made


@pytest.mark.parametrize("claim", [0.0, -1.0, math.inf, math.nan])
def test_an_epsilon_that_is_no_number_above_zero_is_no_claim_of_a_document(claim: float) -> None:
    made = document(list_rr())
    made.config = TableConfig(claim=claim)
    card = certify_document(made)
    assert not card.holds and "finite number above 0" in card.why


def test_small_epsilons_have_a_small_tolerance() -> None:
    assert certify(table([[0.5, 0.5], [0.5, 0.5]], 1e-9)).holds
    odd = table([[0.5, 0.5], [0.5 + 4e-8, 0.5 - 4e-8]], 1e-8)  # computed 1.6e-7: far above, though below 1e-6
    assert not certify(odd).holds and certify(table(odd.matrix.tolist(), 1.7e-7)).holds


class Passing(Document):
    """Whatever its parts are, it gives back what it got."""

    def guarantee(self) -> Guarantee:
        return Guarantee(mechanism_class="certified", epsilon=self.config.claim, unit="document")


class Telling(Document):
    """Half of the documents come out as they are, half at random."""

    def sample(self, documents: list[tuple[str, ...]], entropy: Entropy) -> list[Drawn]:
        other = entropy.integers(2 * self.space.size, len(documents))
        symbols = self.space.symbols
        return [
            Drawn((symbols[i],) if i < len(symbols) else text, self.config.claim, (1,))
            for i, text in zip(other.tolist(), documents, strict=True)
        ]

    @property
    def space(self) -> Space:
        return self.slots[0].space


def test_a_document_that_comes_out_unchanged_is_refuted() -> None:
    """At epsilon 4 over 50 symbols at most 53% can; all do. At 2 half of them pass, of which 13% could."""
    made = document(list_rr())
    made.__class__ = Passing
    card = certify_document(made)
    assert not card.holds and "come out unchanged" in card.why
    telling = document(list_rr(1.5))
    telling.__class__, telling.config = Telling, TableConfig(claim=2.0)
    assert "come out unchanged" in certify_document(telling).why


def test_a_document_of_two_symbols_is_refuted_by_its_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    from osmotic.plugins import audit

    made = Telling(TableConfig(claim=0.5), [Slot("text", False, Space("s", ("yes", "no")))], lambda name: None)
    made.made_of = (table([[0.5, 0.5], [0.5, 0.5]], 0.5),)
    monkeypatch.setattr(audit, "_apart_by", lambda observed, expected: 0.0)  # what else finds it
    card = certify_document(made)
    assert not card.holds and "draws show at least" in card.why
    made.config = TableConfig(claim=math.log(3) + 1e-9)
    assert certify_document(made).holds


def test_parts_that_cost_more_than_a_document_are_found() -> None:
    made = honest_document(6.0)
    made.config = TableConfig(claim=4.0)
    card = certify_document(made)
    assert not card.holds and card.why == "declared 4 a document, part list-rr: computed 6"
    made.config = TableConfig(claim=7.0)
    assert certify_document(made).holds


def test_a_document_that_spends_more_than_it_declares_is_found() -> None:
    made = honest_document(3.0)
    made.spent = 4.5
    assert "spends more" in certify_document(made).why


def test_documents_hold_by_their_parts() -> None:
    honest, boastful = list_rr(), table([[0.9, 0.1], [0.5, 0.5]], claim=0.1)
    made = document(honest, honest)
    made.__class__ = Composed
    card = certify_document(made)
    assert card.holds and card.epsilon_true == 4.0 and len(card.parts) == 2 and card.symbols == 50
    for made, why in ((document(honest, boastful), "part matrix"), (document(), "no part"),
                      (document(honest, kind="heuristic"), "class heuristic")):  # fmt: skip
        card = certify_document(made)
        assert not card.holds and card.epsilon_true == math.inf and why in card.why
    assert certify_document(document()).bayes_success == 1.0
    assert card_key(document(honest), ["a"]) != card_key(document(honest), ["b"])
