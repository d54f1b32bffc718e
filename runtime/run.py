# SPDX-License-Identifier: Apache-2.0
"""The coordinator: asks every site to accept the plan, runs what is ready, carries envelopes. It holds no data and no keys;
killed at any moment, the next run finds at the sites whatever had been finished.
"""

import contextlib
import fcntl
import heapq
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from osmotic.runtime.party.membrane import edge_id
from osmotic.runtime.plan.absence import lacks
from osmotic.runtime.plan.graph import Edge, Graph, Instance
from osmotic.runtime.plan.stopping import Stops
from osmotic.runtime.storage.store import disk
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


class Watcher(Protocol):
    """Sees a run as it goes."""

    def started(self, total: int) -> None:
        """The plan was accepted everywhere."""

    def task(self, instance: Instance, cached: bool, seconds: float) -> None:
        """An instance is finished."""

    def progress(self, party: str, task: str, done: int, total: int, note: str) -> None:
        """Inside a task."""


@dataclass
class Crossed:
    """One crossing as it happened."""

    edge: str
    name: str
    sender: str
    receiver: str
    bytes: int


@dataclass
class Outcome:
    """What a run did."""

    ran: int = 0
    cached: int = 0
    seconds: float = 0.0
    crossings: list[Crossed] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)
    stopped: dict[str, int] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)  # of rounds that were not needed, at parties that never took part before


@contextlib.contextmanager
def locked(home: Path) -> Iterator[None]:
    """Only one run at a time in a folder; a second one is told so."""
    with disk(home):
        home.mkdir(parents=True, exist_ok=True)
        file = (home / "run.lock").open("w")
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            fix = "wait for it, or use another folder with --home"
            raise StoreError(Problem("another run is using this folder", str(home), fix=fix)) from error
        yield
    finally:
        file.close()


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


def accept(transport: Transport, graph: Graph) -> None:
    """Every site reads and checks the plan itself; all refusals are raised together."""
    loaded = graph.loaded
    header = {"op": "plan", "name": loaded.name, "overrides": list(loaded.overrides), "folder": str(loaded.folder)}
    problems: list[Problem] = []
    exit_code = 0
    for party in graph.role_of:
        try:
            ask(transport, party, header, loaded.text.encode())
        except RefusedError as error:
            problems += error.problems
            exit_code = max(exit_code, error.exit_code)
    if problems:
        raise RefusedError(*dict.fromkeys(problems))


def settle(transport: Transport, graph: Graph) -> None:
    """Every party writes its own report, and gets the chain heads of all: rewriting history would take all of them."""
    for party in graph.role_of:
        ask(transport, party, {"op": "settle"})
    heads = {party: ask(transport, party, {"op": "heads", "heads": {}})[0]["heads"] for party in graph.role_of}
    for party in graph.role_of:
        ask(transport, party, {"op": "heads", "heads": heads})


class Runner:
    """Runs an accepted graph over a transport: `jobs` threads a party where the transport is parallel, else in plan order."""

    def __init__(self, graph: Graph, transport: Transport, watcher: Watcher, jobs: int = 1) -> None:
        self.graph, self.transport, self.watcher, self.jobs = graph, transport, watcher, jobs
        self.begun: Callable[[Instance], None] = getattr(watcher, "begun", lambda instance: None)  # watchers may have it
        self.outcome = Outcome()
        self.order = {identity: i for i, identity in enumerate(graph.instances)}
        self.waiting: dict[str, set[str]] = {}
        self.dependents: dict[str, list[str]] = {}
        self.ready: dict[str, list[tuple[int, str]]] = {party: [] for party in graph.role_of}
        self.deliveries: dict[str, list[tuple[str, Header, bytes]]] = {}
        self.held: dict[str, dict[str, str]] = {}
        self.stops = Stops(graph)
        self.left = len(graph.instances)
        self.failure: BaseException | None = None
        self.condition = threading.Condition()

    def run(self) -> Outcome:
        """Run everything; raises the first failure (after what was under way has ended)."""
        start = time.perf_counter()
        self._prepare()
        self.watcher.started(self.left)
        if self.transport.parallel:
            self._threads()
        else:
            self._serial()
        if self.failure is not None:
            raise self.failure
        self.outcome.seconds = time.perf_counter() - start
        return self.outcome

    def _prepare(self) -> None:
        for party in self.graph.role_of:
            self.held[party] = ask(self.transport, party, {"op": "held"})[0]["held"]
        for instance in self.graph.instances.values():
            needs = self.waiting[instance.id] = self.stops.needs(instance)
            for producer in needs:
                self.dependents.setdefault(producer, []).append(instance.id)
            if not needs:
                heapq.heappush(self.ready[instance.party], (self.order[instance.id], instance.id))

    def _serial(self) -> None:
        while self.left and self.failure is None:
            heads = [queue[0] for queue in self.ready.values() if queue]
            _, identity = min(heads)
            heapq.heappop(self.ready[self.graph.instances[identity].party])
            self._guarded(identity)

    def _threads(self) -> None:
        parties = [party for party in self.ready for _ in range(self.jobs)]
        threads = [threading.Thread(target=self._loop, args=(party,), daemon=True) for party in parties]
        for thread in threads:
            thread.start()
        try:
            with self.condition:
                while self.left and self.failure is None:
                    self.condition.wait(0.2)
            for thread in threads:
                thread.join()
        except BaseException as error:  # Ctrl-C: nobody starts anything new; closing the transport ends what is under way
            self.failure = self.failure or error
            raise

    def _loop(self, party: str) -> None:
        while True:
            with self.condition:
                while not self.ready[party] and self.left and self.failure is None:
                    self.condition.wait(0.2)
                if not self.left or self.failure is not None:
                    return
                _, identity = heapq.heappop(self.ready[party])
            self._guarded(identity)

    def _guarded(self, identity: str) -> None:
        try:
            self._step(self.graph.instances[identity])
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits, which raises it
            with self.condition:
                self.failure = self.failure or error
                self.condition.notify_all()

    def _step(self, instance: Instance) -> None:
        stopped, cached, seconds = self.stops.stopped(instance), False, 0.0
        earlier = self.graph.before.get(instance.id, "") if stopped else ""
        absent = self._absent(instance, stopped, earlier)
        self._deliver(instance, self.deliveries.pop(instance.id, []), stopped or absent)
        if absent:
            self._leave_out(instance)
        elif stopped:
            ask(self.transport, instance.party, {"op": "alias", "id": instance.id, "earlier": earlier})
        else:
            self.begun(instance)
            reply, _ = ask(self.transport, instance.party, {"op": "run", "id": instance.id})
            cached, seconds = bool(reply["cached"]), float(reply["seconds"])
            self._decide(instance)
        outgoing = [] if absent else self._collect(instance)
        with self.condition:
            self.outcome.cached += cached
            self.outcome.ran += not (cached or stopped or absent)
            self.outcome.times[instance.id] = seconds
            for consumer, delivery in outgoing:
                self.deliveries.setdefault(consumer, []).append(delivery)
            self._done(instance)
            self.condition.notify_all()
        self.watcher.task(instance, cached, seconds)

    def _deliver(self, instance: Instance, waiting: list[tuple[str, Header, bytes]], stopped: bool) -> None:
        """Hand in what has crossed for an instance. For a round that may not be needed, nothing crosses before it is."""
        if stopped:
            return
        if self.stops.gate(instance):
            edges = {edge_id(edge, instance.id): edge for edge in instance.edges() if self._goes(edge)}
            waiting = [*waiting, *(self._take(instance, edge) for edge in edges.values())]
        for party, header, blob in waiting:
            ask(self.transport, party, header, blob)

    def _done(self, instance: Instance) -> None:
        self.left -= 1
        for identity in self.dependents.get(instance.id, ()):
            needs = self.waiting[identity]
            needs.discard(instance.id)
            if not needs:
                party = self.graph.instances[identity].party
                heapq.heappush(self.ready[party], (self.order[identity], identity))

    def _collect(self, instance: Instance) -> list[tuple[str, tuple[str, Header, bytes]]]:
        """Take what leaves this party from its membrane now; it is handed in just before its consumer runs."""
        edges = {
            edge_id(edge, consumer.id): (consumer, edge)
            for consumer, edge in self.graph.consumers.get(instance.id, ())
            if self._goes(edge) and not self.stops.gate(consumer)
        }
        return [(consumer.id, self._take(consumer, edge)) for consumer, edge in edges.values()]

    def _goes(self, edge: Edge) -> bool:
        """Whether there is something at the other end of a crossing."""
        return edge.crossing and edge.producer not in self.outcome.absent

    def _absent(self, instance: Instance, stopped: bool, earlier: str) -> bool:
        """Whether an instance never comes to be: nothing stands for it, or nothing is there of an input that it needs."""
        gone = self.outcome.absent
        return (stopped and (not earlier or earlier in gone)) or lacks(self.graph, instance, gone)

    def _leave_out(self, instance: Instance) -> None:
        """Tell a party that an instance of it never comes to be, and those that would take something from it."""
        takers = {consumer.party for consumer, _ in self.graph.consumers.get(instance.id, ())}
        for party in sorted(takers | {instance.party}):
            ask(self.transport, party, {"op": "absent", "id": instance.id})
        with self.condition:
            self.outcome.absent.add(instance.id)

    def _take(self, consumer: Instance, edge: Edge) -> tuple[str, Header, bytes]:
        identity = edge_id(edge, consumer.id)
        have = self.held.get(edge.receiver, {}).get(identity, "")
        header = {"op": "pull", "id": consumer.id, "producer": edge.producer, "port": edge.port, "have": have}
        reply, blob = ask(self.transport, edge.sender, header)
        with self.condition:
            self.outcome.crossings.append(Crossed(identity, edge.name, edge.sender, edge.receiver, len(blob)))
        return self._delivery(consumer, edge, bool(reply["same"]), blob)

    def _delivery(self, consumer: Instance, edge: Edge, same: bool, blob: bytes) -> tuple[str, Header, bytes]:
        if same:
            header = {"op": "known", "id": consumer.id, "producer": edge.producer, "port": edge.port}
            return edge.receiver, header, b""
        return edge.receiver, {"op": "push"}, blob

    # ---- repeats that stop early ----

    def _decide(self, instance: Instance) -> None:
        port = self.stops.port(instance)
        if port is None:
            return
        reply, _ = ask(self.transport, instance.party, {"op": "until", "id": instance.id, "port": port})
        if reply["stop"]:
            group = self.graph.nodes[instance.node].group
            with self.condition:
                self.stops.at[instance.id] = instance.round or 1
                self.outcome.stopped[f"{group} {dict(instance.cell)}".strip()] = instance.round or 1
