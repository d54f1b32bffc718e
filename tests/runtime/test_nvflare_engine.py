# SPDX-License-Identifier: Apache-2.0
"""The engine with real processes and TLS on loopback: a server that would allow anything, sites that do not, kills of each."""

import importlib.util
import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from osmotic.runtime.nvflare.kits import parents
from osmotic.runtime.nvflare.kits.harden import authorization, check_hardened, harden, server_resources
from osmotic.runtime.nvflare.kits.kit import Kit
from osmotic.runtime.nvflare.kits.parents import Parent, start_server, start_site
from osmotic.runtime.nvflare.kits.provision import Kits, provision
from osmotic.runtime.nvflare.server.engine import Engine
from osmotic.runtime.nvflare.server.jobs import client_config, job_folder
from osmotic.runtime.nvflare.site.audit import Audit
from osmotic.schemas.errors import ConfigError, PeerError, RefusedError, StoreError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(importlib.util.find_spec("nvflare") is None, reason="the extra nvflare is not installed"),
]
NAMES = ("a", "b")


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def write_site(kit: Path, party: str) -> None:
    """A site that allows nothing, which is enough to be there."""
    (kit / "policy.yaml").write_text(f"osmotic_sites: 1\nparties:\n  {party}: {{}}\n")
    found = {"osmotic_site": 1, "party": party, "server": "hub", "policy": "policy.yaml"}
    (kit / "local" / "osmotic-site.json").write_text(json.dumps(found))


def permissive(kit: Path) -> None:
    """Settings of a server that lets everybody ship code and names every class."""
    document = {**server_resources(kit / "state"), "class_allow_list": ["*"], "class_list_enforcement_mode": "warn"}
    rights = authorization("server")
    rights["permissions"]["project_admin"] = "any"
    for part in ("jobs", "snapshots"):
        (kit / "state" / part).mkdir(parents=True, exist_ok=True)
    (kit / "local" / "resources.json").write_text(json.dumps(document))
    (kit / "local" / "authorization.json").write_text(json.dumps(rights))


def until(true: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait for something; fail when it does not come."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)


class World:
    """A server, two sites, a coordinator."""

    def __init__(self, folder: Path) -> None:
        self.kits = provision(folder / "d", "localhost", NAMES, port=free_port())
        self.home = folder / "home"
        self.running: dict[str, Parent] = {}
        self.engine: Engine | None = None

    def up(self) -> "World":
        """Start everything."""
        self.running["server"] = start_server(self.kits.server)
        for name in NAMES:
            write_site(self.kits.sites[name], name)
            self.running[name] = start_site(self.kits.sites[name], wait=0)
        until(lambda: all(self.running[name].registered() for name in NAMES))
        self.engine = Engine(self.kits.server, self.kits.admin, self.home)
        self.engine.open()
        return self

    def restart(self, name: str) -> None:
        """Start a party's standing process again."""
        kit = self.kits.server if name == "server" else self.kits.sites[name]
        self.running[name] = start_server(kit) if name == "server" else start_site(kit)

    def boot(self, name: str) -> str:
        """Which process answers at a site."""
        assert self.engine is not None
        return str(self.engine.send(name, {"engine": "ping"}, b"", 10.0)[0]["boot"])

    def everybody(self) -> bool:
        """Whether every site has a process that answers; gives them one if they can have one."""
        assert self.engine is not None
        try:
            self.engine.renew()
        except PeerError:
            return False
        return all(self.engine.ping(name) for name in NAMES)

    def down(self) -> None:
        """End everything."""
        if self.engine is not None:
            self.engine.close()
        for parent in reversed(self.running.values()):
            parent.stop(3.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One deployment for all tests here, in the order in which they stand; its server is permissive."""
    made = World(tmp_path_factory.mktemp("world"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parents, "harden", lambda kit: permissive(Kit.read(kit).folder))
        try:
            yield made.up()
        finally:
            made.down()


def engine_of(world: World) -> Engine:
    """The coordinator's."""
    assert world.engine is not None
    return world.engine


@pytest.mark.parametrize("size", [0, 1000, 1 << 20, 4 << 20])
def test_messages_arrive_as_they_were_sent(world: World, size: int) -> None:
    """Both ways, at both sites."""
    blob = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    for name in NAMES:
        header, body = engine_of(world).send(name, {"engine": "ping", "words": ["ä", 1.5, None]}, blob, 30.0)
        assert (header["engine"], body == blob) == ("pong", True)


def test_who_is_there(world: World) -> None:
    """Names by certificate, seen just now, with a process."""
    found = engine_of(world).sites()
    assert sorted(found) == sorted(NAMES)
    assert all(seen.present and time.time() - seen.last < 30 for seen in found.values())
    assert engine_of(world).back() == []
    assert world.running["a"].registered()
    assert parents.running(world.kits.sites["a"]) == world.running["a"].pid


def test_what_is_no_message_of_ours_is_refused_and_written_down(world: World) -> None:
    """The mailbox answers; the site goes on."""
    header, _ = engine_of(world).send("a", {"op": "start"}, b"", 10.0)
    assert "pong" not in str(header)
    assert Audit(world.kits.sites["a"] / "osmotic-audit.jsonl").lines()
    assert engine_of(world).ping("a")


def test_one_coordinator_and_one_process_a_kit(world: World, tmp_path: Path) -> None:
    """The second is told who has it; a port that is taken is told."""
    with pytest.raises(StoreError, match="another coordinator is at work") as caught:
        Engine(world.kits.server, world.kits.admin, tmp_path / "second").open()
    assert str(world.home) in str(caught.value)
    with pytest.raises(StoreError, match="runs already") as refused:
        start_site(world.kits.sites["a"])
    assert str(world.running["a"].pid) in str(refused.value)
    with pytest.raises(ConfigError, match="is in use"):
        start_server(world.kits.server)
    assert engine_of(world).ping("a")


def shipped(folder: Path, marker: Path) -> Path:
    """A job with code of its own, which would leave a file."""
    made = job_folder(folder, NAMES)
    custom = made / "app" / "custom"
    custom.mkdir()
    custom.joinpath("evil.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    return _with(made, "evil.Evil")


def listed(folder: Path, marker: Path) -> Path:
    """A job that names a class of the engine's own, which every plain site allows."""
    return _with(job_folder(folder, NAMES), "nvflare.app_common.np.np_trainer.NPTrainer")


def _with(made: Path, path: str) -> Path:
    document = client_config()
    document["executors"][0]["executor"] = {"path": path, "args": {}}
    (made / "app" / "config" / "config_fed_client.json").write_text(json.dumps(document))
    return made


@pytest.mark.parametrize(("make", "word"), [(shipped, "code came with it"), (listed, "it names other classes")])
def test_other_jobs_are_refused_at_the_site(
    world: World, tmp_path: Path, make: Callable[[Path, Path], Path], word: str
) -> None:
    """The server allows them; every site refuses, says so in its audit, and goes on with ours."""
    admin, marker = engine_of(world)._admin, tmp_path / "marker"
    boots = [world.boot(name) for name in NAMES]
    job = str(admin._call("submit_job", str(make(tmp_path / "job", marker))))
    for name in NAMES:
        audit = Audit(world.kits.sites[name] / "osmotic-audit.jsonl")
        until(lambda audit=audit: word in str(audit.lines()), 30.0)
    until(lambda: "this site takes no such job" in admin.status(job), 30.0)
    assert not marker.exists()
    assert [world.boot(name) for name in NAMES] == boots


def test_an_impostor_is_not_taken_in(world: World, tmp_path: Path) -> None:
    """A kit in the name of a site, made by another root: the server does not take it in, the real one stays."""
    port = Kit.read(world.kits.server).port
    false = provision(tmp_path / "false", "localhost", ["a"], port=port).sites["a"]
    write_site(false, "a")
    boot = world.boot("a")
    with pytest.raises(PeerError, match="has not taken this site in"):
        start_site(false, wait=6.0)
    assert world.boot("a") == boot


@pytest.mark.whole
def test_a_site_whose_settings_were_changed_answers_nothing(world: World) -> None:
    """Between two jobs: the next process refuses, and is right again when the settings are."""
    path = world.kits.sites["b"] / "local" / "authorization.json"
    path.write_text(path.read_text().replace('"byoc": "none"', '"byoc": "any"'))
    assert check_hardened(world.kits.sites["b"])
    _kill_job(world, "b")
    assert engine_of(world).renew(["b"]) == []
    assert "not answering" in str(Audit(world.kits.sites["b"] / "osmotic-audit.jsonl").lines())
    assert "osmotic site init" in engine_of(world).trouble("b")
    with pytest.raises(RefusedError, match="not what they must be"):
        start_site(world.kits.sites["b"])
    harden(world.kits.sites["b"])
    until(world.everybody)


def _kill_job(world: World, name: str) -> None:
    import psutil

    for child in psutil.Process(world.running[name].pid).children(recursive=True):
        child.kill()
    until(lambda: not engine_of(world).ping(name), 20.0)


def test_a_killed_job_process_does_not_disturb_the_others(world: World) -> None:
    """It gets another one; the other site's process stays."""
    until(world.everybody)
    before = {name: world.boot(name) for name in NAMES}
    _kill_job(world, "b")
    until(lambda: engine_of(world).renew(["b"]) == ["b"])
    after = {name: world.boot(name) for name in NAMES}
    assert after["a"] == before["a"]
    assert after["b"] != before["b"]


def test_a_site_that_was_killed_and_returns(world: World) -> None:
    """The whole site, as by a power cut: not there, then there again, with a process of its own."""
    boot = world.boot("a")
    world.running["b"].kill()
    until(lambda: not engine_of(world).ping("b"), 20.0)
    world.restart("b")
    until(lambda: "b" in engine_of(world).renew(["b"]))
    assert world.boot("a") == boot


def test_a_coordinator_that_was_killed_finds_its_jobs_again(world: World, tmp_path: Path) -> None:
    """The sites' processes are the same: what they were doing goes on."""
    boots = {name: world.boot(name) for name in NAMES}
    old = engine_of(world)
    old._over.set()
    assert old._hub is not None
    old._hub.close()  # what the system does when a process is killed: sockets closed, the lock given back
    old._hub = None
    old.close()
    world.engine = Engine(world.kits.server, world.kits.admin, tmp_path / "another")
    world.engine.open()
    assert {name: world.boot(name) for name in NAMES} == boots


@pytest.mark.whole
def test_a_server_that_was_killed_and_returns(world: World) -> None:
    """Sites come back by themselves; the coordinator gives them processes again."""
    world.running["server"].kill()
    assert not engine_of(world).ping("a", 1.0)
    world.restart("server")
    until(world.everybody, 90.0)


@pytest.mark.whole
def test_a_frozen_site_is_not_replaced_while_it_is_silent(world: World) -> None:
    """Nothing is heard of it for longer than a site's sign of life takes; when it thaws it answers by the same process."""
    import psutil

    boot, parent = world.boot("a"), psutil.Process(world.running["a"].pid)
    family = [parent, *parent.children(recursive=True)]
    for process in family:
        process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(14.0)
        assert not engine_of(world).ping("a", 1.0)
        assert engine_of(world).renew(["a"]) == []
    finally:
        for process in family:
            process.send_signal(signal.SIGCONT)
    until(lambda: engine_of(world).ping("a"), 20.0)
    assert world.boot("a") == boot


def test_the_end_leaves_no_process(world: World) -> None:
    """Sites hear the end of the jobs; ending the parents ends the rest."""
    world.down()
    world.engine = None
    for kit in (world.kits.server, *world.kits.sites.values()):
        assert parents.running(kit) is None
        assert parents.leftovers(Kit.read(kit)) == []


def test_a_path_with_spaces_is_told(world: World, tmp_path: Path) -> None:
    """The engine cannot have it."""
    kit = provision(tmp_path / "two words", "localhost", ["a"], port=free_port()).sites["a"]
    with pytest.raises(ConfigError, match="spaces"):
        start_site(kit)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    """Told in time, with the address."""
    kits: Kits = provision(tmp_path / "d", "localhost", ["a"], port=free_port())
    with pytest.raises(PeerError, match="does not answer"):
        Engine(kits.server, kits.admin, tmp_path / "home").open(timeout=4.0)
