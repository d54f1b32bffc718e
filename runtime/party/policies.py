# SPDX-License-Identifier: Apache-2.0
"""Find and read site policies for runs on one machine, and open the sites.

A sites file holds one policy a party. It is looked for at --sites, else beside the pipeline (``NAME.sites.yaml``). A party
without a policy gets the strict default: no data, no waivers.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from osmotic.plugins.host import Registry
from osmotic.runtime.party.site import Site
from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.policy import SitePolicy, Sites
from osmotic.schemas.problems import near
from osmotic.schemas.source import Source, read, validate


@dataclass(frozen=True)
class Policies:
    """Policies by party and the folder that their relative paths start from. state: folder of the ledgers, if the file says."""

    policies: dict[str, SitePolicy]
    base: Path
    file: Path | None
    state: str | None = None

    def vault(self, party: str) -> Path | None:
        """Where a party's ledger of releases and charges lies; None: in the folder of the run.

        It follows the site file, not the pipeline or its folder: what was spent on private data counts in every run.
        """
        if self.file is None:
            return None
        if self.state is not None:
            return (self.file.resolve().parent / self.state).resolve() / party
        bindings = self.policies.get(party, SitePolicy()).data.values()
        private = any(b.label == "private" and b.purpose == "private" for b in bindings)
        file = self.file.resolve()  # a link to a site file is that file
        return file.parent / f"{file.stem}.state" / party if private else None


def beside(pipeline: Path) -> Path | None:
    """The sites file beside a pipeline, if there is one."""
    candidate = pipeline.with_name(f"{pipeline.stem}.sites.yaml")
    return candidate if candidate.is_file() else None


def policies_of(parties: list[str], sites: Path | None, binds: tuple[str, ...] = ()) -> Policies:
    """Read the policies. binds: ``NAME=FILE`` sets the path of a data set that a policy already binds (the operator's word)."""
    if sites is None:
        return Policies({party: SitePolicy() for party in parties}, Path(), None)
    source = read(sites)
    if isinstance(source.value, dict) and "tasks" in source.value and "osmotic_sites" not in source.value:
        what, why = "this is a pipeline, not a file of site policies", "it has the key 'tasks'"
        fix = "--sites takes the file that begins with osmotic_sites: 1"
        raise ConfigError(Problem(what, source.where(("tasks",)), why=why, fix=fix))
    file = validate(Sites, source)
    _misspelt(parties, source, list(file.parties))
    policies = {party: file.parties.get(party, SitePolicy()) for party in parties}
    for bind in binds:
        name, equals, path = bind.partition("=")
        bound = [party for party, policy in policies.items() if name in policy.data]
        if not equals or not path:
            fix = "write it as NAME=FILE, e.g. --bind records=mine.jsonl"
            raise ConfigError(Problem(f"--bind {bind}: this says no name and file", fix=fix))
        for party in bound:
            policies[party] = _rebound(policies[party], name, str(Path(path).resolve()))
    return Policies(policies, sites.resolve().parent, sites, file.state)


def _misspelt(parties: list[str], source: Source, known: list[str]) -> None:
    """Raise ConfigError where a party of the plan has no policy and one is nearly named like it, which no party has."""
    problems = []
    spare = [name for name in known if name not in parties]
    for party in (p for p in parties if p not in known):
        for name in near(party, spare, 1) if len(parties) > 1 else ():
            what = f"the plan has no party {name!r}"
            why = f"and its party {party!r} has no policy: it would get none of its data"
            fix = f"did you mean {party!r}? if not, add '{party}: {{}}'"
            problems.append(Problem(what, source.where(("parties", name)), f"parties.{name}", why, fix))
    if problems:
        raise ConfigError(*problems)


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
    """Open a party's store and ledger under ``home/parties/PARTY``, its vault where the policies say. passing: make nothing."""
    policy, folder = policies.policies.get(party, SitePolicy()), home / "parties" / party
    site = Site(party, folder, policy, policies.base, registry, passing, policies.vault(party) or folder)
    if not passing and policies.file is not None:
        caps = {name: budget.model_dump() for name, budget in policy.budget.items()}
        site.ledger.remember("caps", json.dumps(caps, sort_keys=True))
    return site
