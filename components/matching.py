# SPDX-License-Identifier: Apache-2.0
"""Match two tables by identity: every key once on both sides, or an error that says how many are wrong, and which.

Published pipelines zip prompts and answers by position, so one lost answer shifts all that follow; here nothing
relies on order.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from osmotic.plugins.contract import Records
from osmotic.schemas.errors import DataError, Problem

SHOWN = 5


def need_columns(table: Records, columns: Iterable[str], what: str) -> None:
    """Raise DataError unless every row has these columns."""
    for name in columns:
        lacking = sum(name not in row for row in table)
        if lacking:
            why = f"columns of the first: {', '.join(table.columns)}"
            raise DataError(Problem(f"{lacking} of {len(table)} {what} have no {name!r}", path=name, why=why))


def unique(table: Records, column: str, what: str) -> dict[Any, dict[str, Any]]:
    """column -> row; raises DataError when a value stands twice."""
    need_columns(table, [column], what)
    counts = Counter(row[column] for row in table)
    twice = [value for value, count in counts.items() if count > 1]
    if twice:
        raise DataError(Problem(f"{len(twice)} {what} came more than once: {shown(twice)}"))
    return {row[column]: row for row in table}


def same_keys(have: Iterable[Any], want: Iterable[Any], what: str, of: str) -> None:
    """Raise DataError unless both hold the same values: every `of` has one of `what`, and there are no others."""
    given, needed = dict.fromkeys(have), dict.fromkeys(want)
    missing = [key for key in needed if key not in given]
    unknown = [key for key in given if key not in needed]
    problems = []
    if missing:
        problems.append(Problem(f"{len(missing)} of {len(needed)} {of} have no {what}: {shown(missing)}"))
    if unknown:
        problems.append(Problem(f"{len(unknown)} of {len(given)} {what} belong to no {of.removesuffix('s')}: {shown(unknown)}"))
    if problems:
        raise DataError(*problems)


def shown(values: list[Any]) -> str:
    """The first few values, and how many more there are."""
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return ", ".join(repr(value) for value in values[:SHOWN]) + more
