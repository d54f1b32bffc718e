# SPDX-License-Identifier: Apache-2.0
"""The coordinator: asks every site to accept the plan, runs what is ready, carries envelopes. It holds no data and no keys;
killed at any moment, the next run finds at the sites whatever had been finished.

A party that is lost ends the run, unless everybody else takes what it gives by gathers with a quorum that is still kept
(`coordinator.progress`, `coordinator.losses`).
"""

import contextlib
import fcntl
import heapq
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from osmotic.runtime.coordinator.fragments import LONGEST, SMALL, Fragment, Made
from osmotic.runtime.coordinator.losses import Loss, Lost, loss_of
from osmotic.runtime.coordinator.outcome import Crossed, Delivery, Outcome, Watcher
from osmotic.runtime.coordinator.progress import Progress, lost_error
from osmotic.runtime.coordinator.requests import FAMILIES, accept, ask, rebuild, request_of, settle, spare
from osmotic.runtime.party.membrane import edge_id
from osmotic.runtime.plan.absence import lacks
from osmotic.runtime.plan.graph import Edge, Graph, Instance
from osmotic.runtime.plan.stopping import Stops
from osmotic.runtime.storage.store import disk
from osmotic.runtime.transports.base import Transport
from osmotic.schemas.errors import MembraneError, OsmoticError, PeerError, Problem, ProtocolError, StoreError

__all__ = [
    "FAMILIES", "Crossed", "Outcome", "Runner", "Watcher", "accept", "ask", "locked", "rebuild", "request_of", "settle",
    "spare",
]  # fmt: skip


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


class Runner(Progress):
    """Runs an accepted graph over a transport: `jobs` threads a party where the transport is parallel, else in plan order.

    home: where decisions about lost parties are kept; refused: what `accept` returned.
    """

    def __init__(
        self, graph: Graph, transport: Transport, watcher: Watcher, jobs: int = 1, home: Path | None = None,
        refused: Mapping[str, OsmoticError] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(graph, transport, watcher, home)
        self.jobs, self.refused = jobs, dict(refused or {})
        self.begun: Callable[[Instance], None] = getattr(watcher, "begun", lambda instance: None)  # watchers may have it
        self.deliveries: dict[str, list[Delivery]] = {}
        self.popped: set[str] = set()  # taken out of the queue for a message of several tasks
        self.stops = Stops(graph)
        self.sums: Any = None

    def run(self) -> Outcome:
        """Run everything; raises the first failure (after what was under way has ended)."""
        start = time.perf_counter()
        self._prepare()
        self.watcher.started(self.left)
        if self.failure is None:
            (self._threads if self.transport.parallel else self._serial)()
        if self.failure is not None:
            raise self.failure
        self._end(self.refused)
        self.outcome.seconds = time.perf_counter() - start
        return self.outcome

    def _prepare(self) -> None:
        for instance in self.graph.instances.values():
            needs = self.waiting[instance.id] = self.stops.needs(instance)
            for producer in needs:
                self.dependents.setdefault(producer, []).append(instance.id)
            if not needs:
                heapq.heappush(self.ready[instance.party], (self.order[instance.id], instance.id))
        if isinstance(patience := getattr(self.transport, "patience_of", None), dict):
            patience |= self.graph.waits
        for loss in self.losses.resume():
            self._left_out(loss.ids)
        for party, error in self.refused.items():
            loss = loss_of(party, error, isinstance(error, PeerError))
            if isinstance(error, PeerError):
                self.losses.away[party] = loss
                self.told_lost(party, loss.text)
            else:
                self._without(loss, [one.id for one in self.graph.at(party)], error, True)
        for party in self.graph.role_of:
            if party not in self.refused:
                try:
                    self.held[party] = self._ask(party, {"op": "held"})[0]["held"]
                except Lost as lost:
                    self._gone(lost)

    def _serial(self) -> None:
        while self.left and self.failure is None:
            heads = [self.ready[party][0] for party in self.ready if self._open(party)]
            if not heads:
                self._give_up()
                time.sleep(0 if self.losses.away else 0.01)
                continue
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
                    self._give_up()
                    self.condition.wait(0.2)
                self.condition.notify_all()
            for thread in threads:
                thread.join()
        except BaseException as error:  # Ctrl-C: nobody starts anything new; closing the transport ends what is under way
            self.failure = self.failure or error
            raise

    def _loop(self, party: str) -> None:
        while True:
            with self.condition:
                while not self._open(party) and self.left and self.failure is None:
                    self.condition.wait(0.2)
                if not self.left or self.failure is not None:
                    return
                _, identity = heapq.heappop(self.ready[party])
                self.at_work.add(identity)
            self._guarded(identity)

    def _guarded(self, identity: str) -> None:
        """Do what is ready, and what can be sent with it; whatever fails is noted."""
        first = self.graph.instances[identity]
        with self.condition:
            chain = self._chain(first)
            self.at_work.add(identity)
        try:
            if not chain or not self._together(chain):
                for one in chain or [first]:
                    self._alone(one)
        finally:
            with self.condition:
                self.at_work -= {identity, *(one.id for one in chain)}
                for one in chain:
                    if one.id in self.popped and one.id not in self.settled:
                        heapq.heappush(self.ready[one.party], (self.order[one.id], one.id))
                self.popped -= {one.id for one in chain}
                self.condition.notify_all()

    def _alone(self, instance: Instance) -> None:
        """Do one task, if what it needs is there."""
        if instance.id in self.settled or self.waiting[instance.id] or self.failure is not None:
            return
        try:
            self._step(instance)
        except Lost as lost:
            self._missing(instance.id, lost)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits, which raises it
            self._fail(error)

    def _step(self, instance: Instance) -> None:
        if instance.party in self.losses.away:
            self._back(instance.party)
        self._tell(instance.party)
        stopped, cached, seconds = self.stops.stopped(instance), False, 0.0
        earlier = self.graph.before.get(instance.id, "") if stopped else ""
        absent = self._absent(instance, stopped, earlier)
        told: list[dict[str, Any]] = []
        if absent:
            with self.condition:
                self.outcome.absent.add(instance.id)
                self._announce(instance.id)
            self._tell(instance.party)
        elif stopped:
            self._ask(instance.party, {"op": "alias", "id": instance.id, "earlier": earlier})
        else:
            self._deliver(instance)
            self._sum(instance)
            told = self.losses.survivors(instance)
            self.begun(instance)
            reply, _ = self._ask(instance.party, {"op": "run", "id": instance.id})
            cached, seconds = bool(reply["cached"]), float(reply["seconds"])
            if port := self.stops.port(instance):
                reply, _ = self._ask(instance.party, {"op": "until", "id": instance.id, "port": port})
                self._decide(instance, reply["stop"])
        outgoing = [] if absent else [self._take(consumer, edge) for consumer, edge in self._outgoing(instance)]
        with self.condition:
            self.outcome.ran += not (cached or stopped or absent)
        self._finish(instance, cached, seconds, told, outgoing)

    def _finish(
        self, instance: Instance, cached: bool, seconds: float, told: list[dict[str, Any]], outgoing: list[Delivery]
    ) -> None:  # fmt: skip
        """An instance is settled, and others can have what it gave."""
        with self.condition:
            if instance.id in self.settled:
                return  # lost meanwhile, with what it needs or whom it was for
            self.outcome.cached += cached
            self.outcome.quorums += told
            self.deliveries.pop(instance.id, None)
            for delivery in outgoing:
                self.deliveries.setdefault(delivery.consumer, []).append(delivery)
            self._done(instance, seconds)
            self.condition.notify_all()
        self.watcher.task(instance, cached, seconds)

    def _deliver(self, instance: Instance) -> None:
        """Hand in what has crossed for an instance. For a round that may not be needed, nothing crosses before it is."""
        waiting = self._waiting_for(instance)
        if self.stops.gate(instance):
            edges = {edge_id(edge, instance.id): edge for edge in instance.edges() if self._goes(edge)}
            waiting += [self._take(instance, edge) for edge in edges.values()]
        for one in waiting:
            self._hand_in(one)

    def _hand_in(self, one: Delivery) -> None:
        """Give a party what has crossed to it; where that is no envelope of the plan, its sender is at fault."""
        try:
            self._ask(one.party, one.header, one.blob)
        except Lost as lost:
            if not lost.gone and isinstance(lost.error, MembraneError | ProtocolError):
                lost.instance = one.producer
            raise

    def _waiting_for(self, instance: Instance) -> list[Delivery]:
        """What has crossed for an instance, from whoever is still there."""
        return [one for one in self.deliveries.get(instance.id, ()) if one.producer not in self.outcome.absent]

    def _outgoing(self, instance: Instance) -> list[tuple[Instance, Edge]]:
        """What leaves a party's membrane when an instance is done; it is handed in just before its consumer runs."""
        edges = {
            edge_id(edge, consumer.id): (consumer, edge)
            for consumer, edge in self.graph.consumers.get(instance.id, ())
            if self._goes(edge) and not self.stops.gate(consumer) and consumer.id not in self.outcome.absent
        }
        return list(edges.values())

    def _goes(self, edge: Edge) -> bool:
        """Whether there is something at the other end of a crossing that travels by itself."""
        return edge.crossing and edge.secure is None and edge.producer not in self.outcome.absent

    def _absent(self, instance: Instance, stopped: bool, earlier: str) -> bool:
        """Whether an instance never comes to be: nothing stands for it, or nothing is there of an input that it needs."""
        gone = self.outcome.absent
        return (stopped and (not earlier or earlier in gone)) or lacks(self.graph, instance, gone)

    def _take(self, consumer: Instance, edge: Edge) -> Delivery:
        have = self._have(consumer, edge)
        header = {"op": "pull", "id": consumer.id, "producer": edge.producer, "port": edge.port, "have": have}
        reply, blob = self._ask(edge.sender, header, instance=edge.producer)
        return self._crossed(consumer, edge, bool(reply["same"]), blob)

    def _have(self, consumer: Instance, edge: Edge) -> str:
        """The digest of what the receiver got over an edge before."""
        return self.held.get(edge.receiver, {}).get(edge_id(edge, consumer.id), "")

    def _crossed(self, consumer: Instance, edge: Edge, same: bool, blob: bytes) -> Delivery:
        """Something has left its party."""
        identity = edge_id(edge, consumer.id)
        with self.condition:
            self.outcome.crossings.append(Crossed(identity, edge.name, edge.sender, edge.receiver, len(blob)))
        header = {"op": "known" if same else "push", "id": consumer.id, "producer": edge.producer, "port": edge.port}
        return Delivery(edge.producer, consumer.id, edge.receiver, header, b"" if same else blob)

    def _decide(self, instance: Instance, stop: bool) -> None:
        """Whether a repeat has stopped."""
        if stop:
            group = self.graph.nodes[instance.node].group
            with self.condition:
                self.stops.at[instance.id] = instance.round or 1
                self.outcome.stopped[f"{group} {dict(instance.cell)}".strip()] = instance.round or 1

    # ---- several tasks in one message ----

    def _chain(self, first: Instance) -> list[Instance]:
        """Tasks of a party, in order, that are sent together with a first one; [] where it goes by itself."""
        apart = getattr(self.transport, "own", None) == first.party
        if apart or not getattr(self.transport, "fragments", False) or not self._plain(first):
            return []
        chain, inside, queue = [first], {first.id}, self.ready[first.party]
        while len(chain) < LONGEST and not self._gives(chain[-1]):
            after = [one for done in chain for one in self.dependents.get(done.id, ()) if self.waiting[one] <= inside - {one}]
            able = [(self.order[one], one) for one in after if one not in inside and one not in self.settled]
            able = [one for one in able if self.graph.instances[one[1]].party == first.party]
            able += queue[:1] if self._open(first.party) else []
            found = self.graph.instances[min(able)[1]] if able else None
            if found is None or not self._plain(found):
                break
            if queue and queue[0][1] == found.id:
                heapq.heappop(queue)
                self.popped.add(found.id)
            chain.append(found)
            inside.add(found.id)
        self.at_work |= inside
        return chain

    def _plain(self, instance: Instance) -> bool:
        """Whether an instance just runs, as soon as it is ready."""
        secure = any(edge.secure for edge in instance.edges())
        return not secure and not self.stops.gate(instance) and not lacks(self.graph, instance, self.outcome.absent)

    def _gives(self, instance: Instance) -> bool:
        """Whether others wait for an instance, or for what it decides."""
        crosses = any(edge.crossing for _, edge in self.graph.consumers.get(instance.id, ()))
        return crosses or self.stops.port(instance) is not None

    def _together(self, chain: list[Instance]) -> bool:
        """Have a party do several tasks in one message; False where only one by one can show which of them fails."""
        try:
            fragment, told = self._packed(chain)
            answer = self._ask(fragment.party, fragment.header, b"".join(fragment.bodies))
            self._unpack(chain, told, *fragment.read(*answer))
        except Lost as lost:
            if not lost.gone and not lost.instance:
                return False
            inside = any(one.id == lost.instance for one in chain)
            self._missing(lost.instance if inside else chain[0].id, lost)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits, which raises it
            self._fail(error)
        return True

    def _packed(self, chain: list[Instance]) -> tuple[Fragment, dict[str, list[dict[str, Any]]]]:
        """(the message for several tasks, who is there for the gathers of each)."""
        fragment, told = Fragment(chain[0].party), {}
        if fragment.party in self.losses.away:
            self._back(fragment.party)
        self._tell(fragment.party)
        for one in chain:
            for delivery in self._waiting_for(one):
                if len(delivery.blob) <= SMALL:
                    fragment.add(one, delivery.header, delivery.blob)
                else:
                    self._hand_in(delivery)
            told[one.id] = self.losses.survivors(one)
            self.begun(one)
            fragment.add(one, {"op": "run", "id": one.id})
            if port := self.stops.port(one):
                fragment.add(one, {"op": "until", "id": one.id, "port": port})
            for consumer, edge in self._outgoing(one):
                fragment.pull(one, consumer, edge, self._have(consumer, edge))
        return fragment, told

    def _unpack(
        self, chain: list[Instance], told: dict[str, list[dict[str, Any]]], made: dict[str, Made], lost: Lost | None
    ) -> None:  # fmt: skip
        """Take what several tasks gave; raises Lost for the one that failed."""
        for one in chain:
            if (done := made.get(one.id)) is not None:
                self._decide(one, done.stop)
                outgoing = [self._take(c, e) if got is None else self._crossed(c, e, *got) for c, e, got in done.pulled]
                with self.condition:
                    self.outcome.ran += not done.cached
                self._finish(one, done.cached, done.seconds, told[one.id], outgoing)
        if lost is not None:
            raise lost

    # ---- secure sums ----

    def _sum(self, instance: Instance) -> None:
        """Have the senders of a secure sum make it together; who drops out of it is lost like anybody else."""
        ports = [port for port, value in instance.inputs.items() if not isinstance(value, Edge) and value and value[0].secure]
        for port in ports:
            if self.sums is None:
                from osmotic.runtime.secure.gathering import Sums

                self.sums = Sums(self.graph, self.transport, self.home)
            summed = self.sums.gather(instance, port, set(self.outcome.absent))
            with self.condition:
                self.outcome.crossings += summed.crossings
                self.outcome.sums.append(summed.to_json())
                for party, reason in summed.lost.items():
                    ids = [edge.producer for edge in instance.edges() if edge.input == port and edge.sender == party]
                    self._without(Loss(party, "timeout", reason), ids, lost_error(party, reason), True)
        if ports:
            self._tell(instance.party)
