# SPDX-License-Identifier: Apache-2.0
"""In a site's job process: hands what arrives to this site's mailbox, and gives back what the mailbox says.

It takes no arguments and runs no tasks of the engine: what may be done here is decided by the site's own file and policy. It
answers nothing if the site's settings are looser than `harden` made them. A process that hears nothing for IDLE seconds ends.
Imported by the engine's processes only.
"""

import json
import os
import secrets
import threading
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from osmotic.runtime.nvflare.kits.harden import check_hardened
from osmotic.runtime.nvflare.lighter import Sweeper, lighten
from osmotic.runtime.nvflare.site import standing
from osmotic.runtime.nvflare.site.audit import Audit
from osmotic.runtime.nvflare.wire import TOPIC
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import OsmoticError

IDLE = 900.0  # longer than a server's job waits for a coordinator that was killed
LOOK = 5.0
ENDING = 20.0  # seconds that work in hand gets when the job ends
ECHO = 64 << 20


class Carry(Executor):  # type: ignore[misc]
    """The only class that jobs may name here."""

    def __init__(self) -> None:
        super().__init__()
        self._boot, self._sweeper = secrets.token_hex(8), Sweeper()
        self._mailbox: Any = None
        self._audit: Audit | None = None
        self._over = threading.Event()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Begin and end with the job."""
        if event_type == EventType.START_RUN:
            self._begin(fl_ctx)
        elif event_type == EventType.END_RUN:
            self._end()

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """There are no tasks."""
        return make_reply(ReturnCode.TASK_UNKNOWN)

    def _begin(self, fl_ctx: FLContext) -> None:
        lighten()
        workspace = Path(fl_ctx.get_workspace().get_root_dir()).resolve()
        self._audit = standing.audit(workspace)
        try:
            problems = check_hardened(workspace)
            if problems:
                raise OsmoticError(*problems)
            standing.supersede(workspace)
            self._mailbox = standing.mailbox(workspace, self._audit)
        except OsmoticError as error:
            self.log_error(fl_ctx, f"this site answers nothing:\n{error}", fire_event=False)
            self._audit.note("not answering", "here", "the site's settings are not in order; see the log")
            self.system_panic("this site's settings are not in order", fl_ctx)
            return
        fl_ctx.get_engine().register_aux_message_handler(TOPIC, self._message)
        threading.Thread(target=self._watch, name="idle", daemon=True).start()

    def _end(self) -> None:
        self._over.set()
        if self._mailbox is not None and not self._mailbox.close(ENDING):
            os._exit(0)  # what a task was doing is done again from what is stored

    def _watch(self) -> None:
        """End a process that nobody speaks to any more: the engine may have forgotten it."""
        while not self._over.wait(LOOK):
            if self._mailbox.idle() > IDLE:
                if self._audit is not None:
                    self._audit.note("ended", "here", f"nothing was heard for {IDLE:.0f} s")
                os._exit(0)

    def _message(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        """One message of the coordinator; never raises."""
        header, blob = _read(request)
        if header.get("engine") == "ping":
            back = header.get("back", ECHO)
            return _reply({"engine": "pong", "boot": self._boot}, blob[: back if isinstance(back, int) else 0])
        said, body = self._mailbox.handle(header, blob, _origin(fl_ctx))
        self._sweeper.passed(max(len(blob), len(body)))
        return _reply(said, body)


def _read(request: Shareable) -> tuple[dict[str, Any], bytes]:
    """Header and bytes; an empty header where there is none that can be read: the mailbox refuses it."""
    said, blob = request.get("header"), request.get("blob")
    try:
        header = json.loads(said) if isinstance(said, bytes) else {}
    except (ValueError, RecursionError):
        header = {}
    return header if isinstance(header, dict) else {}, blob if isinstance(blob, bytes) else b""


def _reply(header: dict[str, Any], blob: bytes) -> Shareable:
    return Shareable({"header": canonical(header), "blob": blob})


def _origin(fl_ctx: FLContext) -> str:
    """Who says to have sent it: for the audit, nothing rests on it."""
    peer = fl_ctx.get_peer_context()
    return str(peer.get_identity_name("unknown"))[:63] if peer is not None else "unknown"
