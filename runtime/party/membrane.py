# SPDX-License-Identifier: Apache-2.0
"""The one place where artifacts leave and enter a party. Decides by labels in the party's own store and its own policy,
never by what a plan claims; checks the bytes; writes the transcript before they leave.
"""

import json

from osmotic.plugins.contract import Records
from osmotic.runtime.party.rules import check_claims, check_entries
from osmotic.runtime.party.site import Ref, Site
from osmotic.runtime.plan.flow import granted
from osmotic.runtime.plan.graph import Edge
from osmotic.runtime.secure import received
from osmotic.schemas.artifacts import KINDS, canonical
from osmotic.schemas.errors import MembraneError, Problem
from osmotic.schemas.labels import Label
from osmotic.schemas.messages import Envelope, unpack
from osmotic.schemas.records import NUMBERED


def edge_id(edge: Edge, consumer: str) -> str:
    """The identity of a crossing in ledger, transcript and envelope."""
    return f"{edge.producer}.{edge.port}->{consumer}"


def outgoing(site: Site, consumer: str, producer: str, port: str) -> list[Edge]:
    """The edges of the accepted plan by which this site sends an artifact to a consumer (one for each input that takes it).

    Raises MembraneError when there is none.
    """
    graph, _ = site.need()
    instance = graph.instances.get(consumer)
    found = [
        edge
        for edge in (instance.edges() if instance else ())
        if (edge.producer, edge.port, edge.sender) == (producer, port, site.party) and edge.crossing and edge.secure is None
    ]
    if not found:
        raise MembraneError(Problem(f"the plan has no crossing {producer}.{port} -> {consumer} from {site.party}"))
    return found


def send(site: Site, consumer: str, producer: str, port: str, have: str) -> tuple[str, bytes]:
    """(digest, envelope) of a crossing; empty bytes when the receiver has the content and the crossing is on record.

    Raises MembraneError before anything leaves when the label or the bytes may not cross.
    """
    edges = outgoing(site, consumer, producer, port)
    edge = edges[0]
    ref = site.results.get(producer, {}).get(port)
    if ref is None:
        raise MembraneError(Problem(f"{producer}.{port} has not been made"))
    label = Label.join(crossing_label(site, each, ref) for each in edges)
    identity = edge_id(edge, consumer)
    known = site.ledger.query("SELECT digest, label FROM crossed WHERE edge=? AND direction='out'", (identity,))
    if have == ref.digest and known and known[0] == (ref.digest, canonical(label.to_json()).decode()):
        return ref.digest, b""
    files = site.store.files(ref.kind, ref.digest)
    check_bytes(site, ref, label)
    blob = Envelope(identity, site.party, edge.receiver, ref.kind, label, files).pack()
    _record(site, identity, edge, ref, label, len(blob), "out")
    return ref.digest, blob


def crossing_label(site: Site, edge: Edge, ref: Ref) -> Label:
    """The label that an artifact has on the other side; raises MembraneError when it may not cross."""
    label = ref.label
    raw = label.of("raw")
    if any(entry.owner != site.party for entry in raw):
        raise MembraneError(Problem(f"{edge.name}: raw data of another party"))
    if raw:
        waiver, why = granted(site.policy, edge.name, edge.waive, [entry.ref for entry in raw], edge.receiver)
        if waiver is None:
            raise MembraneError(Problem(f"{edge.name}: private data may not leave {site.party}", why=why))
        label = label.exposed(site.party, edge.name, waiver.observers)
    check_entries(site, edge.name, edge.receiver, label)
    return label


def check_bytes(site: Site, ref: Ref, label: Label) -> None:
    """Records that descend from this party's data carry its random ids, or running numbers, whatever the label says."""
    mine = any(entry.owner == site.party for entry in label.entries)
    if ref.kind != Records.kind or not mine:
        return
    artifact = site.store.get(ref.kind, ref.digest)
    if not isinstance(artifact, Records):
        raise MembraneError(Problem("not a table of records"))
    if "id" not in artifact.columns and site.ledger.query("SELECT 1 FROM release_sets WHERE digest=?", (ref.digest,)):
        return  # counts: no row is about one record
    ids = [str(row.get("id", "")) for row in artifact]
    ids = [one for one in ids if not NUMBERED.fullmatch(one)]
    if not site.releaser.known_ids(ids):
        fix = "send what dp_sanitizer or record_blinder gave: their ids are random"
        raise MembraneError(Problem("record ids would cross", why="an id is not one that this party drew at random", fix=fix))


def receive(site: Site, blob: bytes) -> str:
    """Check, store and record an envelope; returns its digest. Raises ProtocolError or MembraneError."""
    envelope = unpack(blob)
    graph, _ = site.need()
    consumer = envelope.edge.partition("->")[2]
    instance = graph.instances.get(consumer)
    edges = [e for e in instance.edges() if edge_id(e, consumer) == envelope.edge and e.secure is None] if instance else []
    if not edges or edges[0].receiver != site.party or edges[0].sender != envelope.sender or not edges[0].crossing:
        raise MembraneError(Problem("an envelope arrived that the plan does not have"))
    edge = edges[0]
    producer = graph.nodes[graph.instances[edge.producer].node]
    if envelope.kind != producer.component.outputs[edge.port].kind.kind:
        raise MembraneError(Problem(f"{edge.name}: an artifact of another kind arrived"))
    check_claims(site, edge.name, envelope.label)
    KINDS[envelope.kind].from_files(envelope.files)
    digest = site.store.put_files(envelope.kind, envelope.files)
    ref = Ref(envelope.kind, digest, envelope.label)
    _record(site, envelope.edge, edge, ref, envelope.label, len(blob), "in")
    for each in edges:
        site.received[(each.name, each.producer, each.port)] = ref
    return digest


def known(site: Site, consumer: str, producer: str, port: str) -> str:
    """The digest that this site last received over an edge, if it still holds it; else ''. Binds it for this run."""
    instance, (graph, _) = site.instance(consumer), site.need()
    edges = [e for e in instance.edges() if e.crossing and (e.producer, e.port) == (producer, port)]
    if not edges:
        return ""
    if edges[0].secure is not None:
        return received.known(site, instance, edges[0].name.rpartition(".")[2])
    sql = "SELECT digest, label FROM crossed WHERE edge=? AND direction='in'"
    rows = site.ledger.query(sql, (edge_id(edges[0], consumer),))
    kind = graph.nodes[graph.instances[producer].node].component.outputs[port].kind.kind
    if not rows or not site.store.intact(kind, rows[0][0]):
        return ""
    ref = Ref(kind, rows[0][0], Label.from_json(json.loads(rows[0][1])))
    for edge in edges:
        site.received[(edge.name, producer, port)] = ref
    return ref.digest


def _record(site: Site, identity: str, edge: Edge, ref: Ref, label: Label, size: int, direction: str) -> None:
    """Write the crossing to the transcript: durable before the bytes leave (or right after they came)."""
    site.ledger.cross(
        edge=identity, name=edge.name, sender=edge.sender, receiver=edge.receiver, direction=direction, kind=ref.kind,
        digest=ref.digest, size=size, label=label,
    )  # fmt: skip
