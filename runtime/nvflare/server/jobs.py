# SPDX-License-Identifier: Apache-2.0
"""Our jobs at the engine's server: two classes that are installed at both ends, no code, no settings, a list of sites."""

import contextlib
import io
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osmotic.runtime.nvflare.kits.harden import EXECUTOR, RELAY
from osmotic.runtime.nvflare.kits.kit import Kit, check_certificate
from osmotic.schemas.errors import ConfigError, PeerError, Problem

NAME = "osmotic"
CLIENT_CONFIG, SERVER_CONFIG = CONFIGS = ("config/config_fed_client.json", "config/config_fed_server.json")
ASKING = 1.0  # seconds between two questions of a site's process for tasks, of which there are none
OVER = "FINISHED"  # how statuses of ended jobs begin


@dataclass(frozen=True)
class Seen:
    """A site that is registered. last: seconds since the epoch (the server's clock). present: it has a process of ours."""

    name: str
    last: float
    present: bool = False


def client_config() -> dict[str, Any]:
    """What a job says to sites: always this."""
    empty: dict[str, Any] = {"task_data_filters": [], "task_result_filters": [], "components": []}
    return {"format_version": 2, "executors": [{"tasks": [NAME], "executor": {"path": EXECUTOR, "args": {}}}], **empty}


def server_config() -> dict[str, Any]:
    """What a job says to the server."""
    empty: dict[str, Any] = {"task_data_filters": [], "task_result_filters": [], "components": []}
    workflow = {"id": "relay", "path": RELAY, "args": {}}
    return {"format_version": 2, "server": {"task_request_interval": ASKING}, "workflows": [workflow], **empty}


def job_folder(folder: Path, sites: Sequence[str]) -> Path:
    """Write the job for these sites; returns what is submitted."""
    job = folder / NAME
    (job / "app" / "config").mkdir(parents=True)
    meta = {
        "name": NAME,
        "deploy_map": {"app": ["server", *sites]},
        "resource_spec": {},
        "min_clients": 1,
        "mandatory_clients": [],
    }
    for path, document in (
        (job / "meta.json", meta),
        (job / "app" / SERVER_CONFIG, server_config()),
        (job / "app" / CLIENT_CONFIG, client_config()),
    ):
        path.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return job


class Admin:
    """The coordinator's session with the server. Every call may be made again after it failed."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self._session: Any = None

    def connect(self, timeout: float) -> None:
        """Log in. Raises ConfigError for a certificate that is no good, PeerError while the server does not answer."""
        check_certificate(self.kit.folder)
        self.close()
        logging.getLogger("nvflare").addHandler(logging.NullHandler())  # what goes wrong is told by errors
        with silent(), _told(f"the server at {self.kit.host}:{self.kit.port} does not answer"):
            from nvflare.fuel.flare_api.flare_api import new_secure_session

            self._session = new_secure_session(self.kit.name, str(self.kit.folder), timeout=timeout, auto_login_max_tries=3)

    def close(self) -> None:
        """Log out; safe to call twice."""
        session, self._session = self._session, None
        if session is not None:
            with silent(), contextlib.suppress(Exception):
                session.close()

    def _call(self, what: str, *args: Any, **options: Any) -> Any:
        if self._session is None:
            raise PeerError(Problem("there is no session with the server"))
        with silent(), _told("the server did not do what the coordinator asked"):
            return getattr(self._session, what)(*args, **options)

    def sites(self) -> dict[str, Seen]:
        """Who is registered."""
        found = self._call("get_system_info").client_info
        return {site.name: Seen(site.name, float(site.last_connect_time or 0.0)) for site in found}

    def submit(self, sites: Sequence[str]) -> str:
        """A job of ours for these sites; returns its number."""
        with tempfile.TemporaryDirectory(prefix="osmotic-job-") as scratch:
            return str(self._call("submit_job", str(job_folder(Path(scratch), sites))))

    def running(self) -> list[str]:
        """Jobs of ours that have not ended, or of which the server does not know that they have."""
        found = self._call("list_jobs", name_prefix=NAME)
        return [str(job["job_id"]) for job in found if not str(job.get("status", "")).startswith(OVER)]

    def status(self, job: str) -> str:
        """How a job is, in the engine's words: what the sites answered when they got it comes after it."""
        meta = self._call("get_job_meta", job)
        detail = meta.get("job_deploy_detail") or []
        return " ".join([str(meta.get("status", "")), *map(str, detail)])

    def abort(self, job: str) -> None:
        """End a job."""
        self._call("abort_job", job)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """The engine's errors, of any class, as ours."""
    try:
        yield
    except (ConfigError, PeerError):
        raise
    except Exception as error:
        raise PeerError(Problem(what, why=f"{type(error).__name__}: {error}"[:300])) from error


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """The library prints as it goes; here it does not."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def waited(until: float, step: float = 0.2) -> bool:
    """Wait a little; False when the time is over."""
    left = until - time.monotonic()
    if left <= 0:
        return False
    time.sleep(min(step, left))
    return True
