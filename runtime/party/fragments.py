# SPDX-License-Identifier: Apache-2.0
"""Several requests to one party in one message: what it can do without hearing from anybody else.

`steps` are headers of single requests, done in order; bodies stand one after another in the message's own body, and `bytes` of
a step says how long its own is. The first step that fails is the last that is done. Sending one again does no harm: what was
finished is found finished.
"""

from collections.abc import Callable
from typing import Any

from osmotic.schemas.errors import Problem, ProtocolFault

Header = dict[str, Any]
Reply = tuple[Header, bytes]
SINGLE = ("absent", "push", "known", "run", "alias", "until", "pull")
ENOUGH = 16 << 20  # bytes: once so many are in an answer, what else is to be pulled is asked for alone
MOST = 10_000  # steps of one message


def answer(handle: Callable[[Header, bytes], Reply], header: Header, blob: bytes) -> Reply:
    """Do the steps of a fragment. Raises ProtocolFault, before anything is done, for what is none."""
    steps = _checked(header.get("steps"), len(blob))
    replies: list[Header] = []
    bodies: list[bytes] = []
    begin = size = 0
    for step in steps:
        if step["op"] == "pull" and size >= ENOUGH:
            replies.append({"later": True})
            continue
        end = begin + step.get("bytes", 0)
        reply, body = handle({key: value for key, value in step.items() if key != "bytes"}, bytes(blob[begin:end]))
        begin = end
        if "error" in reply:
            replies.append(reply)
            break
        replies.append({**reply, "bytes": len(body)} if step["op"] == "pull" else reply)
        bodies.append(body)
        size += len(body)
    return {"steps": replies}, b"".join(bodies)


def _checked(steps: Any, size: int) -> list[Header]:
    if not isinstance(steps, list) or not 0 < len(steps) <= MOST:
        raise ProtocolFault(Problem("a fragment has a list of steps"))
    for step in steps:
        given = step.get("bytes", 0) if isinstance(step, dict) else None
        whole = isinstance(given, int) and not isinstance(given, bool) and given >= 0
        if not whole or step.get("op") not in SINGLE or (given and step["op"] != "push"):
            raise ProtocolFault(Problem("a fragment has a step that is none"))
    if sum(step.get("bytes", 0) for step in steps) != size:
        raise ProtocolFault(Problem("a fragment's bodies do not fit its steps"))
    return steps
