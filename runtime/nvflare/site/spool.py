# SPDX-License-Identifier: Apache-2.0
"""Bodies that arrive in chunks, in whatever order: in a file of the site's folder until they are whole, then in memory once."""

import contextlib
import errno
import os
import shutil
import threading
from pathlib import Path

from osmotic.runtime.nvflare.wire import CHUNK, TOTAL, Refused, offsets
from osmotic.runtime.storage.store import disk

SPARE = 64 << 20  # bytes of the disk that no server can fill: the ledger and the audit need them
Name = tuple[int, int]  # number of the request, number of the call within it (0: the request itself)


class Spool:
    """One body at a time: the beginning of another one lets go of what was not finished. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._name: Name = (0, 0)
        self._total = 0
        self._file = -1
        self._have: set[int] = set()

    @property
    def path(self) -> Path:
        """The file, while there is one."""
        return self.folder / "arriving"

    def put(self, name: Name, offset: int, total: int, blob: bytes) -> None:
        """Keep one chunk; one that is here already is taken again. Raises Refused (malformed, oversized, full)."""
        if not 0 < total <= TOTAL:
            raise Refused("oversized", f"a body of {total} bytes")
        if offset not in offsets(total) or len(blob) != min(CHUNK, total - offset):
            raise Refused("malformed", "a chunk that has no place")
        with self._lock:
            if (name, total) != (self._name, self._total) or self._file < 0:
                self._begin(name, total)
            try:
                written = 0
                while written < len(blob):
                    written += os.pwrite(self._file, memoryview(blob)[written:], offset + written)
            except OSError as error:
                self._drop()
                raise _full(error) from error
            self._have.add(offset)

    def whole(self, name: Name, total: int) -> None:
        """Raise Refused (missing) unless all chunks of a body are here."""
        with self._lock:
            if (name, total) != (self._name, self._total) or len(self._have) != len(offsets(total)):
                raise Refused("missing", "chunks of the body")

    def take(self) -> bytes:
        """The whole body; its file is gone. Raises StoreError."""
        with self._lock, disk(self.path):
            os.lseek(self._file, 0, os.SEEK_SET)
            with os.fdopen(os.dup(self._file), "rb") as file:
                found = file.read()
            self._drop()
            return found

    def drop(self) -> None:
        """Let go of what is here."""
        with self._lock:
            self._drop()

    def _begin(self, name: Name, total: int) -> None:
        """Make room for a body before its first byte is taken, so that a full disk is noticed now."""
        self._drop()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            room(self.folder, total)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            if hasattr(os, "posix_fallocate"):  # elsewhere a full disk is noticed by the chunk that it has no room for
                os.posix_fallocate(self._file, 0, total)
        except OSError as error:
            self._drop()
            raise _full(error) from error
        self._name, self._total = name, total

    def _drop(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._name, self._total, self._file, self._have = (0, 0), 0, -1, set()
        self.path.unlink(missing_ok=True)


def room(folder: Path, total: int) -> None:
    """Raise Refused (full) where so many bytes would take what is to be spared. A folder that is not there yet has room."""
    with contextlib.suppress(FileNotFoundError):
        if shutil.disk_usage(folder).free < total + SPARE:
            raise Refused("full", "the disk is nearly full")


def _full(error: OSError) -> Refused:
    what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "the folder cannot be written"
    return Refused("full", what)
