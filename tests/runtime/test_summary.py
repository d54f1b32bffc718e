# SPDX-License-Identifier: Apache-2.0
"""The first line of a result, and what is shown of benchmark data."""

from collections.abc import Callable
from typing import Any

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.results.result_text import SHOWN, result_text
from osmotic.runtime.results.summary import first_line, words
from osmotic.runtime.screen.tables import ledger_text

Tasks = Callable[..., dict[str, Any]]


def account(word: str = "certified", epsilon: float = 4.0, **more: Any) -> dict[str, Any]:
    made = {"word": word, "epsilon": epsilon, "ever": epsilon, "detail": "2 fields x 2", "void": [], "waived": []}
    return {**made, **more}


def test_what_was_exposed_is_not_called_benchmark_data() -> None:
    line = first_line([account("unprotected", waived=["sent.records", "model echo"])], {"a": [account()]})
    assert line == (
        "Guarantee of this run: unprotected: raw data crossed unprotected under waivers or to trusted endpoints "
        "(model echo, sent.records). Rows that stay protected: a."
    )


def test_what_was_spent_ever_is_said_where_it_is_more() -> None:
    assert words([account()]) == "epsilon 4 a document (2 fields x 2), certified"
    assert words([account(), account(ever=10.0)]) == "epsilon 4 a document (2 fields x 2; 10 ever), certified"


def test_a_missing_cap_is_loud() -> None:
    found = {"dataset": "d", "documents": 1, "epsilon_largest": 4.0, "cap": None, "releases": []}
    assert "NO CAP" in ledger_text([{"party": "north", "datasets": [found]}])


def test_samples_of_benchmark_data_are_shown_without_ids_and_said(shop: Any, tasks: Tasks, toys: Registry) -> None:
    shop.binding = {"purpose": "benchmark"}
    report = {"samples": {"Records": "items.records", "Ways home": "safe.key", "Protected": "safe.sanitized"}}
    summary = api.run(shop.write(tasks(), report=report), home=shop.home, registry=toys)
    columns = [sorted({key for row in sample["rows"] for key in row}) for sample in summary["samples"]]
    assert columns == [["colour", "size"], [], ["colour", "size"]]
    assert summary["guarantee"]["shown"] is True
    assert result_text(summary).split("\n\n")[1] == SHOWN and SHOWN in (shop.home / "report.html").read_text(encoding="utf-8")


def test_nothing_is_said_where_only_protected_data_are_shown(shop: Any, tasks: Tasks, toys: Registry) -> None:
    report = {"samples": {"Records": "items.records", "Protected": "safe.sanitized"}}
    summary = api.run(shop.write(tasks(), report=report), home=shop.home, registry=toys)
    assert summary["samples"][0]["withheld"] and len(summary["samples"][1]["rows"]) == 3
    assert summary["guarantee"]["shown"] is False
    assert SHOWN not in result_text(summary) + (shop.home / "report.html").read_text(encoding="utf-8")


def test_a_sample_says_how_many_records_and_of_which_task(shop: Any, tasks: Tasks, toys: Registry) -> None:
    shop.binding = {"purpose": "benchmark"}
    of_arm = {"from": "items.records", "rows": 5, "where": {"arm": "b"}}
    made = tasks()
    made["items"]["matrix"] = ["arm"]
    made = {"items": made["items"], "safe": made["safe"]}
    report = {"samples": {"Five": of_arm, "Three": "items.records"}}
    summary = api.run(shop.write(made, matrix={"arm": ["a", "b"]}, report=report), home=shop.home, registry=toys)
    found = {sample["title"]: (sample["task"], len(sample["rows"])) for sample in summary["samples"]}
    assert found == {"Five": ("items[arm=b]@north", 5), "Three": ("items[arm=a]@north", 3)}
