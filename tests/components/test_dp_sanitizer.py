# SPDX-License-Identifier: Apache-2.0
"""The sanitizer releases the fields it was told to, under fresh ids, through the mechanism that it was given."""

from collections import Counter

import pytest

from osmotic import testing
from osmotic.components.dp_sanitizer import DpSanitizer, DpSanitizerConfig
from osmotic.plugins.contract import Records
from osmotic.plugins.mechanisms.list_rr import ListRandomisedResponse
from osmotic.schemas.errors import ConfigError, DataError
from osmotic.schemas.records import FieldSpec, RecordSchema

SIGNS = tuple(f"sign{i:02d}" for i in range(20))
SCHEMA = RecordSchema(
    fields={"sign": FieldSpec(domain=SIGNS), "day": FieldSpec(domain=("mon", "tue")), "note": FieldSpec(text=True)}
)
MECHANISM = {"name": "list-rr", "epsilon": 3.0, "k": 4, "lists": "order"}
CONFIG = {"mechanism": MECHANISM, "fields": ["sign"]}


def records(count):
    rows = [{"id": f"ACCT-{i}", "sign": SIGNS[i % 20], "day": "mon", "note": "KESTREL 7731"} for i in range(count)]
    return Records(rows)


def context():
    return testing.FakeContext(record_schema=SCHEMA, mechanisms={"list-rr": ListRandomisedResponse})


def test_ids_are_fresh_order_is_random_and_the_key_leads_home():
    own = records(50)
    outputs = testing.run_component(DpSanitizer, CONFIG, {"records": own}, context())
    sanitized, key = outputs["sanitized"], outputs["key"]
    assert sanitized.columns == ["id", "sign"] and key.columns == ["released", "id"]
    home = {row["released"]: row["id"] for row in key}
    assert sorted(home.values()) == sorted(row["id"] for row in own)
    assert [home[row["id"]] for row in sanitized] != [row["id"] for row in own]
    assert not any("ACCT" in value or "KESTREL" in value for row in sanitized for value in row.values())


def test_the_share_that_stays_is_the_mechanisms_own():
    """e^3 / (4 e^3 + 16) = .2085; 20,000 draws: 6 standard errors are .0172."""
    own = records(20_000)
    outputs = testing.run_component(DpSanitizer, CONFIG, {"records": own}, context())
    before = own.by_id()
    home = {row["released"]: before[row["id"]]["sign"] for row in outputs["key"]}
    kept = Counter(row["sign"] == home[row["id"]] for row in outputs["sanitized"])
    assert kept[True] / 20_000 == pytest.approx(0.2085, abs=0.0172)


def test_unknown_fields_stop_the_plan_and_the_run():
    config = DpSanitizerConfig(mechanism=MECHANISM, fields=["sgin", "day"])
    assert DpSanitizer.check(config, SCHEMA) == ["fields: the records have no field 'sgin'; did you mean 'sign'?"]
    assert DpSanitizer.check(config, None) == []
    with pytest.raises(DataError, match=r"3 of 3 records lack the field 'sgin'"):
        testing.run_component(DpSanitizer, {**CONFIG, "fields": ["sgin"]}, {"records": records(3)}, context())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mechanism": MECHANISM, "fields": []}, "at least 1"),
        ({"mechanism": MECHANISM, "fields": ["a", "a"]}, "'a' stands twice"),
        ({"mechanism": {"epsilon": 1.0}, "fields": ["a"]}, "must have the key 'name'"),
        ({"fields": ["a"]}, "required"),
        ({**CONFIG, "seed": 1}, "unknown key"),
    ],
)
def test_wrong_configurations_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        testing.run_component(DpSanitizer, config, {"records": records(1)}, context())


def test_no_records_give_empty_tables_with_columns():
    outputs = testing.run_component(DpSanitizer, CONFIG, {"records": Records([], ["id", "sign"])}, context())
    assert outputs["sanitized"].columns == ["id", "sign"] and len(outputs["key"]) == 0


def test_it_fits_the_contract():
    testing.check_component(DpSanitizer, CONFIG, {"records": records(5)}, context)
    assert DpSanitizer.outputs["sanitized"].label == "release" and DpSanitizer.outputs["key"].label == "join"
