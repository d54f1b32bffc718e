# SPDX-License-Identifier: Apache-2.0
"""What `faults.py` breaks: a deployment of a server and three sites, each in a network namespace, and its pipelines.

Everything is started by osmotic's own commands. A process belongs to a place (`hub`, `coordinator`, a site) by a variable of
its environment, which all that it starts inherits: so a whole place can be killed or frozen, jobs in other sessions too.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SITES = ("a", "b", "c")
OSMOTIC = str(Path(sys.executable).with_name("osmotic"))
MARK = "OSMOTIC_FAULTS_PLACE"
FIELDS = ["name", "place", "day", "month", "sign", "exposure"]
NOTE = "patient {{ name }} from {{ place }}, seen on {{ day }} {{ month }}, reports {{ sign }} after {{ exposure }} exposure."
ROWS = {"a": ("north", [0, 30]), "b": ("south", [0, 30]), "c": ("north", [30, 60])}
SCHEMA = "osmotic:clinic/data/schema.yaml"


# ---- pipelines and policies ----


def pipeline(kind: str) -> dict[str, Any]:
    """A short FedCoT. kind: seeded (students, rounds of averaging), quorum (the same, two of three are enough), private.

    private has no seed, releases three times, and trains nothing; light is the same with a seed; short has no model at all.
    """
    if kind == "short":
        return _short()
    text = {
        "predict": f"{NOTE} predict:", "explain": f"{NOTE} explain:", "label": "{{ department }}", "answer": "goes to (\\S+)",
    }  # fmt: skip
    prompts = {"label_prompt": "${text.predict}", "label_target": "${text.label}", "rationale_prompt": "${text.explain}"}
    learn = {
        "model": "student", **prompts, "rationale_target": "{{ rationale }}", "steps": 15, "batch": 16, "learning_rate": 0.002,
        "warmup": 2, "schedule": "linear",
    }  # fmt: skip
    sanitizer = {"mechanism": {"name": "list-rr", "epsilon": 4, "k": 8}, "fields": FIELDS}
    teacher = {"model": "teacher", "template": "${text.explain}", "max_new_tokens": 28}
    tasks: dict[str, Any] = {
        "records": _task("record_loader", config={"data": "patients"}),
        "exam": _task("record_loader", config={"data": "exam"}),
        "sanitized": _task("dp_sanitizer", {"records": "records"}, sanitizer),
        "rationales": {**_task("teacher_generator", {"prompts": "sanitized"}, teacher, "server"), "each": "party"},
        "decoded": _task("rationale_decoder", {"records": "records", "key": "sanitized.key", "rationales": "rationales"}),
        "kept": _task(
            "rationale_filter", {"records": "records", "rationales": "decoded"},
            {"answer_pattern": "${text.answer}", "gold": "${text.label}"},
        ),
    }  # fmt: skip
    if kind in ("private", "light"):
        _again(tasks, sanitizer)
    else:
        trained = _rounds(tasks, kind, learn)
        judge = {**prompts, "model": "student", "answer_pattern": "${text.answer}"}
        judge |= {"max_new_tokens_label": 2, "max_new_tokens_rationale": 28}
        tasks["evaluated"] = _task("evaluator", {"records": "exam", "weights": trained}, judge)
    return {
        "osmotic": 1, "name": f"faults-{kind}", "parties": {"server": "hub", "clients": list(SITES)}, "text": text,
        "models": {
            "teacher": {"type": "transformers", "at": "server", "config": {"path": "osmotic:clinic/teacher"}},
            "student": {"type": "transformers", "at": "clients", "config": {"path": "osmotic:clinic/student"}},
        },
        **({} if kind == "private" else {"noise_seed": 7}), "tasks": tasks,
    }  # fmt: skip


def _task(component: str, inputs: Any = None, config: Any = None, at: str = "clients") -> dict[str, Any]:
    return {"component": component, "at": at, "inputs": inputs or {}, "config": config or {}}


def _short() -> dict[str, Any]:
    """Records that are released and then go to the server and back, again and again."""
    sanitizer = {"mechanism": {"name": "list-rr", "epsilon": 4, "k": 8}, "fields": FIELDS}
    tasks = {
        "records": _task("record_loader", config={"data": "patients"}),
        "sanitized": _task("dp_sanitizer", {"records": "records"}, sanitizer),
    }
    last = "sanitized"
    for i in range(5):
        tasks[f"there{i}"] = {**_task("record_uniter", {"first": last, "second": last}, at="server"), "each": "party"}
        tasks[f"back{i}"] = _task("record_uniter", {"first": "sanitized", "second": f"there{i}"})
        last = f"back{i}"
    parties = {"server": "hub", "clients": list(SITES)}
    return {"osmotic": 1, "name": "faults-short", "parties": parties, "noise_seed": 7, "tasks": tasks}


def _rounds(tasks: dict[str, Any], kind: str, learn: dict[str, Any]) -> str:
    """Three rounds of training and plain averaging of what was trained."""
    models: dict[str, Any] = {"from": "local", "waive": "plain averaging sends weights trained on raw records"}
    if kind == "quorum":
        models["quorum"] = {"at_least": 2, "within": "30 s"}
    local = _task("student_trainer", {"records": "records", "rationales": "kept", "init": "carry.global"}, learn)
    averaged = _task("aggregator", {"models": models}, {"aggregation": "plain"}, "server")
    repeat = {"times": 2, "carry": {"global": {"from": "averaged"}}}
    tasks["rounds"] = {"repeat": repeat, "tasks": {"local": local, "averaged": averaged}}
    return "rounds.averaged"


def _again(tasks: dict[str, Any], sanitizer: dict[str, Any]) -> None:
    """Three kinds of releases: of all records, a noisy bit each, and of some of them once more."""
    again = {"records": "records", "bits": "asked.bits", "bits_key": "asked.key"}
    tasks["asked"] = _task("feedback_sanitizer", {"records": "records", "kept": "kept"}, {"epsilon": 1})
    tasks["sanitized_again"] = _task("dp_sanitizer", again, {**sanitizer, "attempt": 2})
    tasks["rationales_again"] = {**tasks["rationales"], "inputs": {"prompts": "sanitized_again"}}
    second = {"records": "records", "key": "sanitized_again.key", "rationales": "rationales_again"}
    tasks["decoded_again"] = _task("rationale_decoder", second, {"partial": True})
    answers = {"rules": ["format", "answer"], **tasks["kept"]["config"]}
    tasks["kept_again"] = _task("rationale_filter", {"records": "records", "rationales": "decoded_again"}, answers)
    tasks["united"] = _task("record_uniter", {"first": "kept", "second": "kept_again"})


def policies(kind: str, state: str) -> dict[str, Any]:
    """What the parties allow: a cap, and on benchmark data a seed and the averaging. state: folder of the ledgers."""
    parties: dict[str, Any] = {"hub": {}}
    for site, (file, rows) in ROWS.items():
        purpose = "private" if kind == "private" else "benchmark"
        own = {"path": f"osmotic:clinic/data/{file}.jsonl", "schema": SCHEMA, "purpose": purpose, "rows": rows}
        exam = {"path": "osmotic:clinic/data/exam.jsonl", "schema": SCHEMA, "label": "public", "purpose": "benchmark"}
        parties[site] = {"data": {"patients": own, "exam": {**exam, "rows": [0, 20]}}}
    allowed: dict[str, Any] = {"budget": {"patients": {"per_document": 49}}}
    if kind in ("light", "short"):
        allowed["seeded"] = True
    elif kind != "private":
        waiver = {"edge": "rounds.averaged.models", "observers": ["hub", *SITES]}
        allowed |= {"budget": {"patients": {"per_document": 24}}, "seeded": True, "waivers": [waiver]}
    return {"osmotic_sites": 1, "state": state, "defaults": allowed, "parties": parties}


# ---- the network ----


class Net:
    """A bridge in the hub's namespace and a namespace a site, with an address each; `cut` takes a site off the bridge."""

    def __init__(self, tag: str) -> None:
        self.tag, self.host, self.real = tag, "127.0.0.1", False

    def open(self) -> "Net":
        """Make it; without the right to, everything is on loopback and nothing can be cut."""
        try:
            self._make()
        except (OSError, subprocess.CalledProcessError) as error:
            self.close()
            print(f"no network namespaces here ({error}): on loopback, no connection is cut", file=sys.stderr)
        return self

    def _make(self) -> None:
        hub = self._space("hub")
        for command in ("link set lo up", "link add br0 type bridge", "addr add 10.77.0.1/24 dev br0", "link set br0 up"):
            _ip("-n", hub, *command.split())
        for i, site in enumerate(SITES):
            own, port = self._space(site), f"to-{site}"
            _ip("link", "add", port, "netns", hub, "type", "veth", "peer", "name", "eth0", "netns", own)
            _ip("-n", hub, "link", "set", port, "master", "br0", "up")
            _ip("-n", own, "addr", "add", f"10.77.0.{11 + i}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", own, "link", "set", device, "up")
        self.real, self.host = True, "10.77.0.1"

    def _space(self, place: str) -> str:
        name = f"osm-{self.tag}-{place}"
        _ip("netns", "add", name)
        return name

    def inside(self, place: str) -> list[str]:
        """What goes before a command that runs at a place."""
        where = place if place in SITES else "hub"
        return ["ip", "netns", "exec", f"osm-{self.tag}-{where}"] if self.real else []

    def cut(self, site: str, silent: bool) -> None:
        """No packet comes through; silent: neither end can tell, else the link is down."""
        _ip("-n", f"osm-{self.tag}-hub", "link", "set", f"to-{site}", *(["nomaster"] if silent else ["down"]))

    def mend(self, site: str) -> None:
        """Whole again, however it was cut."""
        if self.real:
            _ip("-n", f"osm-{self.tag}-hub", "link", "set", f"to-{site}", "master", "br0", "up")

    def close(self) -> None:
        """Take it down; safe to call twice."""
        for place in ("hub", *SITES):
            subprocess.run(["ip", "netns", "del", f"osm-{self.tag}-{place}"], capture_output=True, check=False)
        self.real = False


def _ip(*command: str) -> None:
    subprocess.run(["ip", *command], check=True, capture_output=True)


# ---- the deployment ----


class Deployment:
    """The server's folder, the sites' folders, and the processes of each place."""

    def __init__(self, folder: Path, net: Net) -> None:
        self.folder, self.net, self.tag = folder, net, f"{net.tag}-{os.getpid()}"
        self.server, self.home = folder / "server", folder / "hub-home"
        self.started: dict[str, subprocess.Popen[bytes]] = {}

    def make(self, kind: str) -> None:
        """Kits and sites, as an operator makes them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write(kind)
        port = _free_port() if not self.net.real else 8002
        kits = ["site", "kits", self.net.host, "--sites", ",".join(SITES), "--server", "hub", "--port", str(port)]
        self.command("hub", *kits, "--out", str(self.server))
        for site in SITES:
            kit, policy = self.server / "kits" / f"{site}.zip", self.folder / "sites.yaml"
            self.command(site, "site", "init", str(kit), "--policy", str(policy), "--folder", str(self.site(site)))

    def write(self, kind: str) -> None:
        """The pipeline and the policies, for the next run."""
        (self.folder / "pipeline.yaml").write_text(json.dumps(pipeline(kind), indent=1), encoding="utf-8")
        for name, state in (("sites.yaml", "ledgers"), ("again.yaml", "again-ledgers")):
            (self.folder / name).write_text(json.dumps(policies(kind, state), indent=1), encoding="utf-8")

    def site(self, name: str) -> Path:
        """A site's folder."""
        return self.folder / f"site-{name}"

    def audit(self, site: str) -> list[dict[str, Any]]:
        """What a site wrote down."""
        path = self.site(site) / "osmotic-audit.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines]

    def reset(self) -> None:
        """As after `make`: nothing was ever run."""
        for path in (self.home, self.server / "server" / "state"):
            shutil.rmtree(path, ignore_errors=True)
        for name in ("whole", "again", "ledgers", "again-ledgers"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for site in SITES:
            shutil.rmtree(self.site(site) / "home", ignore_errors=True)
            for name in ("osmotic-audit.jsonl", "osmotic-engine.log"):
                (self.site(site) / name).unlink(missing_ok=True)

    # ---- processes ----

    def command(self, place: str, *words: str) -> str:
        """Run a command to its end; its output. Raises RuntimeError with what it said."""
        line, env = [*self.net.inside(place), OSMOTIC, *words], self._environment(place)
        found = subprocess.run(line, capture_output=True, text=True, check=False, env=env)
        if found.returncode:
            raise RuntimeError(f"osmotic {' '.join(words)}: {found.returncode}\n{found.stdout[-2000:]}{found.stderr[-2000:]}")
        return found.stdout

    def start(self, place: str) -> None:
        """`osmotic join` at a site, `osmotic serve` without a pipeline at the hub, with one as the coordinator."""
        words = {
            "hub": ["serve", "--folder", str(self.server)],
            "coordinator": [
                "serve", str(self.folder / "pipeline.yaml"), "--folder", str(self.server), "--home", str(self.home),
                "--sites", str(self.folder / "sites.yaml"), "--wait", "90s",
            ],
        }.get(place, ["join", "--folder", str(self.site(place))])  # fmt: skip
        log = (self.folder / f"{place}.log").open("ab")
        with log:
            log.write(f"==== {time.strftime('%H:%M:%S')} osmotic {' '.join(words)}\n".encode())
            log.flush()
            self.started[place] = subprocess.Popen(
                [*self.net.inside(place), OSMOTIC, *words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment(place), start_new_session=True,
            )  # fmt: skip

    def _environment(self, place: str) -> dict[str, str]:
        return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", MARK: f"{self.tag}/{place}"}

    def family(self, place: str) -> list[Any]:
        """Every process of a place, jobs in other sessions too."""
        import psutil

        found, mark = [], f"{self.tag}/{place}"
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == mark:
                    found.append(process)
        return found

    def send(self, place: str, number: signal.Signals) -> int:
        """A signal to every process of a place; how many there were."""
        import psutil

        family = self.family(place)
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
        return len(family)

    def kill(self, place: str) -> None:
        """As a power cut: nothing of it is left."""
        until = time.monotonic() + 20
        while self.send(place, signal.SIGKILL) and time.monotonic() < until:
            time.sleep(0.05)
        if place in self.started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.started[place].wait(10)

    def stop(self) -> None:
        """End everything, thawed first."""
        for place in ("coordinator", *SITES, "hub"):
            self.send(place, signal.SIGCONT)
            self.kill(place)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---- what a run left ----


def homes(deployment: Deployment, kind: str) -> dict[str, Path]:
    """Party -> the folder of its part of the run; its ledger is in `ledgers`."""
    name = f"faults-{kind}"
    found = {"hub": deployment.home / "parties" / "hub"}
    return found | {site: deployment.site(site) / "home" / name / "parties" / site for site in SITES}


def ledgers(folder: Path) -> dict[str, dict[str, Any]]:
    """Every party's ledger (`spent`)."""
    return {party: spent(folder / party) for party in ("hub", *SITES)}


def digests(folders: dict[str, Path]) -> dict[str, str]:
    """Digests of all artifacts of the last run, by TASK@PARTY.port."""
    found, query = {}, "SELECT i.id, t.outputs FROM instances i JOIN tasks t ON t.key = i.key"
    for folder in folders.values():
        for identity, outputs in _rows(folder / "run.sqlite", query):
            found.update({f"{identity}.{port}": str(ref["digest"]) for port, ref in json.loads(outputs).items()})
    return found


def local(deployment: Deployment) -> dict[str, str]:
    """The same pipeline by the local transport: its digests."""
    home, sites = deployment.folder / "again", str(deployment.folder / "again.yaml")
    words = ["run", str(deployment.folder / "pipeline.yaml"), "--home", str(home), "--sites", sites, "--quiet"]
    deployment.command("again", *words)
    return digests({party: home / "parties" / party for party in ("hub", *SITES)})


def spent(folder: Path) -> dict[str, Any]:
    """A party's ledger: charges, releases, epsilon over all, the dearest document.

    twice: charges without a release of their own, and the reverse; again: documents that one task released more than once.
    """
    ledger, query = folder / "ledger.sqlite", "SELECT lookup, document, epsilon, task FROM releases"
    charged = [json.loads(body).get("release") for (body,) in _rows(ledger, "SELECT body FROM charges")]
    stored = list(_rows(ledger, query))
    documents: dict[str, float] = {}
    for _, document, epsilon, _ in stored:
        documents[document] = documents.get(document, 0.0) + epsilon
    return {
        "charges": len(charged), "releases": len(stored), "epsilon": round(sum(row[2] for row in stored), 6),
        "dearest": round(max(documents.values(), default=0.0), 6), "documents": len(documents),
        "twice": len(charged) - len(set(charged)) + len(set(charged) ^ {row[0] for row in stored}),
        "again": len(stored) - len({(document, task) for _, document, _, task in stored}),
    }  # fmt: skip


def _rows(path: Path, query: str) -> Iterator[tuple[Any, ...]]:
    if not path.is_file():
        return
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        yield from db.execute(query).fetchall()
    finally:
        db.close()


def together(deployment: Deployment, folders: dict[str, Path]) -> Path:
    """All parties' folders under one, so that both ends of every crossing can be compared."""
    whole = deployment.folder / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    for party, folder in folders.items():
        if folder.is_dir():
            shutil.copytree(folder, whole / "parties" / party, ignore=shutil.ignore_patterns("*.lock", "*.sock"))
    return whole
