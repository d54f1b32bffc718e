# SPDX-License-Identifier: Apache-2.0
"""A site's kit as one file to carry to its machine, and back into a folder there.

The archive holds the site's private key: whoever has it is that site. Unpacking trusts nothing in it: no path that leads out of
the folder, no link, no more and no larger files than a kit has.
"""

import hashlib
import io
import json
import os
import shutil
import zipfile
from pathlib import Path, PurePosixPath

from osmotic.runtime.storage.durable import own_folder, write_whole
from osmotic.runtime.storage.store import disk
from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.site import KitFile
from osmotic.schemas.source import parse, validate

FILE = "osmotic-kit.json"
PARTS = ("startup", "local", "transfer")
MOST_FILES = 200
MOST_BYTES = 4 << 20  # of a file, unpacked
FIRST = (2020, 1, 1, 0, 0, 0)  # every entry's date: equal kits are equal archives


def pack(kit: Path, about: KitFile, archive: Path) -> str:
    """Write a kit's folder as an archive (mode 0600); returns its SHA-256."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr(zipfile.ZipInfo(FILE, FIRST), json.dumps(about.model_dump(), indent=1) + "\n")
        for part in ("startup", "local"):
            for path in sorted((kit / part).rglob("*")):
                if path.is_file() and not path.is_symlink():
                    out.writestr(zipfile.ZipInfo(path.relative_to(kit).as_posix(), FIRST), path.read_bytes())
    own_folder(archive.parent)
    write_whole(archive, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def digest(archive: Path) -> str:
    """SHA-256 of an archive, to compare with what was told at the server."""
    with disk(archive), archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(kit: Path, folder: Path) -> KitFile:
    """Put a kit (an archive, or a folder that one was unpacked into) into an empty folder. Raises ConfigError, located."""
    if kit.is_dir():
        _copy(kit, folder)
    elif kit.is_file():
        _extract(kit, folder)
    else:
        raise ConfigError(Problem("there is no such kit", str(kit), fix="name the .zip file that the server's operator sent"))
    about = folder / FILE
    if not about.is_file():
        fix = "kits are made by: osmotic site kits HOST --sites NAME"
        raise ConfigError(Problem(f"this is no kit of osmotic: it has no {FILE}", str(kit), fix=fix))
    text = about.read_bytes()
    found = validate(KitFile, parse(text.decode("utf-8", "replace"), f"{kit}:{FILE}"))
    own_folder(folder / "transfer")
    return found


def _extract(archive: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as found:
            entries = [entry for entry in found.infolist() if not entry.is_dir()]
            _check(entries, archive)
            for entry in entries:
                _put(folder, entry.filename, _content(found, entry, archive))
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        fix = "copy it again; compare its SHA-256 with what was told at the server"
        raise ConfigError(Problem("the kit is damaged, or no zip file", str(archive), why=str(error)[:100], fix=fix)) from error


def _check(entries: list[zipfile.ZipInfo], archive: Path) -> None:
    for entry in entries:
        path = PurePosixPath(entry.filename)
        odd = path.is_absolute() or ".." in path.parts or "\\" in entry.filename or entry.external_attr >> 28 == 0o12
        if odd or not (path.parts[0] in PARTS or entry.filename == FILE):
            what = f"the kit has {entry.filename[:60]!r}, which no kit has"
            raise ConfigError(Problem(what, str(archive), why="it was not made by osmotic", fix="ask for a new one"))
    if len(entries) > MOST_FILES or any(entry.file_size > MOST_BYTES for entry in entries):
        raise ConfigError(
            Problem("the kit is too large", str(archive), why="it was not made by osmotic", fix="ask for a new one")
        )


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> bytes:
    """No more than was announced: a small archive may unpack to a lot."""
    with archive.open(entry) as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ConfigError(Problem("the kit is too large", str(path), why="it was not made by osmotic", fix="ask for a new one"))
    return content


def _copy(kit: Path, folder: Path) -> None:
    files = [path for part in PARTS for path in sorted((kit / part).rglob("*")) if path.is_file()]
    for path in [*files, *[one for one in (kit / FILE,) if one.is_file()]]:
        if path.is_symlink():
            raise ConfigError(Problem("the kit has a link in it", str(path), fix="unpack the archive again"))
        with disk(path):
            _put(folder, path.relative_to(kit).as_posix(), path.read_bytes())


def _put(folder: Path, name: str, content: bytes) -> None:
    path = folder / name
    with disk(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = 0o700 if path.suffix == ".sh" else 0o600
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)


def clear(folder: Path) -> None:
    """Take away a folder that was being made."""
    shutil.rmtree(folder, ignore_errors=True)
