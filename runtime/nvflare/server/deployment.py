# SPDX-License-Identifier: Apache-2.0
"""The server's folder: kits are made here, and what was made is kept in ``osmotic-server.json``.

Running it again makes kits for further sites, or new certificates (`renew`), under the same root certificate.
"""

import json
import re
import shutil
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from osmotic.runtime.nvflare.kits import packing
from osmotic.runtime.storage.durable import write_whole
from osmotic.runtime.storage.store import disk
from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.pipeline import NAME
from osmotic.schemas.site import KitFile, ServerFile
from osmotic.schemas.source import did_you_mean, read, validate

FILE = "osmotic-server.json"
LONGEST = 63  # letters of a name in a certificate


@dataclass(frozen=True)
class Made:
    """A kit that was made: the archive, its SHA-256, until when its certificate is good."""

    name: str
    archive: Path
    sha256: str
    until: datetime


def read_server(folder: Path) -> ServerFile:
    """The server's file; raises ConfigError where there is none, located where it is wrong."""
    path = folder / FILE
    if not path.is_file():
        fix = "make it: osmotic site kits HOST --sites NAME,NAME; or name the folder with --folder"
        raise ConfigError(Problem("this folder is no server's: it has no server file", str(path), fix=fix))
    return validate(ServerFile, read(path))


def make_kits(
    folder: Path, host: str | None, sites: Sequence[str], *, server: str | None = None, port: int | None = None,
    hosts: Sequence[str] = (), days: int | None = None, renew: Sequence[str] = (),
) -> tuple[ServerFile, list[Made]]:  # fmt: skip
    """Make kits for `sites` that have none and new ones for `renew` ('server' and 'admin' too); (server file, archives).

    What is None is as it was before, or the default. Raises ConfigError with every problem before anything is made.
    """
    from osmotic.runtime.nvflare.kits.kit import certificate
    from osmotic.runtime.nvflare.kits.provision import provision

    known = read_server(folder) if (folder / FILE).is_file() else None
    _check_folder(folder, known)
    wanted = _wanted(folder, host, sites, server, port, hosts, days, known)
    problems = [*name_problems(sites, wanted.party), *_renewable(renew, known, sites)]
    if problems:
        raise ConfigError(*problems)
    before = () if known is None else known.sites
    new = [*[site for site in sites if site not in before or site in renew], *[name for name in renew if name in before]]
    new = list(dict.fromkeys(new))
    made = provision(folder, wanted.host, new, port=wanted.port, hosts=wanted.hosts, days=wanted.days, renew=[*renew, *new])
    archives = []
    for name in new:
        archive, kit = folder / "kits" / f"{name}.zip", made.sites[name]
        about = KitFile(osmotic_kit=1, party=name, server=wanted.party, host=wanted.host, port=wanted.port)
        archives.append(Made(name, archive, packing.pack(kit, about, archive), certificate(kit).until))
        shutil.rmtree(kit)  # the archive has the site's key, and one place is enough
    told = wanted.model_copy(update={"sites": tuple(sorted({*before, *sites}))})
    write_whole(folder / FILE, (json.dumps(told.model_dump(), indent=1) + "\n").encode())
    return told, archives


def _check_folder(folder: Path, known: ServerFile | None) -> None:
    """Raise ConfigError for a folder that has other things in it."""
    with disk(folder):
        if known is None and folder.is_dir() and any(folder.iterdir()):
            what, fix = "the folder is not empty, and no server's", "name another with --out"
            raise ConfigError(Problem(what, str(folder), why="nothing is written over", fix=fix))


def _wanted(
    folder: Path, host: str | None, sites: Sequence[str], server: str | None, port: int | None, hosts: Sequence[str],
    days: int | None, known: ServerFile | None,
) -> ServerFile:  # fmt: skip
    chosen = known.port if known else 8002, known.days if known else 360
    _check_numbers(server or "server", port if port is not None else chosen[0], days if days is not None else chosen[1])
    if known is None:
        if host is None:
            fix = "osmotic site kits server.example.org --sites a,b,c"
            raise ConfigError(Problem("which machine will the sites connect to?", path="HOST", fix=fix))
        return ServerFile(
            osmotic_server=1, party=server or "server", host=host, port=port or 8002, hosts=tuple(hosts),
            days=days or 360, server="server", admin="admin", sites=(),
        )  # fmt: skip
    given = {"host": host, "port": port, "party": server}
    for key, value in given.items():
        if value is not None and value != getattr(known, key):
            what = f"this deployment's {'server' if key == 'party' else key} is {getattr(known, key)!r}, not {value!r}"
            why = "it stands in the kits that were made before"
            raise ConfigError(Problem(what, str(folder / FILE), key, why, "make another deployment with --out"))
    return known.model_copy(update={"days": days or known.days, "hosts": tuple(hosts) or known.hosts})


def _check_numbers(server: str, port: int, days: int) -> None:
    """Raise ConfigError for what no server file can say."""
    problems = [] if (odd := _odd(server, "--server")) is None else [odd]
    if not 0 < port < 65536:
        problems.append(Problem(f"{port} is no port", path="--port", fix="1 to 65535; 8002 is usual"))
    if days < 1:
        problems.append(Problem(f"certificates cannot be valid for {days} days", path="--days", fix="360 is usual"))
    if problems:
        raise ConfigError(*problems)


def _odd(name: str, path: str) -> Problem | None:
    if re.fullmatch(NAME, name) and len(name) <= LONGEST:
        return None
    why = "lower-case letters, digits, '_' and '-', a letter first, at most 63: it stands in the certificate"
    return Problem(
        f"{name!r} is no name of a party", path=path, why=why, fix=f"write {suggestion(name)!r}, in the pipeline too"
    )


def name_problems(names: Sequence[str], server: str) -> list[Problem]:
    """What is wrong with names of sites: they stand in pipelines, certificates and folders."""
    problems = []
    for name in names:
        if (odd := _odd(name, "--sites")) is not None:
            problems.append(odd)
        elif name in ("server", "admin", "ca", server):
            why = "the server has that name" if name == server else "it has a meaning of its own here"
            problems.append(Problem(f"{name!r} can be no site's name", path="--sites", why=why, fix="choose another"))
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        problems.append(Problem(f"named twice: {', '.join(doubled)}", path="--sites", fix="a kit a site"))
    return problems


def suggestion(name: str) -> str:
    """The nearest name that can be one: 'Köln Süd' -> 'koln-sud'."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9_]+", "-", plain).strip("-_")
    words = words if words[:1].isalpha() else f"site-{words}".strip("-")
    return re.sub(r"-+", "-", words)[:LONGEST].strip("-")


def _renewable(renew: Sequence[str], known: ServerFile | None, sites: Sequence[str]) -> list[Problem]:
    have = {"server", "admin", *(known.sites if known else ()), *sites}
    return [
        Problem(f"{name!r} has no kit that could be renewed", path="--renew", fix=did_you_mean(name, have))
        for name in renew
        if name not in have
    ]
