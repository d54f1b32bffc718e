# SPDX-License-Identifier: Apache-2.0
"""Components of rounds between a server and clients, for the tests of quorums and fragments; clients fail where told."""

import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from osmotic.plugins.contract import Component, Config, Context, Document, Gathered, Metrics, Out, Outputs
from osmotic.plugins.hookspecs import hookimpl


class Nothing(Config):
    """No keys."""


class PartConfig(Config):
    """marks: a folder; a file ``PARTY.kill`` or ``PARTY.fail`` there says what becomes of it: at what total, or always."""

    marks: str = ""
    value: int = 1


class Part(Component[PartConfig]):
    """A number of this party: one more than what it gets."""

    name = "part"
    outputs = {"out": Out(Document)}

    def run(self, context: Context, total: Document | None, own: Document | None) -> Outputs:
        for how in ("kill", "fail") if self.config.marks else ():
            mark = Path(self.config.marks) / f"{context.party}.{how}"
            if mark.exists() and mark.read_text(encoding="utf-8") in ("", str(total.data if total else 0)):
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise ValueError("PRIVATE-DETAIL")
        before = own.data if own else 0
        return {"out": Document(self.config.value + (total.data if total else 0) + before)}


class Total(Component[Nothing]):
    """The sum of all parts, and who gave one."""

    name = "total"
    outputs = {"out": Out(Document), "who": Out(Document), "metrics": Out(Metrics)}

    def run(self, context: Context, parts: Gathered[Document]) -> Outputs:
        total = sum(part.data for part in parts.values())
        return {"out": Document(total), "who": Document(sorted(parts)), "metrics": Metrics({"total": float(total)})}


class Score(Component[Nothing]):
    """A metric out of a number."""

    name = "score"
    outputs = {"metrics": Out(Metrics)}

    def run(self, context: Context, total: Document) -> Outputs:
        return {"metrics": Metrics({"score": float(total.data)})}


@hookimpl
def register_components() -> Iterable[type[Component[Any]]]:
    """All of them."""
    return (Part, Total, Score)
