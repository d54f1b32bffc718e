# SPDX-License-Identifier: Apache-2.0
"""What a component may ask of its site: its own data set and no other, releases of records as they are."""

from collections.abc import Callable
from typing import Any

import pytest

from osmotic.plugins.contract import Component, Config, Context, Out, Outputs, Records
from osmotic.plugins.host import Registered, Registry
from osmotic.runtime import api
from osmotic.runtime.party import keys
from osmotic.schemas.errors import OsmoticError

Tasks = Callable[..., dict[str, Any]]


class ChangeConfig(Config):
    """How to change the records."""

    how: str


class Change(Component[ChangeConfig]):
    """Records that are not quite what they were."""

    name = "change"
    outputs = {"records": Out(Records)}

    def run(self, context: Context, records: Records) -> Outputs:
        rows = [dict(row) for row in records]
        if self.config.how == "values":
            rows[0]["colour"] = "white" if rows[0]["colour"] != "white" else "red"
        elif self.config.how == "swapped":
            rows[0]["id"], rows[1]["id"] = rows[1]["id"], rows[0]["id"]
        elif self.config.how == "renamed":
            rows[0]["id"] = "nobody"
        return {"records": Records(rows[::-1])}


class AnotherConfig(Config):
    """A data set, and which one is asked for."""

    data: str
    asked: str


class Another(Component[AnotherConfig]):
    """A source that asks for a data set by any name."""

    name = "another"
    outputs = {"records": Out(Records, label="source")}

    def run(self, context: Context) -> Outputs:
        return {"records": context.dataset(self.config.asked)[0]}


@pytest.fixture
def registry(toys: Registry) -> Registry:
    more = {cls.name: Registered(cls, "tests", "0") for cls in (Change, Another)}
    return Registry({**toys.components, **more}, toys.mechanisms, toys.models)


def run(shop: Any, tasks: dict[str, Any], registry: Registry) -> str:
    """What is said when it fails; '' when it does not."""
    try:
        api.run(shop.write(tasks), home=shop.home, registry=registry)
    except OsmoticError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("how", ["values", "swapped", "renamed", "order"])
def test_records_that_were_changed_are_not_released(shop: Any, tasks: Tasks, registry: Registry, how: str) -> None:
    made = tasks(changed={"component": "change", "at": "clients", "inputs": {"records": "items"}, "config": {"how": how}})
    made["safe"] = {**made["safe"], "inputs": {"records": "changed"}}
    said = run(shop, made, registry)
    if how == "order":
        assert said == ""
    elif how == "renamed":
        assert "a release needs every record" in said
    else:
        assert "records were changed before the release" in said


@pytest.mark.parametrize(("asked", "refused"), [("items", False), ("others", True)])
def test_a_source_reads_what_its_configuration_names(
    shop: Any, tasks: Tasks, registry: Registry, asked: str, refused: bool
) -> None:
    made = tasks(items={"component": "another", "at": "clients", "config": {"data": "items", "asked": asked}})
    assert ("may not read the data set 'others'" in run(shop, made, registry)) is refused


def test_only_sources_read_data_sets(shop: Any, tasks: Tasks, registry: Registry) -> None:
    made = tasks(taken={"component": "smuggler", "at": "clients", "config": {"data": "items"}})
    assert "it has no output of the label 'source'" in run(shop, made, registry)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [("__version__", "9.9", "another version of osmotic"), ("RULES", 99, "another version of osmotic")],
)
def test_another_version_or_other_rules_compute_anew(
    shop: Any, tasks: Tasks, registry: Registry, monkeypatch: pytest.MonkeyPatch, name: str, value: Any, why: str
) -> None:
    assert run(shop, tasks(), registry) == ""
    monkeypatch.setattr(f"osmotic.runtime.party.facts.{name}", value)
    plan = api.plan(shop.write(tasks()), home=shop.home, registry=registry)
    assert {t["task"]: t["why"] for t in plan["tasks"]}["items"] == [why] and keys.RULES == 1


def test_other_threads_compute_anew(shop: Any, tasks: Tasks, registry: Registry) -> None:
    assert run(shop, tasks(), registry) == ""
    shop.defaults = {"threads": 2}
    plan = api.plan(shop.write(tasks()), home=shop.home, registry=registry)
    assert {t["task"]: t["why"] for t in plan["tasks"]}["items"] == ["changed threads"]
