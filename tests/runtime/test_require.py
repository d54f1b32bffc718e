# SPDX-License-Identifier: Apache-2.0
"""`require`: what may be demanded, what a violation says, and that a finished task is held to it too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.party.policies import open_site, policies_of
from osmotic.runtime.party.service import Service
from osmotic.runtime.plan.demands import kept_back
from osmotic.schemas.errors import Code, ConfigError, Problem, RefusedError, RequireError
from osmotic.schemas.labels import Label, raw, released
from osmotic.schemas.policy import DataBinding, SitePolicy

Tasks = Callable[..., dict[str, Any]]
Run = Callable[..., dict[str, Any]]
MECHANISM = {"name": "list-rr", "epsilon": 2, "k": 1}


def bayes(**require: Any) -> dict[str, Any]:
    config = {"data": "items", "mechanism": MECHANISM, "fields": ["colour"]}
    return {"component": "bayes_attacker", "at": "clients", "config": config, "require": require}


@pytest.fixture
def run(shop: Any, tasks: Tasks, toys: Registry) -> Run:
    """Run the shop's pipeline with one more task."""

    def go(task: dict[str, Any], **document: Any) -> dict[str, Any]:
        return api.run(shop.write(tasks(measured=task), **document), home=shop.home, registry=toys)

    return go


def line_of(shop: Any, text: str) -> int:
    """The line of the pipeline's file that has a text."""
    lines = (shop.folder / "shop.yaml").read_text(encoding="utf-8").splitlines()
    return next(i for i, line in enumerate(lines, 1) if text in line)


def test_what_keeps_its_bounds_runs(run: Run) -> None:
    """list-rr with one symbol a list: success e^2 / (e^2 + 3) = 0.711."""
    found = run(
        bayes(bayes_success={"max": 0.72, "min": 0.71}), report={"table": "measured", "metrics": {"bayes_success": "s"}}
    )
    assert found["table"]["rows"][0]["cells"]["bayes_success"]["mean"] == pytest.approx(0.7112, abs=1e-4)
    assert found["guarantee"]["shown"] is False  # no record was read


def test_a_violation_fails_the_run_at_its_line(run: Run, shop: Any) -> None:
    with pytest.raises(RequireError) as caught:
        run(bayes(bayes_success={"max": 0.5}))
    assert (caught.value.exit_code, caught.value.code) == (4, Code.REQUIRE)
    problem = caught.value.problems[0]
    assert "is 0.71123" in problem.what and "demanded is at most 0.5" in problem.what
    assert problem.path == "tasks.measured.require.bayes_success.max"
    line = line_of(shop, '"max": 0.5')
    assert f"shop.yaml:{line}:" in problem.where


def test_a_finished_task_is_held_to_it_too(run: Run) -> None:
    first = run(bayes())
    with pytest.raises(RequireError, match=r"at least 0\.9"):
        run(bayes(bayes_success={"min": 0.9}))
    again = run(bayes(bayes_success={"min": 0.7}))
    assert again["outcome"]["ran"] == 0 and again["outcome"]["cached"] == first["outcome"]["tasks"]


def test_a_private_metric_is_refused_when_planned(run: Run, shop: Any, toys: Registry) -> None:
    task = {"component": "meter", "at": "clients", "inputs": {"records": "items"}, "require": {"records": {"min": 1}}}
    with pytest.raises(RefusedError) as caught:
        run(task)
    problem = caught.value.problems[0]
    assert "'items' of north, which is private" in problem.what and "would tell about it" in problem.what
    assert problem.path == "tasks.measured.require.records" and ":" in problem.where
    assert not isinstance(caught.value, RequireError)
    plan = api.plan(shop.folder / "shop.yaml", home=shop.home / "other", registry=toys)
    assert [p["path"] for p in plan["refusals"]] == ["tasks.measured.require.records"] * 2  # one a party


def test_benchmark_data_may_decide(run: Run, shop: Any) -> None:
    shop.binding = {"purpose": "benchmark"}
    task = {"component": "meter", "at": "clients", "inputs": {"records": "items"}, "require": {"records": {"min": 13}}}
    with pytest.raises(RequireError, match="records of measured@north is 12, demanded is at least 13"):
        run(task)


@pytest.mark.parametrize(("purpose", "how", "code"), [
    ("benchmark", "bound", "require"), ("benchmark", "own", "component"), ("private", "own", "component"),
])  # fmt: skip
def test_a_bound_that_may_be_told_is_told_by_a_remote_site_too(
    shop: Any, tasks: Tasks, toys: Registry, monkeypatch: pytest.MonkeyPatch, purpose: str, how: str, code: str
) -> None:
    """Everything else that a task with private inputs says, an error of the same name by the component too, has one code."""
    shop.binding = {"purpose": purpose}
    task = {"component": "meter", "at": "clients", "inputs": {"records": "items"}}
    if purpose == "benchmark":
        task["require"] = {"records": {"min": 13}}
    file = shop.write(tasks(measured=task))
    policies = policies_of(["north"], shop.folder / "shop.sites.yaml")
    service = Service(open_site("north", shop.home, policies, toys), local=False)
    plan = {"op": "plan", "name": "shop.yaml", "overrides": [], "folder": str(shop.folder)}
    assert service.handle(plan, file.read_bytes())[0] == {"party": "north"}
    assert "error" not in service.handle({"op": "run", "id": "items@north"}, b"")[0]
    if how == "own":

        def fails(self: Any, context: Any, records: Any) -> Any:
            raise RequireError(Problem("a private word"))

        monkeypatch.setattr(toys.component("meter"), "run", fails)
    error = service.handle({"op": "run", "id": "measured@north"}, b"")[0]["error"]
    service.site.ledger.close()
    assert error["code"] == code and error["problems"] == []


def test_released_data_may_decide(run: Run) -> None:
    task = {"component": "meter", "at": "server", "each": "party", "inputs": {"records": "safe"}}
    assert run({**task, "require": {"records": {"max": 12}}})["outcome"]["ran"] > 0


def test_a_metric_that_is_not_there(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"gives no metric 'bayes_sucess'\n\s+did you mean 'bayes_success'"):
        run(bayes(bayes_sucess={"max": 1}))


@pytest.mark.parametrize(
    ("require", "text"),
    [
        ({"bayes_success": {}}, "give 'max', 'min' or both"),
        ({"bayes_success": {"max": 0.1, "min": 0.2}}, "min 0.2 is more than max 0.1"),
        ({"bayes_success": {"most": 1}}, "unknown key"),
        ({"bayes_success": {"max": "low"}}, "must be"),
    ],
)
def test_bounds_that_are_none(run: Run, require: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        run(bayes(**require))


def test_a_task_without_metrics_has_nothing_to_bound(run: Run) -> None:
    task = {"component": "counter", "at": "server", "inputs": {"records": "safe"}, "require": {"count": {"max": 1}}}
    with pytest.raises(ConfigError, match="counter gives no metrics that could be bounded"):
        run(task)


def test_analysis_asks_for_no_budget(run: Run, shop: Any, toys: Registry) -> None:
    shop.defaults = {"budget": {"*": {"per_document": 4}}}  # what `safe` costs
    task = bayes()
    task["config"]["mechanism"] = {**MECHANISM, "epsilon": 50}
    run(task)
    plan = api.plan(shop.folder / "shop.yaml", home=shop.home, registry=toys)
    assert {row["task"] for row in plan["budget"]} == {"safe"}


def test_a_data_set_that_is_not_bound_is_refused(run: Run) -> None:
    task = bayes()
    task["config"]["data"] = "itms"
    with pytest.raises(RefusedError, match="binds no data set called 'itms'") as caught:
        run(task)
    assert caught.value.problems[0].path == "tasks.measured.config.data"


def test_which_labels_hold_back() -> None:
    bound = {"a": {"path": "x", "schema": "y"}, "b": {"path": "x", "schema": "y", "purpose": "benchmark"}}
    policy = SitePolicy(data={name: DataBinding.model_validate(value) for name, value in bound.items()})
    known = {"north": policy}
    assert kept_back(Label(), known) == kept_back(released("north", "r"), known) == kept_back(raw("north", "b"), known) == []
    assert kept_back(raw("north", "a") | raw("north", "b"), known) == ["the data set 'a' of north"]
    assert kept_back(raw("north", "gone"), known) == ["the data set 'gone' of north"]
    assert kept_back(raw("south", "a"), known) == []  # south checks for itself
    waived = raw("north", "b").exposed("north", "sent.records", ["hub"])
    asked = raw("north", "a").exposed("north", "model echo", ["hub"])
    assert kept_back(waived, known) == []
    assert kept_back(asked, known) == ["what 'model echo' was asked about data of north"]


def test_a_folder_is_left_as_it_was_when_refused(run: Run, shop: Any) -> None:
    task = {"component": "meter", "at": "clients", "inputs": {"records": "items"}, "require": {"records": {"min": 1}}}
    with pytest.raises(RefusedError):
        run(task)
    assert not list(Path(shop.home).glob("**/report.html"))
