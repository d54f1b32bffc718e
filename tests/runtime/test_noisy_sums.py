# SPDX-License-Identifier: Apache-2.0
"""Central noise in the ledger: what is charged, when, under which cap; kills, retries, replays; a whole run of two rounds."""

import importlib.util
import math
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osmotic.plugins.accounting import compose
from osmotic.plugins.contract import Component, Config, Context, Out, Outputs, Records, Weights
from osmotic.plugins.hookspecs import hookimpl
from osmotic.plugins.host import build_registry
from osmotic.runtime import api
from osmotic.runtime.privacy import noisy_sums
from osmotic.runtime.privacy.composition import ClientEvents
from osmotic.runtime.results.verifying import _charge_problems, ledgers_of, verify
from osmotic.runtime.screen.tables import ledger_text
from osmotic.runtime.storage.ledger import Ledger
from osmotic.runtime.storage.store import Store
from osmotic.schemas.errors import BudgetError, ConfigError, RefusedError, StoreError
from osmotic.schemas.noise import ClientNoise
from osmotic.schemas.policy import Budget, RecordBudget, SitePolicy

pytestmark = pytest.mark.skipif(importlib.util.find_spec("dp_accounting") is None, reason="needs the extra osmotic[dp]")
NOISE = {"clip": 1.0, "noise_multiplier": 4.0}


def events(folder: Path, epsilon: float = 5.0, **policy: Any) -> ClientEvents:
    budget = {"clients": Budget(per_client=RecordBudget(epsilon=epsilon, delta=1e-5))}
    return ClientEvents(Ledger(folder), SitePolicy.model_validate({"budget": budget, **policy}))


def ask(found: ClientEvents, value: float = 0.1, question: str = "q", seed: int | None = None, noise: Any = None) -> Weights:
    updates = [{"a": np.full(50, value)}, {"a": np.full(50, -value / 2)}]
    return noisy_sums.noisy_sum(found, updates, {"a": (50,)}, noise or NOISE, question=question, seed=seed, task="t")


def charges(found: ClientEvents) -> int:
    return int(found.ledger.query("SELECT COUNT(*) FROM charges")[0][0])


# ---- the number ----


def exact(sigma: float, delta: float) -> float:
    """Epsilon of the Gaussian mechanism of sensitivity 1 (Balle, Wang 2018, theorem 8), by bisection."""

    def lost(epsilon: float) -> float:
        tail = lambda x: 0.5 * math.erfc(x / math.sqrt(2.0))  # noqa: E731
        return tail(epsilon * sigma - 0.5 / sigma) - math.exp(epsilon) * tail(epsilon * sigma + 0.5 / sigma)

    low, high = 0.0, 50.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if lost(middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize(("z", "rounds"), [(4.0, 1), (4.0, 10), (1.5, 3), (20.0, 100)])
def test_epsilon_is_the_closed_forms_and_another_accountants(z: float, rounds: int) -> None:
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    event = noisy_sums.event_of(ClientNoise(clip=1, noise_multiplier=z))
    (epsilon,) = compose([event] * rounds, 1e-5).values()
    wanted = exact(z / math.sqrt(rounds), 1e-5)
    assert wanted - 1e-9 <= epsilon <= wanted + 5e-3
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    other = accountant.compose(dp_accounting.GaussianDpEvent(z), rounds).get_epsilon(1e-5)
    assert epsilon == pytest.approx(other, abs=5e-3)


def test_a_multiplier_is_found_for_epsilon_and_the_least_of_its_kind() -> None:
    for epsilon, delta, rounds in ((1.0, 1e-6, 10), (8.0, 1e-5, 3), (0.05, 1e-6, 1)):
        event = noisy_sums.event_of(ClientNoise(clip=1, epsilon=epsilon, delta=delta, rounds=rounds))
        assert compose([event] * rounds, delta)["add-or-remove-one"] <= epsilon
        z = event["parameters"]["noise_multiplier"]
        assert exact(0.98 * z / math.sqrt(rounds), delta) > epsilon


# ---- charged, stored, found again ----


def test_the_same_question_is_answered_once_and_another_anew(tmp_path: Path) -> None:
    found = events(tmp_path)
    one, again = ask(found), ask(found)
    assert one.to_files() == again.to_files() and charges(found) == 1
    assert one.meta == {"clip": 1.0, "noise_multiplier": 4.0}
    reopened = events(tmp_path)
    assert ask(reopened).to_files() == one.to_files() and charges(reopened) == 1
    for other in (ask(found, question="q2"), ask(found, value=0.2), ask(found, noise={"clip": 1, "noise_multiplier": 5})):
        assert not np.array_equal(other.tensors["a"], one.tensors["a"])
    assert charges(found) == 4 and _charge_problems(found.ledger) == []
    body = found.ledger.query("SELECT body FROM charges")[0][0]
    assert '"unit":"client"' in body and '"neighbours":"add-or-remove-one"' in body and '"void":""' in body


def test_noise_of_the_system_has_the_stated_scale(tmp_path: Path) -> None:
    """20,000 coordinates of standard deviation 4: seven standard errors, so a false alarm in 4e11."""
    found = events(tmp_path)
    made = noisy_sums.noisy_sum(found, [], {"a": (20_000,)}, NOISE, question="q", seed=None, task="t").tensors["a"]
    assert abs(made.var() / 16 - 1) < 7 * math.sqrt(2 / 20_000) and abs(made.mean()) < 7 * 4 / math.sqrt(20_000)


def test_it_is_charged_before_it_is_given_and_a_kill_in_between_pays_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = events(tmp_path)

    def killed(*_: Any) -> None:
        assert charges(found) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "get", killed)
    with pytest.raises(KeyboardInterrupt):
        ask(found)
    monkeypatch.undo()
    before = [p.name for p in (tmp_path / "sums" / "objects").glob("*/*")]
    made = ask(found)
    assert charges(found) == 1 and Store(tmp_path / "sums").put(made) in before


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, {here!r})
import test_noisy_sums as t
from osmotic.runtime.storage.store import Store
Store.{method} = lambda *a, **k: os._exit(9)
t.ask(t.events(Path({folder!r})))
"""


def test_a_process_that_dies_after_the_charge_pays_once(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    code = KILLED.format(here=here, folder=str(tmp_path), method="get")
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 9
    found = events(tmp_path)
    assert charges(found) == 1
    ask(found)
    assert charges(found) == 1 and _charge_problems(found.ledger) == []


def test_what_was_drawn_and_not_charged_is_never_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, drawn = events(tmp_path), []
    plain = Store.put

    def killed(self: Store, artifact: Any) -> str:
        drawn.append(plain(self, artifact))
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        ask(found)
    assert charges(found) == 0
    monkeypatch.undo()
    assert Store(tmp_path / "sums").put(ask(found)) not in drawn and charges(found) == 1


def test_the_names_of_a_sum_are_on_the_disk_before_it_is_charged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a power cut may leave a charge without its sum, which is refused for ever."""
    found, synced, plain = events(tmp_path), set(), os.fsync

    def noted(descriptor: int) -> None:
        plain(descriptor)
        if charges(found) == 0:
            synced.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", noted)
    ask(found)
    (folder,) = (tmp_path / "sums" / "objects").glob("*/*")
    wanted = [folder, folder.parent, tmp_path / "sums" / "objects", tmp_path / "sums", tmp_path]
    assert {one.stat().st_ino for one in wanted} <= synced


def test_of_two_at_once_the_first_ones_noise_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, fast = events(tmp_path), events(tmp_path)
    first: list[Weights] = []
    plain = Store.put

    def late(self: Store, artifact: Any) -> str:
        digest = plain(self, artifact)
        if not first:
            first.append(Weights({}))
            first[0] = ask(fast)
        return digest

    monkeypatch.setattr(Store, "put", late)
    assert ask(slow).to_files() == first[0].to_files() and charges(slow) == 1


def test_a_lost_sum_is_not_drawn_again(tmp_path: Path) -> None:
    found = events(tmp_path)
    ask(found)
    for folder in (tmp_path / "sums" / "objects").glob("*/*"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    with pytest.raises(StoreError, match="not where the ledger says"):
        ask(found)
    assert charges(found) == 1


def test_seeded_noise_is_repeatable_and_void(tmp_path: Path) -> None:
    one, two = events(tmp_path / "one"), events(tmp_path / "two")
    assert ask(one, seed=7).to_files() == ask(two, seed=7).to_files()
    assert one.ledger.query("SELECT void FROM events") == [("seeded",)]


# ---- caps ----


def test_the_cap_holds_over_all_sums_ever_and_nothing_is_drawn_over_it(tmp_path: Path) -> None:
    found = events(tmp_path, epsilon=1.2)
    ask(found)
    with pytest.raises(BudgetError, match="a client at delta 1e-05") as error:
        ask(found, question="second")
    assert "per_client" in str(error.value) and charges(found) == 1
    assert len(list((tmp_path / "sums" / "objects").glob("*/*"))) == 1
    assert ask(found).meta["clip"] == 1.0  # what was paid for stays


def test_without_a_cap_or_beside_a_data_set_of_that_name_there_is_no_sum(tmp_path: Path) -> None:
    bare = ClientEvents(Ledger(tmp_path), SitePolicy())
    with pytest.raises(RefusedError, match="have no budget"):
        ask(bare)
    bound = {
        "data": {"clients": {"path": "x.jsonl", "schema": {"fields": {"c": {"domain": ["a", "b"]}}}, "purpose": "benchmark"}}
    }
    with pytest.raises(RefusedError, match="is a data set here"):
        ask(events(tmp_path, **bound))
    with pytest.raises(ConfigError, match="noise_multiplier"):
        ask(events(tmp_path), noise={"clip": 1.0})


# ---- a whole run ----


class NoKeys(Config):
    """No keys."""


class Weigher(Component[NoKeys]):
    """Weights of its party: the global ones, and a little more."""

    name = "weigher"
    outputs = {"weights": Out(Weights)}

    def run(self, context: Context, records: Records | None = None, init: Weights | None = None) -> Outputs:
        """Add 0.1 (north) or 0.3 (south) to ones."""
        before = init.tensors["a"] if init is not None else np.ones(30, "float32")
        more = 0.1 if context.party == "north" else 0.3
        return {"weights": Weights({"a": (before + np.float32(more)).astype("float32")}, {"base": "b", "layout": "full"})}


def plan(shop: Any, cap: dict[str, Any] | None, noise: dict[str, Any]) -> Path:
    rounds = {
        "repeat": {"times": 2, "carry": {"global": {"from": "noisy", "start": "first"}}},
        "tasks": {
            "local": {"component": "weigher", "at": "clients", "inputs": {"records": "items", "init": "carry.global"}},
            "noisy": {
                "component": "aggregator", "at": "server", "config": {"aggregation": "dp", "dp": noise},
                "inputs": {"models": {"from": "local", "waive": "updates go to a trusted server"}, "previous": "carry.global"},
            },
        },
    }  # fmt: skip
    shop.binding = {"purpose": "benchmark"}
    shop.defaults = {"waivers": [{"edge": "*", "observers": ["hub", "north", "south"]}]}
    if cap is not None:
        shop.defaults["budget"] = {"*": {"per_document": 1000}, "clients": {"per_client": cap}}
    items = {"component": "record_loader", "at": "clients", "config": {"data": "items"}}
    return shop.write({"items": items, "first": {"component": "weigher", "at": "server"}, "federated": rounds})


@pytest.fixture
def registry() -> Any:
    module = types.ModuleType("weighers")
    module.register_components = hookimpl(lambda: (Weigher,))  # type: ignore[attr-defined]
    return build_registry(names=(), modules=[module])


def test_two_rounds_pay_twice_once_and_stay_unprotected_for_the_clients(shop: Any, registry: Any, hashes: Any) -> None:
    path = plan(shop, {"epsilon": 3, "delta": 1e-5}, {"clip": 1.0, "noise_multiplier": 3.0})
    summary = api.run(path, home=shop.home, registry=registry)
    words = {a["party"]: a["word"] for a in summary["guarantee"]["parties"]}
    assert words["north"] == words["south"] == "unprotected"  # their updates crossed to the server as they were
    hub = next(p for p in ledgers_of(shop.home) if p["party"] == "hub")
    (clients,) = hub["datasets"]
    assert clients["dataset"] == "clients" and clients["record"]["unit"] == "client" and clients["record"]["events"] == 2
    assert clients["record"]["epsilon"] == pytest.approx(exact(3 / math.sqrt(2), 1e-5), abs=5e-3)
    text = ledger_text([hub])
    assert "a client (2 events, add-or-remove-one)" in text and "3, delta 1e-05" in text and "noise_multiplier 3" in text
    assert verify(shop.home)["problems"] == []
    before = hashes(shop.home)
    ledger = Ledger(shop.home / "parties" / "hub")
    with ledger.transaction() as db:  # as if the run had been killed after the charge: the tasks are not finished
        db.execute("DELETE FROM tasks")
    ledger.close()
    api.run(path, home=shop.home, registry=registry)
    assert hashes(shop.home) == before
    assert next(p for p in ledgers_of(shop.home) if p["party"] == "hub")["datasets"][0]["record"]["events"] == 2


def test_a_plan_over_the_cap_or_without_one_is_refused_before_it_runs(shop: Any, registry: Any) -> None:
    noise = {"clip": 1.0, "noise_multiplier": 3.0}
    with pytest.raises(RefusedError, match=r"2 noisy sums would cost epsilon .* > 1 a client") as error:
        api.run(plan(shop, {"epsilon": 1, "delta": 1e-5}, noise), home=shop.home, registry=registry)
    assert "shop.yaml:" in str(error.value) and "federated.tasks.noisy.config.dp" in str(error.value)
    with pytest.raises(RefusedError, match="no budget of"):
        api.run(plan(shop, None, noise), home=shop.home, registry=registry)
    assert not list(shop.home.glob("parties/*/store/objects/*"))
