# SPDX-License-Identifier: Apache-2.0
"""A site's folder: made from a kit and a policy, given a new certificate, checked. Nothing that is there is written over.

A folder is made beside its place and moved there whole: one that was interrupted leaves nothing that looks like a site.
"""

import os
import shlex
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osmotic.plugins.host import build_registry
from osmotic.runtime.nvflare.kits import packing
from osmotic.runtime.nvflare.site.site_file import FILE, Place, own_policy, policy_digest, write_site
from osmotic.runtime.party.data import Datasets, check_distinct
from osmotic.runtime.party.policies import Policies
from osmotic.runtime.plan.load import sites_file
from osmotic.runtime.storage.durable import own_folder
from osmotic.runtime.storage.keyring import IDENTITY
from osmotic.runtime.storage.store import disk
from osmotic.schemas.errors import ConfigError, DataError, OsmoticError, Problem
from osmotic.schemas.policy import SitePolicy
from osmotic.schemas.site import KitFile, SiteFile

SOON = 30  # days before its end from which a certificate's end is said
ROOM = 1 << 30  # bytes that a site should have left


@dataclass
class Site:
    """What a site's folder is, to show. warnings: what does not stop it."""

    folder: Path
    party: str
    server: str
    host: str
    port: int
    fingerprint: str
    since: str
    until: str
    days_left: float
    policy: Path
    digest: str
    tells: str
    allows: dict[str, Any]
    home: Path
    identity: str = ""  # public key for secure sums; "" where every pipeline has its own
    warnings: list[Problem] = field(default_factory=list)


def found(
    kit: Path, policy: Path, folder: Path, *, home: str | None = None, plugins: tuple[str, ...] | None = None,
    tells: str = "reasons", sha256: str | None = None,
) -> Site:  # fmt: skip
    """Make a site's folder. Raises ConfigError or DataError, located, before anything is there.

    policy: a file, or a shipped pipeline's name. sha256: what the archive's digest has to be, as it was told at the server.
    """
    from osmotic.runtime.nvflare.kits.harden import harden

    with disk(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            what = "there is a site in this folder already" if (folder / FILE).is_file() else "the folder is not empty"
            fix = "a new certificate: osmotic site renew KIT; another site: --folder"
            raise ConfigError(Problem(what, str(folder), why="nothing is written over", fix=fix))
    _compare(kit, sha256)
    policy, making = sites_file(policy), folder.parent / f".making-{folder.name}-{os.getpid()}"
    own_folder(making)
    try:
        about = _unpacked(kit, making)
        check_policy(own_policy(policy, about.party), about.party)
        site = SiteFile.model_validate(
            {"osmotic_site": 1, "party": about.party, "server": about.server, "policy": _path(policy, folder), "tells": tells}
            | ({} if home is None else {"home": _path(Path(home), folder)})
            | ({} if plugins is None else {"plugins": plugins})
        )
        harden(making)
        write_site(making, site)
        with disk(folder):
            if folder.is_dir():
                folder.rmdir()
            making.rename(folder)
    finally:
        packing.clear(making)
    _identity(Place.of(folder).policies(), about.party, make=True)
    return look(folder)


def renew(kit: Path, folder: Path, sha256: str | None = None) -> Site:
    """Put a new certificate and key into a site's folder; settings, policy and ledgers stay. The old ones are kept aside."""
    from osmotic.runtime.nvflare.kits.harden import harden

    site = Place.of(folder).site
    _compare(kit, sha256)
    making = folder.parent / f".making-{folder.name}-{os.getpid()}"
    own_folder(making)
    try:
        about = _unpacked(kit, making)
        if (about.party, about.server) != (site.party, site.server):
            what = f"the kit is that of {about.party!r} with the server {about.server!r}"
            why = f"this site is {site.party!r} with the server {site.server!r}"
            raise ConfigError(Problem(what, str(kit), why=why, fix="ask for the kit of this site"))
        with disk(folder):
            old = folder / "startup.old"
            packing.clear(old)
            (folder / "startup").rename(old)
            (making / "startup").rename(folder / "startup")
            shutil.copyfile(making / packing.FILE, folder / packing.FILE)
        harden(folder)
    finally:
        packing.clear(making)
    return look(folder)


def rewrite(folder: Path) -> Site:
    """Write the engine's settings of a site anew; nothing else is touched."""
    from osmotic.runtime.nvflare.kits.harden import harden

    Place.of(folder)  # a folder that is no site is none of ours
    harden(folder)
    return look(folder)


def _compare(kit: Path, sha256: str | None) -> None:
    if sha256 is not None and kit.is_file() and (here := packing.digest(kit)) != sha256.strip().lower():
        what = "this is not the kit that was made at the server"
        why = f"its SHA-256 is {here}"
        raise ConfigError(Problem(what, str(kit), why=why, fix="ask for it again over a channel that you trust"))


def _unpacked(kit: Path, folder: Path) -> KitFile:
    """Unpack and check a site's kit. Raises ConfigError for a kit of the server, a damaged or an expired one."""
    from osmotic.runtime.nvflare.kits.kit import Kit, check_certificate

    about = packing.unpack(kit, folder)
    try:
        kind = Kit.read(folder).kind
        if kind != "site":
            raise ConfigError(Problem(f"this is the kit of the {kind}, not of a site", str(kit)))
        certificate = check_certificate(folder)
    except ConfigError as error:
        raise ConfigError(*[_in_archive(problem, kit, folder) for problem in error.problems]) from error
    if certificate.subject != about.party:
        what = f"the kit says {about.party!r}, its certificate {certificate.subject!r}"
        raise ConfigError(Problem(what, str(kit), why="it was altered", fix="ask for a new one"))
    return about


def _in_archive(problem: Problem, kit: Path, folder: Path) -> Problem:
    """A problem of an unpacked file, named as it stands in the archive."""
    where = problem.where.replace(str(folder.resolve()), str(kit)).replace(str(folder), str(kit))
    return Problem(problem.what, where, problem.path, problem.why, problem.fix)


def _path(path: Path, folder: Path) -> str:
    """As the site's file names it: relative to its folder where it lies in it."""
    whole, base = path.expanduser().resolve(), folder.resolve()
    return str(whole.relative_to(base)) if whole.is_relative_to(base) else str(whole)


def check_policy(policies: Policies, party: str) -> None:
    """Raise DataError or ConfigError for data sets that are bound and not there, or whose schema cannot be read."""
    policy, problems = policies.policies[party], list[Problem]()
    check_distinct(policy, policies.base, party)
    datasets = Datasets(policy, policies.base, party)
    for name in policy.data:
        for ask in (datasets.schema, datasets.path):
            try:
                ask(name)
            except OsmoticError as error:
                problems += error.problems
    if problems:
        raise DataError(*dict.fromkeys(problems))


def look(folder: Path) -> Site:
    """A site's folder, checked: certificate, hardening, policy, data. Raises what would stop it, all problems together."""
    from osmotic.runtime.nvflare.kits.harden import check_hardened
    from osmotic.runtime.nvflare.kits.kit import Kit, certificate, check_certificate

    place = Place.of(folder)
    policies, kit = place.policies(), Kit.read(folder)
    problems = [*check_hardened(folder), *open_files(place, folder)]
    for check in (lambda: check_certificate(folder), lambda: check_policy(policies, place.site.party)):
        try:
            check()
        except OsmoticError as error:
            problems += error.problems
    if kit.name != place.site.party:
        what = f"the certificate is that of {kit.name!r}, the site's file says {place.site.party!r}"
        problems.append(Problem(what, str(folder / FILE), "party", fix="they are one name: the certificate's"))
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    own, party = certificate(folder), place.site.party
    policy = policies.policies[party]
    return Site(
        folder, party, place.site.server, kit.host, kit.port, own.fingerprint, f"{own.since:%Y-%m-%d}", f"{own.until:%Y-%m-%d}",
        own.days_left, place.policy, policy_digest(folder, policies, party), place.site.tells, allowed(policy), place.home,
        _identity(policies, party), _warnings(place, own.days_left, own.path, policy),
    )  # fmt: skip


def _identity(policies: Policies, party: str, make: bool = False) -> str:
    """The public key for secure sums of a site whose keys lie in one folder; "" where there is none yet."""
    from osmotic.runtime.secure.agreeing import identity_in

    vault = policies.vault(party)
    there = vault is not None and (make or (vault / IDENTITY).is_file())
    return identity_in(vault).public.hex() if vault is not None and there else ""


def open_files(place: Place, folder: Path) -> list[Problem]:
    """What decides here and can be changed by any other user of this machine: it would decide for its operator."""
    found = []
    for path in (folder, folder / "local", folder / FILE, place.policy.parent, place.policy):
        mode = path.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            what = "others on this machine may write what decides here"
            found.append(Problem(what, str(path), fix=f"chmod o-w {shlex.quote(str(path))}"))
    return found


def _warnings(place: Place, left: float, certificate: Path, policy: SitePolicy) -> list[Problem]:
    said = []
    if left < SOON:
        fix = f"at the server: osmotic site kits --renew {place.site.party}; then here: osmotic site renew KIT"
        said.append(Problem(f"the certificate is valid for {max(left, 0):.0f} more days", str(certificate), fix=fix))
    free = shutil.disk_usage(_there(place.home)).free
    if free < ROOM:
        said.append(Problem(f"{free / 1e6:.0f} MB are left on the disk", str(place.home), fix="free some space"))
    for name in build_registry(names=place.site.plugins).failures:
        said.append(Problem(f"the plugin {name} could not be loaded", fix="osmotic plugins tells why"))
    if policy.data and not policy.budget and any(one.label == one.purpose == "private" for one in policy.data.values()):
        what = "private data are bound without a budget"
        said.append(Problem(what, str(place.policy), "budget", fix="without a cap every release of them is refused"))
    return said


def _there(path: Path) -> Path:
    return next(one for one in (path, *path.resolve().parents) if one.exists())


def allowed(policy: SitePolicy) -> dict[str, Any]:
    """What a policy allows, in words, for whoever set it up; names and caps, nothing of records."""
    data = {name: f"{one.label}, {one.purpose}{_caps(policy, name)}" for name, one in policy.data.items()}
    waivers = [f"{one.edge} to {', '.join(one.observers)}" for one in policy.waivers]
    return {
        "data": data or "none",
        "leaves unprotected": waivers or "nothing",
        "components": ", ".join(policy.components) or "none",
        "mechanisms": ", ".join(policy.mechanisms) or "none",
        "models elsewhere": ", ".join([*policy.endpoints, *(str(one.address.origin) for one in policy.remote)]) or "none",
        "models loaded here": ", ".join(policy.models) or "shipped ones",
    }


def _caps(policy: SitePolicy, name: str) -> str:
    budget = policy.budget.get(name) or policy.budget.get("*")
    if budget is None:
        return ", no cap"
    found: Mapping[str, Any] = budget.model_dump(exclude_none=True)
    told = [f"{key.removeprefix('per_')} {_amount(value)}" for key, value in found.items()]
    return f", at most epsilon a {', a '.join(told)}" if told else ", no cap"


def _amount(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value['epsilon']:g}" + (f" (delta {value['delta']:g})" if value["delta"] else "")
    return f"{value:g}"


def shown(site: Site) -> dict[str, Any]:
    """A site as plain values."""
    found = {key: str(value) if isinstance(value, Path) else value for key, value in vars(site).items()}
    return {**found, "warnings": [str(problem) for problem in site.warnings]}


def site_text(site: Site) -> str:
    """A site as text: who it is, its certificate, what its policy allows."""
    lines = [
        f"{site.party}: a site of {site.server} at {site.host}:{site.port}, in {site.folder}",
        f"certificate: valid {site.since} to {site.until} ({site.days_left:.0f} days)",
        f"             sha256 {site.fingerprint}",
        f"policy: {site.policy}",
        f"        digest {site.digest}",
        f"stores and ledgers: {site.home}",
        f"tells the server of a refused plan: {site.tells}",
        f"secure sums: public key {site.identity or 'made by the first one of each pipeline'}",
        "the policy allows",
    ]
    for key, value in site.allows.items():
        entries = [f"{name}: {text}" for name, text in value.items()] if isinstance(value, Mapping) else value
        lines += (
            [f"    {key}: {entries}"] if isinstance(entries, str) else [f"    {key}:", *(f"        {one}" for one in entries)]
        )
    return "\n".join([*lines, *(f"note: {problem}" for problem in site.warnings)])
