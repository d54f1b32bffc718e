# SPDX-License-Identifier: Apache-2.0
"""Compare two JSON values leaf by leaf; say what differs between the facts of two runs of a task."""

from collections.abc import Iterator, Mapping
from typing import Any

ABSENT = object()  # stands where one side has nothing
MOST = 4  # names in one reason
REASONS = {
    "component": "another component",
    "code": "new code",
    "config": "changed config",
    "inputs": "changed input",
    "models": "new model",
    "data": "changed data",
    "seed": "changed seed",
    "noise": "changed noise seed",
    "mechanism": "changed mechanism or table",
    "tables": "changed table",
    "schemas": "changed data",
    "environment": "new environment",
    "osmotic": "another version of osmotic",
    "threads": "changed threads",
    "ledger": "another ledger",
}
NAMED = ("config", "inputs", "models", "environment")  # facts whose parts have names that say something


def leaves(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted path, before, now) of every leaf that differs; lists are leaves; `ABSENT` where one side has nothing."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*before, *now]):
            below = f"{path}.{key}" if path else str(key)
            yield from leaves(before.get(key, ABSENT), now.get(key, ABSENT), below)
    elif before is not now and before != now:
        yield path, before, now


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What differs between the facts of two runs: {fact, reason, keys, values}; values: key -> (before, now), as text."""
    found = []
    for fact in dict.fromkeys([*now, *before]):
        if before.get(fact) == now.get(fact):
            continue
        parts = list(leaves(before.get(fact, {}), now.get(fact, {}))) if fact in NAMED else []
        if fact == "inputs":
            parts = [(_input(key, old, new), old, new) for key, old, new in parts]
        values = {key: [told(old), told(new)] for key, old, new in parts if fact in ("config", "environment")}
        keys = [key for key, _, _ in parts]
        found.append({"fact": fact, "reason": REASONS.get(fact, fact), "keys": keys, "values": values})
    return found


def reason(change: Mapping[str, Any]) -> str:
    """A difference in a few words: 'changed config (mechanism.epsilon)'."""
    keys = change["keys"]
    if not keys:
        return str(change["reason"])
    more = f" and {len(keys) - MOST} more" if len(keys) > MOST else ""
    return f"{change['reason']} ({', '.join(keys[:MOST])}{more})"


def told(value: Any, most: int = 60) -> str:
    """A value in one line, shortened; '-' for nothing."""
    text = "-" if value is ABSENT else value if isinstance(value, str) else _plain(value)
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _plain(value: Any) -> str:
    from osmotic.schemas.artifacts import canonical

    return canonical(value).decode()


def _input(port: str, before: Any, now: Any) -> str:
    """The port, and in brackets what else than its content has changed: from whom it comes, or its label alone."""
    if not isinstance(before, list) or not isinstance(now, list):
        return port
    if [row[0] for row in before] != [row[0] for row in now]:
        return f"{port}: from other parties"
    return f"{port}: its label" if [row[1] for row in before] == [row[1] for row in now] else port
