# SPDX-License-Identifier: Apache-2.0
"""Who is there: what the server knows of its sites now, and what they said of themselves when they were last greeted.

Kept in ``sites.json`` in the server's folder: a later look shows it even while the server is down or a run is on.
"""

import contextlib
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from osmotic.runtime.nvflare.server.greeting import days_left, word
from osmotic.runtime.screen.tables import grid, width
from osmotic.runtime.storage.durable import alone, write_whole

FILE, LOCK = "sites.json", "sites.lock"
KEPT = ("osmotic", "python", "nvflare", "rules", "code", "plugins", "policy", "certificate")
SHORT = 12  # letters of a digest that are shown
FRESH = 30.0  # seconds: a site that was heard of since is there


def remember(folder: Path, facts: Mapping[str, Mapping[str, Any]], seen: Mapping[str, float] | None = None) -> None:
    """Keep what sites said now (`facts`) and when the server last heard of them (`seen`, seconds since 1970)."""
    with alone(folder / LOCK, lambda: None):
        known, now = recall(folder), time.time()
        for name, said in facts.items():
            kept = {key: said[key] for key in KEPT if key in said}
            known[name] = {**known.get(name, {}), **kept, "greeted": now, "seen": now}
        for name, last in (seen or {}).items():
            one = known.setdefault(name, {})
            one["seen"] = max(float(one.get("seen", 0.0)), last)
        write_whole(folder / FILE, (json.dumps(known, indent=1, sort_keys=True) + "\n").encode())


def recall(folder: Path) -> dict[str, dict[str, Any]]:
    """What is kept; nothing where the file is not there or damaged: it is made again."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return {str(name): one for name, one in found.items() if isinstance(one, dict)}
    return {}


def listed(folder: Path, sites: Iterable[str], state: str, now: float) -> dict[str, Any]:
    """For `osmotic sites`: {server: how it is, sites: a row a site}. now: seconds since 1970."""
    known = recall(folder)
    rows = []
    for name in sorted({*sites, *known}):
        one = known.get(name, {})
        seen = one.get("seen")
        rows.append(
            {
                "site": name,
                "here": state != "down" and isinstance(seen, int | float) and now - seen < FRESH,
                "seen": seen,
                "osmotic": one.get("osmotic"),
                "python": one.get("python"),
                "plugins": one.get("plugins") or {},
                "policy": one.get("policy"),
                "certificate_days": days_left(one, now),
                "certificate_until": (one.get("certificate") or {}).get("until"),
            }
        )
    return {"server": state, "sites": rows}


def listed_text(found: Mapping[str, Any], now: float) -> str:
    """The list as a table."""
    rows = [
        [
            one["site"],
            "here" if one["here"] else "away",
            ago(one["seen"], now),
            word(one["osmotic"] or "-"),
            word(one["python"] or "-"),
            ", ".join(f"{word(name)} {word(plugin.get('version'))}" for name, plugin in one["plugins"].items()) or "-",
            word(one["policy"] or "-")[:SHORT],
            _until(one),
        ]
        for one in found["sites"]
    ]
    head = ["site", "state", "last seen", "osmotic", "python", "plugins", "policy", "certificate until"]
    return f"server: {found['server']}\n\n{grid(head, rows, width())}"


def _until(one: Mapping[str, Any]) -> str:
    days = one["certificate_days"]
    if days is None:
        return "-"
    date = word(one["certificate_until"])[:10]
    return f"{date}, EXPIRED" if days < 0 else f"{date}, {days:.0f} days" if days < 30 else date


def ago(seen: Any, now: float = 0.0) -> str:
    """How long since a time (seconds since 1970), in words. now: default the clock."""
    if not isinstance(seen, int | float):
        return "never"
    passed = max((now or time.time()) - seen, 0.0)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if passed >= size:
            return f"{passed / size:.0f} {unit} ago"
    return f"{passed:.0f} s ago"
