# SPDX-License-Identifier: Apache-2.0
"""A client's side of one secure sum: keys, shares, the masked vector, the survivors it confirms, the answer that unmasks.

Source: Bonawitz et al. 2017 (double masking), with what makes it hold against a server that lies: the plan's digest and
everybody's keys are bound into every key and signature; a client confirms one set of survivors, ever, of `plan.fewest` at the
least, all of whom it has shares of; it gives for each other client a share of the mask's seed (a survivor) or of the mask's
key (who is lost), never both. Noise: `discrete`. docs/secure-sum.md says what holds against whom, and why.

Everything secret follows from 32 bytes of the operating system (`_root`), so a client that was killed goes on with the same
keys, noise and masked vector: the same question has the same answer, another one is refused. The state must be stored before
an answer leaves. Void when: a state is put back from an older copy, or two processes use one; the root is read by somebody
before the sum is made (with what the server saw it opens the vector). It is wiped, as far as Python can, with the answer.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from osmotic.runtime.secure import masks, messages, shamir
from osmotic.runtime.secure.discrete import add_noise
from osmotic.runtime.secure.keys import Identity, Pair, pinned, seal, signed, unseal
from osmotic.runtime.secure.messages import Keys
from osmotic.runtime.secure.plan import SumPlan
from osmotic.runtime.secure.state import State
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ConfigError, Problem, RefusedError

if TYPE_CHECKING:
    import numpy as np

PAIR_OF_SHARES = 2 * shamir.SHARE
PIECE = 1 << 28  # bytes


class ClientSession:
    """One client in one sum. `identity`: its signing key. `identities`: those it pins, of all clients and the receiver.

    Raises ConfigError when `me` is not in the plan, or identities are pinned for some only.
    """

    def __init__(
        self, plan: SumPlan, me: str, identity: Identity | None = None, identities: Mapping[str, bytes] | None = None
    ) -> None:  # fmt: skip
        if me not in plan.names:
            raise ConfigError(Problem(f"{me!r} is no client of this sum", path="names"))
        self.plan, self.me, self._identity = plan, me, identity
        self._pinned = pinned(identities, (*plan.names, plan.receiver), me, identity)
        self._state = State(plan.digest, me, root=os.urandom(32))
        self._pairs: dict[str, Pair] = {}

    @classmethod
    def from_bytes(
        cls, plan: SumPlan, me: str, state: bytes, identity: Identity | None = None,
        identities: Mapping[str, bytes] | None = None,
    ) -> "ClientSession":  # fmt: skip
        """A session as it was stored. Raises RefusedError for the state of another plan or client, ProtocolError for none."""
        session = cls(plan, me, identity, identities)
        session._state = State.from_bytes(state, plan.digest, me)
        return session

    def to_bytes(self) -> bytes:
        """What must be stored (secret until the stage is 'done') before the answer of the last call leaves."""
        return self._state.to_bytes()

    @staticmethod
    def survivors_of(state: bytes) -> tuple[str, tuple[str, ...]]:
        """(stage, survivors confirmed, or none) of a stored session, whatever its plan; none of a retired one.

        Raises ProtocolError for what is no state.
        """
        found = State.of_bytes(state)
        return found.stage, found.survivors

    @staticmethod
    def retired(state: bytes) -> bytes:
        """A stored session that can answer nothing any more, its secrets gone; one that is done stays as it is."""
        found = State.of_bytes(state)
        if found.stage != "done":
            found.finish(b"")
            found.survivors = ()
        return found.to_bytes()

    @property
    def stage(self) -> str:
        """'new', 'keys', 'shares', 'masked', 'confirmed' or 'done': the last thing that was answered."""
        return self._state.stage

    @property
    def trust(self) -> str:
        """What is assumed of the server: 'active' (it may lie) with pinned identities, else 'honest-but-curious'."""
        return "active" if self._pinned else "honest-but-curious"

    def advertise(self) -> bytes:
        """This client's public keys, signed where it has an identity."""
        self._state.reach("keys")
        return self._own_keys().message()

    def share(self, keys: Mapping[str, bytes], receiver: bytes) -> bytes:
        """Encrypted shares of its secrets for all who sent keys, and a commitment. Raises RefusedError for too few, or liars.

        keys: name -> what that client advertised, its own too. receiver: what the receiver opened with.
        """
        state = self._state
        state.need("shares", after="keys")
        roster = messages.roster_of(self.plan.digest, keys, receiver)
        if state.roster and state.roster != roster:
            raise _again("keys")
        if not state.roster:
            self._check_keys(keys, receiver)
        state.reach("shares")
        state.roster, state.receiver = roster, bytes(receiver)
        state.keys = {name: bytes(keys[name]) for name in self.plan.ordered(list(keys))}
        dealt = self._dealt()
        boxes = {name: self._box(name, dealt[name]).hex() for name in state.keys if name != self.me}
        return canonical({"commit": messages.of_commitment(self.plan.digest, self.me, self._secret("self")).hex(), "to": boxes})

    def mask(self, shares: Mapping[str, bytes], vector: "Mapping[str, np.ndarray]") -> memoryview:
        """The vector, noisy and masked: 4 bytes a number, little-endian. Raises RefusedError for too few shares or false ones.

        shares: sender -> its box for this client. vector: tensors of the plan's shapes, read one at a time, twice.
        """
        import numpy as np

        state, plan = self._state, self.plan
        state.need("masked", after="shares")
        state.secret()  # raises when the sum is over
        if state.boxes and state.boxes != {name: bytes(box) for name, box in shares.items()}:
            raise _again("shares")
        if not state.boxes:
            self._check_shares(shares)
        words = plan.grid.encode(vector, plan.shapes)
        if plan.grid.bits is not None:
            add_noise(words, plan.grid.bits, self._secret("noise"))
        self._cover(words, list(shares))
        made: Any = np.ascontiguousarray(words, dtype="<u4").view(np.uint8)
        tag = self._tag(memoryview(made))
        if state.masked and state.masked != tag:
            raise _again("vector")
        state.reach("masked")
        state.boxes, state.masked = {name: bytes(box) for name, box in shares.items()}, tag
        return memoryview(made)

    def confirm(self, survivors: Sequence[str]) -> bytes:
        """Its word, signed where it has an identity, that these are in the sum: once, for one set. Raises RefusedError."""
        state, plan = self._state, self.plan
        named = plan.ordered(list(survivors))
        state.need("confirmed", after="masked")
        if state.survivors and state.survivors != named:
            raise _again("survivors")
        if not state.survivors:
            self._check_survivors(named)
        state.reach("confirmed")
        state.survivors = named
        said = messages.of_survivors(plan.digest, state.roster, named)
        sign = self._identity.sign(*said) if self._identity else b""
        return canonical({"set": messages.set_digest(said).hex(), "sign": sign.hex()})

    def unmask(self, signatures: Mapping[str, bytes]) -> bytes:
        """Shares that open the sum of the survivors confirmed, for the receiver alone; then all secrets are gone.

        signatures: name -> what survivors answered to `confirm`, at least `plan.threshold` of them. Raises RefusedError.
        """
        state = self._state
        if not state.answer:
            state.secret()  # raises when the session was retired
            state.need("done", after="confirmed")
            self._check_signatures(signatures)
            bound = canonical([self.plan.digest.hex(), state.roster.hex(), list(state.survivors)])
            addressee = messages.receivers_key(state.receiver, self.plan.receiver)[0]
            key = self._pair("box").shared(addressee, self.plan.digest, "answer", self.me, bound.hex())
            state.finish(seal(key, canonical(self._answer()), bound))
            self._pairs.clear()
        return state.answer

    def _answer(self) -> dict[str, dict[str, str]]:
        """Of each client the one share or the other: what it means to be in the sum, or lost."""
        held = {name: self._opened(name) or b"" for name in self._state.boxes} | {self.me: self._dealt()[self.me]}
        survivors = set(self._state.survivors)
        own = {name: held[name][shamir.SHARE :].hex() for name in held if name in survivors}
        return {"self": own, "key": {name: held[name][: shamir.SHARE].hex() for name in held if name not in survivors}}

    def _secret(self, purpose: str) -> bytes:
        return masks.derive(self._state.secret(), self.plan.digest, purpose)

    def _pair(self, purpose: str) -> Pair:
        if purpose not in self._pairs:
            self._pairs[purpose] = Pair(self._secret(purpose))
        return self._pairs[purpose]

    def _tag(self, words: memoryview) -> bytes:
        """What another masked vector would not have: AES-GMAC, chained over pieces that it takes at once."""
        tag = b""
        for start in range(0, len(words), PIECE):
            key = masks.derive(self._state.secret(), self.plan.digest, "tag of the vector", str(start), tag.hex())
            tag = seal(key, b"", words[start : start + PIECE])
        return tag

    def _own_keys(self) -> Keys:
        box, mask = self._pair("box").public, self._pair("mask").public
        said = messages.of_keys(self.plan.digest, self.me, Keys(box, mask, b""))
        return Keys(box, mask, self._identity.sign(*said) if self._identity else b"")

    def _keys_of(self, name: str) -> Keys:
        return Keys.read(self._state.keys[name], name)

    def _cover(self, words: "np.ndarray", others: list[str]) -> None:
        """Add its own mask, and one for each other client that gave shares: plus for later ones in the plan, minus else."""
        plan, pair, at = self.plan, self._pair("mask"), self.plan.names.index
        plus, minus = [own_key(plan, self.me, self._secret("self"))], list[bytes]()
        for name in others:
            key = pair_key(plan, pair, self.me, name, self._keys_of(name).mask)
            (plus if at(self.me) < at(name) else minus).append(key)
        masks.add_streams(words, plus, minus)

    def _dealt(self) -> dict[str, bytes]:
        """Name -> its share of the mask's key and its share of the own mask's seed, for all who sent keys."""
        plan, points = self.plan, [self.plan.names.index(name) + 1 for name in self._state.keys]
        dealt = []
        for purpose in ("mask", "self"):
            count = plan.threshold - 1
            drawn = bytearray(shamir.WIDE * count + 16)
            masks.Stream(self._secret(f"polynomial of {purpose}")).into(bytes(shamir.WIDE * count), drawn)
            dealt.append(shamir.split(self._secret(purpose), bytes(drawn[: shamir.WIDE * count]), points))
        return {name: dealt[0][i] + dealt[1][i] for i, name in enumerate(self._state.keys)}

    def _box_key(self, other: str, sender: str, addressee: str) -> bytes:
        roster = self._state.roster.hex()
        return self._pair("box").shared(self._keys_of(other).box, self.plan.digest, "shares", sender, addressee, roster)

    def _box(self, name: str, shares: bytes) -> bytes:
        return seal(self._box_key(name, self.me, name), shares, canonical([self.me, name]))

    def _opened(self, name: str, box: bytes | None = None) -> bytes | None:
        box = self._state.boxes[name] if box is None else box
        found = unseal(self._box_key(name, name, self.me), box, canonical([name, self.me]))
        return found if found is not None and len(found) == PAIR_OF_SHARES else None

    def _enough(self, count: int, what: str) -> None:
        if count < self.plan.fewest:
            why = f"at_least {self.plan.at_least}, and {self.plan.threshold} must answer to open a sum"
            raise RefusedError(Problem(f"{count} {what} where {self.plan.fewest} are needed", path="at_least", why=why))

    def _check_keys(self, keys: Mapping[str, bytes], receiver: bytes) -> None:
        """Raise RefusedError for too few clients, keys that are not its own under its name, equal keys, false signatures."""
        plan = self.plan
        found = {name: Keys.read(keys[name], name) for name in plan.ordered(list(keys))}
        self._enough(len(found), "clients with keys")
        own, (public, sign) = self._own_keys(), messages.receivers_key(receiver, plan.receiver)
        if self.me not in found or (found[self.me].box, found[self.me].mask) != (own.box, own.mask):
            raise RefusedError(Problem("its own keys came back as others", path="secure_sum", why="replaced on the way"))
        if len({key for k in found.values() for key in (k.box, k.mask)} | {public}) < 2 * len(found) + 1:
            raise RefusedError(Problem("two public keys in a secure sum are the same", path="secure_sum"))
        for key in [key for name, k in found.items() if name != self.me for key in (k.box, k.mask)] + [public]:
            self._pair("box").shared(key, plan.digest, "trial")  # raises for what is no key
        false = [
            n for n, k in found.items() if self._pinned and not self._signed(n, k.sign, messages.of_keys(plan.digest, n, k))
        ]
        if self._pinned and not self._signed(plan.receiver, sign, messages.of_receiver(plan.digest, plan.receiver, public)):
            false.append(plan.receiver)
        if false:
            why = "not signed by the identity that is pinned here, or for another plan or context"
            raise RefusedError(Problem(f"the keys of {', '.join(false[:5])} are not theirs", path="secure_sum", why=why))

    def _signed(self, name: str, sign: bytes, said: list[Any]) -> bool:
        return signed(self._pinned[name], sign, *said)

    def _check_shares(self, shares: Mapping[str, bytes]) -> None:
        if self.me in shares or not set(shares) <= set(self._state.keys):
            raise RefusedError(Problem("shares of a client that sent no keys", path="secure_sum"))
        self._enough(len(shares) + 1, "clients with shares")
        for name, box in shares.items():
            if self._opened(name, bytes(box)) is None:
                why = "it was altered, or was made for another plan, context or set of keys"
                raise RefusedError(Problem(f"the share of {name!r} cannot be opened", path="secure_sum", why=why))

    def _check_survivors(self, named: tuple[str, ...]) -> None:
        strangers = sorted(set(named) - set(self._state.boxes) - {self.me})
        if self.me not in named or strangers:
            what = f"asked to open a sum with {strangers[0]!r}, who gave no shares" if strangers else "not in the sum itself"
            raise RefusedError(Problem(what, path="secure_sum"))
        self._enough(len(named), "clients in the sum")

    def _check_signatures(self, signatures: Mapping[str, bytes]) -> None:
        """Raise RefusedError unless `threshold` survivors have confirmed the same set as this client."""
        state, plan, good = self._state, self.plan, 0
        said = messages.of_survivors(plan.digest, state.roster, state.survivors)
        for name, message in signatures.items():
            wanted, sign = messages.confirmed(message, name)
            same = wanted == messages.set_digest(said)
            good += name in state.survivors and same and (not self._pinned or self._signed(name, sign, said))
        if good < plan.threshold:
            why = "with fewer, another set of survivors could be confirmed too, and the two told apart"
            what = f"{good} survivors have confirmed who is in the sum, where {plan.threshold} are needed"
            raise RefusedError(Problem(what, path="secure_sum", why=why))


def own_key(plan: SumPlan, name: str, seed: bytes) -> bytes:
    """Of the mask that is taken off a survivor's vector by its seed."""
    return masks.derive(seed, plan.digest, "own mask", name)


def pair_key(plan: SumPlan, pair: Pair, name: str, other: str, public: bytes) -> bytes:
    """Of the mask between two clients, from the key pair of `name` and the public key of `other`: the same either way."""
    return pair.shared(public, plan.digest, "pair mask", *plan.ordered([name, other]))


def _again(what: str) -> RefusedError:
    why = "a client answers one question a session: two would tell single clients apart"
    return RefusedError(Problem(f"asked again in this sum with other {what}", path="secure_sum", why=why, fix="a new session"))
