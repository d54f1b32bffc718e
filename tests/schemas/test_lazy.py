# SPDX-License-Identifier: Apache-2.0
"""Tensors that are read when they are needed: the same numbers, verified again at every reading."""

import json
from pathlib import Path

import numpy as np
import pytest

from osmotic.runtime.storage.store import Store
from osmotic.schemas.artifacts import Document, Gathered, Weights
from osmotic.schemas.errors import DataError, StoreError
from osmotic.schemas.lazy import LazyTensors


def made() -> Weights:
    generator = np.random.default_rng(1)
    tensors = {
        "a": generator.normal(size=(300, 211)).astype("float32"),
        "b": generator.normal(size=5), "empty": np.zeros((0, 3), "float32"),
        "half": generator.normal(size=(3, 2)).astype("float16"), "one": np.float32(4.5).reshape(()),
    }  # fmt: skip
    return Weights(tensors, {"base": "x", "steps": 3})


def test_opened_weights_are_the_stored_ones(tmp_path: Path):
    store = Store(tmp_path)
    digest = store.put(made())
    opened, read = store.open("weights", digest), store.get("weights", digest)
    assert isinstance(opened.tensors, LazyTensors) and opened.meta == read.meta and opened.outline() == read.outline()
    for name, tensor in read.tensors.items():
        got = opened.tensors[name]
        assert got.dtype == tensor.dtype and np.array_equal(got, tensor) and got.flags.writeable
        for start, stop in ((0, 3), (1, 2), (16000, 17000), (2, 10**9)):
            assert np.array_equal(opened.part(name, start, stop), tensor.reshape(-1)[start:stop])
    assert opened.to_files() == read.to_files() and store.put(opened) == digest
    assert np.array_equal(read.part("a", 5, 9), read.tensors["a"].reshape(-1)[5:9])


def test_damage_is_found_when_opened_and_when_read(tmp_path: Path):
    store = Store(tmp_path)
    digest = store.put(made())
    file = store.path(digest) / "weights.safetensors"
    good = bytearray(file.read_bytes())
    opened = store.open("weights", digest)
    for place in (len(good) // 2, len(good) - 1, 20):
        bad = bytearray(good)
        bad[place] ^= 1
        file.write_bytes(bad)
        assert LazyTensors(file).sha256 != opened.tensors.sha256
        with pytest.raises(StoreError, match="changed or removed"):
            for name in opened.tensors:
                opened.tensors[name]
    file.write_bytes(good)
    assert np.array_equal(opened.tensors["b"], made().tensors["b"])
    file.write_bytes(bytes(good[:-1]))
    with pytest.raises(StoreError, match="changed or removed"):
        for name in opened.tensors:
            opened.tensors[name]
    with pytest.raises(StoreError, match="missing or damaged"):
        store.open("weights", digest)
    assert not store.has(digest)  # set aside, as by reading
    with pytest.raises(StoreError, match="missing or damaged"):
        store.open("weights", digest)


def test_a_file_that_is_no_safetensors_is_damaged_data(tmp_path: Path):
    header = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    bad: list[dict] = [
        {"a": {**header["a"], "shape": [3]}}, {"a": {**header["a"], "dtype": "BF16"}},
        {"a": {**header["a"], "data_offsets": [4, 12]}},
        {"a": {**header["a"], "shape": [-2], "data_offsets": [0, -8]}}, {"a": [1]}, {"a": {**header["a"], "shape": [True, 2]}},
        {**header, "b": header["a"]}, {"a": {**header["a"], "shape": [1], "data_offsets": [0, 4]}},  # overlapping; a rest
        {"a": {**header["a"], "shape": [2] + [1] * 70}},
        {**header, "b": {**header["a"], "shape": [0, 1 << 62], "data_offsets": [8, 8]}},
    ]  # fmt: skip
    file = tmp_path / "x"
    for one in (header, *bad):
        text = json.dumps(one).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
        if one is header:
            assert np.array_equal(LazyTensors(file)["a"], np.zeros(2))
            continue
        with pytest.raises(DataError):
            len(LazyTensors(file))
    for content in (b"", b"abc", (10**9).to_bytes(8, "little") + b"{}", b"\2" + bytes(7) + b"[]"):
        file.write_bytes(content)
        with pytest.raises(DataError):
            len(LazyTensors(file))


def test_other_kinds_are_read_and_gathered_falls_back(tmp_path: Path):
    store = Store(tmp_path)
    assert store.open("document", store.put(Document([1]))).data == [1]
    gathered: Gathered[Document] = Gathered({"a": lambda: Document(1), "b": lambda: Document(2)}, {"b": lambda: Document(3)})
    assert [gathered.open(party).data for party in gathered] == [1, 3]
    assert [gathered[party].data for party in gathered] == [1, 2]
    assert Store(tmp_path).open("weights", store.put(Weights({}, {}))).outline() == {}


def test_what_is_no_format_is_said_when_it_is_opened_with_its_digest_right(tmp_path: Path):
    """A party can send what it likes under a right digest: whoever opens it hears DataError at once, not while it reads."""
    text = json.dumps({"a": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}).encode()
    file = len(text).to_bytes(8, "little") + text + bytes(8)
    store = Store(tmp_path)
    digest = store.put_files("weights", {"weights.safetensors": file, "meta.json": b"{}"})
    with pytest.raises(DataError, match="damaged"):
        store.open("weights", digest)


@pytest.mark.parametrize("meta", [b'{"base": NaN}', b"[]", b'[["base", "b"]]', b"null", b"7", b"{", b"[" * 100_000])
def test_a_description_that_could_not_be_written_again_is_damaged(tmp_path: Path, meta: bytes):
    files = {**Weights({}, {}).to_files(), "meta.json": meta}
    with pytest.raises(DataError, match="damaged"):
        Weights.from_files(files)
    store = Store(tmp_path)
    digest = store.put_files("weights", files)
    with pytest.raises(DataError, match="damaged"):
        store.open("weights", digest)
