# SPDX-License-Identifier: Apache-2.0
"""What a sum is, as each party reads it from its own copy of the plan: who, how many, which noise, of what.

Nothing of it is taken from the coordinator but the session's random name and the shapes of the tensors, and a client uses the
shapes of its own. So parties that were told different plans, or were given different models to start from, make different
`SumPlan`s, and none of their messages fit together.
"""

import functools
import hashlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from osmotic.runtime.plan.graph import Edge, Graph, Instance
from osmotic.runtime.privacy.noisy_sums import event_of
from osmotic.runtime.secure.received import edges_of
from osmotic.runtime.storage.durable import own_folder, write_whole
from osmotic.runtime.storage.keyring import IDENTITY
from osmotic.schemas.errors import MembraneError, Problem, ProtocolError, StoreError
from osmotic.schemas.messages import fingerprint
from osmotic.schemas.secure import SecureSum

if TYPE_CHECKING:
    from pathlib import Path

    from osmotic.runtime.party.site import Site
    from osmotic.runtime.secure.keys import Identity
    from osmotic.runtime.secure.plan import SumPlan

FOLDER = "secure"  # in a party's vault: sessions, and its identity
SESSION = 32  # bytes of a session's name


def asked(site: "Site", header: Mapping[str, Any]) -> tuple[Instance, str, tuple[Edge, ...]]:
    """(consumer, port, all edges of the sum) that a request is about; raises MembraneError where the plan has no such sum."""
    graph, _ = site.need()
    instance, port = graph.instances.get(str(header.get("id"))), str(header.get("port"))
    edges = edges_of(instance, port) if instance is not None else ()
    if instance is None or not edges:
        raise MembraneError(Problem(f"the plan has no secure sum {header.get('id')}.{port}"))
    return instance, port, edges


def session_of(header: Mapping[str, Any]) -> bytes:
    """The session's name; raises ProtocolError where there is none."""
    try:
        session = bytes.fromhex(str(header.get("session")))
    except ValueError:
        session = b""
    if len(session) != SESSION:
        raise ProtocolError(Problem("a request of a secure sum names no session"))
    return session


@functools.lru_cache(maxsize=256)
def multiplier_of(secure: SecureSum) -> float | None:
    """The standard deviation of the sum's noise over `clip`; None without noise. Raises ConfigError."""
    return float(event_of(secure.noise())["parameters"]["noise_multiplier"]) if secure.noisy else None


def sum_plan(
    graph: Graph, edges: tuple[Edge, ...], session: bytes, shapes: Mapping[str, tuple[int, ...]], context: bytes = b""
) -> "SumPlan":
    """The sum that these edges of the plan are; raises ConfigError for one that cannot be."""
    from osmotic.runtime.secure.plan import SumPlan

    secure = edges[0].secure
    if secure is None:
        raise MembraneError(Problem(f"{edges[0].name} is no secure sum"))
    return SumPlan(
        session=session, names=tuple(edge.sender for edge in edges), receiver=edges[0].receiver, shapes=dict(shapes),
        at_least=secure.at_least, colluding=secure.colluding, clip=secure.clip, range=secure.range,
        noise_multiplier=multiplier_of(secure), context=context,
    )  # fmt: skip


def context_of(site: "Site", consumer: Instance, edge: Edge) -> bytes:
    """A digest of the plan and of what the receiver gave everybody for the work of this round: equal at all clients."""
    graph, _ = site.need()
    start = graph.instances[edge.producer]
    waiting, seen, given = [start], {start.id}, []
    while waiting:
        for one in waiting.pop().edges():
            before = graph.instances[one.producer]
            if one.crossing:
                here = one.receiver == site.party
                ref = site.find(one) if here else site.results.get(one.producer, {}).get(one.port)
                if one.sender == consumer.party and before.each is None and ref is not None:
                    given.append([one.producer, one.port, ref.digest])
            elif before.id not in seen and before.round == start.round:
                seen.add(before.id)
                waiting.append(before)
    return bytes.fromhex(plan_print(graph, given))


def plan_print(graph: Graph, given: list[list[str]]) -> str:
    """Hexadecimal digest of the plan's text, what was changed of it, and artifacts by (task, port, digest)."""
    return fingerprint([graph.loaded.text, list(graph.loaded.overrides), sorted(given)])


def folder_of(site: "Site") -> "Path":
    """Where sessions lie: beside the ledger, for its owner alone."""
    return own_folder(site.ledger.vault / FOLDER)


def identity_of(site: "Site") -> "Identity":
    """This party's signing key, made when it is first needed."""
    return identity_in(site.ledger.vault)


def identity_in(vault: "Path") -> "Identity":
    """The signing key in a party's vault, made when it is first needed. Raises StoreError for a damaged one."""
    from osmotic.runtime.secure.keys import Identity

    path = vault / IDENTITY
    own_folder(path.parent)
    if not path.is_file():
        write_whole(path, os.urandom(32))
    seed = path.read_bytes()
    if len(seed) != 32:
        raise StoreError(Problem("the identity key is damaged", str(path), fix="restore it from your backup"))
    return Identity(seed)


def pinned(site: "Site", edges: tuple[Edge, ...]) -> dict[str, bytes] | None:
    """The public keys of everybody in a sum, where the policy names any; its own too, which may be left out."""
    listed = site.policy.identities
    if not listed:
        return None
    names = [*(edge.sender for edge in edges), edges[0].receiver]
    found = {name: bytes.fromhex(listed[name]) for name in names if name in listed}
    return {site.party: identity_of(site).public, **found}


def short(session: bytes) -> str:
    """A session's name as a file's."""
    return hashlib.sha256(session).hexdigest()[:32]
