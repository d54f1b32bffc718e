# SPDX-License-Identifier: Apache-2.0
"""A site's own file, as it is read, written and opened; what the site says about itself to the server.

It lies in the unpacked kit (``local/osmotic-site.json``), next to the engine's files, and names the policy. What is said to the
server are versions and digests, so that everything that has to be equal is compared before anything runs.
"""

import hmac
import json
import platform
import time
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from osmotic import __version__
from osmotic.plugins.host import Registry, build_registry
from osmotic.runtime.party.answering import Answering, Rules
from osmotic.runtime.party.keys import RULES
from osmotic.runtime.party.policies import Policies, policies_of
from osmotic.runtime.storage.durable import write_whole
from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.policy import Sites
from osmotic.schemas.site import SiteFile
from osmotic.schemas.source import did_you_mean, read, read_text, validate

FILE = Path("local") / "osmotic-site.json"
ADVICE = "make it with: osmotic site init KIT --policy FILE"


def read_site(workspace: Path) -> SiteFile:
    """The site's file; raises ConfigError with every problem, located, and where there is none."""
    path = workspace / FILE
    if not path.is_file():
        raise ConfigError(Problem("this folder is no site: it has no site file", str(path), fix=ADVICE))
    return validate(SiteFile, read(path))


def write_site(workspace: Path, site: SiteFile) -> Path:
    """Write the file (mode 0600) and return its path."""
    path = workspace / FILE
    write_whole(path, (json.dumps(site.model_dump(exclude_none=True), indent=1) + "\n").encode())
    return path


@dataclass(frozen=True)
class Place:
    """Where the things of a site are: absolute paths."""

    site: SiteFile
    policy: Path
    home: Path
    state: Path | None

    @classmethod
    def of(cls, workspace: Path) -> "Place":
        """Read the site's file of a folder."""
        site, base = read_site(workspace), workspace.resolve()
        state = _below(base, site.state) if site.state is not None else None
        return cls(site, _below(base, site.policy), _below(base, site.home), state)

    def policies(self) -> Policies:
        """This party's policy; raises ConfigError where the file has no such party."""
        return self._at(own_policy(self.policy, self.site.party))

    def _at(self, found: Policies) -> Policies:
        return replace(found, state=str(self.state)) if self.state is not None else found


def _below(base: Path, path: str) -> Path:
    return base / Path(path).expanduser()


def own_policy(file: Path, party: str) -> Policies:
    """The policy of one party; raises ConfigError where the file does not have it: that party would allow nothing."""
    source = read(file)
    found = policies_of([party], file)
    known = validate(Sites, source).parties
    if party not in known:
        what = f"the policy file has no party {party!r}"
        why = "this site would have no data and allow nothing"
        fix = f"{did_you_mean(party, known)}; add '{party}: {{}}' if nothing is meant"
        raise ConfigError(Problem(what, source.where(("parties",)), "parties", why, fix))
    return found


def opened(workspace: Path) -> Answering:
    """The site, ready to answer: its plugins are read now, its policy with every plan, its ledger is opened by the first."""

    def rules() -> Rules:
        place = Place.of(workspace)
        return Rules(place.site, place.home, place.policies())

    return Answering(rules, build_registry(names=rules().site.plugins))


def facts(workspace: Path) -> dict[str, Any]:
    """What the site tells the server about itself: versions and digests, no paths, nothing about records."""
    place = Place.of(workspace)
    registry = build_registry(names=place.site.plugins)
    return {
        "party": place.site.party,
        "server": place.site.server,
        **versions_of(registry),
        "policy": policy_digest(workspace, place.policies(), place.site.party),
        "certificate": {"until": _until(workspace)},
        "clock": time.time(),
    }


def versions_of(registry: Registry) -> dict[str, Any]:
    """Versions and digests of what is loaded: osmotic, Python, the engine, plugins."""
    from osmotic.runtime.tools.locking import lock_of

    lock = lock_of(registry)
    return {
        "osmotic": __version__,
        "code": lock.osmotic.code,
        "rules": RULES,
        "python": platform.python_version(),
        "nvflare": engine_version(),
        "plugins": {name: {"version": one.version, "code": one.code} for name, one in lock.plugins.items()},
        "failed": sorted(registry.failures),
    }


def engine_version() -> str:
    """The version of NVFlare, or 'absent'."""
    try:
        return version("nvflare")
    except PackageNotFoundError:
        return "absent"


def policy_digest(workspace: Path, policies: Policies, party: str) -> str:
    """A digest of the policy as it is understood, keyed by the site's private key: that it changed can be seen, and nothing of
    what it says can be guessed from it. A new certificate changes it too. Raises ConfigError without a key.
    """
    from osmotic.runtime.nvflare.kits.kit import Kit

    text = json.dumps(policies.policies[party].model_dump(mode="json", by_alias=True), sort_keys=True)
    key = read_text(Kit.read(workspace).key_file, "the site's private key")
    return hmac.digest(key.encode(), b"osmotic policy\0" + text.encode(), "sha256").hex()


def _until(workspace: Path) -> str:
    from osmotic.runtime.nvflare.kits.kit import certificate

    return certificate(workspace).until.isoformat()
