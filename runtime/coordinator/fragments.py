# SPDX-License-Identifier: Apache-2.0
"""What is sent to a party in one message, where a transport wants that: tasks that need nothing from elsewhere in between.

A fragment ends with the first task that gives something away: others wait for it. Small things that have crossed to its tasks
travel in the same message, large ones before it.
"""

from dataclasses import dataclass, field
from typing import Any

from osmotic.runtime.coordinator.losses import Lost
from osmotic.runtime.coordinator.requests import rebuild
from osmotic.runtime.plan.graph import Edge, Instance
from osmotic.runtime.transports.base import Header
from osmotic.schemas.errors import MembraneError, OsmoticError, Problem, ProtocolError

SMALL = 64 << 10  # bytes: what travels in the message itself
LONGEST = 200  # tasks of one fragment


@dataclass
class Made:
    """What a fragment has done for one instance. pulled: what each wanted edge gave, None where it is to be asked for alone."""

    cached: bool = False
    seconds: float = 0.0
    stop: bool = False
    pulled: list[tuple[Instance, Edge, tuple[bool, bytes] | None]] = field(default_factory=list)


@dataclass
class Fragment:
    """A message in the making, for one party."""

    party: str
    steps: list[Header] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    whose: list[str] = field(default_factory=list)  # the instance that each step is about
    wanted: dict[int, tuple[Instance, Edge]] = field(default_factory=dict)  # place of a pull -> for whom, which edge

    def add(self, instance: Instance, header: Header, body: bytes = b"") -> None:
        """One more step."""
        self.steps.append({**header, "bytes": len(body)} if header["op"] == "push" else header)
        self.bodies += [body] if header["op"] == "push" else []
        self.whose.append(instance.id)

    def pull(self, instance: Instance, consumer: Instance, edge: Edge, have: str) -> None:
        """Something that is to cross."""
        self.wanted[len(self.steps)] = (consumer, edge)
        header = {"op": "pull", "id": consumer.id, "producer": edge.producer, "port": edge.port, "have": have}
        self.add(instance, header)

    @property
    def header(self) -> Header:
        """The request."""
        return {"op": "fragment", "steps": self.steps}

    def read(self, reply: Header, blob: bytes) -> tuple[dict[str, Made], Lost | None]:
        """(what was done for instances that are finished, the failure that ended it); raises Lost for what is no answer."""
        answers = reply.get("steps")
        if not isinstance(answers, list) or len(answers) > len(self.steps):
            raise self._strange()
        made: dict[str, Made] = {}
        begin = 0
        for place, one in enumerate(answers):
            identity, op = self.whose[place], self.steps[place]["op"]
            if not isinstance(one, dict):
                raise self._strange()
            if "error" in one:
                made.pop(identity, None)
                return made, self._failed(place, rebuild(self.party, {"id": identity, "op": op}, one["error"]))
            found = made.setdefault(identity, Made())
            if op == "run":
                seconds = one.get("seconds", 0.0)
                found.cached = bool(one.get("cached"))
                found.seconds = float(seconds) if isinstance(seconds, int | float) else 0.0
            elif op == "until":
                found.stop = bool(one.get("stop"))
            elif op == "pull":
                end = begin + self._size(one)
                body = None if one.get("later") else (bool(one.get("same")), bytes(blob[begin:end]))
                found.pulled.append((*self.wanted[place], body))
                begin = end
        if len(answers) < len(self.steps) or begin != len(blob):
            raise self._strange()
        return made, None

    def _failed(self, place: int, error: OsmoticError) -> Lost:
        """The step that ended it; where what had crossed is no envelope of the plan, its sender is at fault."""
        sent = self.steps[place]["op"] == "push" and isinstance(error, MembraneError | ProtocolError)
        return Lost(self.party, str(self.steps[place]["producer"]) if sent else self.whose[place], error, False)

    def _size(self, one: dict[str, Any]) -> int:
        size = one.get("bytes", 0)
        if not isinstance(size, int) or size < 0:
            raise self._strange()
        return size

    def _strange(self) -> Lost:
        error = ProtocolError(Problem(f"{self.party} gave no answer to a fragment that can be read"))
        return Lost(self.party, "", error, True)
