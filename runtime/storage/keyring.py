# SPDX-License-Identifier: Apache-2.0
"""The secret keys of a party's ledger: under which documents and their releases are looked up.

The file ``key`` has 32 bytes a key, the first one first. A document's hash is an HMAC-SHA-256 under the first key; each later
key is put over it: HMAC(second, HMAC(first, content)), and so on. So a rotation needs no content: it puts one more HMAC over
what is stored, and everything is found as before. Whoever has a key from before the rotation cannot test guesses against what
is stored, or charged, after it; against what was charged before it he can, since a chain of charges is never rewritten.
Hashes of whole data sets (counts, votes, trainings) stay under the first key: to test one takes all records at once.
"""

import contextlib
import fcntl
import hmac
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from osmotic.runtime.storage.store import disk
from osmotic.schemas.errors import Problem, StoreError

SIZE = 32
CHECK = b"the keys of a ledger"
FOLDERS = ("sums", "trainings")  # of the vault, beside the ledger
IDENTITY = Path("secure", "identity")  # of the vault: 32 bytes, the signing key that secure sums know a party by
RESTORING = "restoring"  # a file in a vault that is being put back
RESTORE = "restore it from your backup (osmotic keys restore)"


class Keyring:
    """The keys of one ledger, the first one first."""

    def __init__(self, keys: bytes) -> None:
        self.keys = [keys[i : i + SIZE] for i in range(0, len(keys), SIZE)]

    @property
    def content(self) -> bytes:
        """As the file has it."""
        return b"".join(self.keys)

    @property
    def check(self) -> str:
        """What the ledger keeps to know its keys again."""
        return self.document(CHECK)

    def first(self, content: bytes) -> str:
        """Hexadecimal HMAC under the first key."""
        return hmac.digest(self.keys[0], content, "sha256").hex()

    def document(self, content: bytes) -> str:
        """Hexadecimal HMAC under all keys, one over the other."""
        return self.over(self.first(content), 1)

    def over(self, found: str, since: int) -> str:
        """A hash under the first `since` keys, with those that came after them put over it."""
        for key in self.keys[since:]:
            found = hmac.digest(key, found.encode(), "sha256").hex()
        return found

    def grown(self) -> "Keyring":
        """These keys and a fresh one."""
        return Keyring(self.content + os.urandom(SIZE))


def read_keys(path: Path, may_make: bool) -> Keyring:
    """The keys of a file; where there is none, a new one if it may be made. Raises StoreError."""
    with disk(path):
        if path.exists():
            if path.stat().st_mode & 0o077:  # a copy, say: whoever has it can test guesses of records
                with contextlib.suppress(PermissionError):
                    path.chmod(0o600)
            content = path.read_bytes()
            if not content or len(content) % SIZE:
                raise StoreError(Problem("the secret key file is damaged", str(path), fix=RESTORE))
            return Keyring(content)
        if not may_make:
            fix = f"{RESTORE}; without it stored releases cannot be found and would be charged again"
            raise StoreError(Problem("the secret key of this ledger is missing", str(path), fix=fix))
        return Keyring(_make(path))


def known_keys(path: Path, ring: Keyring, check: str | None, mend: bool) -> Keyring:
    """The keys that a ledger says are its own: those of the file, or those of a rotation that was killed at its end.

    check: what the ledger keeps; None: nothing yet. mend: put those of the rotation in their place. Raises StoreError for
    others.
    """
    if check is None or hmac.compare_digest(ring.check, check):
        return ring
    waiting = path.with_name("key.next")
    with contextlib.suppress(FileNotFoundError):  # another process puts them in place
        found = Keyring(waiting.read_bytes())
        if found.keys and found.check == check:
            if mend:
                waiting.replace(path)
            return found
    if (found := read_keys(path, may_make=False)).check == check:  # another process has put them in place
        return found
    why = "what was released could not be found under it, and would be charged again"
    raise StoreError(Problem("the secret key belongs to another ledger", str(path), why=why, fix=RESTORE))


@contextlib.contextmanager
def alone(key: Path | None) -> Iterator[None]:
    """Only one process at a time makes or looks over the files of a vault."""
    if key is None:
        yield
        return
    with disk(key), key.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Use:
    """That a vault is in use: held by every ledger that is open, so that nobody changes its keys meanwhile."""

    def __init__(self, vault: Path, whole: bool = False) -> None:
        """whole: nobody else may use it; raises StoreError when somebody does."""
        with disk(vault):
            self._file = os.open(vault / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._file, (fcntl.LOCK_EX if whole else fcntl.LOCK_SH) | (fcntl.LOCK_NB if whole else 0))
        except OSError as error:
            os.close(self._file)
            fix = "wait for the run to end, and try again"
            raise StoreError(Problem("a run is using this ledger", str(vault), fix=fix)) from error

    def end(self) -> None:
        """Give it back; once is enough."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def __enter__(self) -> "Use":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def _make(path: Path) -> bytes:
    """A new key, whole or not there at all; of two processes that make one, the first wins."""
    descriptor, temporary = tempfile.mkstemp(prefix=".key-", dir=path.parent)  # readable by its owner only
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.urandom(SIZE))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        Path(temporary).unlink()
    return path.read_bytes()
