# SPDX-License-Identifier: Apache-2.0
"""Addresses of model servers, in one strict form: what a policy lists and what a client connects to must be read alike.

Scheme, host, port and path, nothing else: no user or password, no query, no percent signs, no dots that climb. Whatever two
parsers might read in two ways is refused.
"""

import ipaddress
import re
from dataclasses import dataclass

_FORM = re.compile(
    r"(?P<scheme>https?)://(?:(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?)|\[(?P<six>[0-9A-Fa-f:.]{2,45})\])"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<path>(?:/[A-Za-z0-9._~-]*)*)",
    re.ASCII,
)
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Address:
    """A server and a path on it. origin: ``https://host[:port]`` in lower case, without the scheme's own port."""

    origin: str
    path: str

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read an address; raises ValueError saying what is wrong, without quoting it: it may hold a secret."""
        found = _FORM.fullmatch(text)
        if found is None:
            raise ValueError("must be http(s)://HOST[:PORT][/PATH] without user, password, query or percent signs")
        path = found["path"].removeprefix("/").removesuffix("/")
        parts = path.split("/") if path else []
        if any(part in ("", ".", "..") for part in parts):
            raise ValueError("its path may not have empty parts, '.' or '..'")
        port = int(found["port"]) if found["port"] else _PORTS[found["scheme"]]
        if not 0 < port < 65536:
            raise ValueError("its port must be from 1 to 65535")
        shown = "" if port == _PORTS[found["scheme"]] else f":{port}"
        return cls(f"{found['scheme']}://{_host(found['name'], found['six'])}{shown}", "".join(f"/{part}" for part in parts))

    def __str__(self) -> str:
        return self.origin + self.path

    def covers(self, other: "Address") -> bool:
        """Whether the other one is at the same origin, at this path or below it."""
        return self.origin == other.origin and f"{other.path}/".startswith(f"{self.path}/")


def _host(name: str | None, six: str | None) -> str:
    if six is not None:
        try:
            return f"[{ipaddress.IPv6Address(six).compressed}]"
        except ValueError:
            raise ValueError("its host is no IPv6 address") from None
    host = (name or "").lower()
    last = host.rpartition(".")[2]
    if ".." in host:
        raise ValueError("its host has an empty part")
    if last.isdigit() or last.startswith("0x"):  # 127.1, 0x7f000001, 2130706433: other ways to write an address
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise ValueError("its host is no IPv4 address of four numbers") from None
    return host
