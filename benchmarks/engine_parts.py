# SPDX-License-Identifier: Apache-2.0
"""What `engine.py` puts into the engine's job processes: the bare engine's transfer, an echo in the service's place, memory.

Put on the path as ``sitecustomize`` of the engine's processes. Kits stay as hardened as they are; only in the two job
processes the relay learns to time the engine's own call, and the mailbox is given a service that keeps nothing.
"""

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TOPIC = "bare"


def peak(reset: bool) -> dict[str, int]:
    """KiB of this process: now, and the highest since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return found


def as_shipped(shipped: bool) -> None:
    """Whether the engine writes every message out as text for a log line that is off, as it comes; see `lighter`."""
    from nvflare.fuel.utils.buffer_list import ConsumableBufferList

    from osmotic.runtime.nvflare import lighter

    ConsumableBufferList.__repr__ = list.__repr__ if shipped else lighter._short


class Echo:
    """A service: takes bytes, gives bytes. It holds one artifact at a time, which is what the transfer is about."""

    def __init__(self) -> None:
        self.site = SimpleNamespace()
        self.failure = None
        self.made = b""

    def handle(self, header: dict[str, Any], blob: bytes) -> tuple[dict[str, Any], bytes]:
        """Ops sink (bytes arrive), source (bytes are asked for), make (have them ready), memory."""
        op, size = header.get("op"), int(header.get("size", 0))
        if op == "memory":
            return peak(bool(header.get("reset"))), b""
        if op == "make":
            self.made = os.urandom(size)
        return {"took": len(blob)}, self.made if op == "source" else b""


def at_server() -> None:
    """The relay asks a site by the engine's own call and says how long it took."""
    from nvflare.apis.shareable import ReturnCode, Shareable

    from osmotic.runtime.nvflare.server import relay

    theirs = relay._ask

    def ask(engine: Any, site: str, header: Any, blob: bytes, timeout: float) -> tuple[Any, bytes, str]:
        if not isinstance(header, dict) or header.get("bare") is None:
            return theirs(engine, site, header, blob, timeout)
        if header["bare"] in ("shipped", "light"):
            as_shipped(header["bare"] == "shipped")
        size, down = int(header.get("size", 0)), header["bare"] == "down"
        payload = os.urandom(size if down else 0)
        with engine.new_context() as context:
            begun = time.perf_counter()
            request = Shareable({"size": 0 if down else size, "bare": header["bare"], "blob": payload})
            replies = engine.send_aux_request(targets=[site], topic=TOPIC, request=request, timeout=timeout, fl_ctx=context)
            seconds = time.perf_counter() - begun
        reply = replies[site]
        if reply.get_return_code() != ReturnCode.OK or len(reply["blob"]) != (0 if down else size):
            return None, b"", f"absent: {reply.get_return_code()}"
        return {"seconds": seconds}, b"", ""

    relay._ask = ask


def at_site() -> None:
    """The site answers the engine's own call, beside the mailbox, whose service is an echo."""
    from nvflare.apis.shareable import Shareable

    from osmotic.runtime.nvflare.site import executor, standing
    from osmotic.runtime.nvflare.site.mailbox import Mailbox
    from osmotic.runtime.nvflare.site.site_file import Place

    made: dict[int, bytes] = {}

    def answer(topic: str, request: Any, fl_ctx: Any) -> Any:
        size = request["size"]
        if request["bare"] in ("shipped", "light"):
            as_shipped(request["bare"] == "shipped")
        if size not in made:
            made.clear()
            made[size] = os.urandom(size)
        return Shareable({"blob": made[size]})

    begin = executor.Carry._begin

    def both(self: Any, fl_ctx: Any) -> None:
        begin(self, fl_ctx)
        fl_ctx.get_engine().register_aux_message_handler(TOPIC, answer)

    def mailbox(workspace: Path, book: Any) -> Any:
        place = Place.of(workspace)
        return Mailbox(place.site.party, place.home, Echo, book)

    executor.Carry._begin = both
    if not os.environ.get("OSMOTIC_REAL_SERVICE"):
        standing.mailbox = mailbox


if __name__ == "sitecustomize":
    arguments = " ".join(sys.orig_argv)
    if "server.runner_process" in arguments:
        at_server()
    elif "client.worker_process" in arguments:
        at_site()
