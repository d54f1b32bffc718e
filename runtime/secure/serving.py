# SPDX-License-Identifier: Apache-2.0
"""A client's side of secure sums at its site: a session a sum, kept in the vault; charged before anything masked leaves.

A session is one file: what it is of (task, digest of the vector, digest of the `SumPlan`) and the state of `ClientSession`. It
is written before each answer leaves, so a killed client goes on with the same secrets and the same noise, and answers an equal
request with equal bytes; a session's name that was seen with another content is refused for ever. When a vector has changed,
the coordinator has to begin a new session: a new release, charged anew, since the difference of two sums with the same noise
would show what changed without any.

Guarantee: with noise, that of `noise.event`, a client (this whole party: there or not), charged to each data set that the
vector descends from; void where fewer than `at_least - colluding` of the others are honest.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from osmotic.plugins.contract import Weights
from osmotic.runtime.party import membrane
from osmotic.runtime.party.refs import Ref
from osmotic.runtime.party.rules import check_entries
from osmotic.runtime.plan import flow
from osmotic.runtime.plan.graph import Instance
from osmotic.runtime.privacy.composition import SHARES, ShareEvents, register
from osmotic.runtime.secure import agreeing, bundle
from osmotic.runtime.storage.durable import alone, write_whole
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ComponentError, MembraneError, Problem, ProtocolFault, RefusedError
from osmotic.schemas.labels import Label, released
from osmotic.schemas.messages import fingerprint

if TYPE_CHECKING:
    from osmotic.runtime.party.site import Site
    from osmotic.runtime.secure.client import ClientSession
    from osmotic.runtime.secure.plan import SumPlan

MASKED = "masked"  # what a transcript calls the kind of what leaves
Reply = tuple[dict[str, Any], bytes]


class Serving:
    """Answers to one request about one sum that this party has a vector in."""

    def __init__(self, site: "Site", header: Mapping[str, Any]) -> None:
        self.site, self.header = site, header
        self.consumer, self.port, self.edges = agreeing.asked(site, header)
        mine = [edge for edge in self.edges if edge.sender == site.party]
        if not mine:
            raise MembraneError(Problem(f"{site.party} has nothing to add to {self.consumer.id}.{self.port}"))
        self.edge = mine[0]
        self.name = agreeing.session_of(header)
        found = site.results.get(self.edge.producer, {}).get(self.edge.port)
        if found is None:
            raise MembraneError(Problem(f"{self.edge.producer}.{self.edge.port} has not been made"))
        self.ref: Ref = found
        self.path = agreeing.folder_of(site) / f"{agreeing.short(self.name)}.session"

    def answer(self, blob: bytes) -> Reply:
        """Answer the stage that the request names; one process at a time is in a party's sessions."""
        stages: dict[str, Callable[[bytes], Reply]] = {
            "state": self._state, "keys": self._keys, "shares": self._shares, "masked": self._masked,
            "confirm": self._confirm, "unmask": self._unmask,
        }  # fmt: skip
        stage = stages.get(str(self.header.get("stage")))
        if stage is None:
            raise ProtocolFault(Problem(f"a secure sum has no stage {self.header.get('stage')!r}"))
        with alone(agreeing.folder_of(self.site) / "lock", lambda: None):
            return stage(blob)

    # ---- stages ----

    def _state(self, blob: bytes) -> Reply:
        """Whether the session is of the vector that is here now: same, changed, or unknown."""
        if not self.path.is_file():
            return {"state": "unknown"}, b""
        return {"state": "same" if self._said()["of"] == self._of(self._plan()) else "changed"}, b""

    def _keys(self, blob: bytes) -> Reply:
        plan = self._plan()
        self._allowed(plan)
        session = self._open(plan, fresh=True)
        answer = session.advertise()
        self._store(session, plan)
        outline = {name: list(shape) for name, shape in plan.shapes.items()}
        return {"outline": outline, "trust": session.trust}, answer

    def _shares(self, blob: bytes) -> Reply:
        """The others' keys and the receiver's -> shares of this client's secrets, encrypted for each."""
        parts = bundle.unpack(blob)
        receiver = parts.pop("", b"")
        return self._go(lambda session: session.share(parts, receiver))

    def _masked(self, blob: bytes) -> Reply:
        """What the others' shares for this client decide, the masked vector; charged, then written down, before it leaves."""
        plan, weights = self._plan(), self._weights()
        session = self._open(plan)
        try:
            masked = bytes(session.mask(bundle.unpack(blob), weights.tensors))
        except ComponentError as error:
            if self._noisy or not any(problem.path == "range" for problem in error.problems):
                raise
            return {"beyond": True}, b""  # the exact sum is about to be shown: less than the waiver lets go
        digest = hashlib.sha256(masked).hexdigest()
        label = self._released(plan, digest)
        self._store(session, plan)
        entries = label.to_json()
        identity = membrane.edge_id(self.edge, self.consumer.id)
        known = self.site.ledger.query("SELECT digest, label FROM crossed WHERE edge=? AND direction='out'", (identity,))
        if known[:1] != [(digest, canonical(entries).decode())]:
            self.site.ledger.cross(
                edge=identity, name=self.edge.name, sender=self.site.party, receiver=self.edge.receiver, direction="out",
                kind=MASKED, digest=digest, size=len(masked), label=label,
            )  # fmt: skip
        return {"label": entries}, masked

    def _confirm(self, blob: bytes) -> Reply:
        survivors = [str(name) for name in self.header.get("survivors", ())]
        if not self._noisy:
            self._one_set(survivors)
        return self._go(lambda session: session.confirm(survivors))

    def _unmask(self, blob: bytes) -> Reply:
        signatures = bundle.unpack(blob)
        return self._go(lambda session: session.unmask(signatures))

    def _one_set(self, survivors: list[str]) -> None:
        """Let the vector be opened with these only: other sessions of it that could still be opened with others are ended.

        Raises RefusedError where one was: without noise, the difference of the two sums would be a client's own vector.
        """
        from osmotic.runtime.secure.client import ClientSession

        for path in sorted(self.path.parent.glob("*.session")):
            head, _, state = path.read_bytes().partition(b"\n")
            stage, others = ClientSession.survivors_of(state)
            if path == self.path or json.loads(head)["of"][3] != self.ref.digest or set(others) == set(survivors):
                continue
            if stage == "done" and others:
                what = f"{self.edge.name}: the same vector was opened before in a sum of {', '.join(others)}"
                why = "the difference of two exact sums over other parties shows single vectors"
                raise RefusedError(Problem(what, why=why, fix="the same parties again, another vector, or noise"))
            write_whole(path, head + b"\n" + ClientSession.retired(state))

    def _go(self, step: "Callable[[ClientSession], bytes]") -> Reply:
        """A step of a session that has begun: its state is on the disk before its answer leaves."""
        plan = self._plan()
        session = self._open(plan)
        answer = bytes(step(session))
        self._store(session, plan)
        return {}, answer

    # ---- the session's file ----

    def _plan(self) -> "SumPlan":
        said = self._said() if self.path.is_file() else {}
        if said and said["of"][3] == self.ref.digest:  # as it was seen: the file is not read again
            shapes = {name: tuple(shape) for name, shape in said["shapes"].items()}
        else:
            shapes = {name: shape for name, (shape, _) in self._weights().outline().items()}
        context = agreeing.context_of(self.site, self.consumer, self.edge)
        return agreeing.sum_plan(self.site.need()[0], self.edges, self.name, shapes, context)

    def _weights(self) -> Weights:
        """The vector, its tensors left on the disk."""
        found = self.site.store.open(self.ref.kind, self.ref.digest)
        return found if isinstance(found, Weights) else Weights({})

    def _of(self, plan: "SumPlan") -> list[str]:
        """What a session is of."""
        return [self.consumer.id, self.port, self.site.party, self.ref.digest, plan.digest.hex()]

    def _said(self) -> dict[str, Any]:
        head = self.path.read_bytes().partition(b"\n")[0]
        found: dict[str, Any] = json.loads(head)
        return found

    def _open(self, plan: "SumPlan", fresh: bool = False) -> "ClientSession":
        """The session that is kept, or a fresh one; raises RefusedError for a name that was seen with another content."""
        from osmotic.runtime.secure.client import ClientSession

        own, others = agreeing.identity_of(self.site), agreeing.pinned(self.site, self.edges)
        if not self.path.is_file():
            if not fresh:
                raise RefusedError(Problem(f"{self.site.party} knows no such session of a secure sum"))
            self._retire()
            return ClientSession(plan, self.site.party, own, others)
        if self._said()["of"] != self._of(plan):
            what = "a session of a secure sum was seen before with another content"
            why = "the difference of two sums with the same masks and noise would show a client's own vector"
            raise RefusedError(Problem(what, why=why, fix="begin a new session: it is charged anew"))
        state = self.path.read_bytes().partition(b"\n")[2]
        return ClientSession.from_bytes(plan, self.site.party, state, own, others)

    def _retire(self) -> None:
        """Wipe the secrets of the session of this very sum that was begun last: it will not be gone on with."""
        from osmotic.runtime.secure.client import ClientSession

        place = [str(self.site.ledger.folder), self.consumer.id, self.port]
        note = self.path.with_name(f"{fingerprint(place)[:32]}.last")
        last = self.path.with_name(note.read_text(encoding="utf-8")) if note.is_file() else None
        if last is not None and last.is_file():
            head, _, state = last.read_bytes().partition(b"\n")
            write_whole(last, head + b"\n" + ClientSession.retired(state))
        write_whole(note, self.path.name.encode())

    def _store(self, session: "ClientSession", plan: "SumPlan") -> None:
        head = {"of": self._of(plan), "shapes": {name: list(shape) for name, shape in plan.shapes.items()}}
        write_whole(self.path, canonical(head) + b"\n" + bytes(session.to_bytes()))

    # ---- what leaves ----

    def _allowed(self, plan: "SumPlan") -> None:
        """Raise RefusedError, before anybody is charged, where the masked vector could not leave."""
        from osmotic.runtime.secure.noise import event

        if not self._noisy:
            membrane.crossing_label(self.site, self.edge, self.ref)
            return
        events, cost = ShareEvents(self.site.ledger, self.site.policy), event(plan)
        with self.site.ledger.reading() as db:
            for account in self._datasets():
                if events.stored(lookup_of(self.site, self.consumer, self.port, plan, account)) is None:
                    events.check(db, account, cost)
        check_entries(self.site, self.edge.name, self.edge.receiver, self._kept())

    @property
    def _noisy(self) -> bool:
        return self.edge.secure is not None and self.edge.secure.noisy

    def _datasets(self) -> list[str]:
        """The accounts that the sum is charged to: one a data set of this party that the vector descends from."""
        raw = self.ref.label.of("raw")
        others = sorted({entry.owner for entry in raw} - {self.site.party})
        if others:
            raise MembraneError(Problem(f"{self.edge.name}: raw data of another party"))
        return sorted({SHARES + entry.ref for entry in raw})

    def _kept(self) -> Label:
        """What the label keeps beside this party's raw entries."""
        mine = flow.raw_entries(self.ref.label, self.site.party)
        return Label(frozenset(self.ref.label.entries - set(mine)))

    def _released(self, plan: "SumPlan", digest: str) -> Label:
        """The label on the other side. With noise: charged, in one transaction, unless this session was charged before."""
        if not self._noisy:
            return membrane.crossing_label(self.site, self.edge, self.ref)
        label, accounts = self._kept(), self._datasets()
        check_entries(self.site, self.edge.name, self.edge.receiver, label)
        refs = charge(self.site, self.consumer, self.port, plan, accounts, digest)
        for ref in refs:
            label |= released(self.site.party, ref)
        return label


def charge(
    site: "Site", consumer: Instance, port: str, plan: "SumPlan", accounts: list[str], digest: str
) -> list[str]:  # fmt: skip
    """References of the releases (one an account) that a masked vector of that digest is; each costs once a session."""
    from osmotic.runtime.secure.noise import event

    events, made, cost = ShareEvents(site.ledger, site.policy), [], event(plan)
    task = f"{site.ledger.folder.parent.parent.name}: sum for {consumer.id}"
    payload = canonical({"masked": digest, "plan": plan.digest.hex()}).decode()
    with site.ledger.transaction() as db:
        for account in accounts:
            lookup = lookup_of(site, consumer, port, plan, account)
            there = db.execute("SELECT payload FROM events WHERE lookup=?", (lookup,)).fetchone()
            if there is None:
                events.charge(db, lookup, account, cost, payload, task=task)
            elif there[0] != payload:
                raise RefusedError(Problem("a session of a secure sum was charged for another masked vector"))
            detail = f"a secure sum of {len(plan.names)}, clip {plan.clip:g}, noise {cost['parameters']['noise_multiplier']:g}"
            made.append(register(db, "secure sum", lookup, digest, account, "gaussian", detail, "").ref)
    return made


def lookup_of(site: "Site", consumer: Instance, port: str, plan: "SumPlan", account: str) -> str:
    """Under which a session's charge to an account is found."""
    return site.ledger.whole_hash(["secure sum", consumer.id, port, plan.session.hex(), account])


def answer(site: "Site", header: Mapping[str, Any], blob: bytes) -> Reply:
    """A client's answer to one request of a secure sum."""
    return Serving(site, header).answer(blob)
