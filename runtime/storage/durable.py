# SPDX-License-Identifier: Apache-2.0
"""Files that must survive a kill and a power cut: written whole, brought to the disk; folders that one process is in at a time.

Each raises StoreError, saying what to do, for what the operating system has against it.
"""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from osmotic.runtime.storage.store import disk


def own_folder(folder: Path) -> Path:
    """A folder that its owner alone can enter; made where it is not there."""
    with disk(folder):
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def own_file(path: Path) -> None:
    """A file that its owner alone can read, made where it is not there."""
    with disk(path):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


@contextlib.contextmanager
def alone(path: Path, wait: Callable[[], None]) -> Iterator[None]:
    """One process at a time is inside; `wait` is called where another one is. A kill gives the lock back."""
    with disk(path):
        file = path.open("ab")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            wait()
            with disk(path):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_whole(path: Path, content: bytes) -> None:
    """A file whole or not at all, readable by its owner only, on the disk when this returns."""
    with disk(path):
        descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
    settle(path.parent, path.parent)


def settle(folder: Path, top: Path) -> None:
    """Bring the names of a folder and of those above it, up to `top`, to the disk."""
    for one in (folder, *folder.parents):
        with disk(one):
            descriptor = os.open(one, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        if one == top:
            return
