# SPDX-License-Identifier: Apache-2.0
"""What a party that receives a secure sum keeps of it: the sum itself, its label, which session it came of."""

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from osmotic.plugins.contract import Weights
from osmotic.runtime.party.refs import Ref
from osmotic.runtime.plan.nodes import Edge, Instance

if TYPE_CHECKING:
    from osmotic.runtime.party.site import Site

SUM = "sum"  # what a transcript calls a sum that was made of the masked vectors that crossed


def secure_ports(instance: Instance) -> list[str]:
    """Inputs of an instance that are secure sums."""
    return [port for port, value in instance.inputs.items() if not isinstance(value, Edge) and any(e.secure for e in value)]


def edges_of(instance: Instance, port: str) -> tuple[Edge, ...]:
    """The edges that a secure sum is over, in the order of their senders' names; () where the input is none."""
    value = instance.inputs.get(port, ())
    several = () if isinstance(value, Edge) else value
    return tuple(sorted((edge for edge in several if edge.secure), key=lambda edge: edge.sender))


def keep(site: "Site", instance: Instance, port: str, ref: Ref, session: str) -> None:
    """Remember a finished sum for this run and later ones."""
    site.ledger.remember(_name(instance, port), json.dumps({**ref.to_json(), "session": session}))
    _bind(site, edges_of(instance, port), ref)


def session_of(site: "Site", instance: Instance, port: str) -> str:
    """The session of the sum that is kept and intact; "" without one."""
    return next((session for _, session in _kept(site, instance, port)), "")


def known(site: "Site", instance: Instance, port: str) -> str:
    """The digest of the sum that was last received, if it is still here; else "". Binds it for this run."""
    for ref, _ in _kept(site, instance, port):
        _bind(site, edges_of(instance, port), ref)
        return ref.digest
    return ""


def _kept(site: "Site", instance: Instance, port: str) -> Iterator[tuple[Ref, str]]:
    note = site.ledger.recall(_name(instance, port))
    if note:
        said = json.loads(note)
        if site.store.intact(Weights.kind, said["digest"]):
            yield Ref.from_json(said), str(said["session"])


def _bind(site: "Site", edges: Iterable[Edge], ref: Ref) -> None:
    for edge in edges:
        site.received[(edge.name, edge.producer, edge.port)] = ref


def _name(instance: Instance, port: str) -> str:
    return f"sum {instance.id}.{port}"
