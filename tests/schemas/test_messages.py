# SPDX-License-Identifier: Apache-2.0
"""Envelopes: what is packed comes out again; whatever was altered, cut or made up is refused."""

import json
import struct
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmotic.schemas.artifacts import KINDS, Document, Metrics, Records, Weights, canonical
from osmotic.schemas.errors import Code, MembraneError, ProtocolError
from osmotic.schemas.labels import PUBLIC, Label, Provenance, raw, released
from osmotic.schemas.messages import HEADER_SCHEMA, LIMIT, MAGIC, Envelope, fingerprint, unpack

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
LABELS = st.frozensets(
    st.builds(Provenance, TEXT, st.sampled_from(["release", "exposed"]), TEXT, st.lists(TEXT, max_size=2).map(tuple)),
    max_size=3,
).map(Label)
FILES = st.dictionaries(st.from_regex(r"[a-z]{1,8}(\.[a-z]{1,8})?", fullmatch=True), st.binary(max_size=60), max_size=3)
ENVELOPES = st.builds(Envelope, TEXT, TEXT, TEXT, st.sampled_from(sorted(KINDS)), LABELS, FILES)
SAMPLE = Envelope("a>b", "north", "hub", "document", released("north", "r1"), Document({"x": [1, "é"]}).to_files())


def forged(change: Any = None, head: bytes | None = None, body: bytes | None = None) -> bytes:
    """The sample with another header or body."""
    blob = SAMPLE.pack()
    (size,) = struct.unpack(">I", blob[8:12])
    header = json.loads(blob[12 : 12 + size])
    if change:
        change(header)
    head = canonical(header) if head is None else head
    return MAGIC + struct.pack(">I", len(head)) + head + (blob[12 + size :] if body is None else body)


@given(ENVELOPES)
def test_round_trip(envelope: Envelope) -> None:
    assert unpack(envelope.pack()) == envelope
    assert unpack(envelope.pack()).digest == envelope.digest


@given(st.data())
def test_any_changed_byte_of_the_content_is_refused(data: st.DataObject) -> None:
    blob = bytearray(SAMPLE.pack())
    body = len(next(iter(SAMPLE.files.values())))
    at = data.draw(st.integers(len(blob) - body, len(blob) - 1))
    blob[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ProtocolError, match="altered"):
        unpack(bytes(blob))


@given(st.data())
def test_a_changed_byte_of_the_header_never_changes_the_artifact(data: st.DataObject) -> None:
    """Names and labels in the header are the transport's to authenticate; kind, digest and files are bound by the digest."""
    blob = bytearray(SAMPLE.pack())
    at = data.draw(st.integers(0, len(blob) - 1))
    blob[at] ^= data.draw(st.integers(1, 255))
    try:
        found = unpack(bytes(blob))
    except ProtocolError:
        return
    assert (found.kind, found.files, found.digest) == (SAMPLE.kind, SAMPLE.files, SAMPLE.digest)


@given(st.integers(0, len(SAMPLE.pack()) - 1))
def test_any_cut_is_refused(length: int) -> None:
    with pytest.raises(ProtocolError):
        unpack(SAMPLE.pack()[:length])


@given(st.binary(max_size=80))
def test_noise_is_refused(noise: bytes) -> None:
    for blob in (noise, MAGIC + noise, SAMPLE.pack() + noise + b"x"):
        with pytest.raises(ProtocolError):
            unpack(blob)


def _set(key: str, value: Any) -> Any:
    return lambda header: header.update({key: value})


@pytest.mark.parametrize(
    "change",
    [
        _set("extra", 1),
        _set("kind", "pickle"),
        _set("kind", "records"),
        _set("digest", "0" * 64),
        _set("sender", "x" * 65),
        _set("label", [{"owner": "north", "source": "raw", "ref": "notes", "observers": []}]),
        _set("label", [{"owner": "north", "source": "release"}]),
        _set("files", [["../../etc", 14]]),
        _set("files", [["..", 14]]),
        _set("files", [["document.json\n", 14]]),
        _set("files", [["document.json", -1]]),
        _set("files", [["document.json", 10**30]]),
        _set("files", [["document.json", 14.0]]),
        _set("files", [["document.json", True]]),
        _set("files", [["document.json", 0], ["document.json", 14]]),
        _set("files", [["document.json"]]),
        _set("files", []),
        lambda header: header.pop("label"),
    ],
)
def test_made_up_headers_are_refused(change: Any) -> None:
    with pytest.raises(ProtocolError) as caught:
        unpack(forged(change))
    assert caught.value.code is Code.PROTOCOL and caught.value.exit_code == 7


@pytest.mark.parametrize(
    "head",
    [b"", b"{}", b"[]", b"3", b"nonsense", b'{"edge": NaN}', b"[" * 100_000, b"\xff\xfe", b'{"edge":' + b"9" * 5000 + b"}"],
)
def test_heads_that_are_no_headers_are_refused(head: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack(forged(head=head))


def test_a_header_that_is_not_canonical_is_refused() -> None:
    blob = SAMPLE.pack()
    (size,) = struct.unpack(">I", blob[8:12])
    head = blob[12 : 12 + size]
    for other in (head.replace(b'{"digest"', b'{ "digest"'), head.replace(b"{", b'{"edge":"twice",', 1)):
        with pytest.raises(ProtocolError):
            unpack(forged(head=other))


def test_private_data_is_not_packed() -> None:
    with pytest.raises(MembraneError):
        replace(SAMPLE, label=raw("north", "notes") | released("north", "r1")).pack()


def test_a_header_too_long_is_told_at_the_sender() -> None:
    many = Label(frozenset(Provenance("north", "release", f"{i:064d}") for i in range(LIMIT // 100)))
    with pytest.raises(ProtocolError, match="too long"):
        replace(SAMPLE, label=many).pack()


def test_every_kind_crosses() -> None:
    import numpy as np

    artifacts = [
        Records([{"id": "1", "text": "é"}]), Weights({"w": np.ones((2, 3), np.float32)}, {"base": "x"}),
        Metrics({"accuracy": 0.5}), Document([1, None]),
    ]  # fmt: skip
    assert {a.kind for a in artifacts} == set(KINDS)
    for artifact in artifacts:
        found = unpack(Envelope("e", "a", "b", artifact.kind, PUBLIC, artifact.to_files()).pack())
        assert KINDS[found.kind].from_files(found.files).to_files() == artifact.to_files()


def test_the_header_schema_is_one_and_fingerprints_are_canonical() -> None:
    jsonschema.Draft202012Validator.check_schema(HEADER_SCHEMA)
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1})
