# SPDX-License-Identifier: Apache-2.0
"""Tables are united by id, the first one wins, and nothing is lost or doubled on the way."""

import pytest

from osmotic import testing
from osmotic.components.record_uniter import RecordUniter, RecordUniterConfig
from osmotic.plugins.contract import Records
from osmotic.schemas.errors import DataError


def table(*ids, by="a"):
    return Records([{"id": i, "rationale": f"{by} on {i}"} for i in ids], ["id", "rationale"])


def unite(**inputs):
    return testing.run_component(RecordUniter, {}, inputs)["united"]


def test_the_first_row_of_an_id_wins_and_later_inputs_add():
    two = unite(first=table("r3", "r1"), second=table("r2", "r1", "r4", by="b"))
    assert two.rows == [
        {"id": "r3", "rationale": "a on r3"}, {"id": "r1", "rationale": "a on r1"},
        {"id": "r2", "rationale": "b on r2"}, {"id": "r4", "rationale": "b on r4"},
    ]  # fmt: skip
    three = unite(first=table("r1"), second=table("r2", by="b"), third=table("r1", "r2", "r0", by="c"))
    assert [row["rationale"] for row in three] == ["a on r1", "b on r2", "c on r0"]


def test_empty_inputs_add_nothing_and_keep_the_columns():
    assert unite(first=table(), second=table("r1", by="b")).rows == [{"id": "r1", "rationale": "b on r1"}]
    assert unite(first=table("r1"), second=Records([])).rows == table("r1").rows
    assert unite(first=table(), second=table()).columns == ["id", "rationale"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"first": table("r1", "r1"), "second": table()}, "1 rows of the input 'first' came more than once: 'r1'"),
        ({"first": table(), "second": table("r1", "r1")}, "rows of the input 'second' came more than once"),
        ({"first": table("r1"), "second": table(), "third": table("r2", "r2")}, "input 'third' came more than once"),
        ({"first": table("r1"), "second": Records([{"id": "r2", "text": "t"}])}, "second.*1 of 1 rows have other columns"),
        ({"first": Records([{"text": "t"}]), "second": Records([{"text": "t"}])}, "have no 'id'"),
    ],
)
def test_what_cannot_be_united_is_told(inputs, message):
    with pytest.raises(DataError, match=message):
        unite(**inputs)


def test_it_fits_the_contract_and_mixes_nothing():
    inputs = {"first": table("r1", "r2"), "second": table("r2", "r3", by="b")}
    testing.check_component(RecordUniter, {}, inputs)
    assert RecordUniter.mixes(RecordUniterConfig()) is False
    alone = unite(first=table("r2"), second=table("r2", "r3", by="b"))
    assert alone.rows == [row for row in unite(**inputs) if row["id"] != "r1"]
