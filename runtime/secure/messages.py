# SPDX-License-Identifier: Apache-2.0
"""The messages of a secure sum: canonical JSON of hexadecimal texts, read strictly; and what every signature is over.

A reader raises ProtocolError for whatever is not exactly of the form, and says nothing of what it found instead.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import Problem, ProtocolError

LARGEST = 1 << 24  # bytes of a message that is no vector: shares for 10,000 clients take 2 MB


@dataclass(frozen=True)
class Keys:
    """A client's public keys of one session, for boxes and for masks, and its identity's signature (or none)."""

    box: bytes
    mask: bytes
    sign: bytes

    @classmethod
    def read(cls, message: bytes, sender: str) -> "Keys":
        """Of a message."""
        said = read(message, sender, {"box", "mask", "sign"})
        return cls(part(said["box"], sender, 32), part(said["mask"], sender, 32), part(said["sign"], sender, 64, 0))

    def message(self) -> bytes:
        """As a message."""
        return canonical({"box": self.box.hex(), "mask": self.mask.hex(), "sign": self.sign.hex()})


def of_keys(plan: bytes, name: str, keys: Keys) -> list[str]:
    """What a client signs with its keys."""
    return ["osmotic secure sum: keys", plan.hex(), name, keys.box.hex(), keys.mask.hex()]


def of_receiver(plan: bytes, name: str, public: bytes) -> list[str]:
    """What the receiver signs with its key."""
    return ["osmotic secure sum: receiver", plan.hex(), name, public.hex()]


def of_survivors(plan: bytes, roster: bytes, survivors: Sequence[str]) -> list[Any]:
    """What a client signs when it confirms who is in the sum."""
    return ["osmotic secure sum: survivors", plan.hex(), roster.hex(), list(survivors)]


def set_digest(said: list[Any]) -> bytes:
    """SHA-256 of what `of_survivors` gives."""
    return hashlib.sha256(canonical(said)).digest()


def confirmed(message: bytes, sender: str) -> tuple[bytes, bytes]:
    """(digest of the set, signature or nothing) of a client's word about the survivors."""
    said = read(message, sender, {"set", "sign"})
    return part(said["set"], sender, 32), part(said["sign"], sender, 64, 0)


def receivers_key(message: bytes, sender: str) -> tuple[bytes, bytes]:
    """(public key, signature or nothing) of what the receiver opened with."""
    said = read(message, sender, {"key", "sign"})
    return part(said["key"], sender, 32), part(said["sign"], sender, 64, 0)


def of_commitment(plan: bytes, name: str, seed: bytes) -> bytes:
    """SHA-256 that a client's seed of its own mask is later checked by."""
    return hashlib.sha256(canonical(["osmotic secure sum: commitment", plan.hex(), name, seed.hex()])).digest()


def roster_of(plan: bytes, keys: Mapping[str, bytes], receiver: bytes) -> bytes:
    """SHA-256 of the plan's digest and of everybody's key messages: what all clients of a session must have been told alike."""
    return hashlib.sha256(canonical([plan.hex(), sorted((n, m.hex()) for n, m in keys.items()), receiver.hex()])).digest()


def read(message: bytes, sender: str, wanted: set[str]) -> dict[str, Any]:
    """A JSON object with exactly these keys."""
    try:
        said = json.loads(bytes(message)) if len(message) <= LARGEST else None
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or set(said) != wanted:
        raise malformed(sender)
    return said


def part(text: Any, sender: str, *sizes: int) -> bytes:
    """Bytes of one of the sizes, from hexadecimal digits."""
    if isinstance(text, str) and len(text) in {2 * size for size in sizes}:
        try:
            found = bytes.fromhex(text)
        except ValueError:
            found = b""
        if len(found) * 2 == len(text):
            return found
    raise malformed(sender)


def parts(value: Any, sender: str, size: int, names: set[str]) -> dict[str, bytes]:
    """Name -> bytes of one size, the names being exactly these."""
    if not isinstance(value, dict) or set(value) != names:
        raise malformed(sender)
    return {name: part(text, sender, size) for name, text in value.items()}


def malformed(sender: str) -> ProtocolError:
    """A message that is not of the form."""
    return ProtocolError(Problem(f"a message of {sender!r} in a secure sum is malformed or was altered", path="secure_sum"))
