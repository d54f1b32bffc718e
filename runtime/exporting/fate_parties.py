# SPDX-License-Identifier: Apache-2.0
"""Which party of a FATE job has which party's share of a pipeline.

FATE has one arbiter, one guest and any number of hosts. By default the pipeline's role ``server`` is the arbiter, and the
parties of its other role are the guest and then the hosts, in the order in which the pipeline has them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.source import did_you_mean

ROLES = ("arbiter", "guest", "host")
SERVER = "server"
FIRST = {"arbiter": 10000, "guest": 9999, "host": 10000}  # party ids of FATE's own examples
SINGLE = ("arbiter", "guest")


@dataclass(frozen=True, order=True)
class FateParty:
    """A party of a FATE job: its role there and its party id."""

    role: str
    party_id: str

    def __str__(self) -> str:
        return f"{self.role}:{self.party_id}"

    @property
    def file(self) -> str:
        """Its name as part of a file's name."""
        return f"{self.role}-{self.party_id}"

    @classmethod
    def parse(cls, text: str, option: str) -> "FateParty":
        """Read ``ROLE:ID``; raises ConfigError that names the option."""
        role, colon, party_id = text.partition(":")
        if role not in ROLES:
            fix = did_you_mean(role, ROLES)
            raise ConfigError(Problem(f"{option}: FATE has no role {role!r} for a share of a pipeline", fix=fix))
        if not colon or not party_id.isdigit():
            raise ConfigError(Problem(f"{option}: {text!r} is no party of FATE", fix="write ROLE:NUMBER, such as host:10000"))
        return cls(role, party_id)


def shares(parties: Mapping[str, Iterable[str]], given: Iterable[str] = (), roles: Iterable[str] = ()) -> dict[str, FateParty]:
    """Pipeline party -> party of FATE.

    parties: role of the pipeline -> its parties. given: ``NAME=ROLE:ID`` gives a pipeline's party its place; ``ROLE:ID`` names
    a party of FATE, which takes the next party that its role has. roles: ``ROLE=FATE-ROLE`` where the names of the pipeline's
    roles say nothing to FATE. Raises ConfigError with every problem.
    """
    places = _places(parties, role_map(parties, roles))
    named, unnamed, problems = _given(given, [party for _, party in places])
    places = _one_guest(places, named)
    found: dict[str, FateParty] = dict(named)
    free = {role: [one for one in unnamed if one.role == role] for role in ROLES}
    for role, party in places:
        if party not in found and free[role]:
            found[party] = free[role].pop(0)
    left = [one for ones in free.values() for one in ones]
    problems += [_no_share(one, places) for one in left]
    missing = [(role, party) for role, party in places if party not in found]
    if unnamed and missing and not problems:
        problems += [
            Problem(f"no party of FATE for the pipeline's {party!r}", fix=f"add {party}={role}:ID") for role, party in missing
        ]
    for role, party in missing if not unnamed else ():
        found[party] = _next(role, set(found.values()))
    problems += _doubles(found)
    if problems:
        raise ConfigError(*problems)
    return {party: found[party] for _, party in places}


def role_map(parties: Mapping[str, Iterable[str]], roles: Iterable[str]) -> dict[str, str]:
    """Role of the pipeline -> role of FATE (guest: the guest, then hosts); raises ConfigError where it is open."""
    others = [role for role in parties if role != SERVER]
    found = {SERVER: "arbiter"} if SERVER in parties else {}
    if len(others) == 1:
        found[others[0]] = "guest"
    for entry in roles:
        role, equals, fate = entry.partition("=")
        option = f"--role {entry}"
        if not equals or fate not in ROLES:
            raise ConfigError(Problem(f"{option}: FATE has no such role", fix="write ROLE=arbiter, ROLE=guest or ROLE=host"))
        if role not in parties:
            raise ConfigError(Problem(f"{option}: the pipeline has no role {role!r}", fix=did_you_mean(role, parties)))
        found[role] = fate
    unknown = [role for role in parties if role not in found]
    if unknown:
        why = "FATE has arbiter, guest and hosts; 'server' is the arbiter, one other role the guest and the hosts"
        fix = "say what each is: --role {0}=arbiter, --role {0}=guest (guest and hosts) or --role {0}=host"
        raise ConfigError(*[Problem(f"FATE has no role {r!r}", "", f"parties.{r}", why, fix.format(r)) for r in unknown])
    return found


def _places(parties: Mapping[str, Iterable[str]], roles: Mapping[str, str]) -> list[tuple[str, str]]:
    """(role of FATE, party of the pipeline), arbiter first; raises ConfigError for a second arbiter or no guest."""
    wanted: dict[str, list[str]] = {"arbiter": [], "guest": [], "host": []}
    for role, names in parties.items():
        wanted[roles[role]] += names
    problems = []
    if len(wanted["arbiter"]) > 1:
        what = f"FATE has one arbiter, the pipeline has {len(wanted['arbiter'])} parties for it: {', '.join(wanted['arbiter'])}"
        problems.append(Problem(what, fix="make one of their roles hosts: --role NAME=host"))
    if not wanted["guest"]:
        what = "no party of the pipeline is FATE's guest, and a job of FATE has one"
        problems.append(Problem(what, fix="say which role has it: --role NAME=guest"))
    if problems:
        raise ConfigError(*problems)
    guests = [("guest", wanted["guest"][0]), *(("host", party) for party in wanted["guest"][1:])]
    return [*(("arbiter", party) for party in wanted["arbiter"]), *guests, *(("host", party) for party in wanted["host"])]


def _one_guest(places: list[tuple[str, str]], named: Mapping[str, FateParty]) -> list[tuple[str, str]]:
    """The same where a place was given by name: the guest is the named one, or else the first that is left of the others."""
    taken = any(place.role == "guest" for place in named.values())
    found = []
    for role, party in places:
        if party in named:
            found.append((named[party].role, party))
        elif role == "arbiter":
            found.append((role, party))
        else:
            found.append(("host" if taken else "guest", party))
            taken = True
    return found


def _given(given: Iterable[str], known: list[str]) -> tuple[dict[str, FateParty], list[FateParty], list[Problem]]:
    """(places by name, parties of FATE without one, what is wrong)."""
    named: dict[str, FateParty] = {}
    unnamed: list[FateParty] = []
    problems = []
    for entry in (part.strip() for text in given for part in text.split(",")):
        name, equals, place = entry.partition("=")
        option = f"--parties {entry}"
        try:
            one = FateParty.parse(place if equals else entry, option)
        except ConfigError as error:
            problems += error.problems
            continue
        if equals and name not in known:
            problems.append(Problem(f"{option}: the pipeline has no party {name!r}", fix=did_you_mean(name, known)))
        elif equals and name in named:
            problems.append(Problem(f"{option}: {name!r} has a place already: {named[name]}", fix="name it once"))
        elif equals:
            named[name] = one
        else:
            unnamed.append(one)
    return named, unnamed, problems


def _no_share(one: FateParty, places: list[tuple[str, str]]) -> Problem:
    mine = [party for role, party in places if role == one.role]
    has = f"its parties for that role: {', '.join(mine)}" if mine else "it has no party for that role"
    why = f"the pipeline has nothing for it to do; {has}"
    fix = "leave it out, or give the pipeline one more party: --set 'parties.ROLE=[...]'"
    return Problem(f"{one} has no share in the pipeline", why=why, fix=fix)


def _next(role: str, used: set[FateParty]) -> FateParty:
    number = FIRST[role]
    while (one := FateParty(role, str(number))) in used:
        number += 1
    return one


def _doubles(found: Mapping[str, FateParty]) -> list[Problem]:
    """Two parties at one place, or two of a role that FATE has once."""
    problems = []
    names = list(found)
    for i, name in enumerate(names):
        for other in names[:i]:
            one, two = found[name], found[other]
            if one == two:
                problems.append(Problem(f"{other!r} and {name!r} are both {one}", fix="give each a party of FATE of its own"))
            elif one.role == two.role and one.role in SINGLE:
                problems.append(Problem(f"{other!r} and {name!r} are both {one.role}; FATE has one", fix=f"{name}=host:ID"))
    return problems
