# SPDX-License-Identifier: Apache-2.0
"""What the coordinator and a site say to each other through an engine: sealed messages, in a closed list.

Every message is a header (a JSON object) and at most `CHUNK` bytes. The coordinator asks, the site answers; the engine between
them only carries. A message says who it is for by what it is sealed with: a key that the coordinator derives for each site from
a secret in its own folder and that the site learns from the first `hello`. So whoever else can send through the engine cannot
say anything that a site takes; and a message that came before, or was altered or cut short on its way, is told from a good one.
The server's own operator sees the key pass: what a site lets out is decided by its policy, never by this seal.

========  ==========================================================================  =======================================
op        fields                                                                      answer
========  ==========================================================================  =======================================
hello     site, key, session, epoch, clock                                            boot, state (opening, ready, failed,
                                                                                      busy), facts, clock, error
start     seq, id, header, total; the body, if it fits into one message               a state (below)
poll      seq, wait                                                                   a state
put       seq, call, offset, total; one chunk                                         nothing
get       seq, call, offset                                                           one chunk
answer    seq, call, header, total; the body, if it fits                              a state
ack       seq                                                                         nothing
ping      -                                                                           tick
bye       -                                                                           nothing
========  ==========================================================================  =======================================

A state is `running` with a tick that moves while there is progress, `asking` (a model call for another party: call, header,
total, first chunk) or `done` (header, total, first chunk). Every message has `osmotic` (version of this protocol), `size` and
`tag` of its bytes (AES-GMAC, which costs next to nothing) and `mac` over its header (HMAC-SHA256); requests have a number `n`
that is used once, answers name it as `re`.
"""

import hmac
import os
from typing import Any, Protocol

from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import PeerError, Problem, ProtocolFault

PROTOCOL = 1
TOPIC = "osmotic"
CHUNK = 4 << 20  # bytes of a message, at most; what is longer goes in several
NONCE = 12  # bytes
HEAD = 8 << 20  # bytes of a header in canonical form, at most
TOTAL = 1 << 34  # bytes of a request's or an answer's body, at most
OPERATIONS = ("hello", "start", "poll", "put", "get", "answer", "ack", "ping", "bye")
WITH_BODY = ("start", "put", "answer")  # the others have a header only
REFUSALS = {  # closed list; a site's audit and the coordinator's messages speak of them so
    "malformed": "not a message of ours",
    "protocol": "a message of another version of the protocol",
    "unknown": "an operation that there is not",
    "session": "a message of no session that is open here",
    "replayed": "a message that came before",
    "altered": "a message that was altered",
    "truncated": "a message that was cut short",
    "oversized": "a message that is too long",
    "owned": "another coordinator is at work here",
    "busy": "an earlier request is still at work",
    "missing": "the bytes that were asked for are not here",
    "full": "the site's disk is full",
    "closing": "the site is going",
    "name": "a message for another site",
    "internal": "the site could not answer",
}
Header = dict[str, Any]
Message = tuple[Header, bytes]


class Unreachable(PeerError):  # noqa: N818 - it says how a site is
    """No answer came. why: "timeout", "absent" (the engine does not know the site just now) or "starting" (not ready yet)."""

    def __init__(self, site: str, why: str) -> None:
        super().__init__(Problem(f"{site} cannot be reached", why=why))
        self.site, self.why = site, why


class Carrier(Protocol):
    """The engine at the coordinator. Thread-safe."""

    def send(self, site: str, header: Header, blob: bytes, timeout: float) -> Message:
        """Ask one site, wait for its answer; raises Unreachable. Never asks twice by itself."""


class Refused(ProtocolFault):
    """A message that is not taken. why: a key of `REFUSALS`; detail: words of ours, for the audit."""

    def __init__(self, why: str, detail: str = "") -> None:
        super().__init__(Problem(REFUSALS[why], why=detail))
        self.why, self.detail = why, detail


def seal(key: bytes, fields: Header, blob: bytes) -> Header:
    """The fields with size and tag of the body, and the code of authentication over all of it."""
    nonce = os.urandom(NONCE) if blob else b""
    whole = {**fields, "osmotic": PROTOCOL, "size": len(blob), "tag": nonce.hex() + _tag(key, nonce, blob)}
    return {**whole, "mac": _mac(key, whole)}


def check(key: bytes, header: Header, blob: bytes) -> None:
    """Raise Refused (truncated, altered) unless a message is as it was sealed with this key."""
    size = header.get("size")
    if type(size) is not int or size != len(blob):
        raise Refused("truncated", f"{len(blob)} bytes came")
    said = header.get("mac")
    if not isinstance(said, str) or not hmac.compare_digest(
        said.encode("utf-8", "replace"), _mac(key, {name: value for name, value in header.items() if name != "mac"}).encode()
    ):
        raise Refused("altered", "its header")
    tag = str(header.get("tag"))  # as it was sealed: so its nonce has its length
    if blob and not hmac.compare_digest(tag[2 * NONCE :], _tag(key, bytes.fromhex(tag[: 2 * NONCE]), blob)):
        raise Refused("altered", "its body")


def shape(header: Any, blob: Any) -> Header:
    """The header, if this may be a message at all; raises Refused (malformed, oversized, protocol), before any hashing."""
    if not isinstance(header, dict) or not isinstance(blob, bytes):
        raise Refused("malformed")
    if len(blob) > CHUNK:
        raise Refused("oversized", f"a body of {len(blob)} bytes")
    try:
        length = len(canonical(header))
    except (TypeError, ValueError, RecursionError) as error:
        raise Refused("malformed", "its header is no JSON") from error
    if length > HEAD:
        raise Refused("oversized", f"a header of {length} bytes")
    if header.get("osmotic") != PROTOCOL:
        raise Refused("protocol", f"this site speaks {PROTOCOL}")
    return header


def offsets(total: int) -> range:
    """Where the chunks of a body begin."""
    return range(0, total, CHUNK)


def key_for(secret: bytes, site: str) -> bytes:
    """The key for one site."""
    return hmac.digest(secret, b"osmotic site\0" + site.encode(), "sha256")


def _tag(key: bytes, nonce: bytes, blob: bytes) -> str:
    """The code of authentication of a body under a nonce that is used once; empty for nothing."""
    if not blob:
        return ""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    code: bytes = AESGCM(hmac.digest(key, b"osmotic body", "sha256")).encrypt(nonce, b"", blob)
    return code.hex()


def _mac(key: bytes, header: Header) -> str:
    return hmac.new(key, canonical(header), "sha256").hexdigest()
