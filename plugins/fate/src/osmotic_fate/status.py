# SPDX-License-Identifier: Apache-2.0
"""What FATE is told: the reason of a failure for its status, lines for its log, numbers for its metrics.

An exception is how a FATE component fails: its text becomes the task's status, so the root cause is in it.
"""

from __future__ import annotations

import logging
import math
from typing import Any

log = logging.getLogger("osmotic_fate")
ASKED = "config", "data", "policy", "budget", "require", "membrane"
CODES = {*ASKED, "store", "component", "model", "protocol", "interrupted", "lost", "internal"}
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
LINE = 500


class TaskError(Exception):
    """Why this party's task failed. `code` is all that another party is told, with `party`, where the cause is, and `why`."""

    def __init__(self, text: str, code: str = "internal", party: str = "", why: str = "failed") -> None:
        super().__init__(text)
        self.code = code if code in CODES else "internal"
        self.party, self.why = party, why

    def notice(self, own: str) -> dict[str, str]:
        """The message to the other parties: nothing of the text, which may quote this party's data."""
        return {"code": self.code, "party": self.party or own, "why": self.why}


def explained(problems: Any) -> str:
    """A worker's problems as text: where, what, why and how to mend it, one below the other."""
    shown: list[str] = []
    for problem in problems if isinstance(problems, list) else []:
        part = problem if isinstance(problem, dict) else {"what": problem}
        path = part.get("path")
        head = " ".join(str(p) for p in (part.get("where"), path and f"{path}:", part.get("what")) if p)
        shown.append("\n    ".join([head, *(str(part[key]) for key in ("why", "fix") if part.get(key))]))
    return _printable("\n".join(shown))


def _printable(text: str) -> str:
    """Without control characters, which would speak to the terminal of whoever reads FATE's log."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def told(party: str, notice: dict[str, Any], seconds: float) -> TaskError:
    """Another party's message about a failure, as this party's own reason. It names the party where the cause is."""
    culprit = _printable(str(notice.get("party") or party)[:100]).replace("\n", " ")
    code = str(notice.get("code"))
    code = code if code in CODES else "internal"
    why = str(notice.get("why"))
    said = {
        "silent": f"{culprit} has not been heard of for {seconds:g} s: its process is gone or stopped",
        "worker": f"{culprit}: its osmotic worker ended unexpectedly",
        "start": f"{culprit} could not start its osmotic worker",
    }.get(why, f"{culprit} failed (code: {code})")
    seen = "" if culprit == party else f" ({party} noticed)"
    return TaskError(f"{said}{seen}\n    the FATE log of {culprit} says more", code, culprit, why)


def write(level: Any, text: Any) -> None:
    """A line of the worker's, which holds codes and counts only, into FATE's log."""
    log.log(LEVELS.get(str(level).lower(), logging.INFO), "%s", _printable(" ".join(str(text).split()))[:LINE])


def metric(ctx: Any, name: Any, value: Any, step: Any) -> None:
    """A number into FATE's metrics: a point of a curve where it has a step. What is no finite number is left out."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        log.warning("metric %s is no finite number and is left out", str(name)[:LINE])
        return
    try:
        if step is None:
            ctx.metrics.log_metrics({"value": value}, name=str(name)[:LINE], type="scalar")
        else:
            ctx.sub_ctx("osmotic").indexed_ctx(int(step)).metrics.log_scalar(str(name)[:LINE], value)
    except (ValueError, RuntimeError) as error:  # FATE takes a metric without a step once
        log.warning("metric %s was not taken: %s", str(name)[:LINE], error)
