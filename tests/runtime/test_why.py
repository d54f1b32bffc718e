# SPDX-License-Identifier: Apache-2.0
"""`osmotic why`: the reason of a task, the chain of provenance, refusals, names that are nearly right; `osmotic diff`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.cli import application
from osmotic.runtime.plan.asked import Asked, asked_of
from osmotic.runtime.plan.explaining import why_text
from osmotic.schemas.errors import ConfigError, DataError

Tasks = Callable[..., dict[str, Any]]
COUNT = {"component": "meter", "at": "clients", "inputs": {"records": "items"}}


@pytest.fixture
def why(shop: Any, tasks: Tasks, toys: Registry) -> Callable[..., dict[str, Any]]:
    """Ask about a task of the shop, with a counting task and options."""
    path = shop.write(tasks(count=COUNT))

    def ask(task: str, *overrides: str, run: bool = False) -> dict[str, Any]:
        given = {"overrides": overrides, "home": shop.home, "registry": toys}
        if run:
            api.run(path, **given)
        return api.why(task, path, **given)

    return ask


def test_before_and_after_a_run(why: Callable[..., Any], shop: Any) -> None:
    found = why("counted")
    assert not shop.home.exists() and found["component"] == "counter"
    (run,) = found["runs"]
    assert run["state"] == "after safe" and run["root"] == {"id": "items@north", "state": "first run"}
    assert "because of items@north: first run" in why_text(found)
    (run,) = why("counted", run=True)["runs"]
    assert run["state"] == "cached" and run["seconds"] >= 0 and run["root"] is None
    assert "finished before, and found" in why_text(why("counted"))


def test_what_changed_is_told_with_both_values(why: Callable[..., Any]) -> None:
    why("safe", run=True)
    found = why("safe", "tasks.safe.config.mechanism.epsilon=1")
    assert [run["state"] for run in found["runs"]] == ["changed config (mechanism.epsilon)"] * 2
    assert found["runs"][0]["changes"][0]["values"] == {"mechanism.epsilon": ["2", "1"]}
    assert "mechanism.epsilon: 2 -> 1" in why_text(found)
    assert why("count", "tasks.safe.config.mechanism.epsilon=1")["runs"][0]["state"] == "cached"


def test_inputs_say_whose_data_they_carry_and_how_it_came(why: Callable[..., Any]) -> None:
    (taken,) = why("counted")["inputs"]
    assert (taken["from"], taken["label"], taken["crosses"], taken["edges"]) == ("safe.sanitized", "protected", True, 2)
    assert taken["provenance"] == ["data of north as released by safe (dp_sanitizer)"]
    (taken,) = why("count")["inputs"]
    assert taken["label"] == "private" and "data set 'items', read by items (record_loader)" in taken["provenance"][0]
    needed = {(n["task"], n["input"], n["to"]) for n in why("items")["needed_by"]}
    assert needed == {("safe", "records", ""), ("count", "records", "")}
    assert {(n["task"], n["to"]) for n in why("safe")["needed_by"]} == {("counted", "server")}
    assert "Nobody needs it" in why_text(why("counted"))


def test_a_refused_crossing_says_why_and_what_would_mend_it(why: Callable[..., Any]) -> None:
    found = why("counted", "tasks.counted.inputs.records=items")
    assert len(found["refusals"]) == 2 and all("private data" in p["what"] for p in found["refusals"])
    (taken,) = found["inputs"]
    assert taken["refused"] and taken["label"] == "private"
    assert taken["provenance"][0].endswith("no release stands between")
    text = why_text(found)
    assert "ways to mend it" in text and "may not cross" in text and "not looked up" in text
    other = why("items", "tasks.counted.inputs.records=items")
    assert other["refusals"] == [] and other["other_refusals"] == 2


@pytest.mark.parametrize(("name", "meant"), [("countd", "'counted'"), ("item", "'items'"), ("safe[arm=x]@nowhere", "'safe'")])
def test_a_name_that_is_nearly_right(why: Callable[..., Any], name: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {meant}"):
        why(name)


def test_one_run_of_a_task(why: Callable[..., Any]) -> None:
    assert [run["id"] for run in why("safe@south")["runs"]] == ["safe@south"]


def test_what_a_run_was_asked_is_found_again(
    shop: Any, tasks: Tasks, toys: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shop.write(tasks())
    options = ("tasks.safe.config.mechanism.epsilon=1",)
    api.run(path, overrides=options, home=tmp_path / "osmotic-runs" / "shop", registry=toys)
    monkeypatch.chdir(tmp_path)
    assert asked_of(None, (), None, (), None) == Asked(str(path), options, None, (), Path("osmotic-runs/shop"))
    assert asked_of(None, ("seed=1",), None, (), None).overrides == ("seed=1",)
    assert asked_of("fedcot", (), None, (), tmp_path) == Asked("fedcot", (), None, (), tmp_path)
    with pytest.raises(DataError, match="which pipeline ran here"):
        asked_of(None, (), None, (), tmp_path)
    monkeypatch.chdir(tmp_path / "osmotic-runs")
    with pytest.raises(DataError, match="--pipeline"):
        asked_of(None, (), None, (), None)


@pytest.mark.usefixtures("toy_path")
def test_the_command(shop: Any, tasks: Tasks, toys: Registry) -> None:
    api.run(shop.write(tasks()), home=shop.home, registry=toys)
    told = CliRunner().invoke(application(), ["why", "counted", "--home", str(shop.home)])
    assert told.exit_code == 0 and "safe.sanitized: protected" in told.stdout
    told = CliRunner().invoke(application(), ["why", "counted", "--home", str(shop.home), "--json"])
    assert json.loads(told.stdout)["inputs"][0]["from"] == "safe.sanitized"
