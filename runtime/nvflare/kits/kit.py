# SPDX-License-Identifier: Apache-2.0
"""Kits: what a party has to connect. A folder with `startup` (names, certificate, key, root) and `local` (its own settings).

Certificates are read by `cryptography`; the name in a certificate is the name of the party, for the server its host.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from osmotic.runtime.nvflare.extra import need_extra
from osmotic.schemas.errors import ConfigError, Problem

STARTS = {"server": "fed_server.json", "site": "fed_client.json", "admin": "fed_admin.json"}
AGAIN = "osmotic site kits HOST --sites NAME --renew NAME"  # the command that makes a new certificate


@dataclass(frozen=True)
class Certificate:
    """subject: name of the party. fingerprint: SHA-256 of the certificate, in hexadecimal."""

    path: Path
    subject: str
    issuer: str
    since: datetime
    until: datetime
    fingerprint: str

    @property
    def days_left(self) -> float:
        """Days until it ends, by this machine's clock; negative afterwards."""
        return (self.until - datetime.now(UTC)).total_seconds() / 86400


@dataclass(frozen=True)
class Kit:
    """kind: server, site or admin. name: of the party, by its certificate. host, port: where the server listens."""

    folder: Path
    kind: str
    name: str
    host: str
    port: int
    project: str

    @staticmethod
    def read(folder: Path) -> "Kit":
        """What a folder holds. Raises ConfigError for one that is no kit, or a damaged one."""
        need_extra()
        for kind, file in STARTS.items():
            path = folder / "startup" / file
            if path.is_file():
                return _read(folder.resolve(), kind, path)
        why = f"there is no startup/{STARTS['site']}, {STARTS['server']} or {STARTS['admin']} in it"
        raise ConfigError(Problem("this folder is no kit", str(folder), why=why, fix="give the folder that was unpacked"))

    @property
    def startup(self) -> Path:
        """Names, certificate and key."""
        return self.folder / "startup"

    @property
    def local(self) -> Path:
        """The party's own settings."""
        return self.folder / "local"

    @property
    def certificate_file(self) -> Path:
        """The party's certificate."""
        return self.startup / ("server.crt" if self.kind == "server" else "client.crt")

    @property
    def key_file(self) -> Path:
        """The party's private key."""
        return self.certificate_file.with_suffix(".key")


def _read(folder: Path, kind: str, path: Path) -> Kit:
    document = read_json(path)
    try:
        if kind == "admin":
            admin = document["admin"]
            return Kit(folder, kind, str(admin["username"]), str(admin["host"]), int(admin["port"]), str(admin["project_name"]))
        server = document["servers"][0]
        host, _, port = str(server["service"]["target"]).rpartition(":")
        certificate = load(folder / "startup" / ("server.crt" if kind == "server" else "client.crt"))
        return Kit(folder, kind, certificate.subject, host, int(port), str(server["name"]))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ConfigError(Problem("the kit is damaged", str(path), why=f"{error!r}", fix="unpack it again")) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object out of a file; raises ConfigError naming it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            Problem("the file cannot be read as JSON", str(path), why=str(error), fix="unpack the kit again")
        ) from error
    if not isinstance(found, dict):
        raise ConfigError(Problem("the file is no JSON object", str(path), fix="unpack the kit again"))
    return found


def load(path: Path) -> Certificate:
    """A certificate out of its file (PEM); raises ConfigError for a file that is none."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import NameOID

    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            Problem("the certificate cannot be read", str(path), why=str(error), fix="unpack the kit again")
        ) from error

    def common(name: x509.Name) -> str:
        return "".join(str(part.value) for part in name.get_attributes_for_oid(NameOID.COMMON_NAME))

    return Certificate(
        path,
        common(found.subject),
        common(found.issuer),
        found.not_valid_before_utc,
        found.not_valid_after_utc,
        found.fingerprint(hashes.SHA256()).hex(),
    )


def certificate(folder: Path) -> Certificate:
    """The certificate of the party that has this kit."""
    return load(Kit.read(folder).certificate_file)


def check_certificate(folder: Path) -> Certificate:
    """The certificate, if it is good now: signed by the kit's root, in time, with its key. Raises ConfigError otherwise."""
    kit = Kit.read(folder)
    own = load(kit.certificate_file)
    problems = [*_in_time(own), *_by_root(kit), *_key(kit)]
    if problems:
        raise ConfigError(*problems)
    return own


def _in_time(own: Certificate) -> Sequence[Problem]:
    now, where = datetime.now(UTC), str(own.path)
    if now > own.until:
        what, fix = f"the certificate of {own.subject} ended on {own.until:%Y-%m-%d %H:%M} UTC", f"at the server: {AGAIN}"
        return [Problem(what, where, why=f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC", fix=fix)]
    if now < own.since:
        what = f"the certificate of {own.subject} begins on {own.since:%Y-%m-%d %H:%M} UTC"
        why = f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC"
        return [Problem(what, where, why=why, fix="set this machine's clock, or wait")]
    return []


def _by_root(kit: Kit) -> Sequence[Problem]:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    path = kit.startup / "rootCA.pem"
    try:
        root = x509.load_pem_x509_certificate(path.read_bytes())
        x509.load_pem_x509_certificate(kit.certificate_file.read_bytes()).verify_directly_issued_by(root)
    except (OSError, ValueError, TypeError, InvalidSignature) as error:
        what = f"the certificate of {kit.name} was not made by the root certificate beside it"
        return [Problem(what, str(path), why=type(error).__name__, fix="unpack the whole kit again, not single files of it")]
    return []


def _key(kit: Kit) -> Sequence[Problem]:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path = kit.key_file
    try:
        key = load_pem_private_key(path.read_bytes(), None)
        same = key.public_key() == x509.load_pem_x509_certificate(kit.certificate_file.read_bytes()).public_key()
        mode = path.stat().st_mode & 0o077
    except (OSError, ValueError, TypeError) as error:
        return [Problem("the private key cannot be read", str(path), why=type(error).__name__, fix="unpack the kit again")]
    if not same:
        return [Problem("the private key belongs to another certificate", str(path), fix="unpack the whole kit again")]
    if mode:
        return [Problem("others on this machine may read the private key", str(path), fix=f"chmod 600 {path}")]
    return []
