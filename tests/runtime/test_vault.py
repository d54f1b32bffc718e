# SPDX-License-Identifier: Apache-2.0
"""The vault: what was released and spent belongs to the data, not to a pipeline, its name, its folder or where one stands."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import osmotic
from osmotic.plugins.contract import Records
from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.party.policies import policies_of
from osmotic.runtime.privacy.releases import Releaser
from osmotic.runtime.results.verifying import ledgers_of, verify
from osmotic.runtime.storage.ledger import Ledger
from osmotic.schemas.errors import BudgetError, RefusedError, StoreError
from osmotic.schemas.policy import Budget, SitePolicy
from osmotic.schemas.records import FieldSpec, RecordSchema

SCHEMA = {"fields": {"colour": {"domain": ["red", "green", "blue"]}, "size": {"domain": ["s", "m", "l"]}}}
ROWS = [{"id": f"r{i}", "colour": ("red", "green", "blue")[i % 3], "size": "sml"[i % 3]} for i in range(6)]
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a pipeline of any name beside one sites file with a cap of 24; returns the pipeline's file."""

    def write(name: str, epsilon: float = 10, cap: float | None = 24, state: str | None = None, **binding: Any) -> Path:
        (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
        data = {"items": {"path": "items.jsonl", "schema": SCHEMA, **binding}}
        budget = {"items": {"per_document": cap}} if cap else {}
        sites: dict[str, Any] = {"osmotic_sites": 1, "parties": {"north": {"data": data, "budget": budget}}}
        if state is not None:
            sites["state"] = state
        (tmp_path / "my.sites.yaml").write_text(json.dumps(sites), encoding="utf-8")
        mechanism = {"name": "list-rr", "epsilon": epsilon, "k": 1}
        tasks = {
            "items": {"component": "record_loader", "at": "clients", "config": {"data": "items"}},
            "safe": {
                "component": "dp_sanitizer", "at": "clients", "inputs": {"records": "items"},
                "config": {"mechanism": mechanism, "fields": ["colour", "size"]},
            },
            "counted": {"component": "counter", "at": "server", "inputs": {"records": "safe"}},
        }  # fmt: skip
        document = {"osmotic": 1, "name": name, "parties": {"server": "hub", "clients": ["north"]}, "tasks": tasks}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(document), encoding="utf-8")
        return tmp_path / f"{name}.yaml"

    return write


def run(pipeline: Path, home: str, registry: Registry) -> dict[str, Any]:
    return api.run(pipeline, sites=pipeline.with_name("my.sites.yaml"), home=pipeline.parent / home, registry=registry)


def spent(home: Path) -> list[float]:
    return [d["epsilon_largest"] for party in ledgers_of(home) for d in party["datasets"]]


def test_the_budget_of_private_data_holds_over_pipelines_folders_and_places(
    make: Make, toys: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(make("a"), "one", toys)
    first = next((tmp_path / "one/parties/north").glob("*.sqlite")).name
    assert first == "run.sqlite" and (tmp_path / "my.sites.state/north/ledger.sqlite").is_file()
    assert not (tmp_path / "one/parties/north/key").exists() and (tmp_path / "my.sites.state/north/key").is_file()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    second = api.run(make("b"), sites=Path("../my.sites.yaml"), home=Path("two"), registry=toys)
    assert second["guarantee"]["parties"][0]["epsilon"] == 20 and spent(elsewhere / "two") == [20.0]
    ledger = Ledger(tmp_path / "one/parties/north")
    assert ledger.query("SELECT COUNT(*) FROM charges") == [(6,)]  # the same mechanism: found, not paid again
    ledger.close()
    with pytest.raises(BudgetError, match="20 \\+ 10 > 24"):
        run(make("b", epsilon=5), "three", toys)
    run(make("b", epsilon=2), "three", toys)
    assert spent(tmp_path / "one") == spent(tmp_path / "three") == [24.0]
    for home in (tmp_path / "one", elsewhere / "two", tmp_path / "three"):
        assert verify(home)["problems"] == []


def test_what_earlier_runs_spent_stands_in_the_guarantee(make: Make, toys: Registry) -> None:
    assert "ever" not in run(make("a", epsilon=2), "one", toys)["guarantee"]["line"]
    line = run(make("b", epsilon=3), "two", toys)["guarantee"]["line"]
    assert "epsilon 6 a document (2 fields x 3; 10 ever), certified" in line


def test_benchmark_data_stay_with_the_run(make: Make, toys: Registry, tmp_path: Path) -> None:
    run(make("a", purpose="benchmark", cap=None), "one", toys)
    assert {p.name for p in (tmp_path / "one/parties/north").glob("*.sqlite")} == {"run.sqlite", "ledger.sqlite"}
    assert not (tmp_path / "my.sites.state").exists()
    run(make("a", epsilon=99, purpose="benchmark", cap=None), "two", toys)
    assert spent(tmp_path / "one") == [20.0] and spent(tmp_path / "two") == [198.0]


def test_the_sites_file_may_say_where(make: Make, toys: Registry, tmp_path: Path) -> None:
    pipeline = make("a", purpose="benchmark", state="kept/here")
    run(pipeline, "one", toys)
    assert (tmp_path / "kept/here/north/ledger.sqlite").is_file() and (tmp_path / "kept/here/hub/ledger.sqlite").is_file()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/link.sites.yaml").symlink_to(tmp_path / "my.sites.yaml")
    policies = policies_of(["north"], tmp_path / "deep/link.sites.yaml")
    assert policies.vault("north") == (tmp_path / "kept/here/north").resolve()


def test_a_plan_reads_the_vault_and_makes_nothing(make: Make, toys: Registry, tmp_path: Path) -> None:
    pipeline = make("a")
    sites = tmp_path / "my.sites.yaml"
    before = api.plan(pipeline, sites=sites, home=tmp_path / "one", registry=toys)["budget"][0]
    assert (before["spent"], before["already_released"]) == (0.0, 0)
    assert not (tmp_path / "one").exists() and not (tmp_path / "my.sites.state").exists()
    run(pipeline, "one", toys)
    after = api.plan(make("b"), sites=sites, home=tmp_path / "two", registry=toys)["budget"][0]
    assert (after["spent"], after["already_released"], after["cap"]) == (20.0, 6, 24.0)
    assert not (tmp_path / "two").exists()


def test_a_vault_that_was_moved_away_is_said(make: Make, toys: Registry, tmp_path: Path) -> None:
    run(make("a"), "one", toys)
    (tmp_path / "my.sites.state").rename(tmp_path / "away")
    with pytest.raises(StoreError, match="the ledger of this run is not there"):
        verify(tmp_path / "one")
    assert not (tmp_path / "my.sites.state").exists()
    with pytest.raises(StoreError, match="the ledger of this run is not there"):
        run(tmp_path / "a.yaml", "one", toys)  # a new one would begin at nothing
    assert run(make("a", state="away"), "one", toys)["outcome"]["ran"] == 0


def test_another_vault_knows_nothing_of_the_first(make: Make, toys: Registry, tmp_path: Path) -> None:
    run(make("a"), "one", toys)
    assert run(make("a", state="other"), "one", toys)["outcome"]["ran"] == 2  # released and counted anew
    assert spent(tmp_path / "one") == [20.0]
    assert [p.partition(" that ")[0] for p in verify(tmp_path / "one")["problems"]] == ["hub keeps a head of north's charges"]


@pytest.mark.parametrize("home", ["same", "other"])
def test_a_call_with_a_policy_file_has_the_vault_beside_it(tmp_path: Path, home: str) -> None:
    config = {"mechanism": {"name": "list-rr", "epsilon": 2, "k": 1}, "fields": ["colour", "size"]}
    policy = {"data": {"records": {"path": "???", "schema": SCHEMA}}, "budget": {"*": {"per_document": 4}}}
    (tmp_path / "site.yaml").write_text(json.dumps(policy), encoding="utf-8")

    def call(place: str, **more: Any) -> Any:
        site = tmp_path / "site.yaml"
        return osmotic.call("dp_sanitizer", Records(ROWS), {**config, **more}, site=site, home=tmp_path / place)["sanitized"]

    assert call("same").rows == call(home).rows
    with pytest.raises(RefusedError, match="does not suffice: 4 \\+ 2 > 4"):
        call(home, fields=["colour"])
    assert (tmp_path / "site.state/here/ledger.sqlite").is_file()


def test_two_runs_at_once_on_one_vault_do_not_overspend(tmp_path: Path, toys: Registry) -> None:
    schema = RecordSchema(fields={"colour": FieldSpec(domain=("red", "green", "blue", "white"))})
    errors: list[Exception] = []
    start = threading.Barrier(4)

    def spend(colour: str) -> None:
        start.wait()  # the vault is made by whoever is first
        ledger = Ledger(tmp_path / colour, vault=tmp_path / "vault")
        try:
            releaser = Releaser(ledger, toys, SitePolicy(budget={"*": Budget(per_document=8)}))
            mechanism = {"name": "list-rr", "epsilon": 4, "k": 1}
            prepared = releaser.prepare(mechanism, ("colour",), schema, Path(), certified=True)
            releaser.release(Records([{"id": f"r{i}", "colour": colour} for i in range(10)]), prepared, "d", None)
        except (BudgetError, StoreError) as error:
            errors.append(error)
        finally:
            ledger.close()

    threads = [threading.Thread(target=spend, args=(colour,)) for colour in ("red", "green", "blue", "white")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger = Ledger(tmp_path / "red")  # the folder of the run knows its vault
    assert ledger.query("SELECT DISTINCT s FROM (SELECT SUM(epsilon) s FROM releases GROUP BY document)") == [(8.0,)]
    assert [type(error) for error in errors] == [BudgetError] * 2 and ledger.chain_problems() == []
    ledger.close()


# ---- caps must be there ----


def test_private_data_without_a_cap_are_refused(make: Make, toys: Registry, tmp_path: Path) -> None:
    pipeline = make("a", cap=None)
    plan = api.plan(pipeline, sites=tmp_path / "my.sites.yaml", home=tmp_path / "one", registry=toys)
    (problem,) = plan["refusals"]
    assert "private data set 'items' has no budget" in problem["what"] and "a.yaml:" in problem["where"]
    assert problem["fix"] == "add 'budget: {items: {per_document: ...}}' to the site file"
    with pytest.raises(RefusedError, match="has no budget"):
        run(pipeline, "one", toys)


def test_a_release_without_a_cap_is_refused_whatever_the_plan_said(tmp_path: Path, toys: Registry) -> None:
    ledger = Ledger(tmp_path)
    schema = RecordSchema(fields={"colour": FieldSpec(domain=("red", "green"))})
    binding = {"path": "x", "schema": schema.model_dump()}
    records = Records([{"id": "a", "colour": "red"}])
    for more, refused in (({}, True), ({"purpose": "benchmark"}, False), ({"label": "public"}, False)):
        policy = SitePolicy.model_validate({"data": {"d": {**binding, **more}}, "budget": {"other": {"per_document": 1}}})
        releaser = Releaser(ledger, toys, policy)
        prepared = releaser.prepare({"name": "list-rr", "epsilon": 1, "k": 1}, ("colour",), schema, Path(), certified=True)
        if refused:
            with pytest.raises(RefusedError, match="has no budget"):
                releaser.release(records, prepared, "d", None)
            assert ledger.query("SELECT COUNT(*) FROM charges") == [(0,)]
        else:
            releaser.release(records, prepared, "d", None)
    ledger.close()
