# SPDX-License-Identifier: Apache-2.0
"""How a worker leaves: with every process that its components started, whatever they are doing."""

import contextlib
import os
import signal
from pathlib import Path

PROC = Path("/proc")


def own_group() -> None:
    """Make this process the first of a group of its own, which its bridge can end as a whole."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)


def leave(status: int) -> None:
    """End this process at once, and its descendants before it."""
    end_children()
    os._exit(status)


def end_children() -> None:
    """Kill all descendants of this process and the rest of its group; one that starts meanwhile is found the second time."""
    if not PROC.joinpath("self", "stat").is_file():  # no such file system: the group goes as one, this process with it
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
        return
    for _ in range(2):
        for pid in _others():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _others() -> set[int]:
    """Processes that descend from this one, or are in a group that it leads."""
    own, parents, found = os.getpid(), {}, set()
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                parent, group = map(int, (entry / "stat").read_text().rpartition(")")[2].split()[1:3])
                parents[int(entry.name)] = parent
                found |= {int(entry.name)} if group == own else set()
    found.add(own)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {own}
