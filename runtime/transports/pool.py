# SPDX-License-Identifier: Apache-2.0
"""The local transport with several processes a party (``--jobs N``): independent tasks of one party run at the same time.

The processes of a party share its store and its ledger, and nothing else. Before one of them runs a task it takes over what the
others have finished, by looking it up as a later run would; so it holds the same labels, and the membrane decides as ever.

Nothing is done, released, charged or paid for twice: every charge is one write transaction that looks first whether the release
is there (`ledger`, `releases`); equal tasks take turns (`turns`), and so do tasks of a party that ask the same model elsewhere,
whose answers are kept for each other. Calls of a party's models come to a process of their own, which asks nobody: no circle of
parties that wait for each other can arise. Chains of ledger and transcript are in the order of the commits.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from osmotic.runtime.plan.graph import Graph, Instance
from osmotic.runtime.transports.base import Header, Reply, Watch, refuse
from osmotic.runtime.transports.framed import Framed
from osmotic.runtime.transports.processes import Processes, Worker
from osmotic.schemas.errors import OsmoticError, PeerError, Problem

ONE = ("held", "settle", "hashes", "heads", "status", "sum-receive")  # always asked of the first process
ALL = ("settle", "hashes", "status")  # which then knows all that was done


@dataclass
class Slot:
    """One process of a party. known: instances whose outcome it has taken over; absent: how many absences it was told."""

    name: str
    party: str
    busy: bool = False
    known: set[str] = field(default_factory=set)
    absent: int = 0


@dataclass
class Party:
    """What has happened at a party: instance -> how it was finished (run, or alias), absences in order, who ran what."""

    slots: list[Slot]
    plan: tuple[Header, bytes] = field(default_factory=lambda: ({}, b""))
    done: dict[str, Header] = field(default_factory=dict)
    absent: list[Header] = field(default_factory=list)
    owner: dict[str, Slot] = field(default_factory=dict)


class Pool(Processes):
    """Parties as several processes each of this machine.

    asks: the models, not of this very party, that an instance asks; instances that have one in common take turns.
    """

    def __init__(
        self, graph: Graph, home: Path, sites: Path | None, watch: Watch, binds: tuple[str, ...], jobs: int,
        asks: Callable[[Instance], set[str]],
    ) -> None:  # fmt: skip
        Framed.__init__(self, lambda name, *told: watch(name.partition("#")[0], *told))
        self.graph, self.asks = graph, asks
        self._environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        self._where = (home, sites, binds)
        self.free = threading.Condition()
        self.asking: set[tuple[str, str]] = set()  # (party, model) of the instances that run
        self.answering = {party: threading.Lock() for party in graph.role_of}
        self.workers: dict[str, Worker] = {}
        self.parties = {p: Party([Slot(f"{p}#{i}", p) for i in range(jobs)]) for p in graph.role_of}
        for party in self.parties.values():
            for slot in party.slots:
                self._start(slot.name, slot.party)

    def _start(self, name: str, party: str) -> None:
        home, sites, binds = self._where
        self.workers[name] = Worker(party, home, sites, self._environment, binds)

    def request(self, party: str, header: Header, blob: bytes = b"") -> Reply:
        """Ask a process of a party that is free, and knows what it needs for the answer."""
        if party not in self.parties:
            raise PeerError(Problem(f"there is no party {party!r}"))
        here, op = self.parties[party], header.get("op")
        if op == "plan":
            return self._plan(here, header, blob)
        identity = str(header.get("producer" if op in ("pull", "sum") else "id", ""))
        first = here.slots[0] if op in ONE else None
        with self._turn(party, identity if op == "run" else ""), self._slot(here, first, here.owner.get(identity)) as slot:
            self._tell(here, slot, op, identity)
            reply = super().request(slot.name, header, blob)
        if "error" not in reply[0]:
            self._note(here, slot, header)
        return reply

    def _plan(self, here: Party, header: Header, blob: bytes) -> Reply:
        """Every process of the party reads and checks the plan; the first that refuses answers for all."""
        reply: Reply = ({}, b"")
        here.plan = (header, blob)
        for slot in here.slots:
            reply = super().request(slot.name, header, blob)
            if "error" in reply[0]:
                return reply
            self._sent(slot.name, {"op": "share"})
        return reply

    def _tell(self, here: Party, slot: Slot, op: object, identity: str) -> None:
        """Let a process know what an operation needs."""
        while slot.absent < len(here.absent):
            self._sent(slot.name, here.absent[slot.absent])
            slot.absent += 1
        if op in ALL:
            self._know(here, slot, list(here.done))
        elif op == "run":
            instance = self.graph.instances[identity]
            gone = {header["id"] for header in here.absent}
            edges = [edge for edge in instance.edges() if edge.producer not in gone]
            self._know(here, slot, [edge.producer for edge in edges if not edge.crossing])
            self._receive(slot, instance)
        elif op == "alias":
            self._know(here, slot, [self.graph.before.get(identity, "")])
        elif identity in here.done:
            self._know(here, slot, [identity])

    def _know(self, here: Party, slot: Slot, wanted: list[str]) -> None:
        """Have a process take over instances that others have finished, and before them whatever these were made of."""
        waiting = [one for one in reversed(wanted) if one in here.done]
        while waiting:
            identity = waiting[-1]
            if identity in slot.known:
                waiting.pop()
                continue
            instance, how = self.graph.instances[identity], here.done[identity]
            before = [how["earlier"]] if how["op"] == "alias" else [e.producer for e in instance.edges() if not e.crossing]
            missing = [one for one in before if one in here.done and one not in slot.known]
            if missing:
                waiting += missing
                continue
            if how["op"] == "alias":
                self._sent(slot.name, how)
            else:
                self._receive(slot, instance)
                self._sent(slot.name, {"op": "find", "id": identity})
            slot.known.add(identity)
            waiting.pop()

    def _receive(self, slot: Slot, instance: Instance) -> None:
        """Have a process find what has crossed to an instance, by whichever process it came in."""
        for producer, port in dict.fromkeys((e.producer, e.port) for e in instance.edges() if e.crossing):
            self._sent(slot.name, {"op": "known", "id": instance.id, "producer": producer, "port": port})

    def _sent(self, name: str, header: Header, blob: bytes = b"") -> None:
        """A request of our own to one process; raises PeerError with what the process had against it."""
        reply, _ = super().request(name, header, blob)
        if "error" in reply:
            problems = [Problem(**problem) for problem in reply["error"]["problems"]]
            raise PeerError(*problems or [Problem(f"{name} could not take over {header.get('id', '')}")])

    def _note(self, here: Party, slot: Slot, header: Header) -> None:
        """Remember what is finished: the other processes are told when they need it."""
        identity = str(header.get("id", ""))
        with self.free:
            if header["op"] in ("run", "alias"):
                here.done[identity] = {"op": header["op"], "id": identity, "earlier": header.get("earlier", "")}
                here.owner[identity] = slot
                slot.known.add(identity)
            elif header["op"] == "absent":
                here.absent.append(header)
                slot.absent = len(here.absent) if slot.absent == len(here.absent) - 1 else slot.absent

    @contextlib.contextmanager
    def _slot(self, here: Party, only: Slot | None, liked: Slot | None) -> Iterator[Slot]:
        """A process that is free (waits for one): this very one, or better this one than another."""
        with self.free:
            while True:
                able = [slot for slot in ([only] if only else here.slots) if not slot.busy]
                if able:
                    break
                self.free.wait()
            slot = liked if liked in able and liked is not None else max(able, key=lambda one: len(one.known))
            slot.busy = True
        try:
            yield slot
        finally:
            with self.free:
                slot.busy = False
                self.free.notify_all()

    @contextlib.contextmanager
    def _turn(self, party: str, identity: str) -> Iterator[None]:
        """Nobody else of this party asks the models that an instance asks; waits for all of them at once."""
        mine = {(party, model) for model in self.asks(self.graph.instances[identity])} if identity else set()
        with self.free:
            while mine & self.asking:
                self.free.wait()
            self.asking |= mine
        try:
            yield
        finally:
            with self.free:
                self.asking -= mine
                self.free.notify_all()

    # ---- model calls between parties ----

    def _call(self, party: str, to: str, header: Header, body: bytes) -> Reply:
        """A model call from one party's process to another party; whatever goes wrong is the caller's to hear."""
        if header.get("op") != "call":
            reply, answer = refuse(header.get("op"))
            return {**reply, "frame": "outbound"}, answer
        try:
            if to not in self.parties:
                raise PeerError(Problem(f"there is no party {to!r}"))
            reply, answer = super().request(self._answerer(to), {**header, "from": party.partition("#")[0]}, body)
        except OsmoticError as error:
            reply, answer = {"error": {"code": str(error.code), "exit": error.exit_code, "problems": []}}, b""
        return {**reply, "frame": "outbound"}, answer

    def _answerer(self, party: str) -> str:
        """The process of a party that answers calls of its models, started when the first one comes."""
        name = f"{party}#calls"
        with self.answering[party]:
            if name not in self.workers:
                self._start(name, party)
                self._sent(name, *self.parties[party].plan)
        return name
