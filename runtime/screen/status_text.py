# SPDX-License-Identifier: Apache-2.0
"""What `osmotic status` shows."""

import time
from pathlib import Path
from typing import Any

from osmotic.runtime.results.spending import spent_of
from osmotic.runtime.screen.pace import duration, number
from osmotic.runtime.screen.watch import STATUS, read_status
from osmotic.schemas.errors import DataError, Problem

STATES = {"killed": "was killed; run the same command again and it goes on from there", "stopped": "was stopped"}


def latest(folder: Path) -> Path:
    """The folder of the run that wrote last; raises DataError when there is none."""
    found = sorted(folder.glob(f"*/{STATUS}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise DataError(Problem("no run has begun here", str(folder), fix="name its folder: osmotic status HOME"))
    return found[-1].parent


def status_of(home: Path) -> dict[str, Any]:
    """The status of a run, with what its parties have spent."""
    found = read_status(home)
    return {**found, "home": str(home), "spent": {party: spent_of(home, party) for party in found["parties"]}}


def status_text(found: dict[str, Any]) -> str:
    """A few lines; names of tasks, counts, rates and seconds."""
    end = time.time() if found["state"] == "running" else found["updated"]
    state = STATES.get(found["state"], found["state"]) + (f" ({found['error']})" if found["error"] else "")
    cached = f" ({found['cached']} found finished)" if found["cached"] else ""
    took = duration(max(0.0, end - found["started"]))
    lines = [f"{found['pipeline']} in {found['home']}: {state}, {found['done']}/{found['total']} tasks{cached}, {took}"]
    if found["state"] == "running" and (ran := found["done"] - found["cached"]) > 0 and end > found["started"]:
        lines.append(f"  {number(60 * ran / (end - found['started']))} tasks a minute")
    width = max(map(len, found["parties"]), default=0)
    for party, one in found["parties"].items():
        doing = "; ".join(_doing(task, entry, end) for task, entry in found["now"].get(party, {}).items())
        spent = ", ".join(map(_spent, found["spent"][party]))
        lost = found.get("lost", {}).get(party, "")  # runs of an older version do not say
        parts = [f"{one['done']}/{one['total']}", doing, f"spent: {spent}" if spent else "", f"lost: {lost}" if lost else ""]
        lines.append(f"  {party:{width}}  {'  |  '.join(filter(None, parts))}")
    return "\n".join(lines)


def _doing(task: str, entry: dict[str, Any], now: float) -> str:
    since = duration(max(0.0, now - entry["since"]))
    if "total" not in entry:
        return f"{task} for {since}"
    parts = (f"{task} {entry['done']}/{entry['total']} {entry['note']}".strip(), entry["pace"])
    return ", ".join(filter(None, parts))


def _spent(one: dict[str, Any]) -> str:
    cap = f" of {one['cap']:g}" if one["cap"] else ""
    events = f", {one['events']} events of the whole set" if one["events"] else ""
    other = ", more in other units (osmotic ledger)" if one["other"] else ""  # never added to it, and never passed over
    return f"epsilon {one['epsilon']:g}{cap} a document of {one['dataset']}{other}{events}"
