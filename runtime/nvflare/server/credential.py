# SPDX-License-Identifier: Apache-2.0
"""What a coordinator is known by at its sites: a secret in its own folder, and the number of its last session."""

import json
import re
import secrets
import threading
from pathlib import Path

from osmotic.runtime.nvflare.wire import key_for
from osmotic.runtime.storage.durable import write_whole
from osmotic.runtime.storage.store import disk
from osmotic.schemas.errors import Problem, StoreError

NAME = "coordinator.json"


class Credential:
    """The secret of a folder; made when there is none. Thread-safe. Raises StoreError for a file that cannot be used."""

    def __init__(self, home: Path) -> None:
        self.path = home / NAME
        self._lock = threading.Lock()
        with disk(self.path):
            home.mkdir(parents=True, exist_ok=True)
            text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        if text:
            self._secret, self._epoch = self._parsed(text)
            self.path.chmod(0o600)
        else:
            self._secret, self._epoch = secrets.token_bytes(32), 0

    def key(self, site: str) -> bytes:
        """What messages to a site are sealed with."""
        return key_for(self._secret, site)

    def session(self, skip: int = 0) -> int:
        """The number of a new session, larger than every one before; it is on the disk when this returns."""
        with self._lock:
            self._epoch += 1 + skip
            found = {"secret": self._secret.hex(), "epoch": self._epoch}
            write_whole(self.path, json.dumps(found).encode())
            return self._epoch

    def _parsed(self, text: str) -> tuple[bytes, int]:
        try:
            found = json.loads(text)
            secret, epoch = found["secret"], found["epoch"]
            if not re.fullmatch("[0-9a-f]{64}", secret) or type(epoch) is not int or epoch < 0:
                raise ValueError
        except (ValueError, TypeError, KeyError) as error:
            why = "sites know this coordinator by it"
            fix = "restore it, or remove it: sites then take this for another coordinator, once the last one has been silent"
            raise StoreError(Problem("this file is damaged", str(self.path), why=why, fix=fix)) from error
        return bytes.fromhex(secret), epoch
