# SPDX-License-Identifier: Apache-2.0
"""Record schemas: what a field may be, and every problem of a table of records."""

from typing import Any

import pytest
from pydantic import ValidationError

from osmotic.schemas.records import FieldSpec, RecordSchema

SCHEMA = RecordSchema.model_validate({"fields": {"city": {"domain": ["a", "b"]}, "note": {"text": True}}})
GOOD = {"id": "1", "city": "a", "note": "anything"}


def problems(*rows: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(p.where, p.path, p.what) for p in SCHEMA.check((f"f:{i}", row) for i, row in enumerate(rows, 1))]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "give either"),
        ({"domain": ["a", "b"], "text": True}, "give either"),
        ({"domain": []}, "at least two"),
        ({"domain": ["a"]}, "at least two"),
        ({"domain": ["a", "b", "a"]}, "'a' stands twice"),
        ({"domain": [1, 2]}, "string"),
        ({"text": "yes"}, "boolean"),
        ({"text": True, "more": 1}, "not permitted"),
    ],
)
def test_a_field_is_a_domain_or_text(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FieldSpec.model_validate(spec)


def test_the_id_is_no_field() -> None:
    with pytest.raises(ValidationError, match="always there"):
        RecordSchema.model_validate({"fields": {"id": {"text": True}}})


def test_good_rows_have_no_problem() -> None:
    assert problems(GOOD, {**GOOD, "id": "2", "city": "b", "note": ""}) == []


def test_every_problem_is_told() -> None:
    rows = [GOOD, {**GOOD, "city": "c"}, {"id": "", "city": "a", "note": 3}, {"id": 7, "note": None}]
    assert problems(*rows) == [
        ("f:2", "", "the id '1' was used before"),
        ("f:2", "city", "the value is outside the field's domain"),
        ("f:3", "", "the record has no 'id'"),
        ("f:3", "note", "must be a string (got int)"),
        ("f:4", "", "the record has no 'id'"),
        ("f:4", "city", "the field is missing"),
        ("f:4", "note", "must be a string (got NoneType)"),
    ]
