# SPDX-License-Identifier: Apache-2.0
"""The end of a run: everybody is asked for its part of the result and writes its own report.

Who goes just then, and can be done without, is not heard: everything has run, so the result is made without its account.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from osmotic.runtime.coordinator.losses import loss_of
from osmotic.runtime.plan.graph import Graph
from osmotic.runtime.results.summary import summarise
from osmotic.runtime.run import Outcome, settle
from osmotic.runtime.transports.base import Header, Reply, Transport
from osmotic.schemas.errors import PeerError


class Asking:
    """A transport that remembers which party could not be reached. Whoever opened the transport inside closes it."""

    def __init__(self, inner: Transport) -> None:
        self.inner, self.parallel = inner, inner.parallel
        self.gone = ""

    def request(self, party: str, header: Header, blob: bytes = b"") -> Reply:
        """Ask a party."""
        try:
            return self.inner.request(party, header, blob)
        except PeerError:
            self.gone = party
            raise

    def close(self) -> None:
        """Nothing."""


def conclude(graph: Graph, transport: Transport, outcome: Outcome, plan: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The summary of a run, after which everybody has written its report. Raises PeerError where somebody is missing whom the
    plan's quorums cannot do without; notes the others in `outcome.lost`."""
    while True:
        asking = Asking(transport)
        try:
            summary = summarise(graph, asking, outcome, plan=plan)
            settle(asking, graph, outcome.lost)
        except PeerError as error:
            party = asking.gone
            if party not in graph.waits or party in outcome.lost or getattr(transport, "whole", False):
                raise
            outcome.lost[party] = loss_of(party, error, True).text
        else:
            return summary
