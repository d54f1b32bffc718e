# SPDX-License-Identifier: Apache-2.0
"""Equal work is done once: processes of one party that come to the same task take turns, and the second finds it finished."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from osmotic.runtime.storage.store import disk

DIGITS = 12  # of a key: where in the file its lock lies


class Turns:
    """Locks by key in one file, of which nothing is ever written; the system lets go of those of a process that dies."""

    def __init__(self, file: Path) -> None:
        self._path = file
        self._file: BinaryIO | None = None

    @contextlib.contextmanager
    def of(self, key: str) -> Iterator[None]:
        """Nobody else has this key meanwhile; waits. A process holds one key at a time, so nobody waits for ever."""
        if self._file is None:
            with disk(self._path):
                self._file = self._path.open("ab")
        place = int(key[:DIGITS], 16)
        with disk(self._path):
            fcntl.lockf(self._file, fcntl.LOCK_EX, 1, place)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, place)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
