# SPDX-License-Identifier: Apache-2.0
"""What a site's job process stands on: its folder, its mailbox, its audit, and that it is the only one of this site."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from osmotic.runtime.nvflare.site.audit import Audit
from osmotic.runtime.storage.durable import write_whole
from osmotic.runtime.storage.ledger import now
from osmotic.schemas.terminal import harmless

AUDIT = "osmotic-audit.jsonl"
FAILURES = "osmotic-failures.log"
LIMIT = 1 << 20  # bytes of a log; a full one is kept once as `.1`
PROCESS = "osmotic-process.json"
PATIENCE = 5.0


def audit(workspace: Path) -> Audit:
    """The site's audit: what was refused, in the site's own folder."""
    return Audit(workspace / AUDIT)


def mailbox(workspace: Path, book: Audit) -> Any:
    """The mailbox of the site whose file lies in this folder. Raises ConfigError for a file that is wrong."""
    from osmotic.runtime.nvflare.site.mailbox import Mailbox
    from osmotic.runtime.nvflare.site.site_file import Place, facts, opened

    place = Place.of(workspace)
    own = Failures(workspace / FAILURES)
    return Mailbox(place.site.party, place.home, lambda: Told(opened(workspace), own), book, facts=lambda: facts(workspace))


class Failures:
    """What went wrong at this site, in full, for its operator. The words stay here: the server hears codes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, asked: str, error: Exception) -> None:
        """Append one failure; a disk that takes no more does not stop the site."""
        with contextlib.suppress(OSError):
            if self.path.exists() and self.path.stat().st_size > LIMIT:
                self.path.replace(self.path.with_name(self.path.name + ".1"))
            line = f"{now()} {asked}: {type(error).__name__}\n{error}\n\n".encode(errors="replace")
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(file, line)
            finally:
                os.close(file)


class Told:
    """A site's service whose failures are written down."""

    def __init__(self, inner: Any, book: Failures) -> None:
        self.inner, self.book = inner, book
        self.site = inner.site

    def handle(self, header: dict[str, Any], blob: bytes) -> tuple[dict[str, Any], bytes]:
        """As the service does."""
        found: tuple[dict[str, Any], bytes] = self.inner.handle(header, blob)
        failed = "error" in found[0] or any("error" in step for step in found[0].get("steps", ()))
        if failed and self.inner.failure is not None:
            self.book.write(harmless(f"{header.get('op')} {header.get('id', '')}".strip())[:200], self.inner.failure)
        return found

    @property
    def failure(self) -> Any:
        """Why the last request failed."""
        return self.inner.failure

    def close(self) -> None:
        """Let go of the site."""
        self.inner.close()


def supersede(workspace: Path) -> None:
    """End an earlier job process of this site that is still there (frozen, or forgotten by the engine); then note this one."""
    import psutil

    path = workspace / PROCESS
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, psutil.Error):
        noted = json.loads(path.read_text(encoding="utf-8"))
        other = psutil.Process(int(noted["pid"]))
        if other.create_time() == noted["since"] and other.pid != os.getpid():
            end([other, *other.children(recursive=True)])
    own = psutil.Process()
    write_whole(path, json.dumps({"pid": own.pid, "since": own.create_time()}).encode())


def end(processes: list[Any], patience: float = PATIENCE) -> None:
    """End processes: asked first, after `patience` seconds not asked any more. Frozen ones are not waited for."""
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, left = psutil.wait_procs(processes, timeout=patience)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=patience)
