# SPDX-License-Identifier: Apache-2.0
"""Composition of record-level events against closed forms and another accountant; exact noise; counts and their budget."""

import importlib.util
import math
import random
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins import accounting
from osmotic.plugins.accounting import compose
from osmotic.plugins.contract import Records
from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.privacy import histograms
from osmotic.runtime.privacy.composition import RecordEvents
from osmotic.runtime.privacy.histograms import discrete_gaussian, discrete_laplace, event_of, gaussian_sigma, histogram
from osmotic.runtime.privacy.record_noise import validated
from osmotic.runtime.results.verifying import _charge_problems, _set_problems, ledgers_of, verify
from osmotic.runtime.screen.plan_text import plan_text
from osmotic.runtime.screen.tables import ledger_text
from osmotic.runtime.storage.ledger import Ledger
from osmotic.schemas.errors import BudgetError, ConfigError, DataError, RefusedError
from osmotic.schemas.noise import CountNoise
from osmotic.schemas.policy import Budget, RecordBudget, SitePolicy
from osmotic.schemas.records import FieldSpec, RecordSchema

Tasks = Callable[..., dict[str, Any]]
needs_dp = pytest.mark.skipif(importlib.util.find_spec("dp_accounting") is None, reason="needs the extra osmotic[dp]")
COLOURS = ("red", "green", "blue", "white")
SCHEMA = RecordSchema(fields={"colour": FieldSpec(domain=COLOURS), "note": FieldSpec(text=True)})
LAPLACE = {"name": "laplace", "epsilon": 1.0}


def dp_sgd(steps: int = 1000) -> dict[str, Any]:
    given = {"noise_multiplier": 1.0, "sampling_probability": 0.01, "steps": steps}
    return {"kind": "dp-sgd", "parameters": given, "neighbours": "add-or-remove-one"}


def pure(epsilon: float) -> dict[str, Any]:
    return {"kind": "laplace", "parameters": {"epsilon": epsilon}, "neighbours": "replace-one"}


# ---- the accountant ----


@needs_dp
def test_dp_sgd_is_the_known_number_and_below_another_accountant() -> None:
    """sigma 1, q .01, 1000 steps, delta 1e-5: PLD 1.828, RDP 2.101."""
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    (epsilon,) = compose([dp_sgd()], 1e-5).values()
    event = dp_accounting.PoissonSampledDpEvent(0.01, dp_accounting.GaussianDpEvent(1.0))
    rdp = RdpAccountant().compose(event, 1000).get_epsilon(1e-5)
    assert epsilon == pytest.approx(1.828, abs=2e-3) and rdp == pytest.approx(2.101, abs=2e-3)
    assert compose([dp_sgd(500), dp_sgd(500)], 1e-5)["add-or-remove-one"] == pytest.approx(epsilon, abs=2e-3)


@needs_dp
def test_gaussian_and_pure_events_agree_with_closed_forms() -> None:
    """k Gaussians of sigma are one of sigma / sqrt k (Balle, Wang: its exact epsilon); pure events add at delta 0."""
    events = [{"kind": "gaussian", "parameters": {"noise_multiplier": 6.0}, "neighbours": "add-or-remove-one"}] * 4
    (epsilon,) = compose(events, 1e-6).values()
    assert gaussian_sigma(epsilon, 1e-6, 1.0) == pytest.approx(3.0, rel=2e-3)
    assert gaussian_sigma(epsilon - 1e-3, 1e-6, 1.0) > 3.0  # never below the exact one: pessimistic
    assert compose([pure(0.5), pure(0.25), pure(0.25)], 0.0) == {"replace-one": 1.0}
    assert compose([pure(0.5)] * 2, 1e-9)["replace-one"] <= 1.0 + 1e-3
    assert compose(events, 0.0) == {"add-or-remove-one": math.inf}


@needs_dp
def test_unlike_relations_are_not_added_and_bad_events_are_named() -> None:
    assert set(compose([pure(1.0), dp_sgd()], 1e-5)) == {"replace-one", "add-or-remove-one"}
    with pytest.raises(ConfigError, match="unknown kind"):
        compose([{"kind": "magic", "parameters": {}, "neighbours": "x"}], 1e-5)
    with pytest.raises(ConfigError, match="not the parameters of a dp-sgd event"):
        compose([{"kind": "dp-sgd", "parameters": {}, "neighbours": "x"}], 1e-5)


def test_a_noise_multiplier_is_not_taken_for_another_relation(tmp_path: Path) -> None:
    """A replaced record moves a sum of cut gradients twice as far as one more record."""
    counts = Counts(tmp_path, None)
    for event in (dp_sgd(), {"kind": "gaussian", "parameters": {"noise_multiplier": 6.0}}):
        wrong = {**event, "neighbours": "replace-one"}
        with pytest.raises(ConfigError, match="cannot be of 'replace-one'"):
            compose([wrong], 1e-5)
        with counts.ledger.transaction() as db, pytest.raises(ConfigError, match="add-or-remove-one"):
            counts.events.charge(db, "l", "d", wrong, "{}", task="t")
    assert counts.events.events("d") == []
    counts.ledger.close()


def test_a_missing_accountant_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    accounting._distribution.cache_clear()
    accounting._together.cache_clear()
    for name in ("dp_accounting", "dp_accounting.pld"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"osmotic\[dp\]"):
        compose([dp_sgd(7)], 1e-5)
    assert compose([pure(1.0)], 0.0) == {"replace-one": 1.0}  # pure sums need none


# ---- noise ----


def test_discrete_laplace_fits_its_probabilities() -> None:
    """n = 20,000, P(0) = (1 - r) / (1 + r), P(+-1) = r P(0) each, r = exp(-1/2); 5 standard deviations each."""
    source, n = random.Random(3), 20_000
    drawn = [discrete_laplace(Fraction(1, 2), source) for _ in range(n)]
    r = math.exp(-0.5)
    for value, p in [
        (0, (1 - r) / (1 + r)),
        (1, r * (1 - r) / (1 + r)),
        (-1, r * (1 - r) / (1 + r)),
        (3, r**3 * (1 - r) / (1 + r)),
    ]:
        assert abs(drawn.count(value) / n - p) < 5 * math.sqrt(p * (1 - p) / n)


def test_discrete_gaussian_fits_its_probabilities() -> None:
    """n = 6,000, sigma^2 = 4: mean within 5 sigma / sqrt n, variance within 5 standard deviations, P(0) too."""
    source, n = random.Random(4), 6_000
    drawn = [discrete_gaussian(Fraction(4), source) for _ in range(n)]
    total = sum(math.exp(-k * k / 8) for k in range(-60, 61))
    assert abs(sum(drawn) / n) < 5 * 2 / math.sqrt(n)
    assert abs(sum(k * k for k in drawn) / n - 4) < 5 * math.sqrt(2 * 16 / n)
    assert abs(drawn.count(0) / n - 1 / total) < 5 * math.sqrt(1 / total / n)


@needs_dp
@pytest.mark.parametrize(("epsilon", "delta"), [(1.0, 1e-6), (0.3, 1e-5), (4.0, 1e-9)])
def test_gaussian_counts_are_confirmed_by_the_accountant_and_not_wasteful(epsilon: float, delta: float) -> None:
    event = event_of(CountNoise(name="gaussian", epsilon=epsilon, delta=delta))
    assert 0.97 * epsilon < compose([event], delta)["replace-one"] <= epsilon


@needs_dp
def test_noise_that_no_sigma_gives_is_refused_and_never_searched_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    assert event_of(CountNoise(name="gaussian", epsilon=0.01, delta=1e-12))["parameters"]["sigma"] < 1000
    for less in ({"epsilon": 0.009, "delta": 1e-6}, {"epsilon": 1, "delta": 1e-13}, {"epsilon": 1e-300, "delta": 1e-300}):
        with pytest.raises(ConfigError, match=r"'epsilon' of 0\.01 or more and 'delta' of 1e-12 or more"):
            validated(CountNoise, {"name": "gaussian", **less}, "mechanism")
    asked: list[float] = []
    monkeypatch.setattr(
        histograms, "compose", lambda events, delta: asked.append(events[0]["parameters"]["sigma"]) or {"replace-one": 9.0}
    )
    with pytest.raises(ConfigError, match="no gaussian noise was found that is epsilon 1, delta 1e-06"):
        event_of(CountNoise(name="gaussian", epsilon=1, delta=1e-6))
    assert len(asked) == histograms.STEPS and asked == sorted(asked) and asked[-1] > 2.5 * asked[0]


# ---- counts ----


class Counts:
    """A ledger with caps."""

    def __init__(self, folder: Path, cap: RecordBudget | None) -> None:
        self.ledger = Ledger(folder)
        self.events = RecordEvents(self.ledger, SitePolicy(budget={"*": Budget(per_record=cap)}))

    def take(self, records: Records, noise: dict[str, Any], seed: int | None = None, task: str = "run: t@north") -> Records:
        return histogram(self.events, records, "colour", SCHEMA, noise, "d", seed, task)[0]


def rows(count: int = 40) -> Records:
    return Records([{"id": f"r{i}", "colour": COLOURS[i % 3], "note": "n"} for i in range(count)])


def test_counts_are_near_the_truth_looked_up_again_and_capped(tmp_path: Path) -> None:
    """Scale 2: with four counts, one is off by more than 60 with probability below 1e-12."""
    counts = Counts(tmp_path, RecordBudget(epsilon=2.0))
    first = counts.take(rows(600), LAPLACE)
    assert first.columns == ["value", "count"] and [row["value"] for row in first] == list(COLOURS)
    assert all(abs(row["count"] - true) < 60 for row, true in zip(first, (200, 200, 200, 0), strict=True))
    assert counts.take(rows(600), LAPLACE).rows == first.rows  # stored: free
    assert counts.take(Records(rows(600).rows[::-1]), LAPLACE).rows == first.rows
    counts.take(rows(601), LAPLACE, task="run: later@north")  # other content: charged
    with pytest.raises(BudgetError, match="3 > 2 a record") as refused:
        counts.take(rows(602), LAPLACE)
    assert "run: t@north" in str(refused.value) and "run: later@north" in str(refused.value)
    assert len(counts.events.events("d")) == 2
    assert _charge_problems(counts.ledger) == [] == _set_problems(counts.ledger) and counts.ledger.chain_problems() == []
    counts.ledger.db.execute("UPDATE events SET payload='[]'")
    assert "payload" in _charge_problems(counts.ledger)[0]
    counts.ledger.close()


@needs_dp
def test_gaussian_counts_compose_below_the_sum_and_need_a_delta(tmp_path: Path) -> None:
    noise = {"name": "gaussian", "epsilon": 0.5, "delta": 1e-6}
    counts = Counts(tmp_path / "a", RecordBudget(epsilon=1.2, delta=1e-5))
    for n in range(40, 43):
        counts.take(rows(n), noise)  # three of .5: below 1.2 together, 1.5 by plain sums
    with pytest.raises(BudgetError):
        for n in range(43, 60):
            counts.take(rows(n), noise)
    counts.ledger.close()
    strict = Counts(tmp_path / "b", RecordBudget(epsilon=100))
    with pytest.raises(BudgetError, match="inf"):
        strict.take(rows(), noise)
    assert strict.events.events("d") == []
    strict.ledger.close()


def test_counts_without_a_budget_or_with_wrong_noise_are_refused(tmp_path: Path) -> None:
    none = Counts(tmp_path, None)
    with pytest.raises(RefusedError, match=r"no budget of \(epsilon, delta\)"):
        none.take(rows(), LAPLACE)
    for noise in (
        {"name": "laplace", "epsilon": 0},
        {"name": "laplace", "epsilon": 1, "delta": 0.1},
        {"name": "gaussian", "epsilon": 1},
    ):
        with pytest.raises(ConfigError):
            none.take(rows(), noise)
    with pytest.raises(ConfigError, match="free text"):
        histogram(none.events, rows(), "note", SCHEMA, LAPLACE, "d", None, "t")
    with pytest.raises(DataError, match="outside the domain"):
        none.take(Records([{"id": "1", "colour": "mauve", "note": ""}]), LAPLACE)
    none.ledger.close()


def test_label_counter_in_a_pipeline(shop: Any, tasks: Tasks, toys: Registry) -> None:
    shop.defaults = {"budget": {"*": {"per_document": 100, "per_record": {"epsilon": 1.5}}}}
    counter = {"component": "label_counter", "at": "clients", "inputs": {"records": "items"}}
    made = tasks(
        labels={**counter, "config": {"field": "colour", "mechanism": {"name": "laplace", "epsilon": 1}}},
        seen={"component": "counter", "at": "server", "inputs": {"records": "labels"}},
    )
    path = shop.write(made)
    plan = api.plan(path, home=shop.home, registry=toys)
    asked = [row for row in plan["budget"] if row["task"] == "labels"]
    assert len(asked) == 2 and asked[0]["unit"] == "record" and asked[0]["cap"] == 1.5
    summary = api.run(path, home=shop.home, registry=toys)
    north = next(a for a in summary["guarantee"]["parties"] if a["party"] == "north")
    assert [p["class"] for p in north["parts"]] == ["laplace-histogram", "certified"] and north["word"] == "laplace-histogram"
    assert (
        "epsilon 1, delta 0 a record" in summary["guarantee"]["line"] and "epsilon 4 a document" in summary["guarantee"]["line"]
    )
    assert north["together"] == {"epsilon": 5.0, "delta": 0.0, "text": "together epsilon 5, delta 0 a record"}
    assert "of no document" not in summary["guarantee"]["line"] and "together epsilon 5" in summary["guarantee"]["line"]
    found = next(p for p in ledgers_of(shop.home) if p["party"] == "north")["datasets"][0]
    assert found["record"]["epsilon"] == 1.0 and found["record"]["cap"]["epsilon"] == 1.5
    assert verify(shop.home)["problems"] == []
    over = {**made, "labels": {**counter, "config": {"field": "colour", "mechanism": {"name": "laplace", "epsilon": 2}}}}
    with pytest.raises(RefusedError, match="over the cap"):
        api.run(shop.write(over), home=shop.home, registry=toys)


@needs_dp
def test_counts_without_an_accountant_are_never_called_epsilon_0(
    shop: Any, tasks: Tasks, toys: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Laplace and Gaussian counts of one set, then the package is gone: plan, account, ledger and page say so."""
    shop.defaults = {"budget": {"*": {"per_document": 100, "per_record": {"epsilon": 5, "delta": 1e-5}}}}
    noises = {"a": LAPLACE, "b": {"name": "gaussian", "epsilon": 1, "delta": 1e-6}}
    counters = {
        name: {"component": "label_counter", "at": "clients", "inputs": {"records": "items"},
               "config": {"field": "colour", "mechanism": noise}}
        for name, noise in noises.items()
    }  # fmt: skip
    seen = {f"seen_{name}": {"component": "counter", "at": "server", "inputs": {"records": name}} for name in noises}
    path = shop.write(tasks(**counters, **seen))
    first = api.run(path, home=shop.home, registry=toys)
    north = next(a for a in first["guarantee"]["parties"] if a["party"] == "north")
    assert [p["class"] for p in north["parts"]] == ["gaussian", "certified"] and 4 < north["together"]["epsilon"] < 6 + 1e-3
    accounting._distribution.cache_clear()
    accounting._together.cache_clear()
    for name in ("dp_accounting", "dp_accounting.pld"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("osmotic.runtime.plan.asking._check_counts", lambda *_: None)  # which says so before anything else
    plan = api.plan(path, home=shop.home, registry=toys)
    rows = [row for row in plan["budget"] if row["unit"] == "record"]
    assert rows and all(row["spent"] is None for row in rows) and "not computed: pip install" in plan_text(plan)
    again = api.run(path, home=shop.home, registry=toys)
    north = next(a for a in again["guarantee"]["parties"] if a["party"] == "north")
    assert (north["epsilon"], north["ever"], north["together"]["epsilon"]) == (None, None, None)
    assert again["guarantee"]["line"].count("epsilon not computed: pip install 'osmotic[dp]'") == 2
    assert "not computed" in ledger_text(ledgers_of(shop.home)) and "not computed" in (shop.home / "report.html").read_text()


@needs_dp
@pytest.mark.parametrize("z", [0.001, 0.01, 0.0999])
@pytest.mark.parametrize("kind", ["gaussian", "dp-sgd"])
def test_too_little_noise_is_refused_before_the_accountant_fills_the_memory(kind: str, z: float):
    """With 0.001, the distribution of one sum would have taken 76 GiB: any plan could stop the server that checks it."""
    parameters = {"noise_multiplier": z} | ({"sampling_probability": 0.1, "steps": 3} if kind == "dp-sgd" else {})
    event = {"kind": kind, "parameters": parameters, "neighbours": "add-or-remove-one"}
    with pytest.raises(ConfigError, match=r"at least 0\.1"):
        compose([event], 1e-5)
