# SPDX-License-Identifier: Apache-2.0
"""Find and read site policies for runs on one machine, and open the sites.

A sites file holds one policy a party. It is looked for at --sites, else beside the pipeline (``NAME.sites.yaml``). A party
without a policy gets the strict default: no data, no waivers.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from osmotic.plugins.host import Registry
from osmotic.runtime.site import Site
from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.policy import SitePolicy, Sites
from osmotic.schemas.source import read, validate


@dataclass(frozen=True)
class Policies:
    """Policies by party and the folder that their relative paths start from."""

    policies: dict[str, SitePolicy]
    base: Path
    file: Path | None


def beside(pipeline: Path) -> Path | None:
    """The sites file beside a pipeline, if there is one."""
    candidate = pipeline.with_name(f"{pipeline.stem}.sites.yaml")
    return candidate if candidate.is_file() else None


def policies_of(parties: list[str], sites: Path | None, binds: tuple[str, ...] = ()) -> Policies:
    """Read the policies. binds: ``NAME=FILE`` sets the path of a data set that a policy already binds (the operator's word)."""
    if sites is None:
        return Policies({party: SitePolicy() for party in parties}, Path(), None)
    file = validate(Sites, read(sites))
    policies = {party: file.parties.get(party, SitePolicy()) for party in parties}
    for bind in binds:
        name, equals, path = bind.partition("=")
        bound = [party for party, policy in policies.items() if name in policy.data]
        if not equals or not path:
            raise ConfigError(Problem(f"--bind {bind}: write it as NAME=FILE"))
        for party in bound:
            policies[party] = _rebound(policies[party], name, str(Path(path).resolve()))
    return Policies(policies, sites.resolve().parent, sites)


def check_binds(policies: Policies, binds: tuple[str, ...]) -> None:
    """Raise ConfigError for a --bind that no party's policy knows."""
    known = sorted({name for policy in policies.policies.values() for name in policy.data})
    for bind in binds:
        if bind.partition("=")[0] not in known:
            fix = f"known: {', '.join(known)}" if known else "no site file binds any data"
            raise ConfigError(Problem(f"--bind {bind}: no party binds that name", fix=fix))


def _rebound(policy: SitePolicy, name: str, path: str) -> SitePolicy:
    data = {**policy.data, name: policy.data[name].model_copy(update={"path": path})}
    return policy.model_copy(update={"data": data})


def open_site(party: str, home: Path, policies: Policies, registry: Registry, passing: bool = False) -> Site:
    """Open a party's store and ledger under ``home/parties/PARTY``; sets the compute threads of this process."""
    policy = policies.policies.get(party, SitePolicy())
    site = Site(party, home / "parties" / party, policy, policies.base, registry, passing)
    if not passing and policies.file is not None:
        caps = {name: budget.per_document for name, budget in policy.budget.items()}
        site.ledger.remember("caps", json.dumps(caps, sort_keys=True))
    return site
