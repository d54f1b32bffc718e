# SPDX-License-Identifier: Apache-2.0
"""What a client remembers of one secure sum, as bytes and back: 32 secret bytes, what it was told, what it answered.

Secret until the stage is 'done'; from then on it is the record that the session was used, and the one answer, which only the
receiver can open. Stages go forwards; what was told once never changes.
"""

import json
from collections.abc import Mapping
from typing import Any

from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import Problem, ProtocolError, RefusedError

STAGES = ("new", "keys", "shares", "masked", "confirmed", "done")
FORMAT = "osmotic secure sum state 1"


class State:
    """Of the client `me` under the plan with that digest. root: 32 bytes of the operating system, nothing when wiped."""

    def __init__(self, plan: bytes, me: str, root: bytes, stage: str = "new") -> None:
        self._plan, self._me, self._root, self.stage = plan, me, bytearray(root), stage
        self.roster, self.receiver, self.masked, self.answer = b"", b"", b"", b""
        self.keys: dict[str, bytes] = {}  # name -> key message
        self.boxes: dict[str, bytes] = {}  # sender -> its shares for this client, encrypted
        self.survivors: tuple[str, ...] = ()

    def secret(self) -> bytes:
        """The root. Raises RefusedError when it was wiped."""
        if not self._root:
            why = "its secrets are gone: a vector is masked, and a sum opened, once a session"
            raise RefusedError(Problem("this secure sum is over", path="secure_sum", why=why, fix="a new session"))
        return bytes(self._root)

    def need(self, stage: str, after: str) -> None:
        """Raise RefusedError when `stage` is asked for before `after` was answered."""
        if STAGES.index(self.stage) < STAGES.index(after):
            what, why = f"asked for {stage!r} in a secure sum before {after!r}", f"the last answer was {self.stage!r}"
            raise RefusedError(Problem(what, path="secure_sum", why=why))

    def reach(self, stage: str, after: str = "new") -> None:
        """Go on to a stage; where it was reached before, stay."""
        self.need(stage, after)
        self.stage = max(self.stage, stage, key=STAGES.index)

    def finish(self, answer: bytes) -> None:
        """Keep the answer and forget what could make another."""
        self.answer, self.stage = answer, "done"
        self._root[:] = bytes(len(self._root))
        self._root, self.keys, self.boxes = bytearray(), {}, {}

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        texts = {name: getattr(self, name).hex() for name in ("roster", "receiver", "masked", "answer")}
        return canonical({
            "format": FORMAT, "plan": self._plan.hex(), "me": self._me, "root": self._root.hex(), "stage": self.stage,
            "keys": _texts(self.keys), "boxes": _texts(self.boxes), "survivors": list(self.survivors), **texts,
        })  # fmt: skip

    @classmethod
    def of_bytes(cls, text: bytes) -> "State":
        """Of any plan and client. Raises ProtocolError for what `to_bytes` never made."""
        try:
            said = json.loads(text)
            state = cls(
                bytes.fromhex(said["plan"]), said["me"], bytes.fromhex(said["root"]), STAGES[STAGES.index(said["stage"])]
            )
            state._fill(said)
            right = said["format"] == FORMAT and len(state._root) == (0 if state.stage == "done" else 32)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise _unreadable() from error
        if not right:
            raise _unreadable()
        return state

    @classmethod
    def from_bytes(cls, text: bytes, plan: bytes, me: str) -> "State":
        """Of this plan and client. Raises ProtocolError for none at all, RefusedError for another's."""
        state = cls.of_bytes(text)
        if (state._plan, state._me) != (plan, me):
            why = "a session belongs to one plan: who adds, the sizes, the noise, the model that it starts from"
            raise RefusedError(
                Problem("this session was begun with another plan", path="secure_sum", why=why, fix="a new session")
            )
        return state

    def _fill(self, said: Mapping[str, Any]) -> None:
        self.roster, self.receiver = bytes.fromhex(said["roster"]), bytes.fromhex(said["receiver"])
        self.masked, self.answer = bytes.fromhex(said["masked"]), bytes.fromhex(said["answer"])
        self.keys = {str(name): bytes.fromhex(value) for name, value in said["keys"].items()}
        self.boxes = {str(name): bytes.fromhex(value) for name, value in said["boxes"].items()}
        self.survivors = tuple(str(name) for name in said["survivors"])


def _texts(values: Mapping[str, bytes]) -> dict[str, str]:
    return {name: value.hex() for name, value in values.items()}


def _unreadable() -> ProtocolError:
    fix = "give the session up: what it charged stays charged"
    return ProtocolError(Problem("the stored state of a secure sum cannot be read", path="secure_sum", fix=fix))
