# SPDX-License-Identifier: Apache-2.0
"""Kits for the parties of a deployment, made by NVFlare's library at the server: one root certificate, a kit a party.

``FOLDER/server`` and ``FOLDER/admin`` stay there, ``FOLDER/sites/NAME`` goes to that site (and is removed here afterwards: it
holds the site's private key), ``FOLDER/ca`` holds the root's private key: whoever has it can make a kit in any name.
"""

import contextlib
import io
import json
import logging
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from osmotic.runtime.nvflare.extra import need_extra
from osmotic.runtime.nvflare.kits import kit as kits
from osmotic.runtime.nvflare.kits.harden import harden
from osmotic.runtime.storage.durable import own_folder, write_whole
from osmotic.runtime.storage.store import disk
from osmotic.schemas.errors import ConfigError, Problem

ADMIN = "coordinator@osmotic.local"
PROJECT = "osmotic"
ROOT_DAYS = 3650
SCHEME = "grpc"
STATE = "cert.json"  # where the library keeps the root


@dataclass(frozen=True)
class Kits:
    """Folders of the kits. sites: those that exist at this machine."""

    folder: Path
    server: Path
    admin: Path
    sites: dict[str, Path]

    @staticmethod
    def at(folder: Path) -> "Kits":
        """The kits of a deployment that was made before; raises ConfigError where there are none."""
        server, admin = folder / "server", folder / "admin"
        if not (server / "startup").is_dir() or not (admin / "startup").is_dir():
            fix = "make it first: osmotic site kits HOST --sites a,b,c"
            raise ConfigError(Problem("there is no deployment in this folder", str(folder), fix=fix))
        found = sorted((folder / "sites").glob("*/startup"))
        return Kits(folder, server, admin, {path.parent.name: path.parent for path in found})


def provision(
    folder: Path,
    host: str,
    sites: Sequence[str],
    *,
    port: int = 8002,
    hosts: Sequence[str] = (),
    days: int = 360,
    renew: Collection[str] = (),
) -> Kits:
    """Make what is missing: root, server and admin kit once, a kit for every site in `sites` that has none.

    host: the name or address that sites connect to; hosts: other names of the same machine. days: how long certificates are
    good. renew: sites (or "server", "admin") that get a new key and certificate. Raises ConfigError, before anything is made.
    """
    need_extra()
    _check(host, sites, port, days)
    own_folder(folder)
    wanted = [name for name in sites if name in renew or not (folder / "sites" / name / "startup").is_dir()]
    anew = [name for name in ("server", "admin") if name in renew or not (folder / name / "startup").is_dir()]
    if "server" not in anew:
        _same(folder / "server", host, port)
    if wanted or anew:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as scratch:
            _make(folder, Path(scratch), host, [port, days], list(hosts), wanted, anew)
    return Kits.at(folder)


def _check(host: str, sites: Sequence[str], port: int, days: int) -> None:
    from nvflare.apis.utils.format_check import name_check

    problems = []
    if name_check(host, "server")[0] or len(host) > 63:
        fix = "write the name or the IPv4 address that sites connect to, e.g. fl.hospital.org"
        problems.append(
            Problem(f"{host!r} is no name of a machine", path="host", why="letters, digits, - and ., at most 63", fix=fix)
        )
    for name in sites:
        if name_check(name, "client")[0] or name in ("server", "admin") or len(name) > 63:
            problems.append(Problem(f"{name!r} is no name of a site", path="sites", why="letters, digits, - and _, at most 63"))
    if doubled := sorted({name for name in sites if sites.count(name) > 1}):
        problems.append(Problem(f"named twice: {', '.join(doubled)}", path="sites"))
    if not 0 < port < 65536:
        problems.append(Problem(f"{port} is no port", path="port", fix="1 to 65535; 8002 is usual"))
    if not 0 < days <= ROOT_DAYS:
        problems.append(Problem(f"certificates cannot be good for {days} days", path="days", fix=f"1 to {ROOT_DAYS}"))
    if problems:
        raise ConfigError(*problems)


def _same(server: Path, host: str, port: int) -> None:
    found = kits.Kit.read(server)
    if (found.name, found.port) != (host, port):
        what = f"this deployment's server is {found.name}:{found.port}, not {host}:{port}"
        fix = "give the same host and port, or make another deployment with --out"
        raise ConfigError(Problem(what, str(server), fix=fix))


def _make(
    folder: Path, scratch: Path, host: str, times: list[int], hosts: list[str], sites: list[str], anew: list[str]
) -> None:
    ca = own_folder(folder / "ca") / STATE
    state = scratch / PROJECT / "state"
    state.mkdir(parents=True)
    if ca.is_file():
        shutil.copyfile(ca, state / STATE)
    made = _run(scratch, host, times[0], hosts, sites, times[1])
    root = {
        key: value for key, value in json.loads((state / STATE).read_text(encoding="utf-8")).items() if isinstance(value, str)
    }
    write_whole(ca, json.dumps(root).encode())  # the root alone: private keys of sites are nobody else's
    with disk(folder):
        for name, source in (("server", host), ("admin", ADMIN)):
            if name in anew:
                _put(made / source, folder / name)
        for site in sites:
            own_folder(folder / "sites")
            _put(made / site, folder / "sites" / site)


def _put(made: Path, kit: Path) -> None:
    """The new kit in place of an old one; settings and what ran in the old one stay."""
    if kit.is_dir():
        shutil.rmtree(kit / "startup")
        shutil.move(made / "startup", kit / "startup")
    else:
        shutil.move(made, kit)
        kit.chmod(0o700)
        (kit / "startup").chmod(0o700)
    if kits.Kit.read(kit).kind != "admin":
        harden(kit)


def _run(scratch: Path, host: str, port: int, hosts: list[str], sites: list[str], days: int) -> Path:
    from nvflare.lighter.constants import CtxKey
    from nvflare.lighter.impl.static_file import StaticFileBuilder
    from nvflare.lighter.impl.workspace import WorkspaceBuilder
    from nvflare.lighter.provisioner import Provisioner

    project, said = _project(host, port, hosts, sites), Said()
    builders = [WorkspaceBuilder(), StaticFileBuilder(config_folder="config", scheme=SCHEME), _certificates(days)]
    try:
        with quiet():
            context = Provisioner(str(scratch), builders).provision(project, logger=said)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(Problem("the kits could not be made", why=str(error))) from error
    if context.get(CtxKey.BUILD_ERROR):
        raise ConfigError(Problem("the kits could not be made", why="; ".join(said.wrong)))
    return Path(context[CtxKey.CURRENT_PROD_DIR])


def _project(host: str, port: int, hosts: list[str], sites: list[str]) -> Any:
    from nvflare.lighter.entity import Project

    project = Project(PROJECT, "osmotic")
    props: dict[str, Any] = {"fed_learn_port": port, "admin_port": port, "default_host": host}
    if hosts:
        props["host_names"] = list(hosts)
    project.set_server(host, PROJECT, props)
    for site in sites:
        project.add_client(site, PROJECT, {})
    project.add_admin(ADMIN, PROJECT, {"role": "project_admin"})
    return project


def _certificates(days: int) -> Any:
    """The library's builder, whose certificates for parties are good for so many days."""
    from nvflare.lighter.impl.cert import CertBuilder

    class Certificates(CertBuilder):  # type: ignore[misc]
        """Like its base, with another end."""

        def _generate_cert(self, *args: Any, **options: Any) -> Any:
            now = datetime.now(UTC).replace(microsecond=0)
            options["not_valid_before"] = since = now - timedelta(days=1)  # clocks differ
            if options.get("ca"):
                options["not_valid_after"] = since + timedelta(days=ROOT_DAYS)  # the library looks whether it is that long
            else:
                options["not_valid_after"] = min(now + timedelta(days=days), self.root_cert.not_valid_after_utc)
            return super()._generate_cert(*args, **options)

    return Certificates(root_valid_days=ROOT_DAYS)


class Said:
    """What the library tells while it makes kits; its errors are kept."""

    def __init__(self) -> None:
        self.wrong: list[str] = []

    def debug(self, text: str) -> None:
        """Not needed."""

    info = warning = debug

    def error(self, text: str) -> None:
        """Why it failed."""
        self.wrong.append(text)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The library prints and logs as it goes; here it does not."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
