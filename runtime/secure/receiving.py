# SPDX-License-Identifier: Apache-2.0
"""The receiver's side of secure sums at its site: takes what the coordinator brings, gives what it is to bring, makes the sum.

It keeps a secret of its own and the masked vectors in the vault until the sum is made; killed, it is brought the rest again,
and goes on. What it could read of a client is masked, shares are sealed to others. A finished sum is an artifact with the join
of the labels that came with the masked vectors, and an entry of the transcript.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.plugins.contract import Weights
from osmotic.runtime.party import membrane
from osmotic.runtime.party.refs import Ref
from osmotic.runtime.party.rules import check_claims
from osmotic.runtime.plan.graph import Edge
from osmotic.runtime.secure import agreeing, bundle, received
from osmotic.runtime.secure.received import SUM
from osmotic.runtime.secure.serving import MASKED
from osmotic.runtime.storage.durable import own_folder, write_whole
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import MembraneError, Problem, ProtocolError, ProtocolFault
from osmotic.schemas.labels import Label

if TYPE_CHECKING:
    from osmotic.runtime.party.site import Site
    from osmotic.runtime.secure.server import ServerSession

Reply = tuple[dict[str, Any], bytes]


class Open:
    """A sum that is under way."""

    def __init__(self, session: "ServerSession") -> None:
        self.session = session
        self.labels: dict[str, Label] = {}  # of the masked vectors that came


class Receiving:
    """Answers about the sums that this party receives; one at a time for each task and input."""

    def __init__(self, site: "Site") -> None:
        self.site = site
        self.open: dict[tuple[str, str], Open] = {}

    def answer(self, header: Mapping[str, Any], blob: bytes) -> Reply:
        """Answer one request: raises MembraneError, ProtocolError or RefusedError."""
        one = _Request(self, header)
        stages: dict[str, Callable[[bytes], Reply]] = {
            "state": one.state, "open": one.begin, "keys": one.keys, "shares": one.shares, MASKED: one.masked,
            "survivors": one.survivors, "confirm": one.confirm, "unmask": one.unmask, "finish": one.finish,
        }  # fmt: skip
        stage = stages.get(str(header.get("stage")))
        if stage is None:
            raise ProtocolFault(Problem(f"a secure sum has no stage {header.get('stage')!r}"))
        return stage(blob) if header["stage"] == "state" or not one.over() else one.again()


class _Request:
    """One request about one sum."""

    def __init__(self, receiving: Receiving, header: Mapping[str, Any]) -> None:
        self.receiving, self.site, self.header = receiving, receiving.site, header
        self.consumer, self.port, self.edges = agreeing.asked(self.site, header)
        if self.consumer.party != self.site.party:
            raise MembraneError(Problem(f"{self.site.party} does not receive {self.consumer.id}.{self.port}"))
        self.name = agreeing.session_of(header)
        self.place = (self.consumer.id, self.port)
        self.secret = agreeing.folder_of(self.site) / f"{agreeing.short(self.name)}.receiver"

    @property
    def now(self) -> Open:
        """The sum under way; raises ProtocolError where this session is not open, since the process is new."""
        found = self.receiving.open.get(self.place)
        if found is None or found.session.plan.session != self.name:
            raise ProtocolError(Problem(f"{self.site.party} has no such session of a secure sum open"))
        return found

    def state(self, blob: bytes) -> Reply:
        """Whether the sum of this session is here; it then counts as received."""
        done = received.session_of(self.site, self.consumer, self.port) == self.name.hex()
        return {"done": done and bool(received.known(self.site, self.consumer, self.port))}, b""

    def over(self) -> bool:
        """Whether this session was finished by an earlier process of this party, to which what comes now was said."""
        open_ = self.receiving.open.get(self.place)
        if open_ is not None and open_.session.plan.session == self.name:
            return False
        return received.session_of(self.site, self.consumer, self.port) == self.name.hex()

    def again(self) -> Reply:
        """Any stage of a session that is over: the sum counts as received, nothing else happens."""
        received.known(self.site, self.consumer, self.port)
        return {}, b""

    def begin(self, blob: bytes) -> Reply:
        """The receiver's key of the session. header: outline, name -> shape."""
        from osmotic.runtime.secure.server import ServerSession

        if not self.secret.is_file():
            self._give_up()
            write_whole(self.secret, os.urandom(32))
        outline = self.header.get("outline")
        if not isinstance(outline, dict):
            raise ProtocolError(Problem("a secure sum was begun without shapes"))
        try:
            shapes = {str(name): tuple(int(n) for n in shape) for name, shape in outline.items()}
        except (TypeError, ValueError) as error:
            raise ProtocolError(Problem("a secure sum was begun with shapes that are none")) from error
        context = agreeing.context_of(self.site, self.consumer, self.edges[0])
        plan = agreeing.sum_plan(self.site.need()[0], self.edges, self.name, shapes, context)
        session = ServerSession(plan, self.secret.read_bytes(), identity=agreeing.identity_of(self.site))
        self.receiving.open[self.place] = Open(session)
        return {}, bytes(session.open())

    def keys(self, blob: bytes) -> Reply:
        """All keys at once."""
        for name, content in bundle.unpack(blob).items():
            self.now.session.add_keys(name, content)
        return {}, bundle.pack(self.now.session.keys())

    def shares(self, blob: bytes) -> Reply:
        """All clients' encrypted shares; the answer has those for each."""
        given = bundle.unpack(blob)
        for name, content in given.items():
            self.now.session.add_shares(name, content)
        for path in sorted(self._kept().glob("*.masked")):
            head, _, masked = path.read_bytes().partition(b"\n")
            said = json.loads(head)
            self._add(said["sender"], _label(said["label"]), masked)
        answer = bundle.pack({name: bundle.pack(self.now.session.shares_for(name)) for name in given})
        return {"held": sorted(self.now.labels)}, answer

    def masked(self, blob: bytes) -> Reply:
        """One client's masked vector. header: sender, label."""
        sender = str(self.header.get("sender"))
        edge = next((one for one in self.edges if one.sender == sender), None)
        if edge is None:
            raise MembraneError(Problem("a masked vector arrived that the plan does not have"))
        label = _label(self.header.get("label"))
        check_claims(self.site, edge.name, label)
        if sender not in self.now.labels:
            self._add(sender, label, blob)
            head = canonical({"sender": sender, "label": label.to_json()})
            write_whole(self._kept() / f"{hashlib.sha256(sender.encode()).hexdigest()[:32]}.masked", head + b"\n" + blob)
            self._record(edge, label, blob)
        return {}, b""

    def _add(self, sender: str, label: Label, masked: bytes) -> None:
        self.now.session.add_masked(sender, masked)
        self.now.labels[sender] = label

    def _kept(self) -> Path:
        """Where masked vectors lie until the sum is made."""
        return own_folder(self.secret.with_suffix(".masked"))

    def survivors(self, blob: bytes) -> Reply:
        """Whose vectors are in the sum."""
        return {"survivors": list(self.now.session.survivors())}, b""

    def confirm(self, blob: bytes) -> Reply:
        """The clients' signatures of the survivors."""
        for name, content in bundle.unpack(blob).items():
            self.now.session.add_signature(name, content)
        return {}, bundle.pack(self.now.session.signatures())

    def unmask(self, blob: bytes) -> Reply:
        """What takes the masks away."""
        for name, content in bundle.unpack(blob).items():
            self.now.session.add_unmask(name, content)
        return {}, b""

    def finish(self, blob: bytes) -> Reply:
        """The sum, as an artifact of this party."""
        session, plan = self.now.session, self.now.session.plan
        tensors, survivors = session.finish()
        meta = {"count": len(survivors), "parties": list(survivors), "of": len(plan.names), "clip": plan.clip}
        if plan.noise_multiplier is not None:
            meta["noise_multiplier"] = plan.noise_multiplier
        digest = self.site.store.put(Weights(tensors, meta))
        label = Label.join(self.now.labels[name] for name in survivors)
        ref = Ref(Weights.kind, digest, label)
        edge = self.edges[0]
        self.site.ledger.cross(
            edge=f"{SUM} of {edge.producer.rpartition('@')[0]}.{edge.port}->{self.consumer.id}", name=edge.name,
            sender=self.site.party, receiver=self.site.party, direction="in", kind=SUM, digest=digest, size=0, label=label,
        )  # fmt: skip
        received.keep(self.site, self.consumer, self.port, ref, self.name.hex())
        shutil.rmtree(self._kept(), ignore_errors=True)
        self.secret.unlink(missing_ok=True)
        del self.receiving.open[self.place]
        return {"survivors": list(survivors)}, b""

    def _give_up(self) -> None:
        """Take away what is left of the session of this very sum that was begun last."""
        name = f"receiving {self.consumer.id}.{self.port}"
        last = self.site.ledger.recall(name)
        if last:
            before = self.secret.with_name(last)
            shutil.rmtree(before.with_suffix(".masked"), ignore_errors=True)
            before.unlink(missing_ok=True)
        self.site.ledger.remember(name, self.secret.name)

    def _record(self, edge: Edge, label: Label, masked: bytes) -> None:
        digest, size = hashlib.sha256(masked).hexdigest(), len(masked)
        self.site.ledger.cross(
            edge=membrane.edge_id(edge, self.consumer.id), name=edge.name, sender=edge.sender, receiver=self.site.party,
            direction="in", kind=MASKED, digest=digest, size=size, label=label,
        )  # fmt: skip


def _label(value: Any) -> Label:
    """A label that came with a masked vector; raises ProtocolError for none, MembraneError for a raw one."""
    try:
        label = Label.from_json(value)
        sources = {entry.source for entry in label.entries}
    except (KeyError, TypeError) as error:
        raise ProtocolError(Problem("a masked vector came without a label")) from error
    if not sources <= {"release", "exposed"}:
        raise MembraneError(Problem("a masked vector with a raw label: what is raw does not cross"))
    return label
