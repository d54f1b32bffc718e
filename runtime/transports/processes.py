# SPDX-License-Identifier: Apache-2.0
"""The local transport with a process a party (``--isolate``): stores, policies and memory are apart; frames over pipes.

The parent only carries bytes. A worker that dies ends the run with its name and its exit status.
"""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from osmotic.runtime.transports import frames
from osmotic.runtime.transports.base import Header, Reply, Watch
from osmotic.runtime.transports.framed import Framed
from osmotic.schemas.errors import PeerError, Problem


class Worker:
    """One party's process and the lock of its pipe."""

    def __init__(
        self, party: str, home: Path, sites: Path | None, environment: Mapping[str, str], binds: tuple[str, ...]
    ) -> None:
        self.party = party
        self.lock = threading.Lock()
        command = [sys.executable, "-m", "osmotic.runtime.party.worker", "--party", party, "--home", str(home)]
        command += ["--sites", str(sites)] if sites else []
        for bind in binds:
            command += ["--bind", bind]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(environment))

    def pipes(self) -> tuple[BinaryIO, BinaryIO]:
        """(to the worker, from it)"""
        if self.process.stdin is None or self.process.stdout is None:
            raise PeerError(Problem(f"{self.party} has no pipe"))
        return self.process.stdin, self.process.stdout  # type: ignore[return-value]

    def send(self, header: Header, blob: bytes) -> None:
        """Write a frame; raises PeerError when the process has ended."""
        try:
            frames.write(self.pipes()[0], header, blob)
        except (OSError, ValueError) as error:  # the pipe is broken, or was closed because the run ends
            raise self._lost() from error

    def receive(self) -> Reply:
        """Read its next frame; raises PeerError when the process has ended, ProtocolFault for a damaged frame."""
        try:
            frame = frames.read(self.pipes()[1])
        except (OSError, ValueError) as error:
            raise self._lost() from error
        if frame is None:
            raise self._lost()
        return frame

    def abandon(self) -> None:
        """End the process."""
        self.process.kill()

    def _lost(self) -> PeerError:
        try:
            status = self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        why = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        fix = "run the same command again: what was finished is kept"
        lost = PeerError(Problem(f"the process of {self.party} ended during the run", why=why, fix=fix))
        lost.reason = f"its process ended: {why}"
        return lost


class Processes(Framed):
    """Parties as processes of this machine."""

    def __init__(self, parties: list[str], home: Path, sites: Path | None, watch: Watch, binds: tuple[str, ...] = ()) -> None:
        super().__init__(watch)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
        self.workers = {party: Worker(party, home, sites, environment, binds) for party in parties}

    def channels(self) -> Mapping[str, Worker]:
        """A pipe a party."""
        return self.workers

    def close(self) -> None:
        """End every worker: an idle one ends when its input ends, one that is at work is killed (it goes on from there)."""
        for worker in self.workers.values():
            if worker.lock.locked():
                worker.process.kill()
            elif worker.process.stdin is not None:
                with contextlib.suppress(OSError):
                    worker.process.stdin.close()
        for worker in self.workers.values():
            try:
                worker.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        for worker in self.workers.values():
            with worker.lock:  # whoever was waiting for an answer has seen the end of it
                for pipe in worker.pipes():
                    with contextlib.suppress(OSError):
                        pipe.close()
        self.workers = {}
