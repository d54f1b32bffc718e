# SPDX-License-Identifier: Apache-2.0
"""Sweeps: a grid over mechanisms and epsilons as one table, a frontier and a file; only where the data may be swept."""

import csv
import io
from collections.abc import Callable
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.results.result_text import result_text
from osmotic.runtime.results.table_file import table_csv, write_table
from osmotic.schemas.errors import RefusedError, StoreError

Tasks = Callable[..., dict[str, Any]]


def grid(shop: Any, tasks: Tasks, epsilons: list[float], **binding: Any) -> Any:
    """Mechanism x epsilon, with a metric in each cell."""
    shop.binding = binding
    made = tasks(met={"component": "meter", "at": "server", "each": "party", "inputs": {"records": "safe"}})
    made["safe"] = {**made["safe"], "config": {**made["safe"]["config"], "mechanism": MECHANISM}, "vary": VARY}
    return shop.write(
        made, matrix={"mechanism": ["list-rr", "rank-exponential"], "epsilon": epsilons},
        report={"table": "met", "rows": ["mechanism", "epsilon"], "metrics": {"records": "rows kept"}, "compare": False},
    )  # fmt: skip


MECHANISM = {"name": "${matrix.mechanism}", "epsilon": "${matrix.epsilon}"}
VARY = {
    "mechanism": {
        "list-rr": {"config": {"mechanism": {"k": 1}}},
        "rank-exponential": {"config": {"mechanism": {"steps": [{"ranks": 1, "utility": 1}]}}},
    }
}


def test_a_grid_is_one_table_and_a_frontier(shop: Any, tasks: Tasks, toys: Registry) -> None:
    summary = api.run(grid(shop, tasks, [1, 2], purpose="benchmark"), home=shop.home, registry=toys)
    rows = list(csv.DictReader(io.StringIO(table_csv(summary))))
    assert [r["mechanism"] for r in rows] == ["list-rr"] * 2 + ["rank-exponential"] * 2
    assert all(float(r["records"]) == 12 and int(r["bytes"]) > 0 for r in rows)
    assert {point["epsilon"] for point in summary["frontier"]["points"]} == {2.0, 4.0}
    assert {r["frontier"] for r in rows} == {"yes", "no"}
    assert "not beaten" in result_text(summary)
    again = api.run(grid(shop, tasks, [1, 2], purpose="benchmark"), home=shop.home, registry=toys)
    assert again["outcome"]["ran"] == 0 and table_csv(again) == table_csv(summary)  # bytes too, though nothing moved


def test_a_larger_grid_does_only_what_is_new(shop: Any, tasks: Tasks, toys: Registry) -> None:
    first = api.run(grid(shop, tasks, [1], purpose="benchmark"), home=shop.home, registry=toys)
    more = api.run(grid(shop, tasks, [1, 2], purpose="benchmark"), home=shop.home, registry=toys)
    assert more["outcome"]["cached"] >= first["outcome"]["tasks"] - 1 and more["outcome"]["ran"] < more["outcome"]["tasks"]


def test_on_private_data_a_grid_adds_up_and_is_refused_beyond_the_cap(shop: Any, tasks: Tasks, toys: Registry) -> None:
    shop.defaults = {"budget": {"*": {"per_document": 12}}}
    file = grid(shop, tasks, [1, 2], purpose="private")  # 2 mechanisms x 2 fields x (1 + 2) = 12
    summary = api.run(file, home=shop.home, registry=toys)
    assert [b["after"] for b in summary["plan"]["budget"]] == [12.0, 12.0]
    with pytest.raises(RefusedError, match="together ask epsilon 14"):
        api.run(grid(shop, tasks, [1, 2.5], purpose="private"), home=shop.home, registry=toys)


def test_the_scores_of_private_data_are_in_no_table(shop: Any, tasks: Tasks, toys: Registry) -> None:
    made = tasks(met={"component": "meter", "at": "clients", "inputs": {"records": "items"}, "matrix": ["arm"]})
    report = {"table": "met", "metrics": {"records": "records"}}
    path = shop.write(made, matrix={"arm": ["a", "b"]}, report=report)
    summary = api.run(path, home=shop.home, registry=toys)
    assert summary["table"]["withheld"] == ["north", "south"] and summary["frontier"] is None
    assert table_csv(summary).splitlines()[1:] == []


def test_the_file_is_written_or_the_error_says_why(shop: Any, tasks: Tasks, toys: Registry) -> None:
    summary = api.run(grid(shop, tasks, [1], purpose="benchmark"), home=shop.home, registry=toys)
    write_table(summary, shop.folder / "table.csv")
    assert (shop.folder / "table.csv").read_text(encoding="utf-8") == table_csv(summary)
    with pytest.raises(StoreError):
        write_table(summary, shop.folder / "no" / "table.csv")
