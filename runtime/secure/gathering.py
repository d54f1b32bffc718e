# SPDX-License-Identifier: Apache-2.0
"""The coordinator's side of secure sums: carries messages between clients and receiver, and decides who counts as lost.

What it decides (session, who gave keys, who shares, who is in the sum) is written to ``home/sums`` before it is acted on: a run
that was killed goes on with the same session, free. It sees names, sizes, public keys; shares are sealed, vectors masked.
A sum that is there stands as long as no vector in it has changed; else a new session is begun, which clients are charged for.
"""

import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osmotic.runtime.party.membrane import edge_id
from osmotic.runtime.plan.graph import Edge, Graph, Instance
from osmotic.runtime.plan.quorum import needed_at
from osmotic.runtime.run import Crossed, ask
from osmotic.runtime.secure import bundle
from osmotic.runtime.secure.received import edges_of
from osmotic.runtime.storage.durable import own_folder, write_whole
from osmotic.runtime.transports.base import Header, Reply, Transport
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import BudgetError, ComponentError, MembraneError, OsmoticError, PeerError, Problem, RefusedError
from osmotic.schemas.messages import fingerprint

AT_ONCE, VECTORS = 16, 4  # clients that are asked at the same time; of whom vectors are in memory here
FOLDER = "sums"


@dataclass
class Summed:
    """A finished sum: who is in it, who was lost on the way and why, what crossed."""

    task: str
    port: str
    used: list[str]
    lost: dict[str, str]
    of: int
    trust: str
    crossings: list[Crossed] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the crossings."""
        return {
            "task": self.task, "port": self.port, "used": self.used, "lost": self.lost, "of": self.of, "trust": self.trust,
        }  # fmt: skip


@dataclass
class Record:
    """What was decided of a session. keys, shares, signatures: by party, hexadecimal; survivors: once all that come have.

    finished: what carried it on is forgotten, who is in it stays.
    """

    session: str
    trust: str = ""
    outline: dict[str, list[int]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    shares: dict[str, str] = field(default_factory=dict)
    survivors: list[str] = field(default_factory=list)
    signatures: dict[str, str] = field(default_factory=dict)
    unmask: dict[str, str] = field(default_factory=dict)  # sealed to the receiver
    lost: dict[str, str] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    finished: bool = False


class Sums:
    """Secure sums of one run. home: of the run; None: what is decided is not kept."""

    def __init__(self, graph: Graph, transport: Transport, home: Path | None) -> None:
        self.graph, self.transport, self.home = graph, transport, home

    def gather(self, consumer: Instance, port: str, absent: Collection[str]) -> Summed:
        """Have the sum made and received. absent: ids of instances that never came to be.

        Raises the error of a sender that the run cannot do without, RefusedError or PeerError where too few are left.
        """
        edges = [edge for edge in edges_of(consumer, port) if edge.producer not in absent]
        path = self._path(consumer, port)
        record = _read(path)
        if record is not None:
            going = _Session(self, consumer, port, edges, record)
            if going.done():
                return going.summed(crossed=False)
            if not record.finished and not going.stale():
                try:
                    going.make()
                    return going.summed()
                except (BudgetError, MembraneError):
                    raise  # would come again, and cost the others another sum
                except RefusedError:
                    pass  # a client was asked to the end, or gave it up: a new one begins
        made = _Session(self, consumer, port, edges, Record(os.urandom(32).hex()))
        made.make()
        return made.summed()

    def _path(self, consumer: Instance, port: str) -> Path | None:
        """Where what was decided of a sum is kept."""
        if self.home is None:
            return None
        return own_folder(self.home / FOLDER) / f"{fingerprint([consumer.id, port])[:32]}.json"


class _Session:
    """One attempt at one sum."""

    def __init__(self, sums: Sums, consumer: Instance, port: str, edges: list[Edge], record: Record) -> None:
        self.sums, self.consumer, self.port, self.record = sums, consumer, port, record
        self.edges = {edge.sender: edge for edge in edges}
        self.needed = needed_at(sums.graph, consumer, port)
        self.errors: dict[str, OsmoticError] = {}
        self.broken: PeerError | None = None  # the receiver cannot be reached

    # ---- asking ----

    def client(self, party: str, stage: str, blob: bytes = b"", **more: Any) -> Reply:
        """Ask a sender."""
        edge = self.edges[party]
        header: Header = {"op": "sum", "stage": stage, "id": self.consumer.id, "port": self.port, "producer": edge.producer}
        return ask(self.sums.transport, party, {**header, "session": self.record.session, **more}, blob)

    def receiver(self, stage: str, blob: bytes = b"", **more: Any) -> Reply:
        """Ask the receiver."""
        header: Header = {"op": "sum-receive", "stage": stage, "id": self.consumer.id, "port": self.port}
        return ask(self.sums.transport, self.consumer.party, {**header, "session": self.record.session, **more}, blob)

    def each(self, parties: Iterable[str], stage: Callable[[str], Any], at_once: int = AT_ONCE) -> dict[str, Any]:
        """Answers of those that answer; the others are noted with their errors."""

        def one(party: str) -> Any:
            try:
                return stage(party)
            except (OsmoticError, TimeoutError) as error:
                return error if isinstance(error, OsmoticError) else PeerError(Problem(f"{party} did not answer in time"))

        names = list(parties)
        if self.sums.transport.parallel and len(names) > 1:
            with ThreadPoolExecutor(min(at_once, len(names))) as pool:
                answers = list(pool.map(one, names))
        else:
            answers = [one(party) for party in names]
        found: dict[str, Any] = {}
        for party, answer in zip(names, answers, strict=True):
            if isinstance(answer, OsmoticError):
                self.errors[party] = answer
            else:
                found[party] = answer
        return found

    # ---- what an earlier run left ----

    def done(self) -> bool:
        """Whether the sum is there, of the vectors that are there now; those that cannot be asked are taken to be as before."""
        record = self.record
        if not record.survivors or not set(record.survivors) <= set(self.edges):
            return False
        if not self.receiver("state")[0].get("done"):
            return False
        return all(state == "same" for state in self._states(record.survivors).values())

    def stale(self) -> bool:
        """Whether an unfinished session cannot go on: a vector has changed, or a client lost it, or is no part any more."""
        begun = [*self.record.keys]
        if not set(begun) <= set(self.edges):
            return True
        states = self._states(begun)
        lost = bool(self.record.survivors) and not set(self.record.survivors) <= set(states)
        return lost or any(state != "same" for state in states.values())

    def _states(self, parties: Iterable[str]) -> dict[str, str]:
        found = self.each(parties, lambda party: self.client(party, "state")[0].get("state"))
        self.errors.clear()
        return {party: str(state) for party, state in found.items()}

    # ---- stages ----

    def make(self) -> None:
        """All stages; each begins with what was decided before, if it was."""
        self._keys()
        key = self.receiver("open", outline=self.record.outline)[1]
        self.receiver("keys", bundle.pack(_bytes(self.record.keys)))
        self._shares(key)
        reply, blob = self.receiver("shares", bundle.pack(_bytes(self.record.shares)))
        self._masked(bundle.unpack(blob), [str(party) for party in reply.get("held", ())])
        self._confirm()
        self._unmask()
        self.receiver("finish")
        self.record.finished = True
        for carried in (self.record.keys, self.record.shares, self.record.signatures, self.record.unmask):
            carried.clear()
        self._save()

    def _keys(self) -> None:
        record = self.record
        if not record.keys:
            found = self.each(self.edges, lambda party: self.client(party, "keys"))
            outlines = [reply.get("outline") for reply, _ in found.values()]
            common = max(outlines, key=outlines.count) if outlines else {}
            for party in [name for name, (reply, _) in found.items() if reply.get("outline") != common]:
                what = f"the weights of {party} have other tensors than those of most"
                self.errors[party] = RefusedError(Problem(what, path=self.port, fix="one model at all parties"))
                del found[party]
            self._enough(found, "gave keys")
            record.outline = dict(common)
            record.keys = {party: blob.hex() for party, (_, blob) in found.items()}
            active = all(reply.get("trust") == "active" for reply, _ in found.values())
            record.trust = "active" if active else "honest-but-curious"
            self._save()

    def _shares(self, key: bytes) -> None:
        record = self.record
        if not record.shares:
            blob = bundle.pack({**_bytes(record.keys), "": key})
            found = self.each(record.keys, lambda party: self.client(party, "shares", blob)[1])
            self._enough(found, "shared their secrets")
            record.shares = {party: answer.hex() for party, answer in found.items()}
            self._save()

    def _masked(self, own: Mapping[str, bytes], held: Collection[str]) -> None:
        """Masked vectors, each handed on as it comes. held: whose the receiver has from before."""

        def carry(party: str) -> int:
            reply, masked = self.client(party, "masked", own[party])
            if reply.get("beyond") is True:
                raise self._beyond(party)
            try:
                self.receiver("masked", masked, sender=party, label=reply.get("label"))
            except PeerError as error:
                self.broken = error
                raise
            return len(masked)

        record = self.record
        found = self.each([p for p in record.survivors or record.shares if p not in held], carry, VECTORS)
        if self.broken is not None:
            raise self.broken
        there = {*held, *found}
        if record.survivors:
            if not set(record.survivors) <= there:
                raise self._short(there, "gave their masked vectors again")
            return
        self._enough(there, "gave their masked vectors")
        record.survivors = [str(name) for name in self.receiver("survivors")[0]["survivors"]]
        record.bytes = found
        self._save()

    def _confirm(self) -> None:
        record = self.record
        if not record.signatures:
            found = self.each(record.survivors, lambda p: self.client(p, "confirm", survivors=record.survivors)[1])
            self._open_with(found, "confirmed who is in the sum")
            signatures = bundle.unpack(self.receiver("confirm", bundle.pack(found))[1])
            record.signatures = {party: content.hex() for party, content in signatures.items()}
            self._save()
        else:
            self.receiver("confirm", bundle.pack(_bytes(record.signatures)))

    def _unmask(self) -> None:
        if not self.record.unmask:
            blob = bundle.pack(_bytes(self.record.signatures))
            found = self.each(self.record.survivors, lambda party: self.client(party, "unmask", blob)[1])
            self._open_with(found, "helped to take the masks away")
            self.record.unmask = {party: answer.hex() for party, answer in found.items()}
            self._save()
        self.receiver("unmask", bundle.pack(_bytes(self.record.unmask)))

    # ---- who is left ----

    def _enough(self, found: Collection[str], did: str) -> None:
        """Raise unless as many did what a stage asks as the run needs, and as the clients themselves insist on."""
        if len(found) < max(self.needed, self._fewest()):
            raise self._short(found, did)

    def _open_with(self, found: Collection[str], did: str) -> None:
        """The same for what takes masks away: who is in the sum stays in it, and a majority is enough."""
        secure = next(iter(self.edges.values())).secure
        everybody = len(edges_of(self.consumer, self.port))
        if secure is not None and len(found) < (everybody + secure.colluding) // 2 + 1:
            raise self._short(found, did)

    def _fewest(self) -> int:
        secure = next(iter(self.edges.values())).secure if self.edges else None
        return secure.fewest(len(edges_of(self.consumer, self.port))) if secure is not None else 0

    def _short(self, found: Collection[str], did: str) -> OsmoticError:
        """The error of a sum that cannot be made: one family where all reasons are of one, every reason named."""
        if len(self.errors) == 1:
            return next(iter(self.errors.values()))
        everybody = len(edges_of(self.consumer, self.port))
        what = f"a secure sum for {self.consumer.id}: {len(found)} of {everybody} parties {did}"
        why = "; ".join(f"{party}: {_reason(error)}" for party, error in sorted(self.errors.items()))
        fix = "run again when they are there: what was charged is not charged again for the same session"
        kinds = {type(error) for error in self.errors.values()}
        family = kinds.pop() if len(kinds) == 1 else PeerError
        said = {(p.where, p.path, p.fix) for error in self.errors.values() for p in error.problems}
        where, path, fix = said.pop() if len(said) == 1 and family is ComponentError else ("", self.port, fix)
        made = family(Problem(what, where, path, why, fix))
        made.exit_code = max((error.exit_code for error in self.errors.values()), default=made.exit_code)
        return made

    def _beyond(self, party: str) -> ComponentError:
        """A vector that does not fit into the range, which the plan says where."""
        edge, loaded = self.edges[party], self.sums.graph.loaded
        path = (*self.sums.graph.nodes[self.consumer.node].path, "inputs", self.port, "secure_sum", "range")
        most = edge.secure.range if edge.secure is not None else None
        what = f"the vector of {party} has a number beyond the range of {most or 0:g}, or no number"
        fix = "a larger 'range', or 'clip' beside it: then numbers beyond it are cut"
        return ComponentError(Problem(what, loaded.source.where(path), ".".join(map(str, path)), fix=fix))

    def _save(self) -> None:
        lost = {party: _reason(error) for party, error in self.errors.items() if party not in self.record.survivors}
        self.record.lost |= lost
        path = self.sums._path(self.consumer, self.port)
        if path is not None:
            write_whole(path, canonical(vars(self.record)))

    def summed(self, crossed: bool = True) -> Summed:
        """What there is to be told. crossed: now; else it was there, and no byte went."""
        record = self.record
        crossings = [
            Crossed(
                edge_id(edge, self.consumer.id), edge.name, party, edge.receiver, record.bytes.get(party, 0) if crossed else 0
            )
            for party, edge in self.edges.items()
            if party in record.survivors
        ]
        of = len(edges_of(self.consumer, self.port))
        return Summed(self.consumer.id, self.port, list(record.survivors), dict(record.lost), of, record.trust, crossings)


def _bytes(parts: Mapping[str, str]) -> dict[str, bytes]:
    return {party: bytes.fromhex(text) for party, text in parts.items()}


def _reason(error: OsmoticError) -> str:
    """Why a party was lost, in few words: what the transport says, else the code of its refusal."""
    return str(getattr(error, "reason", "")) or (error.problems[0].what if error.problems else str(error.code))


def _read(path: Path | None) -> Record | None:
    """What was decided before; None where there is nothing, or nothing that can be read: then a new session begins."""
    try:
        return Record(**json.loads(path.read_bytes())) if path is not None and path.is_file() else None
    except (ValueError, TypeError, OSError):
        return None
