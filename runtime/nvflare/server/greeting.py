# SPDX-License-Identifier: Apache-2.0
"""What sites say about themselves when they are greeted, compared with this machine before anything runs.

Another osmotic, other rules, or a plugin that the pipeline uses in another version or with other code: refused, since plans,
labels and hashes would not be the same. Another Python, a plugin that is not used, a clock that is off, a certificate that is
about to expire: said, and the run goes on. What a site says is its own word: versions are compared to find mistakes, not lies.
"""

import datetime
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from osmotic.runtime.plan.graph import Graph
from osmotic.schemas.errors import Problem

SKEW = 60.0  # seconds that clocks may differ before it is said
SOON = 30  # days before a certificate's end from which it is said
INSTALL = "install the same version on all machines: pip install 'osmotic[nvflare]=={}'"


@dataclass
class Compared:
    """What is refused and what is only said, a party."""

    refused: dict[str, list[Problem]] = field(default_factory=dict)
    said: dict[str, list[Problem]] = field(default_factory=dict)


def compare(graph: Graph, mine: Mapping[str, Any], theirs: Mapping[str, Mapping[str, Any]], now: float = 0.0) -> Compared:
    """Compare each site's facts with the own ones. now: seconds since 1970, default the clock."""
    found = Compared()
    used = plugins_of(graph)
    for party, facts in theirs.items():
        refused = [*_versions(party, mine, facts), *_plugins(party, mine, facts, used)]
        said = [*_python(party, mine, facts), *_unused(party, mine, facts, used), *_clock(party, facts, now or time.time())]
        if refused:
            found.refused[party] = refused
        if said:
            found.said[party] = said
    return found


def plugins_of(graph: Graph) -> set[str]:
    """Distributions whose components, mechanisms or models a pipeline names."""
    registry, found = graph.registry, set()
    for node in graph.nodes.values():
        found.add(registry.components[node.spec.component].distribution)
    for name in _mechanisms(graph):
        if name in registry.mechanisms:
            found.add(registry.mechanisms[name].distribution)
    for spec in graph.pipeline.models.values():
        found.add(registry.models[spec.type].distribution)
    return {name for name in found if name and name != "osmotic"}


def _mechanisms(graph: Graph) -> set[str]:
    """Every text in configurations under a key `mechanism` or `name`: a mechanism may be composed of others."""

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            for one in value.values():
                yield from texts(one)
        elif isinstance(value, list | tuple):
            for one in value:
                yield from texts(one)

    instances = {(i.node, i.cell): i for i in graph.instances.values()}.values()
    return {text for i in instances for text in texts(graph.config_of(graph.nodes[i.node], i.cell).get("mechanism"))}


def _versions(party: str, mine: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[Problem]:
    own = str(mine["osmotic"])
    if facts.get("osmotic") != own or facts.get("rules") != mine["rules"]:
        told = f"{word(facts.get('osmotic'))} (rules {word(facts.get('rules'))})"
        what = f"{party} has osmotic {told}, this machine {own} (rules {mine['rules']})"
        yield Problem(what, fix=INSTALL.format(own))
    elif facts.get("code") != mine["code"]:
        what = f"{party} has other code of osmotic {own} than this machine"
        yield Problem(what, why="one of them was changed by hand, or made from another commit", fix=INSTALL.format(own))


def _plugins(party: str, mine: Mapping[str, Any], facts: Mapping[str, Any], used: set[str]) -> Iterator[Problem]:
    for name in sorted(used):
        here, there = _plugin(mine, name), _plugin(facts, name)
        if here == there:
            continue
        own = here.get("version", "none")
        why = "the pipeline uses it, and it has to be the same everywhere"
        if not there:
            yield Problem(f"{party} has not loaded the plugin {name} {own}", why=why, fix=f"there: pip install {name}=={own}")
        elif there["version"] != own:
            what = f"{party} has the plugin {name} {word(there['version'])}, this machine {own}"
            yield Problem(what, why=why, fix=f"install one version of {name} on all machines")
        else:
            what = f"{party} has other code of the plugin {name} {own} than this machine"
            yield Problem(what, why=why, fix=f"install {name} {own} again on both machines")


def _unused(party: str, mine: Mapping[str, Any], facts: Mapping[str, Any], used: set[str]) -> Iterator[Problem]:
    known = facts.get("plugins")
    theirs = [str(name) for name in known][:100] if isinstance(known, dict) else []
    for name in sorted({*mine["plugins"], *theirs} - used):
        here, there = _plugin(mine, name), _plugin(facts, name)
        if here != there:
            told = [f"{word(one['version'])}" if one else "none" for one in (there, here)]
            yield Problem(f"plugin {word(name)}: {party} has {told[0]}, this machine {told[1]}; this pipeline does not use it")


def _python(party: str, mine: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[Problem]:
    for key, name in (("python", "Python"), ("nvflare", "NVFlare")):
        here, there = (str(one.get(key)).split(".")[:2] for one in (mine, facts))
        if here != there:
            yield Problem(f"{party} has {name} {word(facts.get(key))}, this machine {mine.get(key)}: hashes may differ")


def _clock(party: str, facts: Mapping[str, Any], now: float) -> Iterator[Problem]:
    clock = facts.get("clock")
    if isinstance(clock, int | float) and not isinstance(clock, bool) and abs(clock - now) > SKEW:
        why = "nothing of the run depends on it, but its logs and ledger have that time"
        yield Problem(f"the clock of {party} is {_span(clock - now)}", why=why, fix="set it by NTP")
    left = days_left(facts, now)
    if left is not None and left < SOON:
        what = f"the certificate of {party} is valid for {max(left, 0):.0f} more days"
        yield Problem(what, fix=f"make a new kit: osmotic site kits --renew {party}; then, there: osmotic site renew KIT")


def days_left(facts: Mapping[str, Any], now: float) -> float | None:
    """Days until a site's certificate expires; None where it does not say so."""
    certificate = facts.get("certificate")
    until = certificate.get("until") if isinstance(certificate, dict) else None
    try:
        return (datetime.datetime.fromisoformat(str(until)).timestamp() - now) / 86400
    except (ValueError, OverflowError):
        return None


def _plugin(facts: Mapping[str, Any], name: str) -> dict[str, str]:
    known = facts.get("plugins")
    one = known.get(name) if isinstance(known, dict) else None
    return {key: str(one.get(key)) for key in ("version", "code")} if isinstance(one, dict) else {}


def _span(seconds: float) -> str:
    size = abs(seconds)
    told = f"{size / 3600:.1f} h" if size >= 3600 else f"{size / 60:.0f} min"
    return f"{told} {'ahead' if seconds > 0 else 'behind'}"


def word(value: object) -> str:
    """What another party says, short and on one line."""
    return "".join(c if c.isprintable() else "?" for c in str(value)[:40])
