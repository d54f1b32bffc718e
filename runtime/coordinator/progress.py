# SPDX-License-Identifier: Apache-2.0
"""How far a run is: what is ready, at work, settled; which parties are away, and what the run does without them."""

import heapq
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from osmotic.runtime.coordinator.losses import Loss, Losses, Lost, loss_of
from osmotic.runtime.coordinator.outcome import Outcome, Watcher
from osmotic.runtime.coordinator.requests import rebuild, request_of
from osmotic.runtime.plan.graph import Graph, Instance
from osmotic.runtime.plan.quorum import Gather, before, gathers, owner
from osmotic.runtime.transports.base import Header, Reply, Transport
from osmotic.schemas.errors import OsmoticError, PeerError, Problem, ProtocolError

TRIES = 3  # of a task whose party is lost each time, and comes back


class Progress:
    """The state of one run, shared by its threads (`condition` guards it), and what happens when a party is lost."""

    def __init__(self, graph: Graph, transport: Transport, watcher: Watcher, home: Path | None) -> None:
        self.graph, self.transport, self.watcher, self.home = graph, transport, watcher, home
        self.outcome = Outcome()
        self.losses = Losses(graph, self.outcome.absent, home)
        self.order = {identity: i for i, identity in enumerate(graph.instances)}
        self.waiting: dict[str, set[str]] = {}
        self.dependents: dict[str, list[str]] = {}
        self.ready: dict[str, list[tuple[int, str]]] = {party: [] for party in graph.role_of}
        self.held: dict[str, dict[str, str]] = {}  # of parties that have the plan: what they have received before
        self.untold: dict[str, list[str]] = {party: [] for party in graph.role_of}  # absent instances, in order
        self.telling = {party: threading.Lock() for party in graph.role_of}
        self.settled: set[str] = set()  # finished, or absent
        self.at_work: set[str] = set()
        self.tries: dict[str, int] = {}
        self.gathers: list[Gather] = [g for one in graph.instances.values() for g in gathers(one)] if graph.waits else []
        self.left = len(graph.instances)
        self.failure: BaseException | None = None
        self.told_lost: Callable[[str, str], None] = getattr(watcher, "lost", lambda party, why: None)  # watchers may have it
        self.condition = threading.Condition()

    def _open(self, party: str) -> bool:
        """Whether there is something that a party can do now."""
        queue = self.ready[party]
        while queue and queue[0][1] in self.settled:
            heapq.heappop(queue)
        return bool(queue) and self._here(party)

    def _here(self, party: str) -> bool:
        """Whether a party can be asked: it was not lost, or is back."""
        back: Callable[[str], bool] = getattr(self.transport, "here", lambda party: False)
        return party not in self.losses.away or back(party)

    def _fail(self, error: BaseException) -> None:
        with self.condition:
            self.failure = self.failure or error
            self.condition.notify_all()

    def _ask(self, party: str, header: Header, blob: bytes = b"", instance: str = "") -> Reply:
        """A request; raises Lost when it fails, naming the instance that is lost with it."""
        try:
            reply, body = self.transport.request(party, header, blob)
        except (PeerError, ProtocolError) as error:
            raise Lost(party, instance, error, True) from error
        if "error" in reply:
            raise Lost(party, instance, rebuild(party, header, reply["error"]), False)
        return reply, body

    def _done(self, instance: Instance, seconds: float) -> None:
        self.left -= 1
        self.settled.add(instance.id)
        self.outcome.times[instance.id] = seconds
        for identity in self.dependents.get(instance.id, ()):
            needs = self.waiting[identity]
            needs.discard(instance.id)
            if not needs:
                party = self.graph.instances[identity].party
                heapq.heappush(self.ready[party], (self.order[identity], identity))

    def _missing(self, identity: str, lost: Lost) -> None:
        """A request failed in an instance's step: go on without what is lost, if the plan can; else the run has failed.

        What a party that cannot be reached was to do waits: it may come back before the others are done (`_give_up`).
        """
        with self.condition:
            culprit = lost.instance or identity
            at = self.graph.instances[culprit]
            party = lost.party if lost.gone else owner(at)
            loss = loss_of(party, lost.error, lost.gone)
            try:
                if lost.gone:
                    self._gone(lost)
                self.tries[identity] = self.tries.get(identity, 0) + 1
                if lost.gone and culprit == identity and self.tries[identity] < TRIES:
                    self.losses.check(loss, [culprit], self.settled, lost.error)
                else:
                    self._without(loss, [culprit], lost.error, lost.gone)
            except OsmoticError as error:
                self._fail(error)
            if identity not in self.settled:
                heapq.heappush(self.ready[self.graph.instances[identity].party], (self.order[identity], identity))

    def _gone(self, lost: Lost) -> None:
        """Note that a party cannot be reached; raises the error where nobody can do without it."""
        if lost.party not in self.graph.waits or not lost.gone or getattr(self.transport, "whole", False):
            raise lost.error
        loss = loss_of(lost.party, lost.error, True)
        if lost.party not in self.losses.away:
            self.told_lost(lost.party, loss.text)
        self.losses.away[lost.party] = loss

    def _without(self, loss: Loss, start: list[str], error: OsmoticError, gone: bool) -> None:
        """Go on without these instances and all that fall with them; raises where the run cannot."""
        with self.condition:
            self._left_out(self.losses.decide(loss, start, self.settled, error, gone, self.at_work))
            if loss.party not in self.losses.away:
                self.told_lost(loss.party, loss.text)

    def _left_out(self, ids: list[str]) -> None:
        """Nobody waits any more for instances that are absent from now on."""
        for identity in ids:
            self._announce(identity)
            if identity not in self.settled:
                self._done(self.graph.instances[identity], 0.0)
                self.watcher.task(self.graph.instances[identity], False, 0.0)

    def _announce(self, identity: str) -> None:
        """Note who is to be told that an instance never comes to be: its party, and those that would take something from it."""
        takers = {consumer.party for consumer, _ in self.graph.consumers.get(identity, ())}
        for party in takers | {self.graph.instances[identity].party}:
            self.untold[party].append(identity)

    def _tell(self, party: str) -> None:
        """Tell a party which instances never come to be, before it does anything else."""
        with self.telling[party]:
            while self.untold[party]:
                self._ask(party, self.losses.header(self.untold[party][0]))
                del self.untold[party][0]

    def _back(self, party: str) -> None:
        """A party that was lost is there again; one that never had the plan gets it first."""
        if party not in self.held:
            self._ask(party, *request_of(self.graph))
            self.held[party] = self._ask(party, {"op": "held"})[0]["held"]
        with self.condition:
            if self.losses.away.pop(party, None) is not None:
                self.told_lost(party, "")

    def _give_up(self) -> None:
        """Go on without parties that are away where a gather waits for nobody else, or where nothing else is left to do."""
        with self.condition:
            away = [party for party in self.losses.away if not self._here(party)]
            parked = {one for party in away for _, one in self.ready[party] if one not in self.settled}
            if not parked:
                return
            try:
                waited = self._waited(parked)
                if not waited and not self.at_work and not any(self._open(party) for party in self.ready):
                    waited = {one: self.graph.instances[one].party for one in sorted(parked)}
                for identity, party in waited.items():
                    if identity not in self.outcome.absent:
                        loss = self.losses.away[party]
                        self._without(Loss(party, loss.why, loss.text), [identity], lost_error(party, loss.text), True)
            except OsmoticError as error:
                self._fail(error)

    def _waited(self, parked: set[str]) -> dict[str, str]:
        """What a gather waits for, where it waits for nothing but parties that are away: instance -> that party."""
        for gather in self.gathers:
            rest = [edge.producer for edge in gather.edges if edge.producer not in self.settled]
            if gather.consumer.id in self.settled or not rest:
                continue
            found = {one: sorted(before(self.graph, one, self.settled) & parked) for one in rest}
            if all(found.values()):
                return {one: self.graph.instances[stuck[0]].party for one, stuck in found.items()}
        return {}

    def _end(self, refused: Mapping[str, OsmoticError]) -> None:
        """Everything is done: tell what is left to tell; who has no plan, or cannot be asked any more, is named."""
        for party, error in refused.items():
            if party not in self.held:
                self.outcome.lost[party] = loss_of(party, error, isinstance(error, PeerError)).text
        for party in self.held:
            try:
                if not self._here(party):
                    raise Lost(party, "", lost_error(party, self.losses.away[party].text), True)
                self._tell(party)
                if party in self.graph.waits:
                    self._ask(party, {"op": "heads", "heads": {}})  # or who went after its last task would end the run
                self.losses.away.pop(party, None)
            except Lost as lost:
                self._gone(lost)
                self.outcome.lost[party] = self.losses.away[party].text
        for party, loss in self.losses.away.items():
            self.outcome.lost.setdefault(party, loss.text)

    def over(self) -> None:
        """The result of the run is kept: the next one in this folder starts afresh. Before, it goes on with these decisions."""
        self.losses.save(True)


def lost_error(party: str, why: str) -> PeerError:
    """What is raised of a party that was lost some time ago."""
    made = PeerError(Problem(f"{party} was lost", why=why, fix="run the same command again: what was finished is kept"))
    made.reason = why
    return made
