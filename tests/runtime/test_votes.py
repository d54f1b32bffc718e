# SPDX-License-Identifier: Apache-2.0
"""Votes of records: the published numbers, exact noise, what is charged, what is refused; rounds of a plan add up."""

import importlib.util
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osmotic.plugins.accounting import compose, epsilon_of
from osmotic.plugins.contract import Records
from osmotic.plugins.entropy import SystemEntropy
from osmotic.plugins.fake_context import FakeContext
from osmotic.plugins.host import Registry, build_registry
from osmotic.runtime import api
from osmotic.runtime.privacy.record_noise import vote_event
from osmotic.runtime.privacy.votes import noisy, noisy_votes
from osmotic.runtime.results.verifying import _charge_problems, _set_problems, ledgers_of, verify
from osmotic.runtime.screen.plan_text import plan_text
from osmotic.runtime.screen.tables import ledger_text
from osmotic.schemas.errors import BudgetError, ConfigError, DataError, OsmoticError, RefusedError
from osmotic.schemas.noise import VoteNoise

pytestmark = pytest.mark.skipif(importlib.util.find_spec("dp_accounting") is None, reason="needs the extra osmotic[dp]")
NOISE = {"noise_multiplier": 5.0}


def exact(mu: float, delta: float) -> float:
    """Epsilon of mu-Gaussian privacy: delta = Phi(-eps/mu + mu/2) - e^eps Phi(-eps/mu - mu/2), by bisection."""
    tail = lambda x: 0.5 * math.erfc(x / math.sqrt(2.0))  # noqa: E731
    low, high = 0.0, 50.0
    for _ in range(80):
        middle = (low + high) / 2
        lost = tail(middle / mu - mu / 2) - math.exp(middle) * tail(middle / mu + mu / 2)
        low, high = (middle, high) if lost > delta else (low, middle)
    return high


def ask(jobs: Any, found: Any, question: str = "q", noise: Any = None, shift: int = 0, seed: int | None = None) -> Any:
    votes = {row["id"]: (i + shift) % 3 for i, row in enumerate(jobs.ROWS)}
    return noisy_votes(
        found, Records(jobs.ROWS), votes, 5, noise or NOISE, dataset="d", question=question, seed=seed, task="run: t@north"
    )[0]


# ---- the number ----


@pytest.mark.parametrize(("sigma", "published"), [(15.34, 1.0045), (8.03, 2.0024), (4.24, 4.0053)])
def test_the_published_numbers_of_private_evolution(sigma: float, published: float) -> None:
    """AUG-PE on Yelp: N = 1,939,290, T = 10, delta = 1 / (N ln N). Within 0.5%, and never below the exact one."""
    records, rounds = 1_939_290, 10
    delta = 1 / (records * math.log(records))
    event = vote_event(VoteNoise(noise_multiplier=sigma), records)
    epsilon = epsilon_of([event] * rounds, delta)
    assert epsilon == pytest.approx(published, rel=5e-3) and exact(math.sqrt(rounds) / sigma, delta) <= epsilon + 1e-9
    assert exact(math.sqrt(rounds) / sigma, delta) == pytest.approx(published, rel=5e-4)
    asked = vote_event(VoteNoise(epsilon=published, delta=delta, rounds=rounds), records)
    assert asked["parameters"]["noise_multiplier"] == pytest.approx(sigma, rel=2e-3)


def test_the_least_multiplier_for_all_rounds_is_taken() -> None:
    for epsilon, delta, rounds in ((1.0, 1e-6, 10), (8.0, 1e-5, 3), (0.05, 1e-6, 1)):
        event = vote_event(VoteNoise(epsilon=epsilon, delta=delta, rounds=rounds), 1000)
        assert compose([event] * rounds, delta)["add-or-remove-one"] <= epsilon
        assert exact(math.sqrt(rounds) / (0.995 * event["parameters"]["noise_multiplier"]), delta) > epsilon


def test_a_delta_of_one_in_the_records_is_refused_with_the_number() -> None:
    noise = VoteNoise(epsilon=1, delta=1 / 40, rounds=1)
    with pytest.raises(ConfigError, match=r"delta 0\.025 is not below 1 / 40 records = 0\.025") as error:
        vote_event(noise, 40)
    assert error.value.problems[0].path == "noise.delta"
    assert vote_event(noise, 39)["delta"] == 0.025


def test_a_caps_delta_of_one_in_the_records_is_refused(jobs: Any, tmp_path: Path) -> None:
    """What is charged, and told, is at the cap's delta, whatever the task has asked for."""
    found = jobs.events(tmp_path, delta=0.025)
    for ask_for in (lambda: ask(jobs, found), lambda: jobs.train(found)):
        with pytest.raises(RefusedError, match=r"delta 0\.025 is not below 1 / 40 records"):
            ask_for()
    assert jobs.charges(found) == 0


def test_noise_has_the_stated_scale_and_counts_are_not_shifted() -> None:
    """40,000 counts: seven standard errors, a false alarm in 4e11. A vote is whole steps of the grid."""
    counts = np.full(40_000, 7)
    made = np.array(noisy(counts, 3.0, SystemEntropy())) - 7
    assert abs(made.mean()) < 7 * 3 / 200 and abs(made.var() / 9 - 1) < 7 * math.sqrt(2 / 40_000)
    steps = made * int(2**30 / 3.0)
    assert np.allclose(steps, np.rint(steps), atol=1e-3)


# ---- charged, stored, found again ----


def test_the_same_question_is_answered_once_and_another_anew(jobs: Any, tmp_path: Path) -> None:
    found = jobs.events(tmp_path, epsilon=2.0)
    first = ask(jobs, found)
    assert first.columns == ["value", "count"] and [row["value"] for row in first] == list("01234")
    truth = Counter(i % 3 for i in range(40))
    assert all(abs(row["count"] - truth[int(row["value"])]) < 7 * 5 for row in first)
    assert ask(jobs, found).rows == first.rows == ask(jobs, jobs.events(tmp_path)).rows and jobs.charges(found) == 1
    others = [ask(jobs, found, question="q2"), ask(jobs, found, shift=1), ask(jobs, found, noise={"noise_multiplier": 6})]
    assert all(one.rows != first.rows for one in others) and jobs.charges(found) == 4
    assert found.ledger.query("SELECT DISTINCT class, void FROM events") == [("gaussian", "")]
    assert _charge_problems(found.ledger) == [] == _set_problems(found.ledger)
    body = found.ledger.query("SELECT body FROM charges")[0][0]
    assert '"unit":"record"' in body and '"neighbours":"add-or-remove-one"' in body


def test_the_cap_holds_over_all_rounds_and_nothing_is_stored_over_it(jobs: Any, tmp_path: Path) -> None:
    found = jobs.events(tmp_path, epsilon=1.0)
    with pytest.raises(BudgetError, match=r"a record at delta 0.001 \(add-or-remove-one\)") as error:
        for i in range(9):
            ask(jobs, found, question=str(i))
    rounds = jobs.charges(found)
    assert "run: t@north" in str(error.value)
    assert exact(math.sqrt(rounds) / 5, 1e-3) <= 1.0 < exact(math.sqrt(rounds + 1) / 5, 1e-3)
    with pytest.raises(RefusedError, match="no budget"):
        ask(jobs, jobs.events(tmp_path / "none", epsilon=None))


def test_seeded_votes_are_void(jobs: Any, tmp_path: Path) -> None:
    one, two = jobs.events(tmp_path / "a"), jobs.events(tmp_path / "b")
    assert ask(jobs, one, seed=7).rows == ask(jobs, two, seed=7).rows
    assert one.ledger.query("SELECT void FROM release_sets") == [("seeded",)]


@pytest.mark.parametrize(
    ("votes", "size", "error"),
    [
        ({"r00": 0}, 5, DataError),  # not everybody
        ({f"r{i:02d}": 5 for i in range(40)}, 5, DataError),
        ({f"r{i:02d}": -1 for i in range(40)}, 5, DataError),
        ({f"r{i:02d}": True for i in range(40)}, 5, DataError),
        ({f"r{i:02d}": 0.0 for i in range(40)}, 5, DataError),
        ({f"r{i:02d}": 0 for i in range(41)}, 5, DataError),  # one too many
        ({f"r{i:02d}": 0 for i in range(40)}, 0, ConfigError),
        ({f"r{i:02d}": 0 for i in range(40)}, True, ConfigError),
    ],
)
def test_wrong_votes_are_refused_and_quote_nothing(
    jobs: Any, tmp_path: Path, votes: Any, size: Any, error: type[OsmoticError]
) -> None:
    found = jobs.events(tmp_path)
    with pytest.raises(error) as raised:
        noisy_votes(found, Records(jobs.ROWS), votes, size, NOISE, dataset="d", question="q", seed=None, task="t")
    assert "r0" not in str(raised.value) and jobs.charges(found) == 0
    with pytest.raises((ConfigError, DataError)):
        FakeContext().noisy_votes(Records(jobs.ROWS), votes, size, NOISE)


# ---- a whole run ----


@pytest.fixture
def registry(jobs: Any) -> Registry:
    return build_registry(names=(), modules=[jobs.plugin()])


def tasks(shop: Any, cap: float, noise: Any, times: int = 3) -> dict[str, Any]:
    """Rounds of votes at the clients, counted at the server."""
    shop.defaults = {"budget": {"*": {"per_document": 1000, "per_record": {"epsilon": cap, "delta": 1e-3}}}}
    rounds = {
        "repeat": {"times": times, "carry": {"last": {"from": "voted", "start": "first"}}},
        "tasks": {
            "voted": {
                "component": "colour_voter", "at": "clients", "config": {"noise": noise},
                "inputs": {"records": "items", "before": "carry.last"},
            }
        },
    }  # fmt: skip
    items = {"component": "record_loader", "at": "clients", "config": {"data": "items"}}
    first = {"component": "colour_voter", "at": "clients", "config": {"noise": noise}, "inputs": {"records": "items"}}
    seen = {"component": "counts_reader", "at": "server", "each": "party", "inputs": {"counts": "rounds.voted"}}
    return {"items": items, "first": first, "rounds": rounds, "seen": seen}


def test_rounds_are_counted_in_the_plan_and_paid_one_by_one(shop: Any, registry: Registry) -> None:
    noise = {"epsilon": 1.0, "delta": 1e-3, "rounds": 4}
    made = tasks(shop, 1.01, noise)
    path = shop.write(made)
    plan = api.plan(path, home=shop.home, registry=registry)
    assert plan["refusals"] == []
    text = plan_text(plan)
    assert "3 rounds of votes" in text and "a round of votes" in text and "gaussian" in text
    summary = api.run(path, home=shop.home, registry=registry)
    north = next(p for p in summary["guarantee"]["parties"] if p["party"] == "north")
    assert north["word"] == "gaussian" and north["detail"].startswith("votes, noise ")
    found = next(p for p in ledgers_of(shop.home) if p["party"] == "north")
    assert found["datasets"][0]["record"]["events"] == 4
    assert found["datasets"][0]["record"]["epsilon"] == pytest.approx(1.0, rel=5e-3)
    assert "votes, noise" in ledger_text([found]) and verify(shop.home)["problems"] == []
    more = tasks(shop, 1.01, noise, times=4)
    with pytest.raises(RefusedError, match=r"all tasks together ask epsilon 1\.1") as error:
        api.run(shop.write(more), home=shop.home, registry=registry)
    assert "rounds" in str(error.value) and "config.noise" in str(error.value)


def test_other_candidates_are_another_question_though_nobody_changes_a_vote(shop: Any, registry: Registry) -> None:
    """A server that swaps one candidate must not learn, by getting the same numbers, that no record prefers the new one."""
    shop.defaults = {"budget": {"*": {"per_document": 1000, "per_record": {"epsilon": 9.0, "delta": 1e-3}}}}
    ideas = {"component": "record_loader", "at": "server", "config": {"data": "ideas"}}
    voted = {
        "component": "colour_voter", "at": "clients", "config": {"noise": NOISE},
        "inputs": {"records": "items", "before": "ideas"},
    }  # fmt: skip
    seen = {"component": "counts_reader", "at": "server", "each": "party", "inputs": {"counts": "voted"}}
    items = {"component": "record_loader", "at": "clients", "config": {"data": "items"}}
    path = shop.write({"items": items, "ideas": ideas, "voted": voted, "seen": seen})
    sites = json.loads((shop.folder / "shop.sites.yaml").read_text())
    field = {"fields": {"colour": {"domain": ["red", "green", "blue", "white"]}}}
    sites["parties"]["hub"] = {"data": {"ideas": {"path": "ideas.jsonl", "schema": field, "label": "public"}}}
    (shop.folder / "shop.sites.yaml").write_text(json.dumps(sites))
    charged = []
    for colour in ("red", "blue", "red"):
        (shop.folder / "ideas.jsonl").write_text(json.dumps({"id": "i0", "colour": colour}) + "\n")
        api.run(path, home=shop.home, registry=registry)
        charged.append(next(p for p in ledgers_of(shop.home) if p["party"] == "north")["charges"])
    assert charged == [1, 2, 2]


def test_one_round_over_the_cap_and_a_bad_delta_are_located(shop: Any, registry: Registry) -> None:
    made = tasks(shop, 0.2, NOISE)
    with pytest.raises(RefusedError, match=r"gaussian \(noise_multiplier 5\) is epsilon .* over the cap") as error:
        api.run(shop.write(made), home=shop.home, registry=registry)
    assert "tasks.first.config.noise" in str(error.value) and "shop.yaml:" in str(error.value)
    made = tasks(shop, 9.0, {"epsilon": 1.0, "delta": 0.1, "rounds": 4})
    with pytest.raises(OsmoticError, match="1 / 12 records") as error:
        api.run(shop.write(made), home=shop.home, registry=registry)
    assert "config.noise.delta" in str(error.value)


def test_the_fake_context_counts_near_the_truth(jobs: Any) -> None:
    votes = {row["id"]: 1 for row in jobs.ROWS}
    (none, all_) = FakeContext(seed=2).noisy_votes(Records(jobs.ROWS), votes, 2, {"noise_multiplier": 1.0})
    assert abs(none["count"]) < 7 and abs(all_["count"] - 40) < 7
