# SPDX-License-Identifier: Apache-2.0
"""`osmotic diff`: configuration, data, code, guarantee, bytes and results of two runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.cli import application
from osmotic.runtime.party import keys
from osmotic.runtime.results.diffing import _difference, diff, diff_text
from osmotic.schemas.errors import DataError

PARTS = ("config", "data", "code", "guarantee", "bytes", "results")


@pytest.fixture
def run(shop: Any, tasks: Callable[..., dict[str, Any]], toys: Registry) -> Callable[..., Path]:
    """Run the shop, with a metric of benchmark data, in a folder of that name."""
    shop.binding = {"purpose": "benchmark"}
    meter = {"component": "meter", "at": "clients", "inputs": {"records": "items"}}

    def go(name: str, *overrides: str) -> Path:
        path = shop.write(tasks(met=meter), report={"table": "met", "metrics": {"records": "records"}})
        api.run(path, overrides=overrides, home=shop.folder / name, registry=toys)
        folder: Path = shop.folder / name
        return folder

    return go


def test_equal_runs_differ_in_nothing_that_is_seeded(run: Callable[..., Path]) -> None:
    one = run("one")
    found = diff(one, one)
    assert all(found[part] == [] for part in PARTS)
    assert "Equal: configuration, data, code and versions, guarantee, what crossed, results." in diff_text(found)


def test_configuration_and_guarantee(run: Callable[..., Path]) -> None:
    one, two = run("one"), run("two", "tasks.safe.config.mechanism.epsilon=1", "tasks.safe.config.fields=[colour]")
    found = diff(one, two)
    rows = {c["key"]: (c["before"], c["now"]) for c in found["config"]}
    assert rows["tasks.safe.config.mechanism.epsilon"] == ("2", "1")
    assert rows["tasks.safe.config.fields"] == ('["colour","size"]', '["colour"]')
    said = {g["of"]: (g["before"], g["now"]) for g in found["guarantee"]}
    assert said["north"] == ("certified: epsilon 4 a document", "certified: epsilon 1 a document") and "the run" in said
    assert found["data"] == [] and found["results"] == []
    (crossed,) = found["bytes"]
    assert crossed["edge"] == "counted.records" and crossed["now"][1] < crossed["before"][1]
    text = diff_text(found)
    assert "Equal: data" in text and "tasks.safe.config.mechanism.epsilon" in text


def test_data_and_results(run: Callable[..., Path], shop: Any) -> None:
    one = run("one")
    shop.records["north"] = shop.records["north"][:8]
    found = diff(one, run("two"))
    assert any("north: records or their schema of 'items' differ" in line for line in found["data"])
    assert not any(line.startswith("south") for line in found["data"])
    (row,) = found["results"]
    assert (row["metric"], row["before"]["mean"], row["now"]["mean"]) == ("records", 12.0, 10.0)
    assert row["difference"]["mean"] == -2.0 and "-2.000" in diff_text(found)


def test_new_code_is_named_by_task(run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    one = run("one")
    monkeypatch.setattr("osmotic.runtime.party.facts.code_of", lambda module: f"changed, {keys.code_of(module)}")
    found = diff(one, run("two"))
    assert {c["what"] for c in found["code"]} == {"items: code", "safe: code", "counted: code", "met: code"}
    assert found["config"] == [] and found["results"] == []


def test_intervals_of_differences() -> None:
    old, new = {"mean": 0.5, "low": 0.4, "high": 0.6}, {"mean": 0.7, "low": 0.6, "high": 0.8}
    found = _difference(old, new)
    assert found is not None and found["mean"] == pytest.approx(0.2)
    assert (found["low"], found["high"]) == (pytest.approx(0.2 - 0.02**0.5), pytest.approx(0.2 + 0.02**0.5))
    assert _difference(None, new) is None and _difference({"mean": 1.0}, new) == {"mean": pytest.approx(-0.3)}


def test_the_command(run: Callable[..., Path], tmp_path: Path) -> None:
    one = run("one")
    told = CliRunner().invoke(application(), ["diff", str(one), str(one), "--json"])
    assert told.exit_code == 0 and json.loads(told.stdout)["pipelines"] == ["shop", "shop"]
    with pytest.raises(DataError, match="no run has finished here"):
        diff(one, tmp_path / "nothing")
