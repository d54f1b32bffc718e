# SPDX-License-Identifier: Apache-2.0
"""Hostile things done to a run while it is on: what refused each, what the site's audit says, and that the run ends as ever.

The engine's server is a permissive one (it lets jobs ship code and name any class), and between the coordinator and the engine
sits somebody who reads, keeps, repeats and changes messages: whoever operates the server could. Certificates are real; those of
the impostors come from another root. Called by `faults.py --hostile`; as a program of its own it is one of the impostors.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from faults_parts import OSMOTIC, SITES, Deployment, digests, homes, ledgers, local

Row = tuple[str, str, str, str]  # what was done, what came back, what the audit of the site says, whether that is as it must be
MINE = 1 << 40  # numbers of messages from here on are the attacker's


class Middle:
    """Between the coordinator's socket and the engine's job: passes all on, keeps copies, says things of its own."""

    def __init__(self, book: Path) -> None:
        from osmotic.runtime.nvflare.server.lines import Wire

        self.book, self.wire_of = book, Wire
        self.folder = Path(tempfile.mkdtemp(prefix="middle-"))
        self.seen: list[dict[str, Any]] = []  # messages of the coordinator: site, header, blob
        self.spoil: dict[str, Callable[[Any, bytes], tuple[Any, bytes]]] = {}  # way -> what is done to the next message
        self.spoiled: list[str] = []
        self._jobs: dict[str, Any] = {}  # site -> the engine's end that has it
        self._answers: dict[int, Any] = {}
        self._number, self._over = MINE, threading.Event()
        self._alone = threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """Whenever the coordinator says where it listens, say that it is here."""
        turn = 0
        while not self._over.wait(0.02):
            with contextlib.suppress(OSError, ValueError, KeyError):
                path = str(json.loads(self.book.read_text(encoding="utf-8"))["socket"])
                if not path.startswith(str(self.folder)) and Path(path).exists():
                    turn += 1
                    own = self.folder / f"{turn}.sock"
                    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                    listener.bind(str(own))
                    listener.listen(16)
                    threading.Thread(target=self._accept, args=(listener, path), daemon=True).start()
                    self.book.write_text(json.dumps({"socket": str(own)}), encoding="utf-8")

    def _accept(self, listener: socket.socket, path: str) -> None:
        while not self._over.is_set():
            job, _ = listener.accept()
            chief = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                chief.connect(path)
            except OSError:
                job.close()
                continue
            ends = self.wire_of(job), self.wire_of(chief)
            threading.Thread(target=self._down, args=ends, daemon=True).start()
            threading.Thread(target=self._up, args=ends, daemon=True).start()

    def _down(self, job: Any, chief: Any) -> None:
        """From the coordinator to the engine."""
        while (found := chief.read()) is not None:
            header, blob = found
            if "site" in header:
                with self._alone:
                    self._jobs[header["site"]] = job
                    self.seen = [*self.seen[-3000:], {"site": header["site"], "header": header["header"], "blob": blob}]
                header, blob = self._changed("down", header, blob)
            job.write(header, blob)
        job.close()

    def _up(self, job: Any, chief: Any) -> None:
        """From the engine to the coordinator; answers to what was said here stay here."""
        while (found := job.read()) is not None:
            header, blob = found
            if header.get("id", 0) >= MINE:
                self._answers[header["id"]] = header, blob
            else:
                chief.write(*self._changed("up", header, blob))
        chief.close()

    def _changed(self, way: str, header: dict[str, Any], blob: bytes) -> tuple[dict[str, Any], bytes]:
        inner = header.get("header")
        if way in self.spoil and isinstance(inner, dict) and inner.get("osmotic"):
            changed, blob = self.spoil.pop(way)(inner, blob)
            self.spoiled.append(way)
            return {**header, "header": changed}, blob
        return header, blob

    def say(self, site: str, header: Any, blob: bytes = b"", timeout: float = 15.0) -> dict[str, Any]:
        """A message of one's own to a site, through the engine; its answer's header."""
        with self._alone:
            self._number += 1
            number, job = self._number, self._jobs[site]
        job.write({"id": number, "site": site, "timeout": timeout, "header": header}, blob)
        until = time.monotonic() + timeout + 2
        while number not in self._answers and time.monotonic() < until:
            time.sleep(0.02)
        answer, _ = self._answers.pop(number, ({"why": "no answer"}, b""))
        found: dict[str, Any] = answer.get("header") or {"why": answer.get("why")}
        return found

    def kept(self, site: str, op: str, body: bool = False) -> dict[str, Any]:
        """The last message of that kind to a site. Raises LookupError."""
        with self._alone:
            having = [one for one in self.seen if one["site"] == site and one["header"].get("op") == op]
        if not (chosen := [one for one in having if one["blob"] or not body]):
            raise LookupError(f"no {op} to {site} yet")
        return chosen[-1]

    def close(self) -> None:
        """Leave."""
        self._over.set()
        shutil.rmtree(self.folder, ignore_errors=True)


# ---- what is done ----


class Hostile:
    """A deployment in bad company. rows: the table."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.rows: list[Row] = []
        self.middle: Middle | None = None

    def row(self, done: str, came: str, audit: str, fine: bool) -> None:
        """Note and print one."""
        self.rows.append((done, came, audit, "yes" if fine else "NO"))
        print("| " + " | ".join(self.rows[-1]) + " |", flush=True)

    def message(self, done: str, site: str, why: str, header: Any, blob: bytes = b"") -> None:
        """Say something to a site; it must answer that it does not take it, for that reason, and write it down."""
        if self.middle is None:
            return
        before = len(self.deployment.audit(site))
        came = self.middle.say(site, header, blob)
        lines = [f"{line['what']}: {line['why']}".rstrip(": ") for line in self.deployment.audit(site)[before:]]
        told = came.get("refused") or came.get("why") or f"TAKEN: {sorted(came)}"
        fine = came.get("refused") == why and any(line.startswith(why) for line in lines)
        self.row(done, f"refused: {told}" if came.get("refused") else str(told), "; ".join(lines) or "nothing", fine)

    def messages(self) -> None:
        """Replayed, altered, truncated, oversized, unknown, of another coordinator, for another site."""
        middle, site, other = self.middle, "a", "b"
        if middle is None:
            return
        start, poll = middle.kept(site, "start"), middle.kept(site, "poll")
        full, hello = middle.kept(site, "start", body=True), middle.kept(site, "hello")
        self.message("a request, once more", site, "replayed", start["header"], start["blob"])
        self.message("a question, once more", site, "replayed", poll["header"])
        self.message("the greeting of this run, once more", site, "replayed", hello["header"])
        forged = {**start["header"], "header": {**start["header"]["header"], "op": "pull"}, "n": 10**6}
        self.message("a request for something else under an old seal", site, "altered", forged, start["blob"])
        body = bytes([full["blob"][0] ^ 1]) + full["blob"][1:]
        self.message("one bit of a body changed", site, "altered", full["header"], body)
        self.message("a body cut short", site, "truncated", full["header"], full["blob"][:-1])
        self.message("a body of 5 MB", site, "oversized", full["header"], bytes(5 << 20))
        self.message("a header of 9 MB", site, "oversized", {**poll["header"], "more": "x" * (9 << 20)})
        self.message("an operation that there is not", site, "unknown", {**poll["header"], "op": "shell"})
        self.message("another version of the protocol", site, "protocol", {**poll["header"], "osmotic": 99})
        self.message("no message at all", site, "protocol", {})
        self.message("a message for another site", other, "session", poll["header"])
        self.message("the greeting of another site", other, "altered", {**hello["header"], "site": other})
        from osmotic.runtime.nvflare.wire import seal

        with_key = bytes.fromhex(hello["header"]["key"])  # the server's operator sees it pass
        number = max(one["header"].get("n", 0) for one in middle.seen if one["site"] == site) + 3
        huge = {"op": "start", "session": hello["header"]["session"], "n": number, "seq": 10**6, "header": {"op": "push"}}
        huge |= {"total": 1 << 40, "digest": "0" * 64, "id": "0" * 32}
        self.message("a request of 1 TB, sealed with the run's own key", site, "oversized", seal(with_key, huge, b""))
        key = os.urandom(32)
        greeting = {
            "op": "hello",
            "site": site,
            "key": key.hex(),
            "session": "0" * 32,
            "epoch": 1,
            "clock": time.time(),
            "n": 1,
        }
        self.message("a greeting of another coordinator, well sealed", site, "owned", seal(key, greeting, b""))

    def spoiled(self, way: str, done: str, site: str) -> None:
        """One message of the run itself is changed on its way; it is said again, and the run goes on."""
        if self.middle is None:
            return
        before = {name: len(self.deployment.audit(name)) for name in SITES}
        count = len(self.middle.spoiled)
        self.middle.spoil[way] = lambda header, blob: (
            {**header, "size": header.get("size", 0), "tick": -1, "seq": 10**6},
            blob,
        )
        until = time.monotonic() + 20
        while len(self.middle.spoiled) == count and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(2.0)
        lines = [line["what"] for name in SITES for line in self.deployment.audit(name)[before[name] :]]
        fine = len(self.middle.spoiled) > count and (way == "up" or "altered" in lines)
        self.row(done, "said again" if way == "down" else "asked again", "; ".join(lines) or "nothing", fine)

    # ---- jobs, certificates, plans, coordinators ----

    def job(self, done: str, what: str, word: str) -> None:
        """A job handed in with the coordinator's own kit; every site must refuse it and say so in its audit."""
        before = {site: len(self.deployment.audit(site)) for site in SITES}
        marker = self.deployment.folder / "shipped-code-ran"
        said = self.play("coordinator", "job", what, str(self.deployment.server / "admin"), str(marker))
        until, lines = time.monotonic() + 30, {}
        while time.monotonic() < until and len(lines) < len(SITES):
            for site in SITES:
                found = [f"{x['what']}: {x['why']}" for x in self.deployment.audit(site)[before[site] :] if word in x["why"]]
                lines |= {site: found[0]} if found else {}
            time.sleep(0.5)
        told = "; ".join(sorted(set(lines.values()))) + f" ({len(lines)} of {len(SITES)} sites)"
        self.row(done, said or "handed in", told, len(lines) == len(SITES) and not marker.exists())

    def play(self, place: str, *words: str, wait: float = 90.0) -> str:
        """Run this file as one of the impostors, where a place's processes run; the last line that it printed."""
        command = [*self.deployment.net.inside(place), sys.executable, str(Path(__file__).resolve()), *words]
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=wait)
        if found.returncode:
            return f"failed: {found.stderr.strip().splitlines()[-1][:160]}"
        return (found.stdout.strip().splitlines() or [""])[-1]

    def second(self) -> None:
        """The same command again while the first one is at work."""
        command = ["serve", str(self.deployment.folder / "pipeline.yaml"), "--folder", str(self.deployment.server)]
        command += ["--sites", str(self.deployment.folder / "again.yaml"), "--home", str(self.deployment.folder / "second")]
        line = [*self.deployment.net.inside("hub"), OSMOTIC, *command]
        found = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
        told = " ".join(found.stderr.split())
        fine = found.returncode == 5 and "another coordinator is at work" in told
        self.row("a second coordinator at the same server", f"ended with {found.returncode}: {told[-170:]}", "-", fine)

    def plan(self, done: str, change: Callable[[dict[str, Any]], None], word: str) -> None:
        """A plan that asks for more than the sites allow; what the coordinator's table shows, what the audits say."""
        deployment = self.deployment
        before = {site: len(deployment.audit(site)) for site in SITES}
        path = deployment.folder / "pipeline.yaml"
        whole = path.read_text(encoding="utf-8")
        document = json.loads(whole)
        change(document)
        path.write_text(json.dumps(document), encoding="utf-8")
        try:
            deployment.start("coordinator")
            code = deployment.started["coordinator"].wait(300)
        finally:
            path.write_text(whole, encoding="utf-8")
        said = (deployment.folder / "coordinator.log").read_text(encoding="utf-8").rpartition("====")[2]
        told = next((" ".join(line.split()) for line in said.splitlines() if word in line), "")
        lines = [f"{x['what']}: {x['why']}" for site in SITES for x in deployment.audit(site)[before[site] :]]
        refused = [line for line in lines if line.startswith("plan refused")]
        told = f"ended with {code}: {told[:170]}"
        self.row(
            done, told, f"{refused[0] if refused else 'nothing'} ({len(refused)})", code == 4 and len(refused) == len(SITES)
        )


def hostile(deployment: Deployment) -> int:
    """All of it; prints the table; 1 when something was not refused as it must be."""
    deployment.make("light")
    expected = local(deployment)
    company = Hostile(deployment)
    print("| what was done | what came back | the site's audit | as it must be |\n|---|---|---|---|", flush=True)
    with permissive_server(deployment):
        for site in SITES:
            deployment.start(site)
        false_server_kits = deployment.folder / "false"
        _plans(company)
        _during(company, expected, false_server_kits)
    _false_server(company, deployment.folder / "false")
    print(f"\n{sum(row[3] == 'yes' for row in company.rows)} of {len(company.rows)} as they must be")
    return 0 if all(row[3] == "yes" for row in company.rows) else 1


def _plans(company: Hostile) -> None:
    def waive(document: dict[str, Any]) -> None:
        document["tasks"]["rationales"]["inputs"]["prompts"] = {
            "from": "records",
            "waive": "everybody agreed to this, honestly",
        }

    def dear(document: dict[str, Any]) -> None:
        document["tasks"]["sanitized"]["config"]["mechanism"]["epsilon"] = 100

    company.plan("a plan with a waiver that no site granted", waive, "waive")
    company.plan("a plan with epsilon 100 a field, 600 a document", dear, "epsilon")


def _during(company: Hostile, expected: dict[str, str], false: Path) -> None:
    """While the honest run is on."""
    deployment = company.deployment
    company.middle = middle = Middle(deployment.server / "server" / "local" / "osmotic-relay.json")
    try:
        deployment.start("coordinator")
        _until(lambda: middle.kept("a", "poll") and middle.kept("a", "start", body=True) and middle.kept("b", "hello"), 180)
        company.messages()
        company.spoiled("down", "a message of the run changed on its way to a site", "a")
        company.spoiled("up", "an answer of the run changed on its way back", "a")
        company.second()
        company.job("a job with shipped code, by the coordinator's own kit", "shipped", "code came with it")
        company.job("a job with another class that is installed", "listed", "other classes")
        server = json.loads((deployment.server / "osmotic-server.json").read_text(encoding="utf-8"))
        said = company.play("hub", "impostor", str(false), server["host"], str(server["port"]))
        company.row("a site in the name of a, certified by another root", said, "-", said == "not taken in")
        said = company.play("b", "borrowed", str(deployment.site("b")), str(deployment.folder / "borrowed"))
        company.row("site b, with its own certificate, in the name of a", said, "-", said == "not taken in")
        code = deployment.started["coordinator"].wait(400)
        own = ledgers(deployment.folder / "again-ledgers")
        found, spent = digests(homes(deployment, "light")), ledgers(deployment.folder / "ledgers")
        equal = sum(found.get(name) == digest for name, digest in expected.items())
        once = all(
            one["twice"] == one["again"] == 0 and one["charges"] == own[party]["charges"] for party, one in spent.items()
        )
        told = f"ended with {code}; {equal} of {len(expected)} hashes equal; charges {'equal' if once else spent}"
        company.row("(the run itself, all the while)", told, "-", code == 0 and equal == len(expected) == len(found) and once)
    finally:
        middle.close()


def _false_server(company: Hostile, false: Path) -> None:
    """A server at the same address, certified by another root: real sites must not talk to it."""
    deployment = company.deployment
    if not (false / "server").is_dir():
        return
    path = deployment.site("a") / "osmotic-engine.log"
    start = path.stat().st_size
    process = subprocess.Popen([*deployment.net.inside("hub"), sys.executable, __file__, "server", str(false / "server")])
    try:
        time.sleep(30)
        log = path.read_text(encoding="utf-8", errors="replace")[start:]
        why = next((word for word in log.split() if "CERTIFICATE_VERIFY_FAILED" in word), "")
        fine = bool(why) and "Successfully registered" not in log
        company.row("a server at the same address, certified by another root", why or "no connection", "-", fine)
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def permissive_server(deployment: Deployment) -> Iterator[None]:
    """An engine's server that allows everything, in the hub's place."""
    words = [sys.executable, str(Path(__file__).resolve()), "permissive", str(deployment.server / "server")]
    process = subprocess.Popen([*deployment.net.inside("hub"), *words])
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def _until(ready: Callable[[], Any], seconds: float) -> None:
    """Wait; raises TimeoutError."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(LookupError):
            if ready():
                return
        time.sleep(0.05)
    raise TimeoutError("the run did not come so far")


# ---- the impostors, in processes of their own ----


def _permissive(kit: str) -> None:
    """Hold a server up whose settings let everything through."""
    from osmotic.runtime.nvflare.kits import parents
    from osmotic.runtime.nvflare.kits.harden import authorization, server_resources

    def loosen(folder: Path) -> None:
        document = {**server_resources(folder / "state"), "class_allow_list": ["*"], "class_list_enforcement_mode": "warn"}
        rights = {**authorization("server"), "permissions": {"project_admin": "any"}}
        for part in ("jobs", "snapshots"):
            (folder / "state" / part).mkdir(parents=True, exist_ok=True)
        (folder / "local" / "resources.json").write_text(json.dumps(document), encoding="utf-8")
        (folder / "local" / "authorization.json").write_text(json.dumps(rights), encoding="utf-8")

    setattr(parents, "harden", loosen)  # noqa: B010 - what an operator could do with an editor
    _held(parents.start_server(Path(kit)))


def _held(parent: Any) -> None:
    import signal

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    try:
        while parent.alive():
            time.sleep(0.5)
    finally:
        parent.stop(3.0)


def _job(what: str, admin: str, marker: str) -> None:
    """Hand in a job: shipped (with code), listed (another class of the engine)."""
    from osmotic.runtime.nvflare.kits.kit import Kit
    from osmotic.runtime.nvflare.server.jobs import Admin, client_config, job_folder

    with tempfile.TemporaryDirectory() as scratch:
        made = job_folder(Path(scratch), SITES)
        document = client_config()
        document["executors"][0]["executor"] = {"path": "nvflare.app_common.np.np_trainer.NPTrainer", "args": {}}
        if what == "shipped":
            (made / "app" / "custom").mkdir()
            (made / "app" / "custom" / "evil.py").write_text(f"open({marker!r}, 'w').close()\n", encoding="utf-8")
            document["executors"][0]["executor"]["path"] = "evil.Evil"
        (made / "app" / "config" / "config_fed_client.json").write_text(json.dumps(document), encoding="utf-8")
        session = Admin(Kit.read(Path(admin)))
        session.connect(30.0)
        job = str(session._call("submit_job", str(made)))
        status = ""
        for _ in range(60):
            time.sleep(0.5)
            status = session.status(job)
            if "takes no such job" in status or status.startswith(("FINISHED", "FAILED", "ABANDONED")):
                break
        session.close()
    told = "this site takes no such job" if "takes no such job" in status else ""
    print(" ".join(f"{status.split(' ')[0]} {told}".split()))


def _site_file(kit: Path, party: str) -> None:
    (kit / "policy.yaml").write_text(f"osmotic_sites: 1\nparties:\n  {party}: {{}}\n", encoding="utf-8")
    found = {"osmotic_site": 1, "party": party, "server": "hub", "policy": "policy.yaml"}
    (kit / "local" / "osmotic-site.json").write_text(json.dumps(found), encoding="utf-8")


def _tried(kit: Path) -> None:
    from osmotic.runtime.nvflare.kits.parents import start_site
    from osmotic.schemas.errors import PeerError

    try:
        parent = start_site(kit, wait=15.0)
    except PeerError:
        print("not taken in")
        return
    time.sleep(3)
    print("TAKEN IN")
    parent.stop(3.0)


def _impostor(folder: str, host: str, port: str) -> None:
    """A site called a, and a server, of another root."""
    from osmotic.runtime.nvflare.kits.provision import provision

    kits = provision(Path(folder), host, ["a"], port=int(port))
    _site_file(kits.sites["a"], "a")
    _tried(kits.sites["a"])


def _borrowed(real: str, folder: str) -> None:
    """A copy of a site's own folder which says that it is another one."""
    from osmotic.runtime.nvflare.kits import parents
    from osmotic.runtime.nvflare.kits.harden import harden

    copy = Path(folder)
    shutil.copytree(real, copy, ignore=shutil.ignore_patterns("home", "osmotic-*", "*-*-*"))
    path = copy / "startup" / "fed_client.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["client"]["fqsn"] = "a"
    path.write_text(json.dumps(document), encoding="utf-8")
    _site_file(copy, "a")
    harden(copy)
    settings = ["secure_train=true", "org=osmotic", "config_folder=config", "uid=a", "heart_beat_interval=5.0"]
    setattr(parents, "_settings", lambda kit: settings)  # noqa: B010 - the name that it gives itself
    _tried(copy)


def main() -> None:
    """What this process is to be: permissive KIT, server KIT, job WHAT ADMIN MARKER, impostor FOLDER HOST PORT, borrowed."""
    what, *words = sys.argv[1:]
    if what == "server":
        from osmotic.runtime.nvflare.kits.parents import start_server

        _held(start_server(Path(words[0])))
        return
    {"permissive": _permissive, "job": _job, "impostor": _impostor, "borrowed": _borrowed}[what](*words)


if __name__ == "__main__":
    main()
