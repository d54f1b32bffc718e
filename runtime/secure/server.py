# SPDX-License-Identifier: Apache-2.0
"""The receiver's side of one secure sum: collects each stage's messages, hands out the next, takes the masks off the sum.

It holds masked vectors' running sum only, so memory is one vector. Who sent a vector is a survivor; of survivors it asks shares
of the own mask's seed, of who is lost before that, shares of the mask's key. Every secret put together is checked against what
its owner sent before (public key, commitment), and shares that are wrong are passed over where enough are right, their givers
named in `liars`. It cannot check a vector: a client may add what it likes (within 32 bits).

Made again from the same plan, secret and messages it comes to the same sum: what a receiver that was killed needs.
"""

import hashlib
import hmac
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from osmotic.runtime.secure import masks, messages, shamir
from osmotic.runtime.secure.client import PAIR_OF_SHARES, own_key, pair_key
from osmotic.runtime.secure.keys import Identity, Pair, unseal
from osmotic.runtime.secure.messages import Keys
from osmotic.runtime.secure.plan import SumPlan
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ConfigError, Problem, ProtocolError, RefusedError

if TYPE_CHECKING:
    import numpy as np

BOX = PAIR_OF_SHARES + 16  # bytes of two shares, sealed


class ServerSession:
    """The sum's receiver. secret: 32 bytes of the operating system; whoever has it and all messages can open the sum.

    Every `add_` is repeatable with the same bytes; with others, or too late, it raises ProtocolError.
    """

    def __init__(self, plan: SumPlan, secret: bytes, identity: Identity | None = None) -> None:
        if len(secret) != 32:
            raise ConfigError(Problem("the receiver's secret is 32 bytes", path="secure_sum"))
        self.plan, self.liars, self._identity = plan, set[str](), identity
        self._pair = Pair(masks.derive(secret, plan.digest, "receiver"))
        self._sent: dict[str, dict[str, bytes]] = {stage: {} for stage in ("keys", "shares", "masked", "signatures", "unmask")}
        self._closed: set[str] = set()
        self._commitments: dict[str, bytes] = {}
        self._boxes: dict[str, dict[str, bytes]] = {}  # sender -> addressee -> box
        self._answers: dict[str, dict[str, dict[str, bytes]]] = {}
        self._total: np.ndarray | None = None

    def open(self) -> bytes:
        """The public key that answers are sealed to, signed where the receiver has an identity: for `ClientSession.share`."""
        said = messages.of_receiver(self.plan.digest, self.plan.receiver, self._pair.public)
        sign = self._identity.sign(*said) if self._identity else b""
        return canonical({"key": self._pair.public.hex(), "sign": sign.hex()})

    def add_keys(self, name: str, message: bytes) -> None:
        """What a client advertised."""
        if self._new("keys", name, message, set(self.plan.names)):
            Keys.read(message, name)
            self._sent["keys"][name] = bytes(message)

    def keys(self) -> dict[str, bytes]:
        """For everybody's `share`. Raises RefusedError when too few clients came."""
        return self._close("keys", self.plan.fewest)

    def add_shares(self, name: str, message: bytes) -> None:
        """A client's shares for the others."""
        if self._new("shares", name, message, set(self._close("keys", self.plan.fewest))):
            said = messages.read(message, name, {"commit", "to"})
            others = set(self._sent["keys"]) - {name}
            boxes, commitment = messages.parts(said["to"], name, BOX, others), messages.part(said["commit"], name, 32)
            self._boxes[name], self._commitments[name] = boxes, commitment
            self._sent["shares"][name] = bytes(message)

    def shares_for(self, name: str) -> dict[str, bytes]:
        """Sender -> box, for that client's `mask`. Raises RefusedError when too few clients gave shares."""
        senders = self._close("shares", self.plan.fewest)
        if name not in senders:
            raise ProtocolError(Problem(f"{name!r} gave no shares, and gets none", path="secure_sum"))
        return {sender: self._boxes[sender][name] for sender in senders if sender != name}

    def add_masked(self, name: str, message: "bytes | memoryview") -> None:
        """A client's masked vector, 4 bytes a number: added up at once, not kept."""
        import numpy as np

        digest = hashlib.sha256(message).digest()
        if not self._new("masked", name, digest, set(self._close("shares", self.plan.fewest))):
            return
        if len(message) != 4 * self.plan.size:
            raise messages.malformed(name)
        words = np.frombuffer(message, dtype="<u4")
        if self._total is None:
            self._total = words.astype(np.uint32)
        else:
            np.add(self._total, words, out=self._total)
        self._sent["masked"][name] = digest

    def survivors(self) -> tuple[str, ...]:
        """Who is in the sum, for everybody's `confirm`: no vector is taken from here on. Raises RefusedError for too few."""
        return self.plan.ordered(list(self._close("masked", self.plan.fewest)))

    def add_signature(self, name: str, message: bytes) -> None:
        """A survivor's word."""
        if self._new("signatures", name, message, set(self.survivors())):
            said = messages.of_survivors(self.plan.digest, self._roster(), self.survivors())
            if messages.confirmed(message, name)[0] != messages.set_digest(said):
                raise ProtocolError(Problem(f"{name!r} has confirmed another set of survivors", path="secure_sum"))
            self._sent["signatures"][name] = bytes(message)

    def signatures(self) -> dict[str, bytes]:
        """For everybody's `unmask`. Raises RefusedError when too few confirmed."""
        return self._close("signatures", self.plan.threshold)

    def add_unmask(self, name: str, message: bytes) -> None:
        """A survivor's shares that open the sum."""
        if not self._new("unmask", name, message, set(self.survivors())):
            return
        survivors = self.survivors()
        bound = canonical([self.plan.digest.hex(), self._roster().hex(), list(survivors)])
        key = self._pair.shared(self._keys_of(name).box, self.plan.digest, "answer", name, bound.hex())
        opened = unseal(key, message, bound)
        if opened is None:
            raise messages.malformed(name)
        said, lost = messages.read(opened, name, {"self", "key"}), set(self._sent["shares"]) - set(survivors)
        own = messages.parts(said["self"], name, shamir.SHARE, set(survivors))
        self._answers[name] = {"self": own, "key": messages.parts(said["key"], name, shamir.SHARE, lost)}
        self._sent["unmask"][name] = bytes(message)

    def finish(self) -> "tuple[dict[str, np.ndarray], tuple[str, ...]]":
        """(name -> float64 sum, who is in it). Raises RefusedError for too few answers, ProtocolError for false ones."""
        self._close("unmask", self.plan.threshold)
        survivors, total = self.survivors(), self._total
        if total is None:
            raise ProtocolError(Problem("there is no vector to unmask", path="secure_sum"))
        plus, minus = self._masks(survivors)
        words = total.copy()
        masks.add_streams(words, plus, minus)
        return self.plan.grid.decode(words, self.plan.shapes), survivors

    def _masks(self, survivors: tuple[str, ...]) -> tuple[list[bytes], list[bytes]]:
        """Keys of the streams to add and to take away: survivors' own masks, and theirs with each client that is lost."""
        plan, at = self.plan, self.plan.names.index
        plus: list[bytes] = []
        minus = [own_key(plan, name, self._recovered("self", name)) for name in survivors]
        for lost in sorted(set(self._sent["shares"]) - set(survivors)):
            pair = Pair(self._recovered("key", lost))
            for name in survivors:  # a survivor before the lost one has added their mask, a later one taken it away
                key = pair_key(plan, pair, lost, name, self._keys_of(name).mask)
                (minus if at(name) < at(lost) else plus).append(key)
        return plus, minus

    def _recovered(self, kind: str, name: str) -> bytes:
        """The seed of a client's own mask, or the secret half of its mask's key."""
        shares = {self.plan.names.index(giver) + 1: answer[kind][name] for giver, answer in self._answers.items()}

        def right(secret: bytes) -> bool:
            if kind == "key":
                return hmac.compare_digest(Pair(secret).public, self._keys_of(name).mask)
            return hmac.compare_digest(messages.of_commitment(self.plan.digest, name, secret), self._commitments[name])

        secret, wrong = shamir.recover(shares, self.plan.threshold, right)
        self.liars |= {self.plan.names[point - 1] for point in wrong}
        return secret

    def _keys_of(self, name: str) -> Keys:
        return Keys.read(self._sent["keys"][name], name)

    def _roster(self) -> bytes:
        return messages.roster_of(self.plan.digest, self._sent["keys"], self.open())

    def _new(self, stage: str, name: str, message: Any, allowed: set[str]) -> bool:
        """Whether a message is the first of that client in that stage. Raises ProtocolError where it may not come."""
        there = self._sent[stage].get(name)
        if there is not None and there == bytes(message):
            return False
        if name not in allowed or there is not None or stage in self._closed:
            why = "it came twice, too late, or from a client that is not in this stage"
            raise ProtocolError(Problem(f"a message of {name!r} ({stage}) is not taken", path="secure_sum", why=why))
        return True

    def _close(self, stage: str, fewest: int) -> dict[str, bytes]:
        """What came in a stage, after which nothing more is taken."""
        found: Mapping[str, bytes] = self._sent[stage]
        if len(found) < fewest:
            lost = [name for name in self.plan.names if name not in found]
            what = f"{len(found)} of {len(self.plan.names)} clients are left ({stage}) where {fewest} are needed"
            raise RefusedError(Problem(what, path="secure_sum", why=f"missing: {', '.join(lost[:10])}"))
        self._closed.add(stage)
        return dict(found)
