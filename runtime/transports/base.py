# SPDX-License-Identifier: Apache-2.0
"""What a transport is: a way to ask any party's service, and nothing more. One conformance suite runs against all of them
(tests/runtime/test_transports.py).
"""

from collections.abc import Callable
from typing import Any, Protocol

from osmotic.schemas.errors import Code, ProtocolError

Header = dict[str, Any]
Reply = tuple[Header, bytes]
Watch = Callable[[str, str, int, int, str], None]  # party, task, done, total, note


def refuse(op: Any) -> Reply:
    """The answer to a party that asks another one for anything but a model call."""
    problem = {"what": f"a party may only call models of another one, not ask for {str(op)[:40]!r}"}
    return {"error": {"code": str(Code.PROTOCOL), "exit": ProtocolError.exit_code, "problems": [problem]}}, b""


class Transport(Protocol):
    """Carries requests to parties. A request may lead to requests from that party to others: model calls and nothing else.

    The transport itself writes into such a call which party it comes from; whatever the header said about that is replaced.
    """

    parallel: bool

    def request(self, party: str, header: Header, blob: bytes = b"") -> Reply:
        """Ask one party and wait for its answer. Raises PeerError naming a party that vanished."""

    def close(self) -> None:
        """Let go of every party; safe to call twice."""
