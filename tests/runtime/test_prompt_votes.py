# SPDX-License-Identifier: Apache-2.0
"""Private prompt search as a plan: no waiver, votes charged by the round, only counts cross; what is refused instead."""

import hashlib
import importlib.util
import json
import math
import re
import types
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from osmotic.plugins.contract import (
    Answer,
    Component,
    Config,
    Context,
    Document,
    Generation,
    ModelPlugin,
    Out,
    Outputs,
    Records,
)
from osmotic.plugins.hookspecs import hookimpl
from osmotic.plugins.host import Registry, build_registry
from osmotic.runtime import api
from osmotic.runtime.results.verifying import ledgers_of, verify
from osmotic.schemas.errors import OsmoticError, RefusedError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("dp_accounting") is None, reason="needs the extra osmotic[dp]")
WORDS = ("[MASK]", "Is", "it", ":", "Answer", "really", "maybe", "surely", "now")
LABELS = {"s": "small", "m": "medium", "l": "large"}
SIZE_OF = {"red": "small", "green": "medium", "blue": "large", "white": "small"}
NOISE = {"epsilon": 2.0, "delta": 1e-3, "rounds": 3}
PROMPT = "Is it : {{ colour }} Answer :"
ORIGIN = "https://black-box.example.com"


class Nothing(Config):
    """No keys."""


class BlackBox:
    """Knows sizes of colours once the prompt says 'really'; else says 'small'."""

    def generate(self, prompts: Sequence[str], how: Generation) -> list[Answer]:
        return [Answer(self._said(prompt), True, 1) for prompt in prompts]

    def _said(self, prompt: str) -> str:
        colour = re.search("red|green|blue|white", prompt)
        return SIZE_OF[colour[0]] if colour and "really" in prompt else "small"


class Masked:
    """Every word is as likely."""

    def vocabulary(self) -> tuple[str, ...]:
        return WORDS

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        return np.zeros((len(texts), len(WORDS)), dtype=np.float32)

    def fill(self, texts: Sequence[str], top_k: int) -> list[list[tuple[str, float]]]:
        return [[(word, -math.log(len(WORDS))) for word in WORDS[:top_k]] for _ in texts]


class BlackBoxPlugin(ModelPlugin[Nothing]):
    name, provides, made = "black-box", frozenset({"text_generator"}), BlackBox

    def fingerprint(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()

    def build(self) -> Any:
        return self.made()


class FarPlugin(BlackBoxPlugin):
    name = "far-box"

    def endpoint(self) -> str:
        return f"{ORIGIN}/v1"


class MaskedPlugin(BlackBoxPlugin):
    name, provides, made = "masked-words", frozenset({"masked_lm"}), Masked


class Unreleased(Component[Nothing]):
    """Says that it releases, and gives what it got: the first row's answers for everybody."""

    name = "unreleased"
    outputs = {"out": Out(Records, label="release")}

    def run(self, context: Context, records: Records) -> Outputs:
        return {"out": Records([{**records.rows[0], "id": row["id"]} for row in records])}


class Summing(Component[Nothing]):
    """Rows that are their own, and something about all of them beside these."""

    name = "summing"
    outputs = {"rows": Out(Records), "about": Out(Document)}

    @classmethod
    def mixes(cls, config: Nothing) -> bool:
        return False

    def run(self, context: Context, records: Records, candidates: Document) -> Outputs:
        return {"rows": records, "about": candidates}


@pytest.fixture(scope="module")
def registry() -> Registry:
    module = types.ModuleType("prompt_votes_plugin")
    module.register_components = hookimpl(lambda: (Unreleased, Summing))  # type: ignore[attr-defined]
    module.register_models = hookimpl(lambda: (BlackBoxPlugin, FarPlugin, MaskedPlugin))  # type: ignore[attr-defined]
    return build_registry(names=(), modules=[module])


ITEMS = {"component": "record_loader", "at": "clients", "config": {"data": "items"}}
SAFE = {
    "component": "dp_sanitizer", "at": "clients", "inputs": {"records": "items"},
    "config": {"mechanism": {"name": "list-rr", "epsilon": 2, "k": 1}, "fields": ["colour"]},
}  # fmt: skip


def plan(shop: Any, answered: dict[str, Any], box: str = "black-box", cap: float = 2.01, rounds: int = 3, **voted: str) -> Any:
    """The loop: proposed at the server, answered as given, voted at the clients, chosen at the server."""
    shop.defaults = {"budget": {"*": {"per_document": 1000, "per_record": {"epsilon": cap, "delta": 1e-3}}}}
    shop.defaults |= {"remote": [{"url": ORIGIN, "sees": "protected"}]}
    proposer = {"component": "prompt_proposer", "at": "server"}
    config = {"prompt": PROMPT, "labels": LABELS, "masked": "words", "count": 6}
    offered = {"candidates": "proposed.candidates"}
    asked = {"model": "box", "labels": LABELS, "fields": ["colour"], **answered.pop("config", {})}
    inner = {
        "proposed": {**proposer, "inputs": {"prompt": "carry.prompt", "credit": "carry.credit"}, "config": config},
        "answered": {"component": "prompt_answerer", "config": asked, **answered, "inputs": offered | answered["inputs"]},
        "votes": {
            "component": "prompt_voter", "at": "clients", "config": {"noise": NOISE, "label_field": "size"},
            "inputs": {"records": "items", "answers": "answered", **offered, **voted},
        },
        "chosen": {
            **proposer, "inputs": {**offered, "votes": "votes", "credit": "proposed.credit"},
            "config": {"count": 0, "margin": 4},
        },
    }  # fmt: skip
    carry = {name: {"from": f"chosen.{name}"} for name in ("prompt", "credit")}
    kinds = (("box", box, answered["at"]), ("words", "masked-words", "server"))
    models = {name: {"type": kind, "at": at, "config": {}} for name, kind, at in kinds}
    tasks = {"items": ITEMS, "search": {"repeat": {"times": rounds, "carry": carry}, "tasks": inner}}
    return shop.write({"safe": SAFE, **tasks} if "safe" in json.dumps(tasks) else tasks, models=models)


def at_home() -> dict[str, Any]:
    return {"at": "clients", "inputs": {"records": "items"}}


def at_hub() -> dict[str, Any]:
    return {"at": "server", "each": "party", "inputs": {"records": "safe.sanitized"}}


def spent(shop: Any, party: str = "north") -> dict[str, Any]:
    found: dict[str, Any] = next(p for p in ledgers_of(shop.home) if p["party"] == party)["datasets"][0]
    return found


def test_the_whole_loop_needs_no_waiver_and_three_rounds_cost_what_the_noise_says(shop: Any, registry: Registry) -> None:
    path = plan(shop, at_home())
    summary = api.run(path, home=shop.home, registry=registry)
    north = next(p for p in summary["guarantee"]["parties"] if p["party"] == "north")
    assert north["word"] == "gaussian" and north["waived"] == []
    record = spent(shop)["record"]
    assert record["events"] == 3 and record["epsilon"] == pytest.approx(2.0, rel=5e-3)
    assert {c["name"] for c in summary["crossings"] if c["sender"] != "hub"} == {"search.chosen.votes"}
    assert verify(shop.home)["problems"] == []
    for file in (shop.home / "parties" / "hub").rglob("records.parquet"):
        assert Records.from_files({"records.parquet": file.read_bytes()}).columns == ["value", "count"]
    again = api.run(path, home=shop.home, registry=registry)
    assert again["outcome"]["ran"] == 0 and spent(shop)["record"]["events"] == 3
    with pytest.raises(RefusedError, match=r"all tasks together ask epsilon 2\.\d+ .* over the cap"):
        api.run(plan(shop, at_home(), rounds=4), home=shop.home, registry=registry)


def test_sanitized_rows_may_be_answered_at_the_server_and_beyond(shop: Any, registry: Registry) -> None:
    """The black box is a server of others; what it sees was released, and the key that leads its answers home stays."""
    path = plan(shop, at_hub(), box="far-box", key="safe.key")
    made = api.plan(path, home=shop.home, registry=registry)
    assert made["refusals"] == []
    calls = [row for row in made["crossings"] if row["to"] == ORIGIN]
    assert calls and {row["label"] for row in calls} == {"protected"}
    summary = api.run(path, home=shop.home, registry=registry)
    assert summary["outcome"]["ran"] > 0 and verify(shop.home)["problems"] == []
    found = spent(shop)
    assert found["record"]["events"] == 3 and found["record"]["epsilon"] == pytest.approx(2.0, rel=5e-3)
    sent = {c["name"] for c in summary["crossings"] if c["sender"] in ("north", "south")}
    assert sent == {"search.answered.records", "search.chosen.votes"}


def test_answers_of_which_several_records_decide_are_refused(shop: Any, registry: Registry) -> None:
    answered = at_home() | {"config": {"batch": 8}}
    with pytest.raises(RefusedError, match=r"several inputs are private \(items.records, search.answered.*answers\)") as error:
        api.run(plan(shop, answered), home=shop.home, registry=registry)
    assert "inputs" in str(error.value) and "shop.yaml:" in str(error.value)


def test_they_are_refused_at_the_end_of_a_chain_too(shop: Any, registry: Registry) -> None:
    path = plan(shop, at_home() | {"config": {"batch": 8}}, answers="united")
    document = json.loads(path.read_text(encoding="utf-8"))
    united = {"component": "record_uniter", "at": "clients", "inputs": {"first": "answered", "second": "answered"}}
    document["tasks"]["search"]["tasks"]["united"] = united
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(RefusedError, match=r"several inputs are private \(items.records, search.united"):
        api.run(path, home=shop.home, registry=registry)
    document["tasks"]["search"]["tasks"]["answered"]["config"]["batch"] = 1
    path.write_text(json.dumps(document), encoding="utf-8")
    assert api.plan(path, home=shop.home, registry=registry)["refusals"] == []


def test_the_site_refuses_them_whatever_was_planned(
    shop: Any, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    from osmotic.runtime.plan import asking

    monkeypatch.setattr(asking, "_mixed", lambda *given: [])
    with pytest.raises(OsmoticError, match="2 of its inputs are private"):
        api.run(plan(shop, at_home() | {"config": {"batch": 8}}), home=shop.home, registry=registry)


def test_what_was_not_released_is_private_whatever_its_port_says(shop: Any, registry: Registry) -> None:
    path = plan(shop, at_home(), answers="given")
    document = json.loads(path.read_text(encoding="utf-8"))
    document["tasks"]["search"]["tasks"]["given"] = step("unreleased", records="answered")
    path.write_text(json.dumps(document), encoding="utf-8")
    assert api.plan(path, home=shop.home, registry=registry)["refusals"] == []  # only the site that ran it can know
    with pytest.raises(OsmoticError, match="2 of its inputs are private"):
        api.run(path, home=shop.home, registry=registry)


def test_what_is_told_of_all_rows_together_is_no_rows_own(shop: Any, registry: Registry) -> None:
    path = plan(shop, at_home(), candidates="told.about")
    document = json.loads(path.read_text(encoding="utf-8"))
    document["tasks"]["search"]["tasks"]["told"] = step("summing", records="items", candidates="proposed.candidates")
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(RefusedError, match=r"several inputs are private \(items.records, search.told.about\)"):
        api.run(path, home=shop.home, registry=registry)


def step(component: str, **inputs: str) -> dict[str, Any]:
    return {"component": component, "at": "clients", "inputs": inputs}


def test_a_data_set_beside_the_records_is_an_input_of_its_own(shop: Any, registry: Registry) -> None:
    with pytest.raises(RefusedError, match="several inputs are private"):
        api.run(plan(shop, at_home(), key="items"), home=shop.home, registry=registry)


def test_private_records_go_to_no_black_box_of_others(shop: Any, registry: Registry) -> None:
    """Neither to be answered, nor for a search at the client, whose prompts follow the classes."""
    refused = f"would go to {ORIGIN}, which may see protected data only"
    with pytest.raises(RefusedError, match=refused):
        api.run(plan(shop, at_home(), box="far-box"), home=shop.home, registry=registry)
    config = {"prompt": PROMPT, "labels": LABELS, "label_field": "size", "model": "box", "masked": "words", "top_k": 4}
    tuned = {"component": "prompt_tuner", "at": "clients", "inputs": {"records": "joined"}, "config": config}
    joined = {
        "component": "record_joiner", "at": "clients", "config": {"columns": {"shown": "colour"}},
        "inputs": {"records": "items", "other": "items"},
    }  # fmt: skip
    models = {
        name: {"type": kind, "at": "clients", "config": {}} for name, kind in (("box", "far-box"), ("words", "masked-words"))
    }
    path = shop.write({"items": ITEMS, "joined": joined, "tuned": tuned}, models=models)
    with pytest.raises(RefusedError, match=refused) as error:
        api.run(path, home=shop.home, registry=registry)
    assert any(problem.path == "tasks.tuned.config.model" for problem in error.value.problems)
