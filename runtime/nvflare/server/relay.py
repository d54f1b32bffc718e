# SPDX-License-Identifier: Apache-2.0
"""In the server's job process: carries bytes between the coordinator, over a Unix socket, and the sites of this job.

It decides nothing and keeps nothing. Where the coordinator listens stands in the server's own folder, not in the job. A
coordinator that was killed finds the job again when it is back: the relay goes on dialling for LINGER seconds, and the sites
keep what they were doing. Imported by the engine's processes only.
"""

import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import ReturnCode, Shareable
from nvflare.apis.signal import Signal

from osmotic.runtime.nvflare.lighter import lighten
from osmotic.runtime.nvflare.server.lines import RELAY_FILE, Wire, dial
from osmotic.runtime.nvflare.wire import TOPIC
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import OsmoticError

LINGER = 600.0  # seconds that a job waits for a coordinator that is gone
AGAIN = 0.3  # seconds between two tries
AT_ONCE = 128  # messages under way
STARTING = ("TOPIC_UNKNOWN",)


class Relay(Controller):  # type: ignore[misc]
    """The job's only workflow. Takes no arguments: nothing in a job decides where it connects to."""

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Keep the engine from what costs time and is not needed."""
        lighten()

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Nothing to undo."""

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """Sites have no tasks; what claims to be a result is dropped."""

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Serve a coordinator until it says bye, the job is ended, or none came for LINGER seconds."""
        engine = fl_ctx.get_engine()
        book = Path(fl_ctx.get_workspace().get_root_dir()) / "local" / RELAY_FILE
        names = sorted(client.name for client in engine.get_clients())
        hello = {"hello": str(fl_ctx.get_job_id()), "sites": names}
        until = time.monotonic() + LINGER
        with ThreadPoolExecutor(AT_ONCE, "relay") as pool:
            while not abort_signal.triggered and time.monotonic() < until:
                wire = dial(book)
                if wire is None:
                    time.sleep(AGAIN)
                    continue
                with wire, _ended_by(abort_signal, wire):
                    if _serve(wire, hello, pool, engine):
                        return
                until = time.monotonic() + LINGER


@contextlib.contextmanager
def _ended_by(signal: Signal, wire: Wire) -> Any:
    """While inside, an end of the job closes the connection, so that nothing waits for it."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            if signal.triggered:
                wire.close()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _serve(wire: Wire, hello: dict[str, Any], pool: ThreadPoolExecutor, engine: Any) -> bool:
    """Carry messages until the connection ends; True when the coordinator ended the job."""
    try:
        wire.write(hello)
        while (found := wire.read()) is not None:
            header, blob = found
            if header.get("bye"):
                return True
            pool.submit(_carry, wire, engine, header, blob)
    except (OSError, OsmoticError):
        pass  # the coordinator went away in the middle of a frame: what it asked, it asks again
    return False


def _carry(wire: Wire, engine: Any, asked: dict[str, Any], blob: bytes) -> None:
    """One message to one site and its answer back; `why` where there is none."""
    answer: dict[str, Any] = {"id": asked.get("id")}
    body = b""
    try:
        header, body, why = _ask(engine, str(asked.get("site")), asked.get("header"), blob, float(asked.get("timeout", 30.0)))
        answer.update({"why": why} if why else {"header": header})
    except Exception as error:  # noqa: BLE001 - whatever the engine raises: somebody waits for an answer
        answer["why"] = f"absent: {type(error).__name__}"
    with contextlib.suppress(OSError):
        wire.write(answer, body)


def _ask(engine: Any, site: str, header: Any, blob: bytes, timeout: float) -> tuple[Any, bytes, str]:
    request = Shareable({"header": canonical(header), "blob": blob})
    with engine.new_context() as context:
        replies = engine.send_aux_request(
            targets=[site], topic=TOPIC, request=request, timeout=timeout, fl_ctx=context, optional=True
        )
    reply = (replies or {}).get(site)
    if reply is None:
        return None, b"", "absent"
    code = reply.get_return_code()
    if code != ReturnCode.OK:
        return None, b"", "timeout" if code == ReturnCode.TIMEOUT else "starting" if code in STARTING else f"absent: {code}"
    said, body = reply.get("header"), reply.get("blob")
    if not isinstance(said, bytes) or not isinstance(body, bytes):
        return None, b"", "absent: no answer of ours"
    return json.loads(said), body, ""
