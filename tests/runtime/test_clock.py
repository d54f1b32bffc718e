# SPDX-License-Identifier: Apache-2.0
"""Clocks may be wrong, set back, or jump: times are written down, and nothing is decided by them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from osmotic.runtime import api
from osmotic.runtime.privacy import composition, releases
from osmotic.runtime.results.verifying import verify
from osmotic.runtime.storage import ledger

TIMES = ("2031-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The time that every party writes down: its only item."""
    shown = [TIMES[0]]
    for module in (ledger, releases, composition):
        monkeypatch.setattr(module, "now", lambda: shown[0])
    monkeypatch.setattr("time.time", lambda: 0.0 if shown[0] == TIMES[1] else 2e9)
    return shown


def rows(home: Path, party: str, table: str) -> list[dict[str, Any]]:
    book = ledger.Ledger(home / "parties" / party)
    try:
        return [json.loads(body) for (body,) in book.query(f"SELECT body FROM {table} ORDER BY seq")]
    finally:
        book.close()


def test_a_clock_that_was_set_back_changes_no_order_no_charge_and_no_result(
    shop: Any, tasks: Callable[..., dict[str, Any]], toys: Any, clock: list[str]
) -> None:
    shop.binding = {"purpose": "benchmark"}
    file = shop.write(tasks())
    first = api.run(file, home=shop.home, registry=toys)
    charged, crossed = (rows(shop.home, "north", table) for table in ("charges", "crossings"))
    assert charged and crossed and {row["time"] for row in charged + crossed} == {TIMES[0]}

    clock[0] = TIMES[1]
    again = api.run(file, home=shop.home, registry=toys)
    assert again["guarantee"] == first["guarantee"] and rows(shop.home, "north", "charges") == charged

    api.run(file, home=shop.home, registry=toys, overrides=("tasks.safe.config.attempt=2",))
    later = rows(shop.home, "north", "charges")
    assert later[: len(charged)] == charged and len(later) == 2 * len(charged)
    assert {row["time"] for row in later[len(charged) :]} == {TIMES[1]}

    clock[0] = TIMES[2]
    found = verify(shop.home)
    assert found["problems"] == []
    (north,) = [
        party for party in api.run(file, home=shop.home, registry=toys)["guarantee"]["parties"] if party["party"] == "north"
    ]
    assert north["epsilon"] == 4.0 and rows(shop.home, "north", "charges") == later
