# SPDX-License-Identifier: Apache-2.0
"""Who was lost in a run, and what the run does without them: decided here, by the plan's quorums alone.

A decision that a gather has made use of is kept in the coordinator's folder: a run that was killed, or failed later, goes on
with it, so that equal work is found finished. A run that ended well starts afresh the next time.
"""

import hashlib
import json
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osmotic.runtime.plan import quorum
from osmotic.runtime.plan.graph import Graph, Instance
from osmotic.runtime.plan.quorum import FAILED, REFUSED, TIMEOUT, WHYS, Gather, Reach, gathers, owner
from osmotic.runtime.storage.durable import write_whole
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import OsmoticError, PeerError, Problem, RefusedError, RequireError

FILE = "quorum.json"
LONG = 160  # characters of a reason


class Lost(Exception):  # noqa: N818 - no error yet: the run may go on
    """A request failed. party: where; instance: whose loss this would be; gone: the party cannot be reached any more."""

    def __init__(self, party: str, instance: str, error: OsmoticError, gone: bool) -> None:
        super().__init__(party)
        self.party, self.instance, self.error, self.gone = party, instance, error, gone


@dataclass
class Loss:
    """One decision: with whom instances were lost, why (class and words), which; used: a gather went on without them."""

    party: str
    why: str
    text: str
    ids: list[str] = field(default_factory=list)
    used: bool = False

    def to_json(self) -> dict[str, Any]:
        """As it is kept."""
        return {"party": self.party, "why": self.why, "text": self.text, "ids": self.ids}


def loss_of(party: str, error: OsmoticError, gone: bool) -> Loss:
    """Why a party is lost, as a class and in words: of a refusal the first reason, of a failure its code."""
    first = error.problems[0] if error.problems else Problem(str(error.code))
    if gone and isinstance(error, PeerError):
        return Loss(party, TIMEOUT, (error.reason or first.why or first.what)[:LONG])
    if isinstance(error, RefusedError):
        said = f"{first.what}: {first.why}" if first.why and "\n" not in first.why else first.what
        return Loss(party, REFUSED, f"refused: {said.removeprefix('refused: ')}"[:LONG])
    return Loss(party, FAILED, f"failed: {error.code}")


class Losses:
    """The losses of one run. absent: the instances that never come to be, for whatever reason; shared with the outcome."""

    def __init__(self, graph: Graph, absent: set[str], home: Path | None) -> None:
        self.graph, self.absent = graph, absent
        self.by_id: dict[str, Loss] = {}
        self.away: dict[str, Loss] = {}  # parties that cannot be reached now
        self.file = home / FILE if home is not None else None
        self.known: list[Loss] = []
        self._kept = ""

    # ---- deciding ----

    def check(self, loss: Loss, start: Iterable[str], settled: Collection[str], error: OsmoticError) -> Reach:
        """What follows when these instances are lost; raises when the run cannot go on without them, or their party."""
        if loss.party not in self.graph.waits or isinstance(error, RequireError):
            raise error
        found = quorum.reach(self.graph, [one for one in start if one not in self.absent], self.absent, settled)
        if not found.kept:
            raise self._ended(found, loss, error)
        return found

    def decide(
        self, loss: Loss, start: list[str], settled: Collection[str], error: OsmoticError, gone: bool,
        busy: Collection[str] = (),
    ) -> list[str]:  # fmt: skip
        """Instances that are absent from now on, in order, when these are lost; raises when the run cannot go on.

        error: what is raised where nobody said that this party can be done without; gone: it cannot be reached any more; busy:
        what runs now.
        """
        found = self.check(loss, start, settled, error)
        if not found.gathers and not gone and not self._useless(start):
            raise error
        made = [one for one in found.gone if one not in settled or one in start]
        made += self._useless_before(made, {*settled, *busy})
        loss.ids += made
        if loss not in self.known:
            self.known.append(loss)
        self.by_id |= dict.fromkeys(made, loss)
        self.absent |= set(made)
        return made

    def _useless(self, ids: Iterable[str]) -> bool:
        """Whether what these would give is for instances that were lost before."""
        takers = [consumer.id for one in ids for consumer, _ in self.graph.consumers.get(one, ())]
        return all(taker in self.by_id for taker in takers) and bool(takers)

    def _ended(self, found: Reach, loss: Loss, error: OsmoticError) -> OsmoticError:
        """Why the run cannot go on: the gather that is short of parties, or who needs what was lost."""
        texts = self.texts() | {loss.party: loss.text}
        if found.short:
            problem = quorum.shortage(self.graph, found.short[0], {*found.gone, *self.absent}, texts)
        else:
            consumer, edge = found.hard[0]
            node = self.graph.nodes[consumer.node]
            path = (*node.path, "inputs", edge.input)
            what, why = f"{consumer.id} needs what {loss.party} was to give", f"lost: {loss.party} ({loss.text})"
            fix = "only a gather with a quorum can do without a party; what was finished is kept"
            problem = Problem(what, self.graph.loaded.source.where(path), ".".join(map(str, path)), why, fix)
        made = PeerError(problem, *error.problems)
        made.reason = loss.text
        for note in getattr(error, "__notes__", ()):
            made.add_note(note)
        return made

    def texts(self) -> dict[str, str]:
        """Party -> why it was lost, in words, as far as it is known."""
        return {loss.party: loss.text for loss in [*self.known, *self.away.values()]}

    def _useless_before(self, made: list[str], settled: Collection[str]) -> list[str]:
        """What the same parties were to do for nobody but these."""
        gone, found, todo = {*self.absent, *made}, [], list(made)
        for identity in todo:  # grows while it is read
            one = self.graph.instances[identity]
            for edge in one.edges():
                producer = self.graph.instances[edge.producer]
                takers = self.graph.consumers.get(producer.id, ())
                free = producer.id not in gone and producer.id not in settled and owner(producer) == owner(one)
                if free and all(consumer.id in gone for consumer, _ in takers):
                    gone.add(producer.id)
                    found.append(producer.id)
                    todo.append(producer.id)
        return found

    # ---- what is told of it ----

    def header(self, identity: str) -> dict[str, Any]:
        """How a party is told of an absent instance."""
        loss = self.by_id.get(identity)
        told = {"party": loss.party, "why": loss.why} if loss else {}
        return {"op": "absent", "id": identity, **told}

    def survivors(self, instance: Instance) -> list[dict[str, Any]]:
        """Who is there for each gather with a quorum of an instance that runs now; the decisions are in use from here on."""
        told = [self._of(gather) for gather in gathers(instance)]
        used = [self.by_id[e.producer] for g in gathers(instance) for e in g.edges if e.producer in self.by_id]
        if used:
            for loss in used:
                loss.used = True
            self.save(False)
        return told

    def _of(self, gather: Gather) -> dict[str, Any]:
        used, lost = [], []
        for edge in gather.edges:
            party = owner(self.graph.instances[edge.producer])
            loss = self.by_id.get(edge.producer)
            if edge.producer not in self.absent:
                used.append(party)
            else:
                lost.append({"party": party, "why": loss.why if loss else "", "text": loss.text if loss else "had no part"})
        one = gather.consumer
        return {
            "task": one.id, "node": one.node, "round": one.round, "input": gather.port, "at_least": gather.needed,
            "of": len(gather.edges), "used": used, "lost": lost,
        }  # fmt: skip

    # ---- through a kill ----

    @property
    def plan(self) -> str:
        """Which plan decisions are about."""
        loaded = self.graph.loaded
        return hashlib.sha256(canonical([loaded.text, list(loaded.overrides)])).hexdigest()

    def save(self, ended: bool) -> None:
        """Keep the decisions that are in use; nothing is written where nobody was lost. Raises StoreError for a full disk."""
        used = [loss.to_json() for loss in self.known if loss.used]
        text = json.dumps({"plan": self.plan, "ended": ended, "losses": used}, indent=1, sort_keys=True)
        if self.file is None or not used or text == self._kept:
            return
        write_whole(self.file, text.encode())
        self._kept = text

    def resume(self) -> list[Loss]:
        """Take over the decisions of a run of the same plan in this folder that did not end; anything else is none."""
        kept: Any = None
        if self.file is not None:
            with suppress(OSError, ValueError):
                kept = json.loads(self.file.read_text(encoding="utf-8"))
        if not isinstance(kept, dict) or kept.get("plan") != self.plan or kept.get("ended") is not False:
            return []
        found = []
        losses = kept.get("losses")
        for one in losses if isinstance(losses, list) else ():
            with suppress(TypeError, KeyError):
                ids = [identity for identity in one["ids"] if identity in self.graph.instances]
                if one["why"] in WHYS and one["party"] in self.graph.waits:
                    found.append(Loss(str(one["party"]), one["why"], str(one["text"]), ids, used=True))
        for loss in found:
            self.known.append(loss)
            self.by_id |= dict.fromkeys(loss.ids, loss)
            self.absent |= set(loss.ids)
        return found
