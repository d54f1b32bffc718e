# SPDX-License-Identifier: Apache-2.0
"""Privacy cards as the report shows them: one a mechanism and its parameters, with the parties that hold it."""

from collections.abc import Iterable, Mapping
from typing import Any


def merged(ledgers: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Cards of all parties; equal ones once, with `parties`. Where parties differ in a number, the worse one is shown."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for ledger in ledgers:
        for card in ledger.get("cards", ()):
            key = (card["mechanism"], card["parameters"], str(card["declared"]), card["code"])
            if key not in found:
                found[key] = {**card, "parties": [ledger["party"]]}
                continue
            row = found[key]
            row["parties"].append(ledger["party"])
            row["holds"] = row["holds"] and card["holds"]
            for name in ("bayes_success", "self_retention"):
                row[name] = max(row[name], card[name])
            known = (row["epsilon_true"], card["epsilon_true"])
            row["epsilon_true"] = None if None in known else max(known)
    return list(found.values())


def counted(ledgers: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What record-level events of each data set come to: {party, dataset, class, releases, and what the ledger totals}."""
    return [
        {
            "party": ledger["party"], "dataset": data["dataset"], "releases": data["releases"], **data["record"],
            "class": data["releases"][0]["class"] if data["releases"] else "",
        }
        for ledger in ledgers for data in ledger["datasets"] if data.get("record")
    ]  # fmt: skip
