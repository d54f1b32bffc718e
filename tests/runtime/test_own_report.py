# SPDX-License-Identifier: Apache-2.0
"""Each party's own report: it shows the party's scores on private data, which the report of the whole may not."""

import json
from typing import Any

import pytest

from osmotic.plugins.contract import Component, Config, Context, Document, Out, Outputs, Records
from osmotic.plugins.host import Registered, Registry
from osmotic.runtime import api

LOADED = {"component": "record_loader", "at": "clients", "config": {"data": "items"}}
COUNTED = {"component": "meter", "at": "clients", "inputs": {"records": "items"}}
TOLD = {"kept": 7771, "rejected": {"too long": 7772}, "prompts": 7773, "prompt_tokens": 7774, "tokens": 7775}
TOLD |= {"step": [1, 2], "loss": [7776.5, 7777.5]}
REPORT = {"table": "counted", "metrics": {"records": "records"}, "samples": {"items": "items.records"}}


@pytest.fixture
def summary(shop: Any, toys: Registry) -> dict[str, Any]:
    """The summary of a run whose only scores depend on private data."""
    pipeline = shop.write({"items": LOADED, "counted": COUNTED}, report=REPORT)
    return api.run(pipeline, home=shop.home, registry=toys)


def test_the_whole_keeps_back_what_depends_on_private_data(summary: dict[str, Any]) -> None:
    assert summary["table"]["rows"] == []
    assert summary["table"]["withheld"] == ["north", "south"]
    assert [s["rows"] for s in summary["samples"]] == [[]]


def test_the_owner_sees_its_own_scores_and_nobody_elses(shop: Any, summary: dict[str, Any]) -> None:
    own = json.loads((shop.home / "parties" / "north" / "results.json").read_text())
    (row,) = own["table"]["rows"]
    assert [(e["party"], e["value"]) for e in row["cells"]["records"]["each"]] == [("north", 12.0)]
    assert own["table"]["withheld"] == ["south"]
    assert own["samples"][0]["rows"][0]["id"].startswith("north-")
    page = (shop.home / "parties" / "north" / "report.html").read_text()
    assert "the report of north" in page
    assert "south-1" not in page


def test_the_owner_sees_what_it_was_sent_and_not_the_rest(shop: Any, toys: Registry) -> None:
    mechanism = {"mechanism": {"name": "list-rr", "epsilon": 2, "k": 1}, "fields": ["colour", "size"]}
    safe = {"component": "dp_sanitizer", "at": "clients", "inputs": {"records": "items"}, "config": mechanism}
    back = {"component": "relay", "at": "server", "each": "party", "inputs": {"records": "safe"}}
    other = {"component": "relay", "at": "server", "each": "party", "inputs": {"records": "back"}}
    counted = {**COUNTED, "inputs": {"records": "back"}}
    report = {"samples": {"made here": "safe.sanitized", "sent back": "back.out", "kept there": "other.out"}}
    tasks = {"items": LOADED, "safe": safe, "back": back, "other": other, "counted": counted}
    api.run(shop.write(tasks, report=report), home=shop.home, registry=toys)
    for party in ("north", "south"):
        own = json.loads((shop.home / "parties" / party / "results.json").read_text())
        shown = [(sample["task"], len(sample["rows"]), sample["withheld"]) for sample in own["samples"]]
        assert shown == [
            (f"safe@{party}", 3, ""), (f"back[for={party}]@hub", 3, ""), (f"other[for={party}]@hub", 0, "it is at hub"),
        ]  # fmt: skip


class NoKeys(Config):
    """No configuration."""


class Telling(Component[NoKeys]):
    """Says of records how many it kept and why, what it asked, and how a loss went."""

    name = "telling"
    outputs = {"report": Out(Document)}

    def run(self, context: Context, records: Records) -> Outputs:
        return {"report": Document(TOLD)}


@pytest.mark.parametrize("purpose", ["private", "benchmark"])
def test_counts_costs_and_curves_of_private_data_are_in_the_own_report_alone(
    shop: Any, toys: Registry, purpose: str
) -> None:  # fmt: skip
    shop.binding = {"purpose": purpose}
    more = Registry({**toys.components, "telling": Registered(Telling, "tests", "0")}, toys.mechanisms, toys.models)
    told = {"component": "telling", "at": "clients", "inputs": {"records": "items"}}
    whole = api.run(shop.write({"items": LOADED, "told": told}), home=shop.home, registry=more)
    own = json.loads((shop.home / "parties" / "north" / "results.json").read_text())
    for found, shown in ((whole, purpose == "benchmark"), (own, True)):
        assert [bool(found[key]) for key in ("curves", "costs", "reasons")] == [shown] * 3
    assert own["reasons"] == [{"task": "told", "party": "north", "kept": 7771, "rejected": {"too long": 7772}}]
    kept_back = (shop.home / "run.json").read_text() + (shop.home / "report.html").read_text()
    assert any(number in kept_back for number in ("7771", "7,771", "7776.5")) is (purpose == "benchmark")
