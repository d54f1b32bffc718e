# SPDX-License-Identifier: Apache-2.0
"""Requests of the coordinator to sites: their errors, and the ones that go to all: plan, settling."""

from collections.abc import Collection, Mapping
from typing import Any

from osmotic.runtime.coordinator.losses import Losses, loss_of
from osmotic.runtime.plan.graph import Graph
from osmotic.runtime.transports.base import Header, Reply, Transport
from osmotic.schemas.errors import (
    BudgetError,
    Code,
    ComponentError,
    ConfigError,
    DataError,
    MembraneError,
    OsmoticError,
    PeerError,
    Problem,
    ProtocolError,
    RefusedError,
    RequireError,
    StoreError,
)  # fmt: skip

FAMILIES: dict[str, type[OsmoticError]] = {
    Code.CONFIG: ConfigError,
    Code.DATA: DataError,
    Code.POLICY: RefusedError,
    Code.BUDGET: BudgetError,
    Code.REQUIRE: RequireError,
    Code.MEMBRANE: MembraneError,
    Code.STORE: StoreError,
    Code.COMPONENT: ComponentError,
    Code.MODEL: ComponentError,
    Code.INTERNAL: ComponentError,
    Code.PROTOCOL: ProtocolError,
}


def ask(transport: Transport, party: str, header: Header, blob: bytes = b"") -> Reply:
    """A request whose errors are raised: with their text where the operator owns the site, else by code and party."""
    reply, body = transport.request(party, header, blob)
    if "error" in reply:
        raise rebuild(party, header, reply["error"])
    return reply, body


def rebuild(party: str, header: Header, error: dict[str, Any]) -> OsmoticError:
    """The exception that a site reported."""
    problems = [Problem(**p) for p in error["problems"]]
    task = header.get("id", header.get("op", ""))
    if not problems:
        problems = [Problem(f"{party} failed at {task} ({error['code']})", fix=f"the reason is in the log of {party}")]
    made = FAMILIES.get(error["code"], PeerError)(*problems)
    made.exit_code = int(error["exit"])
    made.add_note(f"at {party}: {task}")
    return made


def accept(transport: Transport, graph: Graph) -> dict[str, OsmoticError]:
    """Every site reads and checks the plan itself; all refusals are raised together.

    Returns parties that refused, or could not be reached, where the plan's quorums can do without all of these.
    """
    header, text = request_of(graph)
    away: dict[str, OsmoticError] = {}
    for party in graph.role_of:
        try:
            ask(transport, party, header, text)
        except RefusedError as error:
            away[party] = error
        except (PeerError, ProtocolError) as error:
            if party not in graph.waits:
                raise
            away[party] = error
    spare(graph, away)
    return away


def request_of(graph: Graph) -> tuple[Header, bytes]:
    """The request that gives a plan to a site."""
    loaded = graph.loaded
    header = {"op": "plan", "name": loaded.name, "overrides": list(loaded.overrides), "folder": str(loaded.folder)}
    return header, loaded.text.encode()


def spare(graph: Graph, away: Mapping[str, OsmoticError]) -> None:
    """Raise unless the plan's quorums can do without these parties: every refusal, and which gather is short of parties."""
    losses = Losses(graph, set(), None)
    short: list[tuple[OsmoticError, OsmoticError]] = []  # (how the run would end, what the party said)
    for party, error in away.items():
        try:
            loss = loss_of(party, error, isinstance(error, PeerError))
            losses.decide(loss, [one.id for one in graph.at(party)], (), error, True)
        except OsmoticError as made:
            short.append((made, error))
    refused = [error for error in away.values() if isinstance(error, RefusedError)]
    if short and not refused:
        raise short[0][0]
    if short:
        ended, said = short[-1]
        problems = [problem for one in refused for problem in one.problems]
        all_of_it = RefusedError(*dict.fromkeys([*problems, *([] if ended is said else ended.problems)]))
        all_of_it.exit_code = max(one.exit_code for one in refused)
        raise all_of_it


def settle(transport: Transport, graph: Graph, lost: Collection[str] = ()) -> None:
    """Every party writes its own report, and gets the chain heads of all: rewriting history would take all of them."""
    parties = [party for party in graph.role_of if party not in lost]
    for party in parties:
        ask(transport, party, {"op": "settle"})
    heads = {party: ask(transport, party, {"op": "heads", "heads": {}})[0]["heads"] for party in parties}
    for party in parties:
        ask(transport, party, {"op": "heads", "heads": heads})
