# SPDX-License-Identifier: Apache-2.0
"""Samples of records as tables; what was sent beside what was answered, where the one is found in the other."""

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def laid_out(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The samples to show: {title, task, withheld, columns, sent, rows}; `sent`: what each row answers, or [].

    Two samples after each other become one where every row of the second repeats all values of a row of the first, in fields
    or inside a text: the answer repeats what was asked, and ids, which are not shown, are not needed to find it.
    """
    found: list[dict[str, Any]] = []
    for sample in samples:
        made = {**sample, "columns": _columns(sample["rows"]), "sent": []}
        before = found[-1] if found else None
        if before is not None and not before["sent"] and (sent := _asked(before, made)):
            made["sent"] = sent
            made["title"], made["task"] = f"{before['title']}, and {made['title']}", f"{before['task']} → {made['task']}"
            made["columns"] = [name for name in made["columns"] if name not in before["columns"]]
            found[-1] = made
        else:
            found.append(made)
    return found


def _columns(rows: Sequence[Row]) -> list[str]:
    """Names of the fields that hold anything, in order; why a record was rejected comes first, numbers last."""
    names = dict.fromkeys(name for row in rows for name in row)
    kept = [name for name in names if any(row.get(name) not in (None, "", [], {}) for row in rows)]
    texts = {name for name in kept if any(isinstance(row.get(name), str) for row in rows)}
    return sorted(kept, key=lambda name: (name != "reason", name not in texts))


def _asked(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each row of the second the row of the first that it answers; [] unless all have one."""
    if not first["columns"] or not second["rows"]:
        return []
    found = []
    for row in second["rows"]:
        said = " ".join(str(value) for value in row.values())
        match = next((one for one in first["rows"] if all(str(one.get(n, "")) in said for n in first["columns"])), None)
        if match is None or all(str(match.get(n, "")) == "" for n in first["columns"]):
            return []
        found.append({name: match.get(name) for name in first["columns"]})
    return found
