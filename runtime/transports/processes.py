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
from typing import Any, BinaryIO

from osmotic.runtime.transports import frames
from osmotic.runtime.transports.base import Header, Reply, Watch, refuse
from osmotic.schemas.errors import OsmoticError, PeerError, Problem, ProtocolFault


class Worker:
    """One party's process and the lock of its pipe."""

    def __init__(
        self, party: str, home: Path, sites: Path | None, environment: Mapping[str, str], binds: tuple[str, ...]
    ) -> None:
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
        self.calls: dict[str, str] = {}  # party that waits for a model call -> party that is asked
        self.calling = threading.Lock()
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
                    kind = answer.pop("frame", None)
                    if kind == "reply":
                        return answer, body
                    self._meanwhile(party, kind, answer, body, to)
            except ProtocolFault:  # where its next frame begins is not known
                worker.process.kill()
                raise
            except (OSError, ValueError) as error:  # the pipe is broken, or was closed because the run ends
                raise self._lost(worker) from error

    def _meanwhile(self, party: str, kind: Any, frame: Header, body: bytes, back: BinaryIO) -> None:
        """Serve a frame that is not the answer: progress, or a model call."""
        if kind == "progress" and {"task", "done", "total", "note"} <= frame.keys():
            self.watch(party, frame["task"], frame["done"], frame["total"], frame["note"])
        elif kind == "outbound" and isinstance(frame.get("to"), str):
            frames.write(back, *self._call(party, frame.pop("to"), frame, body))
        else:
            raise ProtocolFault(Problem(f"the process of {party} sent a frame that is none of ours"))

    def _call(self, party: str, to: str, header: Header, body: bytes) -> Reply:
        """A model call from one party to another, as a frame for the caller; whatever goes wrong is the caller's to hear."""
        if header.get("op") != "call":
            reply, answer = refuse(header.get("op"))
            return {**reply, "frame": "outbound"}, answer
        with self.calling:
            self.calls[party] = to
            seen, asked = {party}, to
            while asked in self.calls and asked not in seen:
                seen.add(asked)
                asked = self.calls[asked]
            circle = asked in seen
        try:
            if circle:  # both hold their own pipe: waiting would never end
                raise PeerError(Problem(f"{party} and {to} wait for each other's models"))
            reply, answer = self.request(to, {**header, "from": party}, body)
        except OsmoticError as error:
            reply, answer = {"error": {"code": str(error.code), "exit": error.exit_code, "problems": []}}, b""
        finally:
            with self.calling:
                self.calls.pop(party, None)
        return {**reply, "frame": "outbound"}, answer

    def _lost(self, worker: Worker) -> PeerError:
        try:
            status = worker.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            status = worker.process.wait()
        why = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        fix = "run the same command again: what was finished is kept"
        return PeerError(Problem(f"the process of {worker.party} ended during the run", why=why, fix=fix))

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
