# SPDX-License-Identifier: Apache-2.0
"""What a transport is: a way to ask any party's service, and nothing more. One conformance suite runs against all of them
(tests/runtime/test_transports.py).
"""

from collections.abc import Callable
from typing import Any, Protocol

Header = dict[str, Any]
Reply = tuple[Header, bytes]
Watch = Callable[[str, str, int, int, str], None]  # party, task, done, total, note


class Transport(Protocol):
    """Carries requests to parties. A request may lead to requests from that party to others (model calls)."""

    parallel: bool

    def request(self, party: str, header: Header, blob: bytes = b"") -> Reply:
        """Ask one party and wait for its answer. Raises PeerError naming a party that vanished."""

    def close(self) -> None:
        """Let go of every party; safe to call twice."""
