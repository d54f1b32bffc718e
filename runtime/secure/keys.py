# SPDX-License-Identifier: Apache-2.0
"""Keys of a secure sum: X25519 pairs of one session, Ed25519 identities of parties, and boxes that only the addressee opens.

An identity outlives sessions; its public half is pinned in the policies of the other parties (by hand, not through the server):
that is what a lying server cannot forge. Without identities, keys are what the server says they are.
"""

import os
from collections.abc import Mapping
from typing import Any

from osmotic.runtime.secure.masks import derive, missing
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ConfigError, Problem, RefusedError

KEY, SIGNATURE = 32, 64  # bytes


class Pair:
    """An X25519 key pair of 32 secret bytes."""

    def __init__(self, secret: bytes) -> None:
        self._secret = _x25519().X25519PrivateKey.from_private_bytes(secret)
        self.public: bytes = self._secret.public_key().public_bytes_raw()

    def shared(self, peer: bytes, salt: bytes, *purpose: str) -> bytes:
        """A key of 32 bytes with the peer's public key, for a purpose. Raises RefusedError for a point that is no key."""
        try:
            secret = self._secret.exchange(_x25519().X25519PublicKey.from_public_bytes(peer))
        except ValueError as error:
            raise RefusedError(Problem("a public key that no honest party has", why="a point of small order")) from error
        return derive(bytes(secret), salt, *purpose)


class Identity:
    """A party's Ed25519 signing key, of 32 secret bytes. Raises ConfigError for another length."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != KEY:
            raise ConfigError(Problem("an identity is 32 bytes", path="identity"))
        self._key = _ed25519().Ed25519PrivateKey.from_private_bytes(seed)
        self.public: bytes = self._key.public_key().public_bytes_raw()

    @classmethod
    def fresh(cls) -> "tuple[Identity, bytes]":
        """(a new identity, its 32 secret bytes): from the operating system."""
        seed = os.urandom(KEY)
        return cls(seed), seed

    def sign(self, *said: Any) -> bytes:
        """64 bytes over what is said, as canonical JSON."""
        return bytes(self._key.sign(canonical(list(said))))


def signed(public: bytes, signature: bytes, *said: Any) -> bool:
    """Whether the identity with that public key signed what is said."""
    try:
        from cryptography.exceptions import InvalidSignature
    except ImportError as error:
        raise missing(error) from error
    try:
        _ed25519().Ed25519PublicKey.from_public_bytes(public).verify(signature, canonical(list(said)))
    except (InvalidSignature, ValueError):
        return False
    return True


def pinned(identities: Mapping[str, bytes] | None, wanted: tuple[str, ...], me: str, own: Identity | None) -> dict[str, bytes]:
    """The identities that a party pins, all that are wanted; empty for none. Raises ConfigError where some are missing."""
    if not identities:
        return {}
    lacking = [name for name in wanted if len(identities.get(name, b"")) != KEY]
    if lacking:
        why = "a server that may invent one client's keys is in league with that client"
        fix = "pin all of them, or none: then the server is trusted to follow the protocol"
        raise ConfigError(Problem(f"no identity is pinned for {', '.join(lacking[:5])}", path="identities", why=why, fix=fix))
    if own is None or own.public != identities[me]:
        fix = "osmotic keys identity shows its own; tell it to the others, too"
        raise ConfigError(Problem(f"the identity pinned for {me!r} is not its own key", path="identities", fix=fix))
    if len({identities[name] for name in wanted}) < len(wanted):
        raise ConfigError(Problem("two parties are pinned with one identity", path="identities"))
    return {name: identities[name] for name in wanted}


def seal(key: bytes, text: bytes, bound: bytes | memoryview) -> bytes:
    """AES-256-GCM under a key that is used once, so that its nonce is zero; `bound` must be the same to open it."""
    return bytes(_gcm().AESGCM(key).encrypt(bytes(12), text, bound))


def unseal(key: bytes, box: bytes, bound: bytes) -> bytes | None:
    """What is in the box; None when it was altered, or made under another key."""
    try:
        from cryptography.exceptions import InvalidTag
    except ImportError as error:
        raise missing(error) from error
    try:
        return bytes(_gcm().AESGCM(key).decrypt(bytes(12), box, bound))
    except (InvalidTag, ValueError):
        return None


def _x25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import x25519
    except ImportError as error:
        raise missing(error) from error
    return x25519


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise missing(error) from error
    return ed25519


def _gcm() -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers import aead
    except ImportError as error:
        raise missing(error) from error
    return aead
