# SPDX-License-Identifier: Apache-2.0
"""FATE jobs of the tests: a real worker process a party, and between them a stand-in for FATE and its bridges.

It keeps FATE's rules: only bytes, each (sender, receiver, number) once, order kept; the others hear of a peer that ends badly.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from osmotic.runtime.transports import frames

THREE = {"hub": "arbiter:10000", "north": "guest:9999", "south": "host:9998"}


class Bridge:
    """One party's worker and what it said."""

    def __init__(self, job: "Job", party: str) -> None:
        self.job, self.party = job, party
        self.hello: dict[str, Any] = {}
        self.end: dict[str, Any] = {}
        self.logs: list[str] = []
        self.metrics: list[dict[str, Any]] = []
        self.beats = 0
        self.lock = threading.Lock()
        self.printed = (job.folder / f"{party.replace(':', '-')}.stderr").open("wb")
        command = [sys.executable, "-m", "osmotic.runtime.fate.worker"]
        env = {**os.environ, "OMP_NUM_THREADS": "1", **job.environment(party)}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.printed, env=env)
        self.thread = threading.Thread(target=self._read, daemon=True)

    def tell(self, header: dict[str, Any], body: bytes = b"") -> None:
        try:
            with self.lock:
                frames.write(self.process.stdin, header, body)
        except (OSError, ValueError):
            pass

    def _read(self) -> None:
        out = self.process.stdout
        while (frame := frames.read(out)) is not None:
            header, body = frame
            self._take(header, body)
        self.process.wait()
        if self.end.get("exit") != 0:
            why = f"its worker ended: {self.end.get('code', 'killed')}"
            for other in self.job.bridges.values():
                if other is not self and not other.end:
                    other.tell({"frame": "lost", "peer": self.party, "why": why})

    def _take(self, header: dict[str, Any], body: bytes) -> None:
        kind = header["frame"]
        if kind == "put":
            self.job.put(self.party, header["to"], body)
        elif kind == "log":
            self.logs.append(header["text"])
            self.job.seen(self, header["text"])
        elif kind == "metric":
            self.metrics.append(header)
        elif kind == "beat":
            self.beats += 1
        elif kind == "hello":
            self.hello = header
        elif kind == "end":
            self.end = header
        else:
            raise ValueError(kind)


class Job:
    """A job of several parties. start: more keys of the frame `start`, by party of FATE. seen: told of every line of a log."""

    def __init__(
        self, folder: Path, parties: list[str], parameters: dict[str, Any], site: dict[str, Any], *,
        start: Callable[[str], dict[str, Any]] = lambda party: {},
        environment: Callable[[str], dict[str, str]] = lambda party: {},
        seen: Callable[[Bridge, str], None] = lambda *_: None,
    ) -> None:  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.environment, self.seen = folder, environment, seen
        self.sent: dict[tuple[str, str], int] = {}
        self.carried: list[tuple[str, str, int]] = []
        self.bridges = {party: Bridge(self, party) for party in parties}
        names = {fate: name for name, fate in parameters.get("parties", {}).items()}
        for party, bridge in self.bridges.items():
            bridge.thread.start()
            frame = {
                "frame": "start", "protocol": 1, "bridge": "test", "kind": "pipeline", "role": party.partition(":")[0],
                "party": party, "peers": parties, "parameters": parameters, "site_file": "",
                "site": {"party": names[party], "parties": {name: fate for fate, name in names.items()}, **site},
                "task": {"id": "t", "name": "osmotic"}, "inputs": {}, "outputs": {},
            }  # fmt: skip
            bridge.tell({**frame, **start(party)})

    def put(self, sender: str, receiver: str, body: bytes) -> None:
        number = self.sent.get((sender, receiver), 0)
        self.sent[sender, receiver] = number + 1
        self.carried.append((sender, receiver, len(body)))
        self.bridges[receiver].tell({"frame": "got", "from": sender}, bytes(body))

    def wait(self, seconds: float = 60.0) -> dict[str, dict[str, Any]]:
        """The last frame of each party, {} of one that was killed; raises TimeoutError."""
        until = time.monotonic() + seconds
        for bridge in self.bridges.values():
            bridge.thread.join(max(0.0, until - time.monotonic()))
        late = [party for party, bridge in self.bridges.items() if bridge.thread.is_alive()]
        self.close()
        if late:
            raise TimeoutError(f"{late} did not end; logs: {[b.logs for b in self.bridges.values()]}")
        return {party: bridge.end for party, bridge in self.bridges.items()}

    def close(self) -> None:
        """End every process that is left."""
        for bridge in self.bridges.values():
            if bridge.process.poll() is None:
                bridge.process.kill()
                bridge.process.wait()
            bridge.thread.join(5)
            for pipe in (bridge.process.stdin, bridge.process.stdout, bridge.printed):
                with contextlib.suppress(OSError):
                    pipe.close()


def of_shop(file: Path, home: Path, **parameters: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(parameters, site) of a pipeline file with its sites file beside it; the run's folder is home/NAME."""
    text = file.read_text(encoding="utf-8")
    roles = json.loads(text)["parties"].values()
    names = [party for parties in roles for party in ([parties] if isinstance(parties, str) else parties)]
    given = {"pipeline": text, "parties": {name: THREE[name] for name in names}, **parameters}
    return given, {"sites": str(file.with_name(f"{file.stem}.sites.yaml")), "home": str(home)}
