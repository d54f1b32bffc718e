# SPDX-License-Identifier: Apache-2.0
"""Who was there when a gather with a quorum ran: checked against the own plan, and written into the own transcript.

An entry says which parties' artifacts were used, which were lost, and the class of the reason. It is hash-chained like a
crossing, so that nobody can say afterwards that somebody took part who did not.
"""

from typing import TYPE_CHECKING, Any

from osmotic.runtime.plan.absence import lacks
from osmotic.runtime.plan.quorum import Gather, gathers, owner
from osmotic.schemas.errors import Problem, RefusedError
from osmotic.schemas.labels import PUBLIC
from osmotic.schemas.messages import fingerprint

if TYPE_CHECKING:
    from osmotic.runtime.party.site import Site
    from osmotic.runtime.plan.graph import Graph
    from osmotic.runtime.plan.nodes import Instance

QUORUM = "quorum"  # the kind of such an entry


def record(site: "Site", instance: "Instance") -> None:
    """Write down who is there for each gather of an instance (as the plan has it) that has a quorum, unless it stands there.

    Raises RefusedError when too few are there.
    """
    graph = site.need()[0]
    if site.absent and lacks(graph, instance, site.absent):
        raise RefusedError(Problem(f"{instance.id}: too much of what it needs is absent"))
    for gather in gathers(instance):
        told = who(graph, gather, site.absent, {party: why for party, why in site.lost.values()})
        site.gathered[(instance.id, gather.port)] = told
        edge, digest = f"{QUORUM}->{gather.port}->{instance.id}", fingerprint(told)
        sql = "SELECT digest FROM crossed WHERE edge=? AND direction='in'"
        if site.ledger.query(sql, (edge,)) != [(digest,)]:
            site.ledger.cross(
                edge=edge, name=gather.edges[0].name, sender=site.party, receiver=site.party, direction="in", kind=QUORUM,
                digest=digest, size=0, label=PUBLIC, more=told,
            )  # fmt: skip


def who(graph: "Graph", gather: Gather, absent: "set[str]", reasons: dict[str, str]) -> dict[str, Any]:
    """{at_least, used, lost}: who is there and who is not; of a party that just has nothing to give, the reason is ''."""
    used, lost = [], {}
    for edge in gather.edges:
        party = owner(graph.instances[edge.producer])
        if edge.producer in absent:
            lost[party] = reasons.get(party, "")
        else:
            used.append(party)
    return {"at_least": gather.needed, "used": used, "lost": lost}


def told(site: "Site") -> list[dict[str, Any]]:
    """Who was there for every gather with a quorum that has run here, like `Outcome.quorums`; reasons by class alone."""
    graph, found = site.need()[0], []
    reasons = {party: why for party, why in site.lost.values()}
    for one in graph.at(site.party) if graph.waits else ():
        for gather in gathers(one) if one.id in site.results else ():
            said = site.gathered.get((one.id, gather.port)) or who(graph, gather, site.absent, reasons)
            lost = [{"party": party, "why": why, "text": why or "had no part"} for party, why in said["lost"].items()]
            more = {"task": one.id, "node": one.node, "round": one.round, "input": gather.port, "of": len(gather.edges)}
            found.append({**said, **more, "lost": lost})
    return found
