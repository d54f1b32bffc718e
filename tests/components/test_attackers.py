# SPDX-License-Identifier: Apache-2.0
"""The attacks against closed forms and planted data: what they must find, and what they must not."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from osmotic.components.bayes_attacker import BayesAttacker, BayesAttackerConfig
from osmotic.components.inversion_attacker import InversionAttacker, InversionAttackerConfig, nearest_of, ranks
from osmotic.components.masked_attacker import MaskedAttacker, MaskedAttackerConfig
from osmotic.components.mechanism_auditor import MechanismAuditor, MechanismAuditorConfig
from osmotic.plugins.contract import Config, Guarantee, Mechanism, Metrics, Records, Space
from osmotic.plugins.mechanisms.list_rr import ListRandomisedResponse
from osmotic.plugins.testing import FakeContext, FakeMaskedLM, check_component
from osmotic.schemas.errors import ComponentError, ConfigError, DataError
from osmotic.schemas.records import FieldSpec, RecordSchema

if TYPE_CHECKING:
    from pathlib import Path

COLOURS = ("red", "green", "blue", "white", "black", "grey")
SIZES = ("s", "m", "l")


class Told(Config):
    """A claim."""

    epsilon: float = 1.0
    kind: str = "certified"


class Identity(Mechanism[Told]):
    """Changes nothing, whatever it claims."""

    name = "identity"

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.log(np.eye(self.space.size)[rows])

    def sample(self, rows: np.ndarray, entropy: Any) -> np.ndarray:
        return rows.copy()

    def guarantee(self) -> Guarantee:
        return Guarantee(mechanism_class=self.config.kind, epsilon=self.config.epsilon, unit="token")


class Even(Mechanism[Told]):
    """Ignores its input."""

    name = "even"

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        return np.full((len(rows), self.space.size), -math.log(self.space.size))

    def guarantee(self) -> Guarantee:
        return Guarantee(mechanism_class=self.config.kind, epsilon=self.config.epsilon, unit="token")


SCHEMA = RecordSchema(
    fields={"colour": FieldSpec(domain=COLOURS, table="t.safetensors#colour"), "size": FieldSpec(domain=SIZES)}
)
KNOWN = {cls.name: cls for cls in (Identity, Even, ListRandomisedResponse)}


@pytest.fixture
def context(tmp_path: "Path") -> FakeContext:
    """Colours on a line, so that neighbours are known."""
    from safetensors.numpy import save_file

    angles = np.linspace(0.0, 1.0, len(COLOURS))
    save_file({"colour": np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)}, tmp_path / "t.safetensors")
    return FakeContext(record_schema=SCHEMA, mechanisms=KNOWN, base=tmp_path)


def bayes(
    context: FakeContext, prior: Records | None = None, fields: tuple[str, ...] = ("colour",), **mechanism: Any
) -> Metrics:
    config = BayesAttackerConfig(data="items", mechanism=mechanism, fields=list(fields), block=2)
    return BayesAttacker(config).run(context, prior)["metrics"]


def test_what_changes_nothing_is_found_out_always(context: FakeContext) -> None:
    found = bayes(context, name="identity")
    assert found.values["bayes_success"] == pytest.approx(1.0) and found.values["self_retention"] == pytest.approx(1.0)
    assert found.notes == {"class": "claims to be certified, is not", "epsilon_true": "infinite"}
    assert "epsilon_true" not in found.values


def test_what_ignores_its_input_tells_no_more_than_the_prior(context: FakeContext) -> None:
    assert bayes(context, name="even").values["bayes_success"] == pytest.approx(1 / 6)
    prior = Records([{"colour": "red"}] * 8 + [{"colour": "blue"}] * 2)
    found = bayes(context, prior, name="even")
    assert found.values["bayes_success"] == pytest.approx(8.5 / 13)
    assert found.values["blind_success"] == pytest.approx(8.5 / 13)


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 6.0])
def test_list_rr_has_its_closed_form(context: FakeContext, epsilon: float) -> None:
    found = bayes(context, name="list-rr", epsilon=epsilon, k=2)
    inside = math.exp(epsilon) / (2 * math.exp(epsilon) + 4)
    assert found.values["bayes_success"] == pytest.approx(inside, rel=1e-12)
    assert found.values["epsilon_true"] == pytest.approx(epsilon, abs=1e-9)
    assert found.notes["class"] == "certified"


def test_fields_are_averaged_and_a_record_is_their_product(context: FakeContext) -> None:
    found = bayes(context, fields=("colour", "size"), name="even")
    assert found.values["bayes_success"] == pytest.approx((1 / 6 + 1 / 3) / 2)
    assert found.values["record_success"] == pytest.approx(1 / 18)
    assert found.values["bayes_success_size"] == pytest.approx(1 / 3)


def test_a_class_is_printed_as_what_it_is(context: FakeContext) -> None:
    assert bayes(context, name="even", kind="heuristic").notes["class"] == "heuristic: no guarantee"
    assert bayes(context, name="even", kind="certified", epsilon=0.0).notes["class"] == "certified"


def test_a_prior_without_records_or_field_is_told(context: FakeContext) -> None:
    with pytest.raises(DataError, match="no records"):
        bayes(context, Records([], ["colour"]), name="even")
    with pytest.raises(DataError, match="have no 'colour'"):
        bayes(context, Records([{"size": "s"}]), name="even")


# ---- inversion -------------------------------------------------------------------------------------------------------


def tables(released: list[str]) -> tuple[Records, Records, Records]:
    """Records that are all white; what was released of them; the key."""
    rows = Records([{"id": f"r{i}", "colour": "white", "size": "s"} for i in range(len(released))])
    out = Records([{"id": f"x{i}", "colour": c} for i, c in enumerate(released)][::-1])
    return rows, out, Records([{"released": f"x{i}", "id": f"r{i}"} for i in range(len(released))])


def inversion(context: FakeContext, released: list[str], **config: Any) -> Metrics:
    return InversionAttacker(InversionAttackerConfig(**{"share": 1.0, **config})).run(context, *tables(released))["metrics"]


def test_neighbours_are_counted_from_either_side(context: FakeContext) -> None:
    released = ["white", "black", "blue", "grey", "red", "white"]
    found = inversion(context, released, k=3)
    assert found.outcomes["unchanged"] == [1, 0, 0, 0, 0, 1]
    assert found.outcomes["kept"] == [1, 1, 1, 0, 0, 1]  # white's nearest: itself, blue, black
    assert found.outcomes["inversion"] == [1, 1, 1, 1, 0, 1]  # grey's: itself, black, white
    assert found.values["chance"] == pytest.approx(0.5) and found.values["aligned"] == 1.0
    assert found.values["kept_colour"] == found.values["kept"] == pytest.approx(4 / 6)


def test_k_shrinks_with_the_domain() -> None:
    space = Space("f", COLOURS)
    assert [nearest_of(space, 20, share) for share in (0.01, 0.25, 0.5, 1.0)] == [1, 1, 3, 6]
    assert nearest_of(Space("t", tuple(map(str, range(30_000)))), 20, 0.25) == 20


def test_ranks_agree_with_sorting_and_unknown_symbols_have_none() -> None:
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((50, 7)).astype(np.float32)
    vectors[31] = vectors[30]  # a tie
    space = Space("t", tuple(map(str, range(50))), vectors, unknown=True)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    centre, other = rng.integers(0, 50, 400), rng.integers(0, 50, 400)
    found = ranks(space, centre, other)
    near = unit @ unit.T
    near[np.arange(50), np.arange(50)] = np.inf
    order = np.argsort(-near, axis=1, kind="stable")
    assert all(abs(int(np.flatnonzero(order[c] == o)[0]) - r) <= 1 for c, o, r in zip(centre, other, found, strict=True))
    assert ranks(space, np.array([50, 3]), np.array([3, 50])).tolist() == [50, 50]


def test_a_field_without_vectors_is_a_problem_of_the_configuration(context: FakeContext) -> None:
    config = InversionAttackerConfig(fields=["size"])
    assert "has no vectors" in InversionAttacker.check(config, SCHEMA)[0]
    with pytest.raises(ConfigError, match="no vectors"):
        ranks(Space("size", SIZES), np.array([0]), np.array([1]))


def test_text_is_compared_word_by_word_where_lengths_agree(tmp_path: "Path") -> None:
    from safetensors.numpy import save_file

    save_file({"word": np.eye(4, dtype=np.float32) + np.float32(0.1)}, tmp_path / "t.safetensors")
    (tmp_path / "t.word.txt").write_text("cold\nsea\nwind\nrain\n", encoding="utf-8")
    schema = RecordSchema(fields={"note": FieldSpec(text=True, table="t.safetensors#word")})
    notes = ["cold sea", "wind zebra", "rain"]
    rows = Records([{"id": f"r{i}", "note": note} for i, note in enumerate(notes)])
    out = Records([{"id": f"x{i}", "note": note} for i, note in enumerate(["cold wind", "wind sea", "rain rain"])])
    key = Records([{"released": f"x{i}", "id": f"r{i}"} for i in range(3)])
    context = FakeContext(record_schema=schema, mechanisms=KNOWN, base=tmp_path)
    found = InversionAttacker(InversionAttackerConfig(k=1, share=1.0)).run(context, rows, out, key)["metrics"]
    assert found.outcomes["kept"] == found.outcomes["unchanged"] == [0.5, 0.5, 0.0]  # an unknown word is near nothing
    assert found.values["aligned"] == pytest.approx(2 / 3)


def test_tables_that_do_not_belong_together(context: FakeContext) -> None:
    rows, out, key = tables(["red", "red"])
    attacker = InversionAttacker(InversionAttackerConfig(share=1.0))
    with pytest.raises(DataError, match="no row of the key"):
        attacker.run(context, rows, out, Records(key.rows[:1]))
    with pytest.raises(DataError, match="no released record"):
        attacker.run(context, Records([*rows.rows, {"id": "r9", "colour": "red", "size": "s"}]), out, key)


# ---- masked ----------------------------------------------------------------------------------------------------------


class Guesser(FakeMaskedLM):
    """Always the same guesses, and what it was asked."""

    def __init__(self, *guesses: str) -> None:
        super().__init__(guesses)
        self.asked: list[str] = []

    def fill(self, texts: Any, top_k: int) -> list[list[tuple[str, float]]]:
        self.asked += texts
        return [[(token, -float(i)) for i, token in enumerate(self._candidates)][:top_k] for _ in texts]


def masked(context: FakeContext, model: object, **config: Any) -> Metrics:
    context.models = {"reader": model}
    made = MaskedAttackerConfig(model="reader", template="it is {{ colour }} .", **config)
    return MaskedAttacker(made).run(context, *tables(["red", "blue", "white"]))["metrics"]


def test_guesses_outside_the_domain_are_passed_over(context: FakeContext) -> None:
    model = Guesser("nice", "White", "red")
    found = masked(context, model, k=1)
    assert found.values == {"masked_top1": 1.0, "masked_topk": 1.0, "positions": 3.0}
    assert set(model.asked) == {"it is [MASK] ."}  # the released value itself is not shown to it


def test_only_the_first_k_guesses_count(context: FakeContext) -> None:
    assert masked(context, Guesser("red", "blue", "white"), k=2).values["masked_topk"] == 0.0
    assert masked(context, Guesser("red", "blue", "white"), k=3).values["masked_topk"] == 1.0


def test_a_model_of_another_kind_is_named(context: FakeContext) -> None:
    with pytest.raises(ComponentError, match="'reader' is not a masked language model"):
        masked(context, object())


def test_at_most_so_many_positions_are_asked(context: FakeContext) -> None:
    assert masked(context, Guesser("white"), most=2).values["positions"] == 2.0


# ---- audit -----------------------------------------------------------------------------------------------------------


def audited(context: FakeContext, **mechanism: Any) -> Metrics:
    config = MechanismAuditorConfig(data="items", mechanism=mechanism, fields=["colour"], draws=20_000)
    return MechanismAuditor(config).run(context)["metrics"]


def test_a_false_claim_is_refuted(context: FakeContext) -> None:
    found = audited(context, name="identity", epsilon=2.0).values
    assert found["audit_passes"] == 0.0 and found["epsilon_low"] > 5 and found["epsilon_claimed"] == 2.0


def test_a_true_claim_passes(context: FakeContext) -> None:
    """The bound is missed with probability at most 5%; list-rr at epsilon 2 gives a bound near 2 from 20,000 draws."""
    found = [audited(context, name="list-rr", epsilon=2.0, k=2).values for _ in range(3)]
    assert any(one["audit_passes"] for one in found)  # all three fail with probability below 2e-4
    assert all(1.5 < one["epsilon_low"] < 2.3 for one in found)


def test_they_keep_the_contract(context: FakeContext) -> None:
    def fresh() -> FakeContext:
        return FakeContext(record_schema=SCHEMA, mechanisms=KNOWN, base=context.base, models={"m": Guesser("red")})

    records, sanitized, key = tables(["red", "blue"])
    given = {"records": records, "sanitized": sanitized, "key": key}
    mechanism = {"data": "d", "mechanism": {"name": "list-rr", "epsilon": 1.0, "k": 2}, "fields": ["colour"]}
    check_component(BayesAttacker, mechanism, {}, fresh)
    check_component(InversionAttacker, {"share": 1.0}, given, fresh)
    check_component(MaskedAttacker, {"model": "m", "template": "{{ colour }}"}, given, fresh)
