# SPDX-License-Identifier: Apache-2.0
"""What a site refused, for its operator: one JSON line each, in the site's own folder, readable by its owner only.

The words are ours: no content of a message, nothing of private data. The file is bounded: a full one is kept once as `.1`.
"""

import contextlib
import json
import os
import threading
from pathlib import Path

from osmotic import __version__
from osmotic.runtime.storage.ledger import now
from osmotic.schemas.terminal import harmless

LONGEST = 300  # characters of a word of others


class Audit:
    """Appends to a file. Thread-safe; a disk that takes no more does not stop the site."""

    def __init__(self, path: Path, limit: int = 1 << 20) -> None:
        self.path, self.limit = path, limit
        self._lock = threading.Lock()

    def note(self, what: str, origin: str, why: str = "") -> None:
        """Write one line: what was refused or noticed, who sent it, why."""
        found = {"osmotic": __version__, "time": now(), "what": what, "from": _short(origin), "why": _short(why)}
        line = (json.dumps(found, sort_keys=True) + "\n").encode()
        with self._lock, contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and self.path.stat().st_size + len(line) > self.limit:
                self.path.replace(self.path.with_name(self.path.name + ".1"))
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(file, line)
            finally:
                os.close(file)

    def lines(self) -> list[dict[str, str]]:
        """What is in the file now, oldest first; a line that was cut off is left out."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return found


def _short(text: str) -> str:
    return harmless(str(text))[:LONGEST]
