# SPDX-License-Identifier: Apache-2.0
"""What a run has done so far, what waits to be handed in, and who watches."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from osmotic.runtime.plan.graph import Instance
from osmotic.runtime.transports.base import Header


class Watcher(Protocol):
    """Sees a run as it goes. It may also have `begun(instance)`, and `lost(party, why)`: why is empty when it is back."""

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
    absent: set[str] = field(default_factory=set)  # of rounds that were not needed, or lost with a party
    quorums: list[dict[str, Any]] = field(default_factory=list)  # who was there for each gather with a quorum (`Losses`)
    sums: list[dict[str, Any]] = field(default_factory=list)  # what was added up without being seen (`secure.gathering`)
    lost: dict[str, str] = field(default_factory=dict)  # parties that cannot be asked any more, and why


@dataclass(frozen=True)
class Delivery:
    """What has crossed and waits: of which instance, for which, at which party, the request that hands it in."""

    producer: str
    consumer: str
    party: str
    header: Header
    blob: bytes
