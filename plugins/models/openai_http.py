# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 to one server, and nothing beside it: no redirects, cookies, proxies, compression or upgrades.

h11 reads the protocol. A connection is used for one request at a time, and kept only if the server has sent exactly one answer
to it: bytes that nobody asked for close it, or they would be taken for the answer to the next prompt.
"""

import asyncio
import re
import ssl
from typing import Any

import h11

from osmotic.plugins.models.openai_answers import LARGEST, Reply

Headers = list[tuple[str, str]]


class UnreachableError(OSError):
    """No connection came about."""


class Connections:
    """Kept connections to the server of an address, at most as many as there were requests under way."""

    def __init__(self, url: str, headers: Headers) -> None:
        """url: strict, as `schemas.addresses` has it. headers: of every request."""
        scheme, authority, path = re.fullmatch(r"(https?)://([^/]+)(/.*)", url).groups()  # type: ignore[union-attr]
        name, _, port = authority.rpartition(":") if re.search(r":\d+$", authority) else (authority, "", "")
        self._host, self._port = name.strip("[]"), int(port or {"http": 80, "https": 443}[scheme])
        self._context = _trusted() if scheme == "https" else None
        self._path, self._headers = path, [("host", authority), *headers]
        self._idle: list[_Wire] = []

    async def post(self, body: bytes) -> Reply:
        """Send one request and read its answer. Raises OSError and h11.RemoteProtocolError; set a timeout around it."""
        wire = self._kept() or await self._connect()
        try:
            reply = await wire.post(self._path, self._headers, body)
        except BaseException:
            wire.close()
            raise
        if wire.clean():
            self._idle.append(wire)
        else:
            wire.close()
        return reply

    def close(self) -> None:
        """Close what is kept."""
        while self._idle:
            self._idle.pop().close()

    def _kept(self) -> "_Wire | None":
        while self._idle:
            wire = self._idle.pop()
            if not wire.broken:
                return wire
            wire.close()
        return None

    async def _connect(self) -> "_Wire":
        name = self._host if self._context else None
        loop = asyncio.get_running_loop()
        try:
            _, wire = await loop.create_connection(_Wire, self._host, self._port, ssl=self._context, server_hostname=name)
        except (OSError, UnicodeError) as error:
            raise UnreachableError from error
        return wire


def _trusted() -> ssl.SSLContext:
    """The usual authorities; what the environment names is not among them."""
    import httpx2

    context: ssl.SSLContext = httpx2.create_ssl_context(trust_env=False)
    return context


class _Wire(asyncio.Protocol):
    """One connection. broken: it is closed, or the server sent something unasked."""

    def __init__(self) -> None:
        self.broken = False
        self._http = h11.Connection(h11.CLIENT)
        self._transport: Any = None
        self._waiting: asyncio.Future[None] | None = None
        self._asked = self._ended = self._fed = False
        self._error: Exception | None = None

    # ---- what the loop tells ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not self._asked:
            self.broken = True
            self._transport.abort()
            return
        self._http.receive_data(data)
        self._wake()

    def eof_received(self) -> None:
        self.broken = self._ended = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.broken = self._ended = True
        self._error = self._error or exc
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    # ---- a request ----

    async def post(self, path: str, headers: Headers, body: bytes) -> Reply:
        """One request, written at once, and its answer."""
        http, self._asked = self._http, True
        request = h11.Request(method="POST", target=path, headers=[*headers, ("content-length", str(len(body)))])
        parts = [http.send(request), http.send(h11.Data(data=body)), http.send(h11.EndOfMessage())]
        self._transport.write(b"".join(part for part in parts if part))
        event = await self._event()
        while isinstance(event, h11.InformationalResponse):
            event = await self._event()
        if not isinstance(event, h11.Response):
            raise ConnectionError
        found = {name: value.decode("latin-1") for name, value in reversed(list(event.headers))}
        packed = found.get(b"content-encoding", "identity").strip().casefold() not in ("", "identity")
        return Reply(event.status_code, None if packed else await self._body(), found.get(b"retry-after"))

    async def _body(self) -> bytes | None:
        """The body; None, and no more is read, past `LARGEST` bytes."""
        parts, size = [], 0
        while isinstance(event := await self._event(), h11.Data):
            size += len(event.data)
            if size > LARGEST:
                return None
            parts.append(bytes(event.data))
        if not isinstance(event, h11.EndOfMessage):
            raise ConnectionError
        return b"".join(parts)

    async def _event(self) -> Any:
        """What the server says next."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._error is not None:
                raise ConnectionError
            if self._ended:
                self._http.receive_data(b"")
                continue
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        return event

    def clean(self) -> bool:
        """Make ready for the next request; False when this connection cannot take one."""
        http = self._http
        if self.broken or http.our_state is not h11.DONE or http.their_state is not h11.DONE or http.trailing_data[0]:
            return False
        http.start_next_cycle()
        self._asked = False
        return True

    def close(self) -> None:
        """Let go of it at once."""
        self.broken = True
        self._transport.abort()
