# SPDX-License-Identifier: Apache-2.0
"""What a site has to hear again when its process is new: the plan, and everything in this run that its memory had.

Nothing large is kept for it: what was handed in, the site still has on its disk, so it is only told which it is; what it had
finished, it finds finished.
"""

from typing import Any

from osmotic.runtime.nvflare.wire import Header

KEPT = ("held", "status", "absent", "alias", "run", "known")  # as they were asked
SMALL = 1 << 16  # bytes of a request of another kind that is kept whole


class Replay:
    """Requests of one party in this run, in order, as far as its memory depends on them."""

    def __init__(self) -> None:
        self.plan: tuple[Header, bytes] | None = None
        self.log: list[tuple[Header, bytes]] = []

    def note(self, header: Header, blob: bytes, reply: Header) -> None:
        """A request was answered."""
        op = header.get("op")
        if "error" in reply:
            return
        if op == "plan":
            self.plan, self.log = (header, blob), []
        elif op == "fragment":
            self._add(*(again(step) for step in done_of(header, reply)))
        elif op == "push" or op in KEPT:
            self._add(again(header))
        elif isinstance(op, str) and op.endswith("-receive") and len(blob) <= SMALL:
            self._add((header, blob))

    def requests(self) -> list[tuple[Header, bytes]]:
        """What to ask a new process first."""
        return ([self.plan] if self.plan else []) + self.log

    def _add(self, *requests: tuple[Header, bytes] | None) -> None:
        for request in requests:
            if request is not None and (not self.log or self.log[-1] != request):
                self.log.append(request)


def again(header: Header) -> tuple[Header, bytes] | None:
    """How to say a request, or a step of a fragment, to a new process; None for what its memory does not depend on."""
    op = header.get("op")
    if op == "push":  # the site has it on its disk
        return {"op": "known", **{name: header.get(name) for name in ("id", "producer", "port")}}, b""
    return (header, b"") if op in KEPT else None


def done_of(header: Header, reply: Header) -> list[Header]:
    """The steps of a fragment that were done."""
    steps: Any = header.get("steps")
    answers: Any = reply.get("steps")
    if not isinstance(steps, list) or not isinstance(answers, list):
        return []
    pairs = zip(steps, answers, strict=False)
    return [step for step, answer in pairs if isinstance(step, dict) and isinstance(answer, dict) and "error" not in answer]
