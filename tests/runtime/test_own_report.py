# SPDX-License-Identifier: Apache-2.0
"""Each party's own report: it shows the party's scores on private data, which the report of the whole may not."""

import json
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api

LOADED = {"component": "record_loader", "at": "clients", "config": {"data": "items"}}
COUNTED = {"component": "meter", "at": "clients", "inputs": {"records": "items"}}
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
