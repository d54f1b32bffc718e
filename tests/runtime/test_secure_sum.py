# SPDX-License-Identifier: Apache-2.0
"""Secure sums in whole runs: what arrives, what is charged, labels, resume, refusals, who may be missing."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osmotic.plugins.contract import Weights
from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.results.verifying import ledgers_of, verify
from osmotic.runtime.storage.ledger import Ledger
from osmotic.runtime.storage.store import Store
from osmotic.schemas.errors import ConfigError, OsmoticError, RefusedError

PARTIES = ["east", "north", "south", "west"]
PLAIN = {"range": 0.5, "at_least": 3}
NOISY = {"clip": 1.0, "range": 0.25, "at_least": 3, "noise_multiplier": 2.0}
CAP = {"budget": {"*": {"per_document": 1000, "per_client": {"epsilon": 20, "delta": 1e-5}}}}
WAIVED = {"waivers": [{"edge": "mean.total", "observers": ["hub"]}, {"edge": "loop.mean.total", "observers": ["hub"]}]}
BENCHMARK = {"purpose": "benchmark"}


def pipeline(secure: dict[str, Any], waive: bool = True, puller: dict[str, Any] | None = None, **total: Any) -> dict[str, Any]:
    asked = {"waive": "a test of sums without noise"} if waive else {}
    return {
        "items": {"component": "record_loader", "at": "clients", "config": {"data": "items"}},
        "start": {"component": "starter", "at": "server"},
        "trained": {
            "component": "puller", "at": "clients", "inputs": {"records": "items", "previous": "start"}, "config": puller or {},
        },
        "update": {"component": "update_maker", "at": "clients", "inputs": {"weights": "trained", "previous": "start"}},
        "mean": {
            "component": "secure_aggregator", "at": "server",
            "inputs": {"total": {"from": "update", "secure_sum": secure, **asked, **total}, "previous": "start"},
        },
    }  # fmt: skip


@pytest.fixture
def go(shop: Any, toys: Registry) -> Callable[..., dict[str, Any]]:
    shop.records = {party: shop.records["north"][: 3 + i] for i, party in enumerate(PARTIES)}

    def run(tasks: dict[str, Any], home: str = "home", **options: Any) -> dict[str, Any]:
        file = shop.write(tasks, parties={"server": "hub", "clients": PARTIES})
        return api.run(file, home=shop.folder / home, registry=toys, **options)

    return run


def weights_of(home: Path, task: str = "mean@hub", port: str = "weights") -> Weights:
    folder = home / "parties" / task.partition("@")[2]
    ledger = Ledger(folder)
    sql = "SELECT t.outputs FROM instances i JOIN tasks t ON t.key = i.key WHERE i.id=?"
    ref = json.loads(ledger.query(sql, (task,))[0][0])[port]
    ledger.close()
    found = Store(folder / "store").get(ref["kind"], ref["digest"])
    assert isinstance(found, Weights)
    return found


def expected(parties: list[str], size: int = 40) -> dict[str, Any]:
    made = importlib.import_module("osmotic_sums")
    each = [made.pulled(p, 3 + PARTIES.index(p), size, 0.01, made.start(size)) for p in parties]
    return {name: sum(one[name].astype(float) for one in each) / len(parties) for name in made.start(size)}


def charges(home: Path, party: str) -> list[dict[str, Any]]:
    ledger = Ledger(home / "parties" / party)
    found = [json.loads(body) for (body,) in ledger.query("SELECT body FROM charges ORDER BY seq")]
    ledger.close()
    return found


def test_the_sum_without_noise_is_the_mean_of_a_plain_gather(shop: Any, go: Any) -> None:
    shop.defaults, shop.binding = WAIVED, BENCHMARK
    found = go(pipeline(PLAIN))
    made, wanted = weights_of(shop.home), expected(PARTIES)
    assert max(float(np.abs(made.tensors[name] - wanted[name]).max()) for name in wanted) < 1e-7
    assert "unprotected" in found["guarantee"]["line"]
    assert found["outcome"]["ran"] == 14 and verify(shop.home)["problems"] == []
    again = go(pipeline(PLAIN))
    assert again["outcome"]["ran"] == 0 and again["outcome"]["cached"] == 14
    assert sum(c["bytes"] for c in again["crossings"]) == 0
    assert again["guarantee"] == found["guarantee"]


def test_with_noise_each_client_is_charged_once_and_the_sum_is_protected(shop: Any, go: Any) -> None:
    """Noise of 2 x clip on 46 numbers of a mean of 4: standard deviation .5 x sqrt(4/3) a number, seven standard errors."""
    shop.defaults = CAP
    found = go(pipeline(NOISY, waive=False))
    made, wanted = weights_of(shop.home), expected(PARTIES)
    off = np.concatenate([(made.tensors[name] - wanted[name]).ravel() for name in wanted])
    sigma = 2.0 / np.sqrt(3) * np.sqrt(4) / 4  # three honest ones give it all; the fourth adds its share
    assert abs(off.var() / sigma**2 - 1) < 7 * np.sqrt(2 / off.size)
    for party in PARTIES:
        (charge,) = charges(shop.home, party)
        assert charge["unit"] == "client" and charge["dataset"] == "client of items" and charge["class"] == "gaussian"
        assert charge["event"]["parameters"] == {"noise_multiplier": 2.0} and charge["void"] == ""
    line = found["guarantee"]["line"]
    assert "gaussian: epsilon 1.99" in line and "a client (add-or-remove-one) (a secure sum of 4, clip 1, noise 2)" in line
    part = found["guarantee"]["parties"][0]["parts"][0]
    assert part["unit"] == "client" and 1.9 < part["epsilon"] < 2.1 and part["of"] == ["add-or-remove-one"]
    assert verify(shop.home)["problems"] == []
    again = go(pipeline(NOISY, waive=False))
    assert again["outcome"]["ran"] == 0 and len(charges(shop.home, "north")) == 1
    (account,) = [one for one in ledgers_of(shop.home) if one["party"] == "north"]
    (row,) = account["datasets"]
    assert row["record"]["unit"] == "client" and row["record"]["cap"] == {"epsilon": 20.0, "delta": 1e-5}


def test_another_vector_is_another_sum_and_charged_anew(shop: Any, go: Any) -> None:
    shop.defaults = CAP
    go(pipeline(NOISY, waive=False))
    before = weights_of(shop.home)
    shop.records["north"] = shop.records["north"][:2]
    found = go(pipeline(NOISY, waive=False))
    assert [len(charges(shop.home, party)) for party in PARTIES] == [2, 2, 2, 2]
    assert not np.array_equal(weights_of(shop.home).tensors["a"], before.tensors["a"])
    assert verify(shop.home)["problems"] == [] and "sums" in found


def test_what_crosses_is_masked_and_the_transcripts_say_so(shop: Any, go: Any) -> None:
    shop.defaults = CAP
    found = go(pipeline(NOISY, waive=False))
    crossed = [c for c in found["crossings"] if c["edge"].startswith("update@")]
    assert len(crossed) == 4 and {c["kind"] for c in crossed} == {"masked"} and {c["label"] for c in crossed} == {"protected"}
    assert {c["bytes"] for c in crossed} == {4 * 46}
    ledger = Ledger(shop.home / "parties" / "hub")
    rows = [json.loads(body) for (body,) in ledger.query("SELECT body FROM crossings ORDER BY seq")]
    ledger.close()
    kinds = [row["kind"] for row in rows if row["direction"] == "in"]
    assert kinds == ["masked"] * 4 + ["sum"]
    held = list((shop.home / "parties" / "hub" / "secure").glob("*"))
    assert not [path for path in held if path.suffix in (".masked", ".receiver")]
    objects = [p.name for p in (shop.home / "parties" / "hub" / "store" / "objects").glob("*/*")]
    assert not {weights_of(shop.home, f"update@{p}", "update").meta and row["digest"] for p in PARTIES for row in rows
                if row["kind"] == "masked"} & set(objects)  # fmt: skip


@pytest.mark.parametrize("how", [{"isolate": True}, {"jobs": 2}])
@pytest.mark.slow
def test_processes_give_the_same(shop: Any, go: Any, toy_path: None, how: Any) -> None:
    shop.defaults, shop.binding = WAIVED, BENCHMARK
    go(pipeline(PLAIN), home="other")
    go(pipeline(PLAIN), **how)
    one, two = weights_of(shop.home), weights_of(shop.folder / "other")
    assert one.to_files() == two.to_files() and verify(shop.home)["problems"] == []


# ---- refusals before anything runs ----


def refused(go: Any, tasks: dict[str, Any], kind: type[OsmoticError]) -> str:
    with pytest.raises(kind) as caught:
        go(tasks)
    return str(caught.value)


def test_without_a_cap_a_client_or_over_it_nothing_runs(shop: Any, go: Any) -> None:
    assert "no budget of (epsilon, delta) a client" in refused(go, pipeline(NOISY, waive=False), RefusedError)
    shop.defaults = {"budget": {"*": {"per_document": 9, "per_client": {"epsilon": 1, "delta": 1e-5}}}}
    text = refused(go, pipeline(NOISY, waive=False), RefusedError)
    assert "a secure sum" not in text and "would cost epsilon" in text and "tasks.mean.inputs.total.secure_sum" in text
    assert not (shop.home / "parties" / "north" / "run.sqlite").exists() or charges(shop.home, "north") == []


def test_without_noise_it_needs_a_waiver_like_a_plain_gather(shop: Any, go: Any) -> None:
    assert "the plan asks for no waiver" in refused(go, pipeline(PLAIN, waive=False), RefusedError)
    shop.binding = BENCHMARK
    assert "no waiver for the edge 'mean.total'" in refused(go, pipeline(PLAIN), RefusedError)


def test_a_site_may_want_more_clients_or_more_in_league(shop: Any, go: Any) -> None:
    shop.defaults = {**CAP, "secure_sum": {"at_least": 5, "colluding": 1}}
    text = refused(go, pipeline(NOISY, waive=False), RefusedError)
    assert "wants 5 or more" in text and "takes 1 clients to be in league" in text
    shop.defaults = {**CAP, "identities": {"north": "0" * 64}}
    assert "knows the public keys of some parties" in refused(go, pipeline(NOISY, waive=False), RefusedError)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "too few": ({"secure_sum": {"range": 1, "at_least": 5}}, "fewer parties than at_least"),
    "one": ({"secure_sum": {"range": 1, "at_least": 1}}, "greater than or equal to 2"),
    "no range": ({"secure_sum": {"at_least": 3}}, "give 'range', 'clip' or both"),
    "no clip": ({"secure_sum": {"range": 1, "at_least": 3, "noise_multiplier": 1}}, "noise needs 'clip'"),
    "both noises": ({"secure_sum": {**NOISY, "epsilon": 1}}, "not both"),
    "range over clip": ({"secure_sum": {"range": 2, "clip": 1, "at_least": 3}}, "range 2 is more than clip 1"),
    "league": ({"secure_sum": {"range": 1, "at_least": 3, "colluding": 3}}, "in league with the server"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_have_a_place_and_a_reason(shop: Any, go: Any, name: str) -> None:
    given, wanted = MISTAKES[name]
    text = refused(go, pipeline(PLAIN, **given), ConfigError)
    assert wanted in text and "tasks.mean.inputs.total" in text and "shop.yaml:" in text


def test_a_sum_is_of_weights_made_elsewhere_and_of_nothing_that_comes_twice(shop: Any, go: Any) -> None:
    tasks = pipeline(PLAIN)
    tasks["other"] = {"component": "aggregator", "at": "server", "inputs": {"models": {"from": "update", "secure_sum": PLAIN}}}
    assert "arrives as one weights artifact, which" in refused(go, tasks, ConfigError)
    tasks = pipeline(PLAIN)
    tasks["mean"]["inputs"]["total"]["from"] = "start"
    assert "parties of another role" in refused(go, tasks, ConfigError)
    tasks = pipeline(PLAIN)
    tasks["mean"]["inputs"]["previous"] = {"from": "update", "secure_sum": {**PLAIN, "range": 0.25}}
    assert "comes in by another input too" in refused(go, tasks, ConfigError)


def test_weights_that_do_not_fit_together_are_named(shop: Any, go: Any) -> None:
    shop.defaults = CAP
    tasks = pipeline(NOISY, waive=False, puller={"empty": "south"})
    tasks["update"]["inputs"]["previous"] = "trained"
    text = refused(go, tasks, RefusedError)
    assert "the weights of south have other tensors than those of most" in text


def test_pinned_identities_make_it_hold_against_a_server_that_lies(shop: Any, go: Any, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from osmotic.runtime.cli import application
    from osmotic.runtime.secure.keys import Identity
    from osmotic.runtime.storage.keeping import backup

    shop.defaults = CAP
    assert go(pipeline(NOISY, waive=False))["sums"][0]["trust"] == "honest-but-curious"
    said = json.loads(CliRunner().invoke(application(), ["keys", "identity", str(shop.home), "--json"]).output)
    shop.defaults = {**CAP, "identities": {one["party"]: one["public"] for one in said}}
    shop.records["north"] = shop.records["north"][:2]
    assert go(pipeline(NOISY, waive=False))["sums"][0]["trust"] == "active"
    shop.defaults["identities"]["south"] = Identity(b"1" * 32).public.hex()
    shop.records["north"] = shop.records["north"][:1]
    with pytest.raises(ConfigError, match="the identity pinned for 'south' is not its own key"):
        go(pipeline(NOISY, waive=False))
    backup(shop.home, tmp_path / "backup", "north")
    assert [p.name for p in (tmp_path / "backup" / "north" / "secure").iterdir()] == ["identity"]


def test_rounds_are_counted_together_and_a_plan_shows_what_they_cost(shop: Any, go: Any, toys: Registry) -> None:
    from osmotic.runtime.results.result_text import result_text
    from osmotic.runtime.screen.plan_text import plan_text

    total = {"from": "update", "secure_sum": NOISY}
    made = {
        "items": pipeline(NOISY)["items"],
        "start": {"component": "starter", "at": "server"},
        "loop": {
            "repeat": {"times": 3, "carry": {"model": {"from": "mean.weights", "start": "start"}}},
            "tasks": {
                "trained": {
                    "component": "puller", "at": "clients", "inputs": {"records": "items", "previous": "carry.model"},
                },
                "update": {
                    "component": "update_maker", "at": "clients", "inputs": {"weights": "trained", "previous": "carry.model"},
                },
                "mean": {
                    "component": "secure_aggregator", "at": "server", "inputs": {"total": total, "previous": "carry.model"},
                    "config": {"server": {"optimizer": "none"}},
                },
            },
        },
    }  # fmt: skip
    shop.defaults = CAP
    file = shop.write(made, parties={"server": "hub", "clients": PARTIES})
    plan = api.plan(file, home=shop.home, registry=toys)
    rows = [row for row in plan["budget"] if row["unit"] == "client"]
    assert [row["party"] for row in rows] == PARTIES and rows[0]["detail"].startswith("3 secure sums, noise 2 of clip")
    text = " ".join(plan_text(plan).split())
    assert "only the sum is seen" in text and rows[0]["epsilon"] < 5
    found = go(made)
    assert len(found["sums"]) == 3 and len(charges(shop.home, "west")) == 3
    said = "3 secure sums of 4 of 4 parties: only sums were seen; the server is taken to follow the protocol"
    assert said in result_text(found) and said in (shop.home / "report.html").read_text(encoding="utf-8")
    part = found["guarantee"]["parties"][0]["parts"][0]
    assert part["epsilon"] == pytest.approx(rows[0]["epsilon"], rel=1e-3)
    shop.defaults = {"budget": {"*": {"per_document": 9, "per_client": {"epsilon": 3, "delta": 1e-5}}}}
    assert "3 secure sums would cost" in refused(go, made, RefusedError)
