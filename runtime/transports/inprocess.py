# SPDX-License-Identifier: Apache-2.0
"""The local transport, in process: every party has its own store, ledger and policy, and shares the interpreter."""

import functools
from collections.abc import Mapping

from osmotic.runtime.party.service import Service
from osmotic.runtime.party.site import Site
from osmotic.runtime.transports.base import Header, Reply, Watch, refuse
from osmotic.schemas.errors import PeerError, Problem


class InProcess:
    """Parties as objects. Requests and answers are the same bytes as on any other transport."""

    parallel = False

    def __init__(self, sites: Mapping[str, Site], watch: Watch) -> None:
        self.services = {party: Service(site, local=True) for party, site in sites.items()}
        for party, site in sites.items():
            site.outbound = functools.partial(self._call, party)
            site.progress = functools.partial(watch, party)

    def request(self, party: str, header: Header, blob: bytes = b"") -> Reply:
        """Ask a party's service."""
        service = self.services.get(party)
        if service is None:
            raise PeerError(Problem(f"there is no party {party!r}"))
        return service.handle(header, blob)

    def _call(self, party: str, to: str, header: Header, blob: bytes) -> Reply:
        """A model call from one party to another."""
        if header.get("op") != "call":
            return refuse(header.get("op"))
        return self.request(to, {**header, "from": party}, blob)

    def close(self) -> None:
        """Close every ledger."""
        for service in self.services.values():
            service.site.ledger.close()
        self.services = {}
