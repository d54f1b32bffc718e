# SPDX-License-Identifier: Apache-2.0
"""The worker of one party of a FATE job, started by the bridge: ``python -m osmotic.runtime.fate.worker``.

Standard input and output carry the frames of `runtime.fate.wire`; everything that prints goes to standard error. It ends with
its task, when the bridge ends, and when nothing happens for too long.
"""

import os
import signal
import sys
import traceback
from typing import Any, BinaryIO

from osmotic.runtime.fate import ending, wire
from osmotic.runtime.fate.link import GONE, Link, end_of
from osmotic.runtime.transports import frames
from osmotic.schemas.errors import OsmoticError, Problem


def main() -> int:
    """Do what the bridge says; returns the exit status, which the last frame has as well."""
    ending.own_group()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the bridge decides when to stop
    for name, value in (("OMP_NUM_THREADS", "1"), ("OMP_WAIT_POLICY", "passive"), ("TOKENIZERS_PARALLELISM", "false")):
        os.environ.setdefault(name, value)
    link = Link(*_pipes())
    link.say(wire.hello())
    try:
        frame = frames.read(link.incoming)
        if frame is None:
            return GONE
        end = _work(frame[0], link)
    except OsmoticError as error:
        print(error, file=sys.stderr)
        end = end_of(error)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever happens, FATE is told; the trace stays at this party
        traceback.print_exc()
        what, fix = f"internal error: {type(error).__name__}", "the trace is in the worker's own log"
        end = end_of(OsmoticError(Problem(what, fix=fix)))
    link.over = True
    link.log("finished" if end["exit"] == 0 else f"ended: {end['code']}", "info" if end["exit"] == 0 else "error")
    link.say(end)
    return int(end["exit"])


def _work(header: dict[str, Any], link: Link) -> dict[str, Any]:
    """The last frame of a task that went well."""
    start = wire.start(header)
    link.listen(peer for peer in start.peers if peer != start.party)
    link.beat()
    if start.kind == "component":
        from osmotic.runtime.fate.component import run_component
        from osmotic.runtime.fate.parameters import DEADLINE, site_of

        site, given = site_of(start).model_dump(exclude_none=True), start.parameters.get("deadline")
        link.deadline = float(given) if isinstance(given, int | float) and given > 0 else DEADLINE

        def say(header: dict[str, Any], body: bytes) -> None:
            link.pulse.step()
            link.say(header, body)

        with link.pulse.working(str(start.parameters.get("component"))):
            return run_component({**start.model_dump(), "site": site}, say)
    from osmotic.runtime.fate.share import run_pipeline

    return {"frame": "end", "exit": 0, "code": "", "problems": [], "outputs": run_pipeline(start, link)}


def _pipes() -> tuple[BinaryIO, BinaryIO]:
    """The bridge's pipes, out of the reach of whatever reads standard input or prints."""
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return incoming, outgoing


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    ending.leave(status)  # a component's own threads and processes do not hold the task up
