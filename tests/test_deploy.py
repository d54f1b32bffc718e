# SPDX-License-Identifier: Apache-2.0
"""docs/deploy.md, word for word on loopback: a server and two sites as folders of one machine, real processes, real TLS.

A block says on which machine it is typed. Only the name of the server's machine, its port and the length of the run are others.
The files beside the page are read by those who will read them: systemd's checker, and docker's where there is one.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

DOCS = Path(__file__).parents[1] / "docs"
PAGE, FILES = DOCS / "deploy.md", DOCS / "deploy"
BLOCK = re.compile(r"```(sh|text)([^\n]*)\n(.*?)```", re.S)
SHORT = [
    "matrix.seed=[1]",
    "matrix.arm=[labels,fedcot]",
    "tasks.student.config.steps=2",
    "tasks.evaluated.config.modes=[label]",
]
SHORT += ["tasks.federated.tasks.local.config.steps=1", "tasks.federated.repeat.times=1"]
SKIPPED = ("install", "service")


class Machines:
    """Folders that are machines; `osmotic` and `scp` as they are there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.staying, self.said = folder, list[subprocess.Popen[bytes]](), ""
        tools = folder / "tools"
        for place in ("tools", "hub", "north", "south"):
            (folder / place).mkdir()
        start = f'exec "{sys.executable}" -c "from osmotic.runtime.cli import main; main()" "$@"'
        copy = 'to="${2%:}"; cp "$1" "' + str(folder) + '/${to%%.*}/"'
        for name, body in (("osmotic", start), ("scp", copy)):
            (tools / name).write_text(f"#!/bin/sh\n{body}\n")
            (tools / name).chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "OSMOTIC_PLUGINS": "",
        }
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def type(self, machine: str, body: str) -> None:
        """Run a block in a machine's folder."""
        place = self.folder / machine
        command, given = ["bash", "-euc", self.here(body)], {"cwd": place, "env": self.environment}
        done = subprocess.run(command, capture_output=True, text=True, timeout=560, check=False, **given)  # type: ignore[call-overload]
        self.said = done.stdout + done.stderr
        assert done.returncode == 0, f"{machine}: {body}\n{self.said}\n{self.logs()}"

    def stay(self, machine: str, body: str) -> None:
        """Start a block that does not end."""
        (line,) = body.strip().splitlines()
        place = self.folder / machine
        with (place / "stays.log").open("ab") as log:
            made = subprocess.Popen(shlex.split(line), cwd=place, env=self.environment, stdout=log, stderr=log)
        self.staying.append(made)

    def here(self, body: str) -> str:
        """What stands on the page, on this machine."""
        body = body.replace("hub.example.org --sites", f"localhost --port {self.port} --sites")
        return body.replace(
            "osmotic serve fedcot", " ".join(["osmotic serve fedcot", *(f"--set {shlex.quote(s)}" for s in SHORT)])
        )

    def stop(self) -> None:
        """As a service manager does."""
        for one in self.staying:
            one.send_signal(signal.SIGTERM)
        for one in self.staying:
            one.wait(60)
        self.staying = []

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(self.folder.glob("*/stays.log")))

    def left(self) -> list[list[str]]:
        """Processes of these machines that are still there."""
        import psutil

        lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
        return [line for line in lines if any(str(self.folder) in word for word in line)]


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    found = Machines(tmp_path)
    yield found
    for one in found.staying:
        one.send_signal(signal.SIGTERM)
        try:
            one.wait(60)
        except subprocess.TimeoutExpired:
            one.kill()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.whole
def test_ten_minutes_word_for_word(machines: Machines) -> None:
    """Every block of the page runs, in order, where it says; what is shown after one is in what it printed."""
    pytest.importorskip("nvflare", reason="the extra nvflare is not installed")
    typed = 0
    for part in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.M):
        if part.startswith("Certificates"):
            machines.stop()
            assert machines.left() == []
        for kind, how, body in BLOCK.findall(part):
            words = how.split()
            if kind == "text":
                assert body.strip() in machines.said, machines.said
            elif not set(words) & set(SKIPPED):
                (machines.stay if "stays" in words else machines.type)(words[0], body)
                typed += 1
    assert typed >= 10, typed
    hub, north = machines.folder / "hub", machines.folder / "north"
    summary = json.loads((hub / "osmotic-runs/fedcot/run.json").read_text())
    assert summary["outcome"]["ran"] > 10 and (hub / "osmotic-runs/fedcot/report.html").is_file()
    assert (north / "osmotic-site/home/fedcot/parties/north/report.html").is_file()
    said = (north / "stays.log").read_text()
    for line in ("connecting to localhost", "connected to localhost", "at work for hub"):
        assert line in said, said
    assert (north / "osmotic-site/startup.old").is_dir() and machines.left() == []


@pytest.mark.parametrize("unit", sorted(FILES.glob("*.service")), ids=lambda path: path.stem)
def test_units_are_what_systemd_takes(unit: Path, tmp_path: Path) -> None:
    checker = shutil.which("systemd-analyze")
    if checker is None:
        pytest.skip("systemd-analyze is not installed")
    text = unit.read_text().replace("/opt/osmotic/bin/osmotic", "/bin/true")
    assert text.count("/bin/true") >= 1
    (tmp_path / unit.name).write_text(text)
    done = subprocess.run([checker, "verify", tmp_path / unit.name], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and unit.name not in done.stderr, done.stderr


def test_the_compose_file_says_what_the_page_says() -> None:
    found = yaml.safe_load((FILES / "compose.yaml").read_text())
    assert found["services"]["server"]["command"] == ["serve"] and found["services"]["site"]["command"] == ["join"]
    assert found["services"]["server"]["ports"] == ["8002:8002"] and "ports" not in found["services"]["site"]
    for service in found["services"].values():
        assert service["cap_drop"] == ["ALL"] and service["read_only"] and service["init"]


def test_docker_takes_the_compose_file() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("docker compose is not installed")
    command = [docker, "compose", "-f", str(FILES / "compose.yaml"), "--profile", "server", "--profile", "site", "config", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
