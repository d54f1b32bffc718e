# SPDX-License-Identifier: Apache-2.0
"""Kits and site folders, as their operators make them: what is refused says where and how to mend it. No engine is started."""

import datetime
import importlib.util
import json
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("nvflare", reason="the extra nvflare is not installed")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from osmotic.runtime import cli
from osmotic.runtime.nvflare.kits import packing
from osmotic.runtime.nvflare.server import listing
from osmotic.runtime.nvflare.server.deployment import suggestion
from osmotic.schemas.errors import ConfigError

POLICY = """osmotic_sites: 1
parties:
  north:
    data: {numbers: {path: numbers.jsonl, schema: schema.yaml}}
    budget: {numbers: {per_document: 4}}
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's folder with kits of two sites."""
    from osmotic.runtime.nvflare.server.deployment import make_kits

    folder = tmp_path_factory.mktemp("deployment") / "osmotic-server"
    make_kits(folder, "localhost", ["north", "south"], server="hub", port=18777)
    return folder


@pytest.fixture
def bench(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as an operator has it: the kit of north, a policy, its records."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OSMOTIC_PLUGINS", "")
    shutil.copyfile(made / "kits" / "north.zip", tmp_path / "north.zip")
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "schema.yaml").write_text("fields: {colour: {domain: [red, green]}}\n")
    (tmp_path / "numbers.jsonl").write_text('{"id": "a", "colour": "red"}\n')
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """`osmotic ARGUMENTS`: (exit code, what it printed, what it complained of)."""

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["osmotic", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        shown = capsys.readouterr()
        assert "Traceback" not in shown.out + shown.err
        return int(caught.value.code or 0), shown.out, shown.err

    yield command


def settled(run: Run) -> None:
    code, _, error = run("site", "init", "north.zip", "--policy", "policy.yaml")
    assert code == 0, error


def test_kits_tell_what_to_compare_and_the_server_keeps_no_key_of_a_site(made: Path) -> None:
    told = json.loads((made / "osmotic-server.json").read_text())
    assert told["sites"] == ["north", "south"] and told["party"] == "hub"
    assert not list((made / "sites").glob("*")) and (made / "kits/north.zip").stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(made / "kits/north.zip") as archive:
        assert json.loads(archive.read("osmotic-kit.json"))["party"] == "north"
    assert b"north" not in (made / "ca/cert.json").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["localhost", "--sites", "Köln Süd"], ["'Köln Süd' is no name of a party", "write 'koln-sud'"]),
        (["localhost", "--sites", "a b,a"], ["'a b' is no name of a party", "write 'a-b'"]),
        (["localhost", "--sites", "a,a"], ["named twice: a"]),
        (["localhost", "--sites", "server"], ["'server' can be no site's name"]),
        (["localhost", "--sites", "hub", "--server", "hub"], ["the server has that name"]),
        (["--sites", "a"], ["which machine will the sites connect to?"]),
        (["no host", "--sites", "a"], ["'no host' is no name of a machine"]),
        (["localhost", "--sites", "a", "--port", "70000"], ["port"]),
        (["localhost", "--sites", "a", "--renew", "b"], ["'b' has no kit that could be renewed", "known: a, admin, server"]),
    ],
)
def test_what_is_wrong_with_kits_is_said_before_any_is_made(
    arguments: list[str], said: list[str], bench: Path, run: Run
) -> None:  # fmt: skip
    code, _, error = run("site", "kits", *arguments)
    assert code == 2 and all(part in error for part in said), error
    assert not (bench / "osmotic-server").exists() or not (bench / "osmotic-server" / "osmotic-server.json").exists()


def test_a_further_site_and_a_new_certificate_under_the_same_root(made: Path, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "server"
    shutil.copytree(made, folder)
    old = (folder / "kits/north.zip").read_bytes()
    code, text, error = run("site", "kits", "--sites", "east", "--renew", "north", "--out", str(folder), "--json")
    assert code == 0, error
    assert sorted(json.loads(text)["kits"]) == ["east", "north"]
    roots = []
    for name in ("north", "east", "south"):
        with zipfile.ZipFile(folder / "kits" / f"{name}.zip") as archive:
            roots.append(archive.read("startup/rootCA.pem"))
    assert len(set(roots)) == 1 and (folder / "kits/north.zip").read_bytes() != old
    assert json.loads((folder / "osmotic-server.json").read_text())["sites"] == ["east", "north", "south"]
    code, _, error = run("site", "kits", "other.example.org", "--sites", "west", "--out", str(folder))
    assert code == 2 and "this deployment's host is 'localhost', not 'other.example.org'" in error


def test_a_site_is_made_shown_and_checked(bench: Path, run: Run) -> None:
    code, text, error = run("site", "init", "north.zip", "--policy", "policy.yaml")
    assert code == 0, error
    for part in (
        "north: a site of hub at localhost:18777",
        "certificate: valid",
        "document 4",
        "public key ",
        "next: osmotic join",
    ):
        assert part in text
    site = bench / "osmotic-site"
    assert json.loads((site / "local/osmotic-site.json").read_text())["policy"] == str(bench / "policy.yaml")
    assert all(
        path.stat().st_mode & 0o077 == 0 for path in (site, site / "startup/client.key", site / "local/osmotic-site.json")
    )
    code, text, _ = run("site", "check", "--json")
    assert code == 0 and json.loads(text)["party"] == "north" and json.loads(text)["warnings"] == []
    identity = json.loads(text)["identity"]
    code, text, error = run("keys", "identity", "osmotic-site")
    assert code == 0 and text == f"north: {identity}\n" and len(identity) == 64, error
    before = {path: path.read_bytes() for path in site.rglob("*") if path.is_file()}
    code, _, error = run("site", "init", "north.zip", "--policy", "policy.yaml")
    assert code == 2 and "there is a site in this folder already" in error
    assert {path: path.read_bytes() for path in site.rglob("*") if path.is_file()} == before


def test_a_folder_of_other_things_is_left_alone(bench: Path, run: Run) -> None:
    (bench / "osmotic-site").mkdir()
    (bench / "osmotic-site" / "diary.txt").write_text("dear diary")
    code, _, error = run("site", "init", "north.zip", "--policy", "policy.yaml")
    assert code == 2 and "the folder is not empty" in error


# what is done to the bench, the exit code, what is said
WRONG: list[tuple[str, Callable[[Path], Any], int, list[str]]] = [
    ("no kit", lambda f: (f / "north.zip").unlink(), 2, ["there is no such kit"]),
    ("no archive", lambda f: (f / "north.zip").write_text("hello"), 2, ["the kit is damaged, or no zip file"]),
    ("cut off", lambda f: (f / "north.zip").write_bytes((f / "north.zip").read_bytes()[:3000]), 2, ["the kit is damaged"]),
    ("a path that leads out", lambda f: _with(f, "../evil.txt", b"x"), 2, ["'../evil.txt', which no kit has"]),
    ("an absolute path", lambda f: _with(f, "/etc/evil", b"x"), 2, ["which no kit has"]),
    ("code in it", lambda f: _with(f, "custom/evil.py", b"x"), 2, ["'custom/evil.py', which no kit has"]),
    ("too large", lambda f: _with(f, "local/big", bytes(5 << 20)), 2, ["the kit is too large"]),
    ("another party", lambda f: _about(f, party="south"), 2, ["the kit says 'south', its certificate 'north'"]),
    ("an odd party", lambda f: _about(f, party="No One"), 2, ["osmotic-kit.json:", "party"]),
    ("no policy", lambda f: (f / "policy.yaml").unlink(), 2, ["policy.yaml no such file"]),
    (
        "an unknown key",
        lambda f: _policy(f, "budget:", "budgte:"),
        2,
        ["policy.yaml:5:5", "unknown key", "did you mean 'budget'?"],
    ),
    ("another party's", lambda f: _policy(f, "north:", "nord:"), 2, ["the policy file has no party 'north'", "'nord'"]),
    ("a pipeline", lambda f: (f / "policy.yaml").write_text("tasks: {}\n"), 2, ["this is a pipeline, not a file"]),
    ("no records", lambda f: (f / "numbers.jsonl").unlink(), 3, ["the file of 'numbers' is not there"]),
    ("no schema", lambda f: (f / "schema.yaml").unlink(), 3, ["the schema of 'numbers'", "schema.yaml"]),
]


@pytest.mark.parametrize(("spoil", "exit_code", "said"), [one[1:] for one in WRONG], ids=[one[0] for one in WRONG])
def test_a_site_that_cannot_be_made_leaves_nothing(
    spoil: Callable[[Path], Any], exit_code: int, said: list[str], bench: Path, run: Run
) -> None:
    spoil(bench)
    code, _, error = run("site", "init", "north.zip", "--policy", "policy.yaml")
    assert code == exit_code and all(part in error for part in said), error
    assert not (bench / "osmotic-site").exists() and not list(bench.glob(".making-*"))
    assert not (bench.parent / "evil.txt").exists()


def test_the_digest_that_was_told_is_compared(bench: Path, run: Run) -> None:
    code, _, error = run("site", "init", "north.zip", "--policy", "policy.yaml", "--sha256", "0" * 64)
    assert code == 2 and "this is not the kit that was made at the server" in error
    code, _, error = run(
        "site", "init", "north.zip", "--policy", "policy.yaml", "--sha256", packing.digest(bench / "north.zip")
    )
    assert code == 0, error


def test_only_a_kit_of_this_site_renews_it(bench: Path, made: Path, tmp_path: Path, run: Run) -> None:
    settled(run)
    site, server = bench / "osmotic-site", tmp_path / "server"
    code, _, error = run("site", "renew", str(made / "kits/south.zip"))
    assert code == 2 and "the kit is that of 'south'" in error
    shutil.copytree(made, server)
    run("site", "kits", "--renew", "north", "--out", str(server))
    mine, before = site / "local/osmotic-site.json", (site / "startup/client.crt").read_bytes()
    kept = mine.read_bytes()
    code, _, error = run("site", "renew", str(server / "kits/north.zip"))
    assert code == 0, error
    assert (site / "startup/client.crt").read_bytes() != before and mine.read_bytes() == kept
    assert (site / "startup.old/client.crt").read_bytes() == before


@pytest.mark.parametrize(
    ("days", "code", "said"),
    [(-1.0, 2, "the certificate of north ended on"), (10.0, 0, "the certificate is valid for 10 more days")],
)
def test_a_certificate_that_ends(days: float, code: int, said: str, bench: Path, made: Path, run: Run) -> None:
    settled(run)
    _certify(made, bench / "osmotic-site", days)
    found, text, error = run("site", "check")
    assert found == code and said in text + error and "osmotic site kits" in text + error
    if code:
        assert "client.crt" in error
        assert run("join")[0] == 2  # nothing is started


def test_a_certificate_of_another_root(bench: Path, made: Path, tmp_path: Path, run: Run) -> None:
    from osmotic.runtime.nvflare.server.deployment import make_kits

    settled(run)
    make_kits(tmp_path / "other", "localhost", ["north"], server="hub", port=18777)
    with zipfile.ZipFile(tmp_path / "other/kits/north.zip") as archive:
        for name in ("client.crt", "client.key"):
            (bench / "osmotic-site/startup" / name).write_bytes(archive.read(f"startup/{name}"))
    code, _, error = run("site", "check")
    assert code == 2 and "was not made by the root certificate beside it" in error


def test_loose_settings_are_found_and_written_again(bench: Path, run: Run) -> None:
    settled(run)
    file = bench / "osmotic-site/local/resources.json"
    loose = json.loads(file.read_text())
    loose["allow_log_streaming"] = True
    file.write_text(json.dumps(loose))
    code, _, error = run("site", "check")
    assert code == 2 and "resources.json allow_log_streaming" in error
    assert run("join")[0] == 2
    assert run("site", "harden")[0] == 0 and run("site", "check")[0] == 0


@pytest.mark.parametrize("name", ["osmotic-site/local/osmotic-site.json", "osmotic-site", "policy.yaml"])
def test_what_others_may_write_decides_nothing(name: str, bench: Path, run: Run) -> None:
    """Another user of the machine could give himself a waiver, or the site another policy."""
    settled(run)
    path = bench / name
    path.chmod(path.stat().st_mode | 0o002)
    for command in (("site", "check"), ("join",)):
        code, _, error = run(*command)
        assert code == 2 and "others on this machine may write what decides here" in error
        assert f"chmod o-w {name}" in error.replace(f"{bench}/", "")
    path.chmod(path.stat().st_mode & ~0o002)
    assert run("site", "check")[0] == 0


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"tells": "reasons"', '"tells": "all"', "tells"),
        ('"party": "north"', '"partie": "north"', "did you mean 'party'?"),
        ('"party": "north"', '"party": "south"', "the policy file has no party 'south'"),
        ('"osmotic_site": 1', '"osmotic_site": 2', "osmotic_site"),
    ],
)
def test_a_site_file_that_is_wrong_is_located(old: str, new: str, said: str, bench: Path, run: Run) -> None:
    settled(run)
    file = bench / "osmotic-site/local/osmotic-site.json"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    code, _, error = run("site", "check")
    assert code == 2 and said in error and ("osmotic-site.json:" in error or "policy.yaml:" in error), error


def test_a_folder_that_is_no_site_or_no_server(bench: Path, run: Run) -> None:
    for command in (["join"], ["site", "check"], ["site", "harden"]):
        code, _, error = run(*command)
        assert code == 2 and "this folder is no site" in error and "osmotic site init" in error
    for command in (["serve", "fedcot"], ["sites"], ["serve"]):
        code, _, error = run(*command)
        assert code == 2 and "this folder is no server's" in error and "osmotic site kits" in error


@pytest.mark.parametrize(
    ("set_", "said"),
    [
        (
            "parties.clients=[north,souht]",
            [
                "--set parties.clients=[north,souht] parties.clients:",
                "there is no site 'souht'",
                "did you mean 'south'?",
                "--sites souht",
            ],
        ),
        ("parties.server=boss", ["the pipeline's server is 'boss'; this machine is 'hub'", "--set parties.server=hub"]),
    ],
)
def test_a_pipeline_of_other_parties(set_: str, said: list[str], made: Path, bench: Path, run: Run) -> None:
    code, _, error = run("serve", "fedcot", "--folder", str(made), "--set", set_)
    assert code == 2 and all(part in error for part in said), error
    code, _, error = run("serve", "fedcot", "--folder", str(made), "--wait", "soon")
    assert code == 2 and "'soon' is no span of time" in error


def test_without_the_extra_it_is_said_how_to_get_it(
    bench: Path, made: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    settled(run)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "nvflare" else real(name, *more))
    for command in (
        ["site", "kits", "localhost", "--sites", "a"],
        ["site", "init", "north.zip", "--policy", "policy.yaml", "--folder", "other"],
        ["site", "check"],
        ["join"],
        ["serve", "fedcot", "--folder", str(made)],
        ["serve", "--folder", str(made)],
        ["sites", "--folder", str(made)],
    ):
        code, _, error = run(*command)
        assert code == 2 and "pip install 'osmotic[nvflare]'" in error, (command, error)
    assert not (bench / "other").exists()


def test_who_was_there_is_told_while_the_server_is_down(made: Path, tmp_path: Path, run: Run) -> None:
    folder, now = tmp_path / "server", time.time()
    shutil.copytree(made, folder)
    until = datetime.datetime.fromtimestamp(now + 20.5 * 86400, datetime.UTC).isoformat()
    facts = {"osmotic": "0.1.0", "python": "3.11.7", "policy": "ab" * 32, "certificate": {"until": until}, "evil": "x" * 999}
    listing.remember(folder, {"north": facts})
    code, text, error = run("sites", "--folder", str(folder))
    assert code == 0, error
    assert (
        "server: down" in text and "20 days" in text and "never" in text and "evil" not in (folder / "sites.json").read_text()
    )
    code, text, _ = run("sites", "--folder", str(folder), "--json")
    rows = {row["site"]: row for row in json.loads(text)["sites"]}
    assert rows["north"]["osmotic"] == "0.1.0" and rows["south"]["seen"] is None and not rows["north"]["here"]
    (folder / "sites.json").write_text("{broken")
    assert run("sites", "--folder", str(folder))[0] == 0


def test_names_are_suggested() -> None:
    found = [suggestion(name) for name in ("Köln Süd", "St. Mary's", "42", "a--b", "Ärzte_1", "北京")]
    assert found == ["koln-sud", "st-mary-s", "site-42", "a-b", "arzte_1", "site"]


def test_an_unpacked_kit_is_a_kit_too_but_not_with_links(bench: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "unpacked", tmp_path / "out"
    with zipfile.ZipFile(bench / "north.zip") as archive:
        archive.extractall(folder)
    assert packing.unpack(folder, out).party == "north"
    (folder / "local" / "link").symlink_to("/etc/hosts")
    with pytest.raises(ConfigError, match="a link in it"):
        packing.unpack(folder, tmp_path / "again")


def _with(folder: Path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(folder / "north.zip", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)


def _about(folder: Path, **changed: str) -> None:
    with zipfile.ZipFile(folder / "north.zip") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries["osmotic-kit.json"] = json.dumps({**json.loads(entries["osmotic-kit.json"]), **changed}).encode()
    with zipfile.ZipFile(folder / "north.zip", "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def _policy(folder: Path, old: str, new: str) -> None:
    (folder / "policy.yaml").write_text(POLICY.replace(old, new))


def _certify(made: Path, site: Path, days: float) -> None:
    """Give a site a certificate by the deployment's root that ends in so many days."""
    root = json.loads((made / "ca/cert.json").read_text())
    texts = [value.encode() for value in root.values() if isinstance(value, str)]
    issuer = x509.load_pem_x509_certificate(next(text for text in texts if b"CERTIFICATE" in text))
    signer = serialization.load_pem_private_key(next(text for text in texts if b"PRIVATE" in text), None)
    key, now = rsa.generate_private_key(65537, 2048), datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "north")]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=20))
        .not_valid_after(now + datetime.timedelta(days=days, minutes=5))
        .sign(signer, hashes.SHA256())  # type: ignore[arg-type]
    )
    (site / "startup/client.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    (site / "startup/client.key").write_bytes(private)


def test_a_certificate_that_ends_while_the_site_takes_part_is_said_once(bench: Path, made: Path, run: Run) -> None:
    """A connection outlives it; when it is gone there is no other, and `the server is away` would be half of it."""
    from osmotic.runtime.nvflare.site import joining

    settled(run)
    folder, said, state = bench / "osmotic-site", list[str](), joining.State(connected=True)
    parent: Any = SimpleNamespace(pid=os.getpid())
    site = joining.look(folder)
    joining._told(folder, site, parent, state, said.append)
    assert said == ["north: the server is away; it is tried again"]
    _certify(made, folder, -1.0)
    for _ in range(2):
        joining._told(folder, site, parent, state, said.append)
    assert len(said) == 2 and "the certificate of north ended on" in said[1] and "--renew" in said[1]
