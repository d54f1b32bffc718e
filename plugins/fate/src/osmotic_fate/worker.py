# SPDX-License-Identifier: Apache-2.0
"""The worker's process: how it is started, what is written to it, how it ends.

It inherits nothing of FATE's Python environment. What it prints goes to a file of this site, never into FATE's log: it may
quote records. Only before its first frame, when it has read nothing, are its last lines quoted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any, BinaryIO, Iterable, Mapping

from osmotic_fate import frames

MODULE = "osmotic.runtime.fate.worker"
PIPE = 1 << 20
SET_PIPE_SIZE = getattr(fcntl, "F_SETPIPE_SZ", 1031)
LAST = 2000
KEPT = 50  # logs of earlier workers in a home
LOG_SIZE = 8 << 20  # of a log, and of the part before it


def environment_for(environment: Mapping[str, str]) -> dict[str, str]:
    """FATE's environment without what would make the worker import from FATE's or from the current folder."""
    kept = {key: value for key, value in environment.items() if not (key.startswith("PYTHON") or key == "VIRTUAL_ENV")}
    return {**kept, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}


def log_file(home: str | None) -> str:
    """A new file for what the worker prints, which only this user may read: in the site's home, else among temporary files."""
    if home:
        Path(home).mkdir(mode=0o700, parents=True, exist_ok=True)
        _forget_logs(Path(home))
    handle, name = tempfile.mkstemp(prefix="worker-", suffix=".log", dir=home)
    os.close(handle)
    return name


def _forget_logs(home: Path) -> None:
    """Remove the oldest logs; another task of this site may do so at the same time."""
    found = []
    for path in home.glob("worker-*.log*"):
        with contextlib.suppress(OSError):
            found.append((path.stat().st_mtime, path))
    for _, path in sorted(found)[:-KEPT]:
        with contextlib.suppress(OSError):
            path.unlink()


def keep_printed(printed: BinaryIO, log: str) -> None:
    """Write what a worker prints to its log, which is renamed to LOG.1 when it is long: the end is always there."""
    file, size = open(log, "ab", buffering=0), 0  # noqa: PTH123, SIM115 - closed below, whichever it is then
    try:
        while piece := printed.read1(1 << 16):  # type: ignore[attr-defined]
            if size > LOG_SIZE:
                file.close()
                os.replace(log, f"{log}.1")  # noqa: PTH105
                file, size = os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0), 0
            size += file.write(piece)
    except (OSError, ValueError):  # a full disk: the worker must not wait for somebody who reads
        with contextlib.suppress(OSError, ValueError):
            while printed.read(1 << 16):
                pass
    finally:
        file.close()
        printed.close()


class Worker:
    """A started worker. Any thread may write to it; one reads."""

    def __init__(self, command: Iterable[str], environment: Mapping[str, str], log: str) -> None:
        self.log = log
        piped = subprocess.PIPE
        self.process = subprocess.Popen(list(command), stdin=piped, stdout=piped, stderr=piped, env=dict(environment))
        self.printing = threading.Thread(target=keep_printed, args=(self.process.stderr, log), name="printed", daemon=True)
        self.printing.start()
        self.writing = threading.Lock()
        self.begun = threading.Event()  # it has been told what to do: messages come after that
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # faster for large bodies; the smaller pipe works too
                fcntl.fcntl(pipe, SET_PIPE_SIZE, PIPE)  # type: ignore[arg-type]

    @property
    def output(self) -> BinaryIO:
        """Where its frames come from."""
        return self.process.stdout  # type: ignore[return-value]

    def send(self, header: dict[str, Any], size: int = 0, body: Iterable[bytes | memoryview] = ()) -> None:
        """Write a frame whose body comes in pieces of `size` bytes in all. Raises OSError or ValueError when it is gone."""
        stream = self.process.stdin
        with self.writing:
            stream.write(frames.pack(header, size))  # type: ignore[union-attr]
            for piece in body:
                stream.write(piece)  # type: ignore[union-attr]
            stream.flush()  # type: ignore[union-attr]

    def tell(self, header: dict[str, Any]) -> None:
        """Write a frame without waiting: a worker that does not read must not hold up the one who tells it."""

        def write() -> None:
            with contextlib.suppress(OSError, ValueError):
                self.send(header)
            if header.get("frame") == "start":
                self.begun.set()

        threading.Thread(target=write, daemon=True).start()

    def ended(self, seconds: float) -> str:
        """How the process ended, after at most some seconds of waiting for it; it is killed when it does not."""
        try:
            status = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return "it did not end and was killed"
        return f"killed by signal {-status}" if status < 0 else f"exit status {status}"

    def last_words(self) -> str:
        """The end of what it printed: only to be shown when it has read nothing yet."""
        self.printing.join(0.5)
        with contextlib.suppress(OSError), Path(self.log).open("rb") as printed:
            printed.seek(max(0, Path(self.log).stat().st_size - LAST))
            return printed.read().decode("utf-8", "replace").strip()
        return ""

    def kill(self) -> None:
        """End it at once, wherever it is."""
        self.begun.set()
        self._kill_group()
        self.process.kill()
        self.process.wait()

    def _kill_group(self) -> None:
        """The worker makes a group of itself and what its components start; without one there is nothing of that number."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self, seconds: float) -> None:
        """Close its input, at which it ends by itself; kill it when it does not. An empty log is removed."""
        self.begun.set()
        if self.writing.acquire(timeout=0.2):  # else somebody waits in the middle of a frame: killing frees them
            with contextlib.suppress(OSError, ValueError):
                self.process.stdin.close()  # type: ignore[union-attr]
            self.writing.release()
            self.ended(seconds)
            self._kill_group()
        else:
            self.kill()
        self.output.close()
        self.printing.join(0.5)
        with contextlib.suppress(OSError):
            if Path(self.log).stat().st_size == 0:
                Path(self.log).unlink()
