# SPDX-License-Identifier: Apache-2.0
"""One component from Python: the same policy, ledger and releases as in a pipeline."""

import json
from pathlib import Path
from typing import Any

import pytest

import osmotic
from osmotic.plugins.contract import Document, Records
from osmotic.plugins.host import Registry
from osmotic.runtime.results.verifying import ledgers_of, verify
from osmotic.schemas.errors import ConfigError, DataError, RefusedError
from osmotic.schemas.policy import SitePolicy

SCHEMA = {"fields": {"colour": {"domain": ["red", "green", "blue"]}, "size": {"domain": ["s", "m"]}}}
ROWS = [{"id": f"r{i}", "colour": ("red", "green", "blue")[i % 3], "size": "sm"[i % 2]} for i in range(20)]
CONFIG = {"mechanism": {"name": "list-rr", "epsilon": 2, "k": 1}, "fields": ["colour", "size"]}


def policy(name: str = "records", path: str = "???", cap: float = 4, **more: Any) -> SitePolicy:
    data = {name: {"path": path, "schema": SCHEMA, **more}}
    return SitePolicy.model_validate({"data": data, "budget": {name: {"per_document": cap}}})


def spent(home: Path) -> list[tuple[str, int, float]]:
    return [(d["dataset"], d["documents"], d["epsilon_largest"]) for party in ledgers_of(home) for d in party["datasets"]]


def test_given_records_are_released_once_and_found_again(tmp_path: Path) -> None:
    first = osmotic.call("dp_sanitizer", Records(ROWS), CONFIG, site=policy(), home=tmp_path)
    assert len(first["sanitized"]) == len(ROWS) and first["key"].columns == ["released", "id"]
    assert {row["id"] for row in first["sanitized"]}.isdisjoint({row["id"] for row in ROWS})
    second = osmotic.call("dp_sanitizer", Records(ROWS), CONFIG, site=policy(), home=tmp_path)
    assert second["sanitized"].rows == first["sanitized"].rows and second["key"].rows == first["key"].rows
    assert spent(tmp_path) == [("records", 20, 4.0)]
    assert verify(tmp_path)["problems"] == []


def test_more_records_pay_for_themselves_only(tmp_path: Path) -> None:
    first = osmotic.call("dp_sanitizer", Records(ROWS[:10]), CONFIG, site=policy(), home=tmp_path)["sanitized"]
    second = osmotic.call("dp_sanitizer", Records(ROWS), CONFIG, site=policy(), home=tmp_path)["sanitized"]
    assert {json.dumps(r) for r in first} <= {json.dumps(r) for r in second}
    assert spent(tmp_path) == [("records", 20, 4.0)]


def test_a_bound_file_is_the_same_data_set_as_its_records(tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    bound = policy("items", str(file))
    first = osmotic.call("dp_sanitizer", config=CONFIG, data="items", site=bound, home=tmp_path / "home")["sanitized"]
    given = osmotic.call("dp_sanitizer", Records(ROWS), CONFIG, data="items", site=bound, home=tmp_path / "home")["sanitized"]
    assert given.rows == first.rows
    assert spent(tmp_path / "home") == [("items", 20, 4.0)]


def test_a_policy_file_is_read(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(json.dumps({"data": {"items": {"path": "items.jsonl", "schema": SCHEMA}}}), encoding="utf-8")
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    assert len(osmotic.call("record_loader", config={"data": "items"}, site=site, home=tmp_path / "home")["records"]) == 20


def test_over_the_cap_is_refused_at_once_and_over_all_calls(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="is over the cap"):
        osmotic.call("dp_sanitizer", Records(ROWS), CONFIG, site=policy(cap=3), home=tmp_path)
    osmotic.call("dp_sanitizer", Records(ROWS), {**CONFIG, "fields": ["colour"]}, site=policy(cap=5), home=tmp_path)
    with pytest.raises(RefusedError, match="does not suffice: 2 \\+ 4 > 5"):
        osmotic.call("dp_sanitizer", Records(ROWS), CONFIG, site=policy(cap=5), home=tmp_path)
    assert spent(tmp_path) == [("records", 20, 2.0)]


def test_records_need_a_binding_and_fit_its_schema(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="binds no data set called 'records'"):
        osmotic.call("dp_sanitizer", Records(ROWS), CONFIG, site=SitePolicy(), home=tmp_path)
    bad = [{"id": "a", "colour": "pink", "size": "s"}, {"id": "a", "size": "m"}]
    with pytest.raises(DataError) as caught:
        osmotic.call("dp_sanitizer", Records(bad), CONFIG, site=policy(), home=tmp_path)
    said = str(caught.value)
    assert (
        "record 1 colour: the value is outside" in said
        and "record 2 the id 'a'" in said
        and "record 2 colour: the field is missing" in said
    )


def test_mistakes_are_located(tmp_path: Path) -> None:
    def message(*arguments: Any, **more: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            osmotic.call(*arguments, site=policy(), home=tmp_path, **more)
        return str(caught.value)

    assert "did you mean 'dp_sanitizer'" in message("dp_sanitiser", Records(ROWS), CONFIG)
    assert "tasks.called.config.fields" in message("dp_sanitizer", Records(ROWS), {**CONFIG, "fields": ["color"]})
    assert "did you mean 'records'?" in message("dp_sanitizer", None, CONFIG, inputs={"record": Records(ROWS)})
    assert "cannot be written as JSON" in message("dp_sanitizer", Records(ROWS), {"fields": {1, 2}})
    assert "no input left" in message("record_loader", Records(ROWS), {"data": "records"})


def test_other_inputs_are_given_by_name(tmp_path: Path, pieces: Registry) -> None:
    given = {"a": Document(1), "b": Document([2])}
    out = osmotic.call("join", site=policy(), home=tmp_path, inputs=given, registry=pieces)
    assert out["document"].data == [1, [2]]
    given["b"] = Document([3])
    assert osmotic.call("join", site=policy(), home=tmp_path, inputs=given, registry=pieces)["document"].data == [1, [3]]
    both = osmotic.call("train", Records(ROWS), site=policy(), home=tmp_path, inputs={"init": Document(4)}, registry=pieces)
    assert both["model"].data == 5


def test_the_pipeline_beside_finds_what_was_released(tmp_path: Path) -> None:
    """A call and a run of the same party share one ledger."""
    file = tmp_path / "items.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    site = {"data": {"items": {"path": str(file), "schema": SCHEMA}}, "budget": {"items": {"per_document": 4}}}
    (tmp_path / "p.sites.yaml").write_text(json.dumps({"osmotic_sites": 1, "parties": {"here": site}}), encoding="utf-8")
    task = {"component": "dp_sanitizer", "at": "all", "inputs": {"records": "items"}, "config": CONFIG}
    items = {"component": "record_loader", "at": "all", "config": {"data": "items"}}
    document = {"osmotic": 1, "name": "p", "parties": {"all": "here"}, "tasks": {"items": items, "safe": task}}
    (tmp_path / "p.yaml").write_text(json.dumps(document), encoding="utf-8")
    osmotic.run(tmp_path / "p.yaml", home=tmp_path / "home")
    osmotic.call("dp_sanitizer", config=CONFIG, data="items", site=SitePolicy.model_validate(site), home=tmp_path / "home")
    assert spent(tmp_path / "home") == [("items", 20, 4.0)]
