# SPDX-License-Identifier: Apache-2.0
"""The process of one party under ``--isolate``: reads requests from standard input, answers on standard output.

Everything that prints goes to standard error; the pipe carries frames only. Ends when its input ends.
"""

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

from osmotic.plugins.host import build_registry
from osmotic.runtime.party.policies import open_site, policies_of
from osmotic.runtime.party.service import Service, refusal
from osmotic.runtime.transports import frames
from osmotic.schemas.errors import OsmoticError, PeerError, Problem, ProtocolFault


def main(arguments: list[str] | None = None) -> int:
    """Serve one party until standard input ends."""
    parser = argparse.ArgumentParser(prog="osmotic.runtime.party.worker")
    parser.add_argument("--party", required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--sites", type=Path)
    parser.add_argument("--bind", action="append", default=[])
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    incoming, outgoing = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a component that prints must not break the frames
    try:
        policies = policies_of([given.party], given.sites, tuple(given.bind))
        site = open_site(given.party, given.home, policies, build_registry())
    except OsmoticError as error:
        print(error, file=sys.stderr)
        return error.exit_code

    def progress(task: str, done: int, total: int, note: str) -> None:
        frames.write(outgoing, {"frame": "progress", "task": task, "done": done, "total": total, "note": note})

    def outbound(party: str, header: dict[str, Any], blob: bytes) -> tuple[dict[str, Any], bytes]:
        frames.write(outgoing, {**header, "frame": "outbound", "to": party}, blob)
        frame = frames.read(incoming)
        if frame is None:
            raise PeerError(Problem("the coordinator is gone"))
        reply, body = frame
        reply.pop("frame", None)
        return reply, body

    def overdue(error: OsmoticError) -> None:
        frames.write(outgoing, {**refusal(error, service.local), "frame": "reply"})
        os._exit(error.exit_code)  # the task would not return: whoever asked has the answer, and this process ends

    service = Service(site, local=True)
    site.outbound, site.overdue = outbound, overdue
    if service.local:  # elsewhere, how far a task has come is nobody's business
        site.progress = progress
    try:
        return _serve(service, incoming, outgoing)
    finally:
        site.ledger.close()


def _serve(service: Service, incoming: BinaryIO, outgoing: BinaryIO) -> int:
    """Answer until the input ends, or until a damaged frame: what follows one cannot be told apart."""
    try:
        while (frame := frames.read(incoming)) is not None:
            header, blob = service.handle(*frame)
            frames.write(outgoing, {**header, "frame": "reply"}, blob)
    except ProtocolFault as error:
        print(error, file=sys.stderr)
        frames.write(outgoing, {**refusal(error, service.local), "frame": "reply"})
        return error.exit_code
    return 0


def _follow(parent: int) -> None:
    """End with the parent, in the middle of a task too: nobody would hear the answer, and the next run does it again."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
