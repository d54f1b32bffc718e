# SPDX-License-Identifier: Apache-2.0
"""Neighbour lists of a whole public table, kept in the user's cache folder (see `cache`), so that later processes have them.

They are written when all lists of a large table have been made: by a certificate, or by a thread in the background, which makes
all of them whatever was asked for, so nothing in the file says which symbols occur. The guarantees of `list-rr` and
`rank-exponential` hold for any lists of K different symbols; that a file's lists are such is checked when it is read, in memory
of our own (a mapped file could be changed afterwards). Which symbols are on a list decides how much a text keeps of its
meaning: a forged file can spoil that, and only that.
"""

import atexit
import contextlib
import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING

from osmotic.plugins.contract import Space
from osmotic.plugins.identity import space_digest
from osmotic.plugins.mechanisms import cache

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LARGE", "in_background", "key_of_lists", "read_lists", "write_lists"]

LARGE = 4096  # symbols of a table whose lists are worth a file
STALE = 3600.0  # seconds after which another process's unfinished file is taken for abandoned
PATIENCE = 2.0  # seconds that the end of the process waits for a block to end


def key_of_lists(space: Space, k: int, code: Path) -> str:
    """What lists depend on: the space, K, and the source file `code` that makes them.

    Raises OSError when there is no such file, RuntimeError when there is no cache.
    """
    cache.folder()
    return cache.key_of("nearest", hashlib.sha256(code.read_bytes()).hexdigest(), space_digest(space), str(k))


def read_lists(key: str, size: int, k: int) -> "np.ndarray | None":
    """int32 [V, K], each row K different symbols, its own first; None when no such file can be read."""
    import numpy as np

    try:
        lists = np.load(cache.folder() / f"{key}.npy", allow_pickle=False)
    except (OSError, RuntimeError, ValueError, EOFError, SyntaxError):
        return None
    if not isinstance(lists, np.ndarray) or lists.dtype != np.int32 or lists.shape != (size, k):
        return None
    ordered = np.sort(lists, axis=1)
    fits = (lists[:, 0] == np.arange(size)).all() and ordered[:, 0].min() >= 0 and ordered[:, -1].max() < size
    return lists if fits and (ordered[:, 1:] != ordered[:, :-1]).all() else None


def write_lists(key: str, lists: "np.ndarray") -> None:
    """Keep lists, at once or not at all; a folder that cannot be written to is no error."""
    import numpy as np

    unfinished: Path | None = None
    try:
        home = cache.folder()
        home.mkdir(parents=True, exist_ok=True)
        for part in home.glob(f"{key}.*.part"):
            if time.time() - part.stat().st_mtime > STALE:
                part.unlink()
        with NamedTemporaryFile(dir=home, prefix=f"{key}.", suffix=".part", delete=False) as file:
            unfinished = Path(file.name)
            np.save(file, lists.astype(np.int32), allow_pickle=False)
        unfinished.replace(home / f"{key}.npy")
    except (OSError, RuntimeError):
        if unfinished is not None:
            with contextlib.suppress(OSError):
                unfinished.unlink()


def in_background(key: str, blocks: Callable[[], Iterator[None]]) -> threading.Thread | None:
    """Work through `blocks` in a thread of the lowest priority that gives way after each.

    None if one of that key runs in this process, or there is no folder to keep anything in.

    The thread never keeps the process: its end stops the work after the block at hand, and what was made is lost.
    """
    name = f"osmotic-{key[:16]}"
    if not cache.usable() or any(thread.name == name for thread in threading.enumerate()):
        return None
    stop = threading.Event()

    def work() -> None:
        if sys.platform == "linux":  # there a thread has a priority of its own
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        for _ in blocks():
            if stop.is_set():
                return
            time.sleep(0)
        atexit.unregister(end)

    thread = threading.Thread(target=work, name=name, daemon=True)

    def end() -> None:
        stop.set()
        thread.join(PATIENCE)

    atexit.register(end)
    thread.start()
    return thread
