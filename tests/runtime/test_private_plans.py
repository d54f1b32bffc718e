# SPDX-License-Identifier: Apache-2.0
"""Private training in whole runs: what the plan says and refuses before anything runs, what crosses, what the ledger shows."""

import importlib.util
from typing import Any

import pytest

from osmotic.plugins.accounting import compose
from osmotic.plugins.host import Registry, build_registry
from osmotic.runtime import api
from osmotic.runtime.results.verifying import ledgers_of, verify
from osmotic.runtime.screen.plan_text import plan_text
from osmotic.runtime.screen.tables import ledger_text
from osmotic.schemas.errors import OsmoticError, RefusedError

NEEDED = ("dp_accounting", "opacus", "torch", "cryptography")
pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED), reason="needs torch and the extra osmotic[dp]"
)


@pytest.fixture
def registry(jobs: Any) -> Registry:
    return build_registry(names=(), modules=[jobs.plugin()])


PRIVACY = {"noise_multiplier": 2.0, "batch": 4, "steps": 5, "delta": 1e-3}


def tasks(shop: Any, cap: Any = 5.0, privacy: Any = None, **config: Any) -> dict[str, Any]:
    """Loaded, trained at the clients, read at the server."""
    budget = {"per_document": 1000} | ({"per_record": {"epsilon": cap, "delta": 1e-3}} if cap else {})
    shop.defaults = {"budget": {"*": budget}}
    items = {"component": "record_loader", "at": "clients", "config": {"data": "items"}}
    made = {"component": "private_trainer", "at": "clients", "inputs": {"records": "items"}}
    made |= {"config": {"privacy": privacy or PRIVACY, **config}}
    read = {"component": "weights_reader", "at": "server", "each": "party", "inputs": {"weights": "trained.weights"}}
    return {"items": items, "trained": made, "read": read}


def test_the_weights_cross_as_a_release_and_the_run_says_what_a_record_loses(shop: Any, registry: Registry) -> None:
    path = shop.write(tasks(shop))
    plan = api.plan(path, home=shop.home, registry=registry)
    (crossing,) = [row for row in plan["crossings"] if row["kind"] == "weights"]
    assert crossing["label"] == "protected"
    asked = [row for row in plan["budget"] if row["task"] == "trained"]
    (epsilon,) = compose(
        [
            {
                "kind": "dp-sgd", "neighbours": "add-or-remove-one",
                "parameters": {"noise_multiplier": 2.0, "sampling_probability": 4 / 12, "steps": 5},
            }
        ],
        1e-3,
    ).values()  # fmt: skip
    assert [row["epsilon"] for row in asked] == [pytest.approx(epsilon, rel=1e-3)] * 2
    assert asked[0]["class"] == "dp-sgd" and asked[0]["unit"] == "record" and asked[0]["cap"] == 5.0
    text = plan_text(plan)
    assert "Poisson sampling 0.3333, 5 steps, noise 2" in text and f"{5 - epsilon:.4g} left" in text
    summary = api.run(path, home=shop.home, registry=registry)
    line = summary["guarantee"]["line"]
    assert line.startswith(f"Guarantee of this run: dp-sgd: epsilon {epsilon:.4g}, delta 0.001 a record (add-or-remove-one)")
    assert "5 steps, noise 2" in line
    found = next(p for p in ledgers_of(shop.home) if p["party"] == "north")
    assert found["datasets"][0]["record"]["epsilon"] == pytest.approx(epsilon, rel=1e-6)
    assert "DP-SGD (Poisson sampling 0.3333, 5 steps, noise 2): epsilon" in ledger_text([found])
    assert verify(shop.home)["problems"] == []
    own = (shop.home / "parties" / "north" / "report.html").read_text(encoding="utf-8")
    for page in (own, (shop.home / "report.html").read_text(encoding="utf-8")):
        assert f"epsilon {epsilon:.4g}, delta 0.001 a record" in page
    assert f"{epsilon:.4g}, delta 0.001 a record, cap 5, {5 - epsilon:.4g} left" in own and "0 a document" not in own
    after = api.plan(path, home=shop.home, registry=registry)
    assert [row["spent"] for row in after["budget"]] == [pytest.approx(epsilon, rel=1e-6)] * 2
    assert f"{5 - epsilon:.4g} left" in plan_text(after)  # found again: nothing more


def test_the_curve_is_private_and_does_not_cross(shop: Any, registry: Registry) -> None:
    from osmotic.plugins.contract import Component, Config, Document, Out
    from osmotic.plugins.host import Registered

    class NoKeys(Config):
        pass

    class Curves(Component[NoKeys]):
        name = "curves"
        outputs = {"out": Out(Document)}

        def run(self, context: Any, curve: Document) -> Any:
            return {"out": curve}

    more = Registry({**registry.components, "curves": Registered(Curves, "tests", "0")}, registry.mechanisms, registry.models)
    made = tasks(shop)
    made["seen"] = {"component": "curves", "at": "server", "each": "party", "inputs": {"curve": "trained.curve"}}
    with pytest.raises(RefusedError, match="private data of north"):
        api.run(shop.write(made), home=shop.home, registry=more)


@pytest.mark.parametrize("spoil", ["changed", "left out", "twice", "added"])
def test_only_the_data_set_as_it_is_can_be_trained_on(shop: Any, registry: Registry, spoil: str) -> None:
    with pytest.raises(OsmoticError, match=r"changed before|needs every record|fields that 'items' lacks"):
        api.run(shop.write(tasks(shop, spoil=spoil)), home=shop.home, registry=registry)
    assert all(party["charges"] == 0 for party in ledgers_of(shop.home))


def test_a_second_private_input_is_refused_by_the_plan_and_by_the_site(
    shop: Any, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    from osmotic.runtime.plan import asking

    made = tasks(shop)
    made["more"] = {"component": "record_loader", "at": "clients", "config": {"data": "items"}}
    made["trained"]["inputs"]["other"] = "more"
    path = shop.write(made)
    with pytest.raises(RefusedError, match=r"several inputs are private \(items.records, more.records\)") as error:
        api.run(path, home=shop.home, registry=registry)
    assert "tasks.trained.inputs" in str(error.value) and "shop.yaml:" in str(error.value)
    monkeypatch.setattr(asking, "_mixed", lambda *given: [])
    with pytest.raises(OsmoticError, match="2 of its inputs are private"):
        api.run(path, home=shop.home, registry=registry)


def test_a_plan_without_a_cap_or_over_it_is_refused_at_the_key_before_it_runs(shop: Any, registry: Registry) -> None:
    with pytest.raises(RefusedError, match=r"no budget of \(epsilon, delta\)") as error:
        api.run(shop.write(tasks(shop, cap=None)), home=shop.home, registry=registry)
    assert "tasks.trained.config.privacy" in str(error.value) and "shop.yaml:" in str(error.value)
    with pytest.raises(RefusedError, match=r"noise 2\) is epsilon .* a record, over the cap") as error:
        api.run(shop.write(tasks(shop, cap=0.5)), home=shop.home, registry=registry)
    assert "tasks.trained.config.privacy" in str(error.value) and "cap of 'items': epsilon 0.5" in str(error.value)
    wide = {"epsilon": 1, "batch": 13, "steps": 5, "delta": 0.2}
    with pytest.raises(OsmoticError, match="more than the 12 records") as error:
        api.run(shop.write(tasks(shop, privacy=wide)), home=shop.home, registry=registry)
    assert "config.privacy.batch" in str(error.value) and "1 / 12 records" in str(error.value)
    assert not list(shop.home.glob("parties/*/store/objects/*"))


@pytest.mark.parametrize("axis", ["seed", "rate"])
def test_a_grid_or_seeds_add_up_and_benchmark_data_need_no_cap(shop: Any, registry: Registry, axis: str) -> None:
    made = tasks(shop, cap=1.6)
    made["trained"]["matrix"] = [axis]
    if axis == "rate":
        made["trained"]["vary"] = {"rate": {"2": {"config": {"rate": 0.2}}}}
    with pytest.raises(RefusedError, match="all tasks together ask epsilon") as error:
        api.run(shop.write(made, matrix={axis: [1, 2]}), home=shop.home, registry=registry)
    assert "trainings, seeds, rounds and counts add up" in str(error.value) and f"trained[{axis}=2]" in str(error.value)
    assert "tasks.trained.config.privacy" in str(error.value)
    shop.binding, shop.defaults = {"purpose": "benchmark"}, {}
    summary = api.run(shop.write(made, matrix={axis: [1, 2]}), home=shop.home, registry=registry)
    north = next(p for p in summary["guarantee"]["parties"] if p["party"] == "north")
    assert north["word"] == "dp-sgd" and north["parts"][0]["delta"] == 1e-3
    assert next(p for p in ledgers_of(shop.home) if p["party"] == "north")["datasets"][0]["record"]["events"] == 2


def test_an_earlier_training_counts_in_the_next_plan(shop: Any, registry: Registry) -> None:
    api.run(shop.write(tasks(shop, cap=1.6)), home=shop.home, registry=registry)
    more = tasks(shop, cap=1.6, privacy={**PRIVACY, "steps": 6})
    (north, south) = api.plan(shop.write(more), home=shop.home, registry=registry)["refusals"]
    assert "north" in north["what"] and "1 charged before" in north["why"] and "south" in south["what"]


def test_arms_that_share_a_training_pay_once(shop: Any, registry: Registry) -> None:
    """Two tasks with the same component, configuration, inputs and seed ask for the same training."""
    made = tasks(shop, cap=1.6)
    made["again"] = {**made["trained"]}
    api.run(shop.write(made), home=shop.home, registry=registry)
    assert [party["charges"] for party in ledgers_of(shop.home)] == [0, 1, 1]
