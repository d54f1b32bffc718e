# SPDX-License-Identifier: Apache-2.0
"""A paid bit a document, and a second release of exactly the documents whose released bit is yes."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osmotic.components.dp_sanitizer import DpSanitizer
from osmotic.components.feedback_sanitizer import FeedbackSanitizerConfig
from osmotic.plugins.contract import Component, Config, Context, Out, Outputs, Records
from osmotic.plugins.host import Registered, Registry
from osmotic.runtime import api
from osmotic.runtime.party.policies import open_site, policies_of
from osmotic.runtime.plan.checks import Configs
from osmotic.runtime.plan.graph import Graph
from osmotic.runtime.plan.load import load_text
from osmotic.runtime.privacy import questions, releases
from osmotic.runtime.privacy.questions import question_of
from osmotic.runtime.privacy.releases import Releaser
from osmotic.runtime.results.verifying import verify
from osmotic.runtime.storage.ledger import Ledger
from osmotic.schemas.errors import BudgetError, ConfigError, OsmoticError
from osmotic.schemas.policy import Budget, SitePolicy

Tasks = Callable[..., dict[str, Any]]
BIT = {
    "component": "feedback_sanitizer",
    "at": "clients",
    "inputs": {"records": "items", "kept": "some"},
    "config": {"epsilon": 1},
}
AGAIN = {
    "component": "dp_sanitizer", "at": "clients",
    "inputs": {"records": "items", "bits": "asked.bits", "bits_key": "asked.key"},
    "config": {"mechanism": {"name": "list-rr", "epsilon": 2, "k": 1}, "fields": ["colour"], "attempt": 2},
}  # fmt: skip
KNOWN = {"component": "counter", "at": "server", "inputs": {"records": "asked.bits"}}
SEEN = {"component": "counter", "at": "server", "inputs": {"records": "again"}}


class KeepConfig(Config):
    """Whether it says that it compares records."""

    compares: bool = False


class Keep(Component[KeepConfig]):
    """Half of the records, as a filter might keep them."""

    name = "keep"
    outputs = {"kept": Out(Records)}

    @classmethod
    def mixes(cls, config: KeepConfig) -> bool:
        return config.compares

    def run(self, context: Context, records: Records) -> Outputs:
        return {"kept": Records([{"id": row["id"], "rationale": "r"} for row in records.rows[::2]], ["id", "rationale"])}


class ForgeConfig(Config):
    """How to forge."""

    how: str


class Forge(Component[ForgeConfig]):
    """Bits or a key that are not what was released."""

    name = "forge"
    outputs = {"bits": Out(Records), "key": Out(Records)}

    def run(self, context: Context, bits: Records, key: Records) -> Outputs:
        b, k = [dict(row) for row in bits], [dict(row) for row in key]
        if self.config.how == "bits":
            b[0]["bit"] = "no" if b[0]["bit"] == "yes" else "yes"
        else:
            k[0]["id"], k[1]["id"] = k[1]["id"], k[0]["id"]
        return {"bits": Records(b), "key": Records(k)}


@pytest.fixture
def registry(toys: Registry) -> Registry:
    more = {cls.name: Registered(cls, "tests", "0") for cls in (Keep, Forge)}
    return Registry({**toys.components, **more}, toys.mechanisms, toys.models, toys.tables)


def made(tasks: Tasks, **more: Any) -> dict[str, Any]:
    some = {"component": "keep", "at": "clients", "inputs": {"records": "items"}}
    return tasks(some=some, asked=BIT, again=AGAIN, seen=SEEN, **more)


def test_exactly_the_documents_whose_released_bit_is_yes_come_again(shop: Any, tasks: Tasks, registry: Registry) -> None:
    path = shop.write(made(tasks))
    plan = api.plan(path, home=shop.home, registry=registry)
    asked = {row["task"]: row for row in plan["budget"] if row["party"] == "north"}
    assert (
        asked["asked"]["epsilon"] == 1
        and "feedback bit" in asked["asked"]["detail"]
        and "attempt 2" in asked["again"]["detail"]
    )
    summary = api.run(path, home=shop.home, registry=registry)
    vault = shop.folder / "shop.sites.state" / "north"
    ledger = Ledger(shop.home / "parties" / "north", vault=vault)
    payloads = [json.loads(p) for (p,) in ledger.query("SELECT payload FROM releases")]
    yes = sum(p.get("bit") == "yes" for p in payloads)
    assert sum("bit" in p for p in payloads) == 12 and sum(set(p) == {"colour"} for p in payloads) == yes
    north = next(a for a in summary["guarantee"]["parties"] if a["party"] == "north")
    assert north["epsilon"] == (7.0 if yes else 5.0)  # 2 fields x 2, the bit, and once more one field of 2
    (label,) = ledger.query("SELECT label FROM crossed WHERE edge LIKE 'again%'")[0]
    refs = {entry["ref"] for entry in json.loads(label)}
    classes = {d for (d,) in ledger.query("SELECT detail FROM release_sets") if "feedback" in d}
    assert len(refs) == 2 and classes == {"a feedback bit, epsilon 1"}
    ledger.close()
    assert verify(shop.home)["problems"] == []
    before = summary["outcome"]["ran"]
    again = api.run(path, home=shop.home, registry=registry)
    assert before > 0 and again["outcome"]["ran"] == 0


def test_a_plan_counts_every_round_of_feedback_and_all_tasks_together(shop: Any, tasks: Tasks, registry: Registry) -> None:
    """2 fields x 2, and a bit a round: 4 + 3 are over a cap of 6; 4 + 2 are not."""

    def looped(times: int) -> Path:
        some = {"component": "keep", "at": "clients", "inputs": {"records": "items"}}
        loop = {"repeat": {"times": times}, "tasks": {"asked": BIT, "known": KNOWN}}
        path: Path = shop.write(tasks(some=some, loop=loop))
        return path

    shop.defaults = {"budget": {"*": {"per_document": 6}}}
    plan = api.plan(looped(2), home=shop.home, registry=registry)
    rows = {row["task"].split(".")[-1]: row for row in plan["budget"] if row["party"] == "north"}
    assert (rows["asked"]["epsilon"], rows["safe"]["epsilon"]) == (2.0, 4.0) and "2 rounds x 1" in rows["asked"]["detail"]
    assert plan["refusals"] == []
    plan = api.plan(looped(3), home=shop.home, registry=registry)
    (refused,) = {(p["what"], p["why"]) for p in plan["refusals"] if p["what"].startswith("north")}
    assert refused[0] == "north: all tasks together ask epsilon 7 a document, over the cap"
    assert "6 a document" not in refused[0] and "safe 4" in refused[1] and "asked 3" in refused[1]
    with pytest.raises(OsmoticError, match="all tasks together ask epsilon 7"):
        api.run(looped(3), home=shop.home, registry=registry)


def test_a_plan_says_which_documents_a_second_release_takes_and_what_was_there(
    shop: Any, tasks: Tasks, registry: Registry
) -> None:
    """Without bits, attempt 2 takes every document."""
    again = {**AGAIN, "inputs": {"records": "items"}}
    path = shop.write(tasks(again=again, seen=SEEN))

    def north() -> dict[str, Any]:
        plan = api.plan(path, home=shop.home, registry=registry)
        return next(row for row in plan["budget"] if row["party"] == "north" and row["task"] == "again")

    before = north()
    assert before["detail"].endswith("attempt 2, every document") and before["already_released"] == 0
    api.run(path, home=shop.home, registry=registry)
    assert north()["already_released"] == 12
    path = shop.write(made(tasks))
    assert north()["detail"].endswith("attempt 2, of the documents whose released bit is yes")


@pytest.mark.parametrize(("how", "said"), [("bits", "no released set"), ("key", "do not say which documents")])
def test_forged_bits_choose_nothing(shop: Any, tasks: Tasks, registry: Registry, how: str, said: str) -> None:
    forged = {
        "component": "forge",
        "at": "clients",
        "inputs": {"bits": "asked.bits", "key": "asked.key"},
        "config": {"how": how},
    }
    pipeline = made(tasks, forged=forged)
    inputs = {"records": "items", "bits": "forged.bits" if how == "bits" else "asked.bits", "bits_key": "forged.key"}
    pipeline["again"] = {**AGAIN, "inputs": inputs}
    with pytest.raises(OsmoticError) as refused:
        api.run(shop.write(pipeline), home=shop.home, registry=registry)
    told = str(refused.value) + "".join(p.read_text() for p in shop.home.rglob("errors.log"))
    assert said in told


def test_a_bit_may_not_come_from_rows_that_compare_records(shop: Any, tasks: Tasks, registry: Registry) -> None:
    pipeline = made(tasks)
    pipeline["some"]["config"] = {"compares": True}
    with pytest.raises(OsmoticError, match="feedback may not depend on 'some'"):
        api.run(shop.write(pipeline), home=shop.home, registry=registry)


def test_a_carried_row_that_compares_records_is_found_in_a_later_round(shop: Any, tasks: Tasks, registry: Registry) -> None:
    """The first round's bit is of the records themselves; the second's is of what a filter gave that compares."""
    asked = {**BIT, "inputs": {"records": "items", "kept": "carry.kept"}}
    some = {"component": "keep", "at": "clients", "inputs": {"records": "items"}, "config": {"compares": True}}
    repeat = {"times": 2, "carry": {"kept": {"from": "some", "start": "items"}}}
    pipeline = tasks(loop={"repeat": repeat, "tasks": {"asked": asked, "some": some}})
    with pytest.raises(OsmoticError, match=r"feedback may not depend on 'loop\.some'") as refused:
        api.run(shop.write(pipeline), home=shop.home, registry=registry)
    assert [p.path for p in refused.value.problems] == ["tasks.loop.tasks.asked.config.epsilon"]
    repeat["times"] = 1
    assert api.plan(shop.write(pipeline), home=shop.home, registry=registry)["refusals"] == []


def question(shop: Any, tasks: dict[str, Any], registry: Registry, **document: Any) -> str:
    """The identity of what north's feedback asks under a plan."""
    file = shop.write(tasks, **document)
    site = open_site("north", shop.home, policies_of(["north"], shop.folder / "shop.sites.yaml"), registry)
    graph = Graph(load_text(file.read_text(), "shop.yaml", (), shop.folder), registry)
    site.take(graph, Configs(graph))
    try:
        return question_of(*site.need(), site.instance("asked@north"), site.model_key, site.seed_of)
    finally:
        site.ledger.close()


def test_another_question_is_told_by_edges_code_models_and_seed(
    shop: Any, tasks: Tasks, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = {"component": "keep", "at": "clients", "inputs": {"records": "items"}}
    plan = tasks(some=some, other=some, united={"component": "record_uniter", "at": "clients"}, asked=BIT)
    plan["asked"] = {**BIT, "inputs": {"records": "items", "kept": "united"}}

    def asked(first: str, second: str, **document: Any) -> str:
        plan["united"] = {**plan["united"], "inputs": {"first": first, "second": second}}
        return question(shop, plan, registry, **document)

    before = asked("some", "other")
    assert before == asked("some", "other", description="told in other words") != asked("other", "some")
    assert before != asked("some", "other", seed=7)
    with monkeypatch.context() as patch:
        patch.setattr(questions, "code_of", lambda module: "changed" if module == Keep.__module__ else module)
        changed = asked("some", "other")
    assert before != changed
    models = {"echo": {"type": "toy-echo", "at": "clients"}}
    plan["other"] = {**some, "component": "asker", "config": {"model": "echo", "field": "colour"}}
    with_model = asked("some", "other", models=models)
    monkeypatch.setattr(registry.model("toy-echo"), "fingerprint", lambda self: "other weights")
    assert with_model != asked("some", "other", models=models)


def test_a_bit_is_right_as_often_as_promised_and_asked_once(tmp_path: Path, toys: Registry) -> None:
    """n = 4000, p = e / (e + 1) = .731: 5 standard deviations are .035; a false alarm below 1e-6."""
    n, ledger = 4000, Ledger(tmp_path)
    releaser = Releaser(ledger, toys, SitePolicy(budget={"*": Budget(per_document=1.5)}))
    records = Records([{"id": f"r{i}", "colour": "red"} for i in range(n)])
    bits = {f"r{i}": i % 2 == 0 for i in range(n)}
    released, key, _ = releaser.feedback(records, bits, 1.0, "d", None, question="q")
    home = {row["released"]: row["id"] for row in key}
    right = sum((row["bit"] == "yes") == bits[home[row["id"]]] for row in released) / n
    assert abs(right - math.e / (1 + math.e)) < 0.035
    other = {i: not bit for i, bit in bits.items()}  # the answer that is there is given again: nothing says that a bit changed
    assert releaser.feedback(records, other, 1.0, "d", None, question="q")[0].rows == released.rows
    with pytest.raises(BudgetError, match=r"1 \+ 1 > 1\.5"):
        releaser.feedback(records, bits, 1.0, "d", None, question="another")
    for wrong in (0.0, -1.0, 30.5, float("nan"), float("inf"), True):
        with pytest.raises(ConfigError, match="epsilon"):
            releaser.feedback(records, bits, wrong, "d", None, question="q")
    ledger.close()


class Lowest:
    """Entropy whose digits are all 0: every event that can happen happens."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def uniform(self, count: int) -> np.ndarray:
        return np.full(count, 0.5)

    def integers(self, high: int, count: int) -> np.ndarray:
        self.asked.append(high)
        return np.zeros(count, dtype=np.int64)


@pytest.mark.parametrize("epsilon", [1.0, 30.0])
def test_a_wrong_answer_is_always_possible(
    tmp_path: Path, toys: Registry, monkeypatch: pytest.MonkeyPatch, epsilon: float
) -> None:
    """At epsilon 30 one answer of 10^13 is wrong: the draw that says so must exist."""
    ledger = Ledger(tmp_path)
    releaser = Releaser(ledger, toys, SitePolicy(budget={"*": Budget(per_document=40)}))
    records = Records([{"id": f"r{i}", "colour": "red"} for i in range(8)])
    lowest = Lowest()
    monkeypatch.setattr(releases, "entropy_of", lambda *stream: lowest)
    released = releaser.feedback(records, {f"r{i}": True for i in range(8)}, epsilon, "d", None, question="q")[0]
    assert {row["bit"] for row in released} == {"no"} and set(lowest.asked) == {1 << 53}
    ledger.close()


def test_a_bit_of_more_than_epsilon_30_is_refused() -> None:
    with pytest.raises(ValueError, match="epsilon"):
        FeedbackSanitizerConfig(epsilon=31)


def test_the_sanitizer_takes_bits_and_key_or_neither() -> None:
    from osmotic.components.dp_sanitizer import DpSanitizerConfig
    from osmotic.plugins.contract import input_ports

    ports = input_ports(DpSanitizer)
    assert [name for name, port in ports.items() if port.optional] == ["bits", "bits_key"]
    assert DpSanitizerConfig(mechanism={"name": "m"}, fields=["f"]).attempt == 1
