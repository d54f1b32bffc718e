# SPDX-License-Identifier: Apache-2.0
"""Which party of FATE is which party of the pipeline.

By default the pipeline's role `server` is FATE's arbiter, and its other parties, in the pipeline's order, are the guest and
the hosts, in FATE's order. `roles` and `parties` of the job say otherwise. Everybody has one share, and nobody two.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from osmotic.runtime.fate.parameters import Job
from osmotic.runtime.fate.wire import FATE_ROLES
from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.source import did_you_mean

SERVER = "server"
Roles = Mapping[str, Sequence[str]]


def in_order(parties: Sequence[str], own: str) -> list[str]:
    """All parties of the job, by role; hosts in FATE's order, or by number where the own one is not in the list."""
    known = list(dict.fromkeys(parties))
    if own not in known:
        known = sorted([*known, own], key=lambda party: (len(party.partition(":")[2]), party))
    return sorted(known, key=lambda party: _rank(party.partition(":")[0]))


def _rank(role: str) -> int:
    return FATE_ROLES.index(role) if role in FATE_ROLES else len(FATE_ROLES)


def coordinator_of(roles: Roles) -> str:
    """The party that asks the others: the first one of the role `server`, or of the first role."""
    return roles.get(SERVER, next(iter(roles.values())))[0]


def assign(roles: Roles, present: Sequence[str], job: Job) -> dict[str, str]:
    """Party of the pipeline -> party of FATE. roles: of the pipeline. present: FATE's parties, in order.

    Raises ConfigError with everything that does not fit, and what to write.
    """
    made = _Assigning(roles, present, job)
    made.named()
    made.by_roles()
    made.left_over()
    if made.problems:
        raise ConfigError(*made.problems)
    return {party: made.found[party] for parties in roles.values() for party in parties}


@dataclass
class _Assigning:
    """One assignment as it is made."""

    roles: Roles
    present: Sequence[str]
    job: Job
    found: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def named(self) -> None:
        """Parties that the job names."""
        names = [party for parties in self.roles.values() for party in parties]
        for party, fate in self.job.parties.items():
            path = f"parameters.parties.{party}"
            if party not in names:
                self.refuse(f"the pipeline has no party {party!r}", path, did_you_mean(party, names))
            elif fate not in self.present:
                self.refuse(f"the job has no party {fate!r}", path, did_you_mean(fate, self.present))
            elif fate in self.found.values():
                self.refuse(f"{fate} stands twice", path, "every party of FATE is one party of the pipeline")
            else:
                self.found[party] = fate

    def by_roles(self) -> None:
        """Everybody else, role by role."""
        for role in self.job.roles:
            if role not in self.roles:
                path = f"parameters.roles.{role}"
                self.refuse(f"the pipeline has no role {role!r}", path, did_you_mean(role, self.roles))
        rest = {role: [p for p in parties if p not in self.job.parties] for role, parties in self.roles.items()}
        rest = {role: parties for role, parties in rest.items() if parties}
        open_ = [role for role in rest if role not in self.job.roles and role != SERVER]
        if len(open_) > 1:
            known = ", ".join(self.roles)
            what = f"the pipeline has the roles {known}; FATE has {', '.join(FATE_ROLES)}: it is open which is which"
            given = {**({SERVER: "arbiter"} if SERVER in self.roles else {}), open_[0]: "guest", open_[1]: "host"}
            self.refuse(what, "parameters.roles", f"write for example: roles: {_shown(given)}")
            return
        for role, parties in rest.items():
            self.role(role, parties)

    def role(self, role: str, parties: list[str]) -> None:
        """The parties of one role that are not named: as many as FATE has for it."""
        path = f"parameters.roles.{role}"
        wanted = self.job.roles.get(role) or (("arbiter",) if role == SERVER else ("guest", "host"))
        unknown = [one for one in wanted if one not in FATE_ROLES]
        if unknown:
            self.refuse(f"FATE has no role {unknown[0]!r}", path, did_you_mean(unknown[0], FATE_ROLES))
            return
        pool = [one for one in self.present if one.partition(":")[0] in wanted and one not in self.found.values()]
        if not pool:
            what = f"the job has no {' or '.join(wanted)} for the pipeline's role {role!r} ({', '.join(parties)})"
            self.refuse(what, path, f"add one to the job's parties, or write: roles: {_shown({role: 'ROLE'})}")
        elif len(pool) != len(parties):
            what = f"the pipeline's role {role!r} has {len(parties)} parties ({_few(parties)})"
            what += f", the job {len(pool)} for it ({_few(pool)})"
            names = [f"party-{i}" for i in range(len(pool))]
            fix = f"give the job as many, or write: overrides: {_shown([f'parties.{role}={_shown(names)}'])}"
            self.refuse(what, path, fix)
        else:
            self.found.update(zip(parties, pool, strict=True))

    def left_over(self) -> None:
        """Parties of FATE that have nothing to do, told unless something else is wrong with them already."""
        idle = [party for party in self.present if party not in self.found.values()]
        if idle and not self.problems:
            what = f"{_few(idle)} {'has' if len(idle) == 1 else 'have'} no share in the pipeline"
            fix = f"leave it out of the job, or make it a party: parties: {_shown({'NAME': idle[0]})}"
            self.refuse(what, "parameters.parties", fix)

    def refuse(self, what: str, path: str, fix: str) -> None:
        """One more problem."""
        self.problems.append(Problem(what, path=path, fix=fix))


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
