# SPDX-License-Identifier: Apache-2.0
"""The local transport with a process a party (``--isolate``): stores, policies and memory are apart; frames over pipes.

The parent only carries bytes. A worker that dies ends the run with its name and its exit status.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from osmotic.runtime.transports import frames
from osmotic.runtime.transports.base import Header, Reply, Watch
from osmotic.schemas.errors import PeerError, Problem


class Worker:
    """One party's process and the lock of its pipe."""

    def __init__(self, party: str, home: Path, sites: Path | None, environment: Mapping[str, str], binds: tuple[str, ...]) -> None:
        self.party = party
        self.lock = threading.Lock()
        command = [sys.executable, "-m", "osmotic.runtime.worker", "--party", party, "--home", str(home)]
        command += ["--sites", str(sites)] if sites else []
        for bind in binds:
            command += ["--bind", bind]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(environment))

    def pipes(self) -> tuple[BinaryIO, BinaryIO]:
        """(to the worker, from it)"""
        if self.process.stdin is None or self.process.stdout is None:
            raise PeerError(Problem(f"{self.party} has no pipe"))
        return self.process.stdin, self.process.stdout  # type: ignore[return-value]


class Processes:
    """Parties as processes of this machine."""

    parallel = True

    def __init__(self, parties: list[str], home: Path, sites: Path | None, watch: Watch, binds: tuple[str, ...] = ()) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
        self.watch = watch
        self.workers = {party: Worker(party, home, sites, environment, binds) for party in parties}

    def request(self, party: str, header: Header, blob: bytes = b"") -> Reply:
        """Send a frame, serve what the worker asks meanwhile (progress, model calls), return its answer."""
        worker = self.workers.get(party)
        if worker is None:
            raise PeerError(Problem(f"there is no party {party!r}"))
        with worker.lock:
            to, back = worker.pipes()
            try:
                frames.write(to, header, blob)
                while True:
                    frame = frames.read(back)
                    if frame is None:
                        raise self._lost(worker)
                    answer, body = frame
                    kind = answer.pop("frame")
                    if kind == "reply":
                        return answer, body
                    if kind == "progress":
                        self.watch(party, answer["task"], answer["done"], answer["total"], answer["note"])
                    else:
                        frames.write(to, *self._tagged(self.request(answer.pop("to"), answer, body)))
            except (BrokenPipeError, ConnectionError) as error:
                raise self._lost(worker) from error

    def _tagged(self, reply: Reply) -> Reply:
        return {**reply[0], "frame": "outbound"}, reply[1]

    def _lost(self, worker: Worker) -> PeerError:
        status = worker.process.wait(timeout=10)
        why = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        fix = "run the same command again: what was finished is kept"
        return PeerError(Problem(f"the process of {worker.party} ended during the run", why=why, fix=fix))

    def close(self) -> None:
        """Close the pipes; a worker ends when its input ends. One that does not is ended."""
        for worker in self.workers.values():
            for pipe in (worker.process.stdin, worker.process.stdout):
                if pipe is not None and pipe is worker.process.stdin:
                    with_closed(pipe)
        for worker in self.workers.values():
            try:
                worker.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            if worker.process.stdout is not None:
                worker.process.stdout.close()
        self.workers = {}


def with_closed(pipe: object) -> None:
    """Close a pipe whose other end may be gone."""
    try:
        pipe.close()  # type: ignore[attr-defined]
    except (BrokenPipeError, OSError):
        return
