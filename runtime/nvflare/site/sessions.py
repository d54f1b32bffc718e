# SPDX-License-Identifier: Apache-2.0
"""Which coordinator a site listens to: one at a time, the same one again after it was killed, no message twice.

A coordinator is known by the key that it made for this site. Its sessions have rising numbers (epochs), and the site keeps the
highest of each coordinator on disk: an old `hello` opens nothing, not even at a site that was started again.
"""

import contextlib
import hashlib
import hmac
import json
import re
import threading
import time
from pathlib import Path

from osmotic.runtime.nvflare.wire import Header, Refused, check
from osmotic.runtime.storage.durable import write_whole
from osmotic.runtime.storage.ledger import now
from osmotic.runtime.storage.store import disk
from osmotic.schemas.errors import StoreError

HOLD = 60.0  # seconds after its last message for which a coordinator counts as there
WINDOW = 4096  # numbers of messages that may come out of order
KEPT = 64  # coordinators whose epochs are remembered
_KEY, _SESSION = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{32}")


def key_in(header: Header) -> bytes | None:
    """The key that a greeting brings."""
    key = header.get("key")
    return bytes.fromhex(key) if isinstance(key, str) and _KEY.fullmatch(key) else None


class Session:
    """One coordinator's session. since: UTC."""

    def __init__(self, key: bytes, name: str, epoch: int, origin: str) -> None:
        self.key, self.name, self.epoch, self.origin = key, name, epoch, origin
        self.since, self.heard = now(), time.monotonic()
        self._highest, self._seen = 0, set[int]()

    def once(self, number: object) -> None:
        """Note a message's number; raises Refused (replayed, malformed) for one that was seen, or is too old to tell."""
        if type(number) is not int or number < 1:
            raise Refused("malformed", "a message without a number")
        if number in self._seen or number <= self._highest - WINDOW:
            raise Refused("replayed", f"message {number}")
        self._seen.add(number)
        if number > self._highest:
            self._highest = number
            if len(self._seen) > 2 * WINDOW:
                self._seen = {one for one in self._seen if one > number - WINDOW}
        self.heard = time.monotonic()


class Sessions:
    """The open session of a site, and the epochs that it has seen. Thread-safe."""

    def __init__(self, party: str, folder: Path) -> None:
        self.party, self.path = party, folder / "coordinators.json"
        self.current: Session | None = None
        self._lock = threading.Lock()

    def hello(self, header: Header, origin: str, working: bool) -> bool:
        """Open a session, or hear again of the one that is open; whether it is new. working: something is being done here.

        Raises Refused: altered, truncated, malformed, name, owned, replayed.
        """
        key, name, epoch = key_in(header), header.get("session"), header.get("epoch")
        if key is None or not (isinstance(name, str) and _SESSION.fullmatch(name)):
            raise Refused("malformed", "a greeting")
        if type(epoch) is not int or epoch < 1:
            raise Refused("malformed", "a greeting")
        check(key, header, b"")
        if header.get("site") != self.party:
            raise Refused("name", "a greeting")
        with self._lock:
            return self._open(key, name, epoch, header.get("n"), origin, working)

    def _open(self, key: bytes, name: str, epoch: int, number: object, origin: str, working: bool) -> bool:
        held, same = self.current, False
        if held is not None:
            same = hmac.compare_digest(held.key, key)
            if not same and (working or time.monotonic() - held.heard < HOLD):
                raise Refused("owned", f"since {held.since}")
            if same and (held.name, held.epoch) == (name, epoch):
                held.once(number)
                return False
        owner, epochs = hashlib.sha256(key).hexdigest(), self._read()
        if epoch <= epochs.get(owner, 0):
            raise Refused("replayed", f"a greeting of session {epoch}")
        session = Session(key, name, epoch, origin)
        session.once(number)
        epochs.pop(owner, None)
        self._write({**epochs, owner: epoch})
        self.current = session
        return True

    def of(self, header: Header, blob: bytes) -> Session:
        """The session that a message belongs to; raises Refused: session, truncated, altered, replayed."""
        with self._lock:
            session = self.current
            if session is None or header.get("session") != session.name:
                raise Refused("session")
        check(session.key, header, blob)
        with self._lock:
            session.once(header.get("n"))
        return session

    def end(self, session: Session) -> None:
        """The coordinator has said goodbye: another one may come at once."""
        with self._lock:
            if self.current is session:
                self.current = None

    def _read(self) -> dict[str, int]:
        with contextlib.suppress(FileNotFoundError, ValueError):
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return {str(owner): epoch for owner, epoch in found.items() if type(epoch) is int}
        return {}

    def _write(self, epochs: dict[str, int]) -> None:
        try:
            with disk(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, json.dumps(dict(list(epochs.items())[-KEPT:])).encode())
        except StoreError as error:
            raise Refused("full", "the folder of the site cannot be written") from error
