# SPDX-License-Identifier: Apache-2.0
"""FATE jobs as FATE runs them: a process for each party, started by ``component execute`` with its task's configuration."""

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

PARTIES = [("arbiter", "10001"), ("guest", "9999"), ("host", "10000")]
SOURCES = Path(__file__).parents[2] / "plugins" / "fate" / "src"
NAMES = {"arbiter:10001": "hub", "guest:9999": "north", "host:10000": "south"}


def workers_of(process: int) -> list[int]:
    """The osmotic workers that a FATE process has started."""
    found = [int(pid) for part in Path(f"/proc/{process}/task").glob("*/children") for pid in part.read_text().split()]
    return [pid for pid in found if b"osmotic.runtime.fate.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


class Task:
    """One task of a job at several parties. All of its files are in `folder`; each party has a home of its own."""

    def __init__(self, folder: Path, python: str, component: str, parameters: dict[str, Any], **kept: Any) -> None:
        self.folder, self.python, self.component, self.parameters = folder, python, component, parameters
        self.parties = kept.get("parties", PARTIES)
        self.sites: Path | None = kept.get("sites")
        self.outputs: dict[str, str] = kept.get("outputs", {})
        self.inputs: dict[str, tuple[str, Path]] = kept.get("inputs", {})
        self.job = f"job_{uuid.uuid4().hex[:12]}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.worker_python: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def home(self, name: str) -> Path:
        return self.folder / f"home-{name.partition(':')[0]}"

    def config(self, role: str, party: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """A TaskConfig of FATE."""
        members = [{"role": one, "partyid": other} for one, other in self.parties]
        mine = self.folder / role
        outputs = {name: {"uri": f"file://{mine / name}", "type_name": kind} for name, kind in self.outputs.items()}
        outputs["metric"] = {"uri": f"file://{mine / 'metric.json'}", "type_name": "json_metric"}
        inputs = {n: {"uri": f"file://{p}", "metadata": {}, "type_name": kind} for n, (kind, p) in self.inputs.items()}
        handlers = {"out": {"class": "logging.StreamHandler"}}
        log = {"version": 1, "root": {"level": "INFO", "handlers": ["out"]}, "handlers": handlers}
        cores = {"cores": 1, "data_dir": str(self.folder / "data")}
        federation = {"federation_id": self.job, "parties": {"local": {"role": role, "partyid": party}, "parties": members}}
        return {
            "task_id": self.job,
            "party_task_id": f"{self.job}_{role}",
            "task_name": "osmotic_0",
            "component": self.component,
            "role": role,
            "party_id": party,
            "stage": "default",
            "parameters": parameters,
            "input_artifacts": inputs,
            "output_artifacts": outputs,
            "conf": {
                "device": {"type": "CPU"},
                "computing": {"type": "standalone", "metadata": {"computing_id": f"{self.job}_{role}", "options": cores}},
                "federation": {"type": "standalone", "metadata": federation},
                "logger": {"config": log},
            },
        }

    def start(self, **own: dict[str, Any]) -> None:
        """Start every party; own: parameters of one role that differ."""
        for role, party in self.parties:
            name = f"{role}:{party}"
            (self.folder / role).mkdir(exist_ok=True)
            parameters = {**self.parameters, **own.get(role, {})}
            file = self.folder / role / "task.yaml"
            file.write_text(json.dumps(self.config(role, party, parameters)), encoding="utf-8")
            command = [self.python, "-W", "ignore", "-m", "fate.components", "component", "execute", "--config", str(file)]
            command += ["--execution-final-meta-path", str(self.status_file(name))]
            how = {"env": self.environment(name), "cwd": self.folder}
            with self.log_file(name).open("wb") as log:
                self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, **how)

    def environment(self, name: str) -> dict[str, str]:
        site = {"python": self.worker_python.get(name, sys.executable), "home": str(self.home(name))}
        site.update({"sites": str(self.sites)} if self.sites else {})
        file = self.folder / name.partition(":")[0] / "site.json"
        file.write_text(json.dumps(site), encoding="utf-8")
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TMPDIR") if key in os.environ}
        return {**kept, "PYTHONPATH": str(SOURCES), "OSMOTIC_FATE_SITE": str(file), "OMP_NUM_THREADS": "1", "OSMOTIC_CACHE": ""}

    def status_file(self, name: str) -> Path:
        return self.folder / name.partition(":")[0] / "status.json"

    def log_file(self, name: str) -> Path:
        return self.folder / name.partition(":")[0] / "fate.log"

    def log(self, name: str) -> str:
        return self.log_file(name).read_text(encoding="utf-8", errors="replace")

    def wait(self, seconds: float, *without: str) -> dict[str, int]:
        """Exit statuses by party; those that do not end in time are killed and fail."""
        until = time.monotonic() + seconds
        found = {}
        for name, process in self.processes.items():
            if name not in without:
                try:
                    found[name] = process.wait(max(0.1, until - time.monotonic()))
                except subprocess.TimeoutExpired:
                    found[name] = -999
        self.close()
        return found

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()

    def status(self, name: str) -> dict[str, Any]:
        """What FATE wrote about the task: its code, and its exceptions."""
        return json.loads(self.status_file(name).read_text(encoding="utf-8"))["status"]

    def appeared(self, name: str, text: str, seconds: float) -> None:
        """Wait until a line is in a party's log of FATE."""
        until = time.monotonic() + seconds
        while text not in self.log(name):
            if time.monotonic() > until or self.processes[name].poll() is not None:
                raise TimeoutError(f"{name} does not say {text!r}:\n{self.log(name)[-2000:]}")
            time.sleep(0.1)
