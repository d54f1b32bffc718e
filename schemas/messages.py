# SPDX-License-Identifier: Apache-2.0
"""The envelope: the one form in which an artifact crosses. A closed header in JSON, then the artifact's files.

Layout: 8 bytes magic, 4 bytes header length (big endian), header, files one after another in the header's order.
"""

import hashlib
import json
import re
import struct
from dataclasses import dataclass
from typing import Any

from osmotic.schemas.artifacts import KINDS, Files, canonical, digest_of
from osmotic.schemas.errors import MembraneError, Problem, ProtocolError
from osmotic.schemas.labels import Label

MAGIC = b"OSMOTIC1"
LIMIT = 1 << 20
_FILE = re.compile(r"[a-z]+(\.[a-z]+)*")
HEADER_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Envelope header",
    "type": "object",
    "additionalProperties": False,
    "required": ["edge", "sender", "receiver", "kind", "digest", "label", "files"],
    "properties": {
        "edge": {"type": "string", "maxLength": 400, "description": "Identity of the crossing in the plan."},
        "sender": {"type": "string", "maxLength": 64},
        "receiver": {"type": "string", "maxLength": 64},
        "kind": {"enum": sorted(KINDS)},
        "digest": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "label": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["owner", "source", "ref", "observers"],
                "properties": {
                    "owner": {"type": "string"},
                    "source": {"enum": ["release", "exposed"]},
                    "ref": {"type": "string"},
                    "observers": {"type": "array", "items": {"type": "string"}},
                },
            },
        },
        "files": {
            "type": "array",
            "items": {
                "type": "array",
                "prefixItems": [
                    {"type": "string", "pattern": "^[a-z]+([.][a-z]+)*$", "maxLength": 64},
                    {"type": "integer", "minimum": 0},
                ],
                "minItems": 2,
                "maxItems": 2,
            },
        },
    },
}


@dataclass(frozen=True)
class Envelope:
    """An artifact on its way. `label` never carries a raw entry: what is raw does not cross."""

    edge: str
    sender: str
    receiver: str
    kind: str
    label: Label
    files: Files

    @property
    def digest(self) -> str:
        """The artifact's digest."""
        return digest_of(self.kind, self.files)

    def pack(self) -> bytes:
        """The bytes that cross. Raises MembraneError for a label with raw entries, ProtocolError for too long a header."""
        if self.label.of("raw"):
            raise MembraneError(Problem("private data may not be put into an envelope", path=self.edge))
        names = sorted(self.files)
        header = {
            "edge": self.edge,
            "sender": self.sender,
            "receiver": self.receiver,
            "kind": self.kind,
            "digest": self.digest,
            "label": self.label.to_json(),
            "files": [[name, len(self.files[name])] for name in names],
        }
        head = canonical(header)
        if len(head) > LIMIT:
            raise ProtocolError(Problem("the envelope's header is too long", why=f"{len(head)} bytes; limit {LIMIT}"))
        return b"".join([MAGIC, struct.pack(">I", len(head)), head, *(self.files[name] for name in names)])


def unpack(blob: bytes) -> Envelope:
    """Parse and check an envelope: magic, header against its schema, lengths, digest. Raises ProtocolError.

    Only the bytes that `pack` writes are taken: the header in canonical form, the files named once each and in order.
    """
    if blob[:8] != MAGIC or len(blob) < 12:
        raise ProtocolError(Problem("not an osmotic envelope"))
    (size,) = struct.unpack(">I", blob[8:12])
    if size > LIMIT or len(blob) < 12 + size:
        raise ProtocolError(Problem("the envelope is cut short"))
    header = _read_header(blob[12 : 12 + size])
    files: Files = {}
    at = 12 + size
    for name, length in header["files"]:
        files[name] = blob[at : at + length]
        at += length
    if at != len(blob) or digest_of(header["kind"], files) != header["digest"]:
        raise ProtocolError(Problem("the envelope was altered or cut short", why="its digest does not match"))
    label = Label.from_json(header["label"])
    return Envelope(header["edge"], header["sender"], header["receiver"], header["kind"], label, files)


def _read_header(head: bytes) -> dict[str, Any]:
    from jsonschema import Draft202012Validator

    try:
        header: dict[str, Any] = json.loads(head)
        good = Draft202012Validator(HEADER_SCHEMA).is_valid(header) and canonical(header) == head
    except (ValueError, RecursionError) as error:
        raise ProtocolError(Problem("the envelope's header is not valid")) from error
    names = [name for name, _ in header["files"]] if good else []
    if not good or names != sorted(set(names)) or not all(_FILE.fullmatch(name) for name in names):
        raise ProtocolError(Problem("the envelope's header is not valid"))
    if not all(type(length) is int for _, length in header["files"]):
        raise ProtocolError(Problem("the envelope's header is not valid"))
    return header


def fingerprint(value: Any) -> str:
    """Hexadecimal SHA-256 of a JSON value's canonical form."""
    return hashlib.sha256(canonical(value)).hexdigest()
