# SPDX-License-Identifier: Apache-2.0
"""Kits: what the server makes, what a site checks before anything starts, what a job may be at a site. No processes."""

import datetime
import importlib.util
import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from osmotic.runtime.nvflare import extra
from osmotic.runtime.nvflare.kits.harden import check_hardened, harden, site_resources
from osmotic.runtime.nvflare.kits.kit import Kit, certificate, check_certificate, load
from osmotic.runtime.nvflare.kits.provision import Kits, provision
from osmotic.runtime.nvflare.server import lines
from osmotic.runtime.nvflare.server.jobs import client_config, job_folder
from osmotic.schemas.errors import ConfigError, RefusedError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("nvflare") is None, reason="the extra nvflare is not installed")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    """A deployment of two sites."""
    return provision(tmp_path_factory.mktemp("made") / "d", "localhost", ["a", "b"], port=18002, days=90)


@pytest.fixture
def kits(made: Kits, tmp_path: Path) -> Kits:
    """The same, in a folder of its own."""
    shutil.copytree(made.folder, tmp_path / "d")
    return Kits.at(tmp_path / "d")


def test_every_party_has_its_own_kit(kits: Kits) -> None:
    """Names, kinds, validity; private keys are readable by their owner only."""
    found = {folder.name: Kit.read(folder) for folder in (kits.server, kits.admin, *kits.sites.values())}
    assert {name: (kit.kind, kit.name, kit.host, kit.port) for name, kit in found.items()} == {
        "server": ("server", "localhost", "localhost", 18002),
        "admin": ("admin", "coordinator@osmotic.local", "localhost", 18002),
        "a": ("site", "a", "localhost", 18002),
        "b": ("site", "b", "localhost", 18002),
    }
    for kit in found.values():
        assert kit.key_file.stat().st_mode & 0o077 == 0
        assert 89 < check_certificate(kit.folder).days_left < 90.01
    assert len({certificate(kit.folder).fingerprint for kit in found.values()}) == 4
    harden(kits.server)  # its settings name its folder
    assert check_hardened(kits.sites["a"]) == check_hardened(kits.server) == []


def test_private_keys_of_sites_are_in_their_kits_only(kits: Kits) -> None:
    """The root's folder holds the root's key and nobody else's."""
    kept = json.loads((kits.folder / "ca" / "cert.json").read_text())
    assert {type(value) for value in kept.values()} == {str}
    own = kits.sites["a"].joinpath("startup", "client.key").read_text()
    others = [path for path in kits.folder.rglob("*") if path.is_file() and path.parent != kits.sites["a"] / "startup"]
    assert not [path for path in others if own.split("\n")[3] in path.read_text(errors="replace")]


def test_more_sites_later_and_a_new_key_for_one(kits: Kits) -> None:
    """The root stays; what there is is not made again unless that is asked for."""
    before = {name: certificate(folder).fingerprint for name, folder in {**kits.sites, "server": kits.server}.items()}
    (kits.sites["b"] / "local" / "osmotic-site.json").write_text("{}")
    after = provision(kits.folder, "localhost", ["a", "b", "c"], port=18002, renew=["b"])
    now = {name: check_certificate(folder).fingerprint for name, folder in {**after.sites, "server": after.server}.items()}
    assert sorted(after.sites) == ["a", "b", "c"]
    assert {name for name in before if now[name] != before[name]} == {"b"}
    assert (after.sites["b"] / "local" / "osmotic-site.json").is_file()
    assert certificate(after.sites["c"]).issuer == certificate(after.sites["a"]).issuer


@pytest.mark.parametrize(
    ("host", "sites", "options", "word"),
    [
        ("my server", ["a"], {}, "no name of a machine"),
        ("localhost", ["a b"], {}, "no name of a site"),
        ("localhost", ["Zürich"], {}, "no name of a site"),
        ("localhost", ["a", "a"], {}, "named twice"),
        ("localhost", ["a"], {"port": 70000}, "no port"),
        ("localhost", ["a"], {"days": 0}, "cannot be good for 0 days"),
    ],
)
def test_wrong_names_are_told_before_anything_is_made(
    tmp_path: Path, host: str, sites: list[str], options: dict[str, Any], word: str
) -> None:
    """One located error each, and no folder."""
    with pytest.raises(ConfigError, match=word):
        provision(tmp_path / "d", host, sites, **options)
    assert not (tmp_path / "d").exists()


def test_a_deployment_keeps_its_address(kits: Kits) -> None:
    """Sites have the address in their kits: another one is another deployment."""
    with pytest.raises(ConfigError, match="localhost:18002, not localhost:18003"):
        provision(kits.folder, "localhost", ["c"], port=18003)


def test_a_kit_of_another_root_is_told(kits: Kits, tmp_path: Path) -> None:
    """A certificate of one deployment with the root of another."""
    other = provision(tmp_path / "other", "localhost", ["a"], port=18002)
    shutil.copy(other.sites["a"] / "startup" / "client.crt", kits.sites["a"] / "startup" / "client.crt")
    with pytest.raises(ConfigError) as caught:
        check_certificate(kits.sites["a"])
    assert "was not made by the root certificate" in str(caught.value)
    assert "belongs to another certificate" in str(caught.value)


def dated(kit: Path, ca: Path, since: float, until: float) -> None:
    """A certificate for the kit's key, signed by its root, from and until so many days from now."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

    kept = json.loads((ca / "cert.json").read_text())
    root = x509.load_pem_x509_certificate(kept["root_cert"].encode())
    key: Any = load_pem_private_key(kept["root_pri_key"].encode(), None)
    own = x509.load_pem_x509_certificate((kit / "startup" / "client.crt").read_bytes())
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    built = x509.CertificateBuilder(root.subject, own.subject, own.public_key(), own.serial_number)
    signed = built.not_valid_before(now + since * day).not_valid_after(now + until * day).sign(key, hashes.SHA256())
    (kit / "startup" / "client.crt").write_bytes(signed.public_bytes(Encoding.PEM))


@pytest.mark.parametrize(("since", "until", "word"), [(-9.0, -1.0, "ended on"), (1.0, 9.0, "begins on")])
def test_time_of_certificates(kits: Kits, since: float, until: float, word: str) -> None:
    """Expired, or from the future by this machine's clock: the file, both times, what to do."""
    dated(kits.sites["a"], kits.folder / "ca", since, until)
    with pytest.raises(ConfigError, match=word) as caught:
        check_certificate(kits.sites["a"])
    problem = caught.value.problems[0]
    assert problem.where.endswith("client.crt")
    assert "clock" in problem.why
    assert "osmotic site kits" in problem.fix or "clock" in problem.fix


def test_a_key_that_others_may_read(kits: Kits) -> None:
    """Told with the command that mends it."""
    key = kits.sites["a"] / "startup" / "client.key"
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="others on this machine may read"):
        check_certificate(kits.sites["a"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("class_allow_list", ["*"]),
        ("class_allow_list", ["osmotic.runtime.nvflare."]),
        ("class_list_enforcement_mode", "warn"),
        ("allow_log_streaming", True),
        ("app_validator", None),
        ("components", []),
        ("something", 1),
    ],
)
def test_looser_settings_are_found(kits: Kits, key: str, value: Any) -> None:
    """Whatever differs is named by file and key; `harden` mends it."""
    path = kits.sites["a"] / "local" / "resources.json"
    path.write_text(json.dumps({**site_resources(), key: value}))
    assert [(problem.where, problem.path) for problem in check_hardened(kits.sites["a"])] == [(str(path), key)]
    harden(kits.sites["a"])
    assert check_hardened(kits.sites["a"]) == []


def test_processes_of_one_machine_know_each_other_by_certificate(kits: Kits) -> None:
    """Else any user of a machine could speak to its job process as the server does; looser is found, at the server too."""
    for kit in (kits.server, kits.sites["a"]):
        harden(kit)  # the server's settings name its folder, and this one is a copy
        path = kit / "local" / "comm_config.json"
        assert json.loads(path.read_text())["internal"]["resources"]["connection_security"] == "mtls"
        path.write_text(path.read_text().replace("mtls", "clear"))
        assert [(problem.where, problem.path) for problem in check_hardened(kit)] == [(str(path), "internal")]
        path.unlink()
        assert [problem.where for problem in check_hardened(kit)] == [str(path)]
        assert all("osmotic site harden" in problem.fix for problem in check_hardened(kit))
        harden(kit)
        assert check_hardened(kit) == []


def test_a_site_whose_clock_is_hours_behind_can_use_its_new_kit(kits: Kits) -> None:
    """Root and certificates are good since a day: clocks differ, and a kit is used as soon as it is made."""
    for kit in (kits.server, kits.sites["a"]):
        own, root = certificate(kit), load(kit / "startup" / "rootCA.pem")
        for one in (own, root):
            assert 0.9 < (datetime.datetime.now(datetime.UTC) - one.since).total_seconds() / 86400 < 1.1


def test_the_coordinators_socket_takes_the_own_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever else gets through to it is not read; nor does a job's process speak to a socket of somebody else."""
    came: list[Any] = []
    hub = lines.Hub(tmp_path / "home", tmp_path / "book.json", came.append)
    try:
        assert hub.path.stat().st_mode & 0o777 == 0o600
        with_us = lines.dial(tmp_path / "book.json")
        assert with_us is not None
        with with_us:
            with_us.write({"hello": "job", "sites": ["a"]})
            assert until(lambda: bool(came)) and hub.found()[0].job == "job"
        monkeypatch.setattr(lines.os, "getuid", lambda: os.geteuid() + 1)
        assert lines.dial(tmp_path / "book.json") is None
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(str(hub.path))
            assert other.recv(1) == b""  # closed, unread
    finally:
        hub.close()


def until(true: Callable[[], bool]) -> bool:
    """Wait a little for something that another thread does."""
    end = time.monotonic() + 10
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def test_settings_beside_ours_and_missing_ones_are_found(kits: Kits) -> None:
    """The engine would merge them; a plain kit has only its own defaults."""
    site = kits.sites["a"]
    (site / "local" / "more__resources.json").write_text("{}")
    (site / "local" / "custom").mkdir()
    (site / "local" / "authorization.json").unlink()
    found = {Path(problem.where).name for problem in check_hardened(site)}
    assert found == {"more__resources.json", "custom", "authorization.json"}


def test_rights_at_a_site(kits: Kits) -> None:
    """Nobody may ship code, use a shell, read logs or stop the site; roles that are not named may nothing."""
    rights = json.loads((kits.sites["a"] / "local" / "authorization.json").read_text())["permissions"]
    assert list(rights) == ["project_admin"]
    allowed = {right for right, whom in rights["project_admin"].items() if whom != "none"}
    assert allowed == {"submit_job", "manage_job"}


def test_the_coordinators_kit_starts_nothing(kits: Kits) -> None:
    """It is no site and no server."""
    with pytest.raises(RefusedError):
        harden(kits.admin)
    with pytest.raises(ConfigError, match="no kit"):
        Kit.read(kits.folder)


def job(tmp_path: Path) -> Path:
    """A job as it arrives at a site."""
    return job_folder(tmp_path, ["a"]) / "app"


def test_our_job_is_taken(tmp_path: Path) -> None:
    """With the signatures that the engine's library adds."""
    from osmotic.runtime.nvflare.site.guard import surplus

    app = job(tmp_path)
    for folder in (app, app / "config"):
        (folder / ".__nvfl_sig.json").write_text("{}")
    assert surplus(app) == ""


@pytest.mark.parametrize("name", ["custom/evil.py", "evil.py", "config/evil.json", "config/x.so", ".__nvfl_sig.json/evil.py"])
def test_a_job_with_more_is_refused(tmp_path: Path, name: str) -> None:
    """Whatever it is and wherever it lies."""
    from osmotic.runtime.nvflare.site.guard import surplus

    app = job(tmp_path)
    (app / name).parent.mkdir(parents=True, exist_ok=True)
    (app / name).write_text("")
    assert "came with it" in surplus(app)


def test_a_link_in_a_job_is_refused(tmp_path: Path) -> None:
    """Not followed."""
    from osmotic.runtime.nvflare.site.guard import surplus

    app = job(tmp_path)
    (app / "config" / "config_fed_server.json").unlink()
    (app / "config" / "config_fed_server.json").symlink_to("/etc/passwd")
    assert surplus(app)


@pytest.mark.parametrize(
    "change",
    [
        {"executors": [{"tasks": ["osmotic"], "executor": {"path": "nvflare.app_common.np.np_trainer.NPTrainer", "args": {}}}]},
        {
            "executors": [
                {"tasks": ["osmotic"], "executor": {**client_config()["executors"][0]["executor"], "args": {"path": "/"}}}
            ]
        },
        {"components": [{"id": "x", "path": "nvflare.app_common.logging.job_log_streamer.JobLogStreamer", "args": {}}]},
        {"task_data_filters": [{"tasks": ["*"], "filters": [{"path": "os.system"}]}]},
        {"extra": 1},
    ],
)
def test_a_job_with_another_configuration_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """Other classes, arguments for ours, filters, components."""
    from osmotic.runtime.nvflare.site.guard import surplus

    app = job(tmp_path)
    (app / "config" / "config_fed_client.json").write_text(json.dumps({**client_config(), **change}))
    assert "other classes" in surplus(app)


def test_parts_of_a_job_are_looked_at_once_more() -> None:
    """The executor without arguments, and nothing else, whatever the job says of itself."""
    from osmotic.runtime.nvflare.site.guard import refusal

    ours = client_config()["executors"][0]["executor"]
    assert refusal(ours) == ""
    for asked in (
        None,
        {},
        {"path": "subprocess.Popen"},
        {**ours, "args": {"x": 1}},
        {**ours, "name": "x"},
        {"class_path": ours["path"]},
    ):
        assert refusal(asked)


def test_without_the_extra_the_command_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A sentence and a command, no stack trace of an import."""
    monkeypatch.setattr(extra.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        provision(tmp_path / "d", "localhost", ["a"])
    assert "pip install 'osmotic[nvflare]'" in str(caught.value)


def test_another_version_of_the_engine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """2.9 was tried; 2.10 is another one."""
    monkeypatch.setattr(extra, "version", lambda: "2.10.1")
    with pytest.raises(ConfigError, match=r"NVFlare 2\.10\.1 is installed"):
        extra.need_extra()
