# SPDX-License-Identifier: Apache-2.0
"""The public keys of parties, of a folder or a policy file, made where there are none yet: before any run, if so wished."""

from pathlib import Path

from osmotic.runtime.nvflare.site.site_file import FILE, Place
from osmotic.runtime.party.policies import Policies, policies_of
from osmotic.runtime.secure.agreeing import identity_in
from osmotic.runtime.storage.keeping import vaults
from osmotic.schemas.errors import ConfigError, DataError, Problem
from osmotic.schemas.policy import Sites
from osmotic.schemas.source import read, validate


def identities(place: Path, party: str | None = None) -> list[dict[str, str]]:
    """[{party, public}] of a run's folder, a site's folder (`osmotic site init`), or all parties of a policy file.

    Raises DataError for a party that is not there, ConfigError for one whose keys lie in a folder for each run.
    """
    if place.is_file():
        known = list(validate(Sites, read(place)).parties)
        found = [(name, vault_of(policies_of(known, place), name)) for name in _chosen(known, party, place)]
    elif (place / FILE).is_file():
        site = Place.of(place)
        found = [(name, vault_of(site.policies(), name)) for name in _chosen([site.site.party], party, place)]
    else:
        found = list(vaults(place, party))
    return [{"party": name, "public": identity_in(vault).public.hex()} for name, vault in found]


def vault_of(policies: Policies, party: str) -> Path:
    """Where a party's keys lie whatever is run; raises ConfigError where each run has its own."""
    vault = policies.vault(party)
    if vault is None:
        why = "it binds no private data, and the file names no folder for its ledgers"
        fix = "add 'state: FOLDER' to the policy file, or give the folder of a run"
        raise ConfigError(Problem(f"{party} has other keys in every run's folder", str(policies.file), "state", why, fix))
    return vault


def _chosen(known: list[str], party: str | None, place: Path) -> list[str]:
    if party is not None and party not in known:
        raise DataError(Problem(f"there is no party {party!r}", str(place), fix=f"one of: {', '.join(known)}"))
    return [party] if party is not None else known
