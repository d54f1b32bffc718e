# SPDX-License-Identifier: Apache-2.0
"""Columns come to their records by id, once each, under names that hide nothing."""

import pytest

from osmotic import testing
from osmotic.components.record_joiner import RecordJoiner, RecordJoinerConfig
from osmotic.plugins.contract import Records
from osmotic.schemas.errors import ConfigError, DataError
from osmotic.schemas.records import FieldSpec, RecordSchema

CONFIG = {"columns": {"perturbed": "prompt", "draft": "rationale"}}


def tables():
    records = [{"id": f"r{i}", "sign": f"s{i}"} for i in range(4)]
    other = [{"id": f"r{i}", "prompt": f"p{i}", "rationale": f"b{i}", "finished": True} for i in reversed(range(4))]
    return {"records": Records(records), "other": Records(other)}


def test_columns_come_by_id_whatever_the_order():
    joined = testing.run_component(RecordJoiner, CONFIG, tables())["joined"]
    assert joined.rows == [{"id": f"r{i}", "sign": f"s{i}", "perturbed": f"p{i}", "draft": f"b{i}"} for i in range(4)]
    empty = {name: Records([], table.columns) for name, table in tables().items()}
    assert testing.run_component(RecordJoiner, CONFIG, empty)["joined"].columns == ["id", "sign", "perturbed", "draft"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["other"].rows.pop(), "1 of 4 records have no joined rows: 'r0'"),
        (lambda t: t["records"].rows.pop(), "1 of 4 joined rows belong to no record: 'r3'"),
        (lambda t: t["other"].rows.append({**t["other"].rows[0]}), "came more than once: 'r3'"),
        (lambda t: t["records"].rows.append({**t["records"].rows[0]}), "came more than once: 'r0'"),
        (lambda t: t["other"].rows[1].pop("prompt"), "1 of 4 rows of the input 'other' have no 'prompt'"),
        (lambda t: [row.update(draft="x") for row in t["records"]], "have a column 'draft' already"),
    ],
)
def test_what_does_not_fit_is_told(change, message):
    inputs = tables()
    change(inputs)
    with pytest.raises(DataError, match=message):
        testing.run_component(RecordJoiner, CONFIG, inputs)


def test_a_new_column_may_not_hide_a_field():
    schema = RecordSchema(fields={"sign": FieldSpec(text=True)})
    assert RecordJoiner.check(RecordJoinerConfig(**CONFIG), schema) == []
    hiding = RecordJoinerConfig(columns={"sign": "prompt", "id": "id"})
    assert [text.partition(" is")[0] for text in RecordJoiner.check(hiding, schema)] == ["columns: 'sign'", "columns: 'id'"]
    with pytest.raises(ConfigError):
        testing.run_component(RecordJoiner, {"columns": {}}, tables())


def test_it_fits_the_contract():
    testing.check_component(RecordJoiner, CONFIG, tables())
    assert not RecordJoiner.mixes(RecordJoinerConfig(**CONFIG))
