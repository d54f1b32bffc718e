# SPDX-License-Identifier: Apache-2.0
"""Files that are mapped: headers that lie are refused, what fits is read as the library reads it."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from osmotic.plugins.tables.mapped import map_tensor, tensors_of
from osmotic.schemas.errors import ConfigError


def write(path: Path, header: object, data: bytes = b"", claimed: int | None = None) -> Path:
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(body) if claimed is None else claimed).to_bytes(8, "little") + body + data)
    return path


def entry(kind: object = "F32", shape: object = (2, 1), place: object = (0, 8)) -> dict[str, object]:
    return {"x": {"dtype": kind, "shape": shape, "data_offsets": place}}


@pytest.mark.parametrize(
    ("header", "claimed", "says"),
    [
        (entry(place=[0, 9]), None, "outside the file"),
        (entry(place=[0, 4]), None, "4 bytes for shape"),
        (entry(place=[8, 0]), None, "outside the file"),
        (entry(place=[-8, 0]), None, "does not say"),
        (entry(place=[0, 1 << 70]), None, "outside the file"),
        (entry(shape=[2, 1 << 62]), None, "8 bytes for shape"),
        (entry(shape=[2, -1]), None, "does not say"),
        (entry(shape="2x1"), None, "does not say"),
        (entry(kind=7), None, "does not say"),
        ({"x": []}, None, "does not say"),
        ([1, 2], None, "not a mapping"),
        (b"{not json", None, "Expecting"),
        (b"\xff\xfe", None, "not a readable"),
        (b"[" * 9_000, None, "recursion|Expecting"),
        (entry(), 1 << 62, "header claims"),
        (entry(), 200_000_000, "header claims"),
        (entry(kind="F64", shape=[1, 1]), None, "must be float32(.|\n)*F64"),
        (entry(kind="Q4", shape=[1, 1]), None, "must be float32(.|\n)*Q4"),
    ],
)
def test_headers_that_lie_are_refused_with_the_file_named(
    tmp_path: Path, header: object, claimed: int | None, says: str
) -> None:
    path = write(tmp_path / "t.safetensors", header, bytes(8), claimed)
    with pytest.raises(ConfigError, match=says) as caught:
        map_tensor(path, "x", "t.safetensors#x")
    assert caught.value.problems[0].where == str(path) and caught.value.problems[0].fix


@given(st.binary(max_size=120))
def test_no_bytes_make_the_header_reader_fail_otherwise(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    for data in (content, len(content).to_bytes(8, "little") + content):
        path.write_bytes(data)
        try:
            tensors_of(path, "any")
        except ConfigError as error:
            assert error.problems[0].where == str(path)


@given(
    st.dictionaries(st.text(max_size=3), st.recursive(st.none() | st.integers() | st.text(max_size=4), st.lists, max_leaves=6))
)
def test_no_header_makes_the_reader_fail_otherwise(tmp_path_factory: pytest.TempPathFactory, fields: dict[str, object]) -> None:
    path = write(tmp_path_factory.getbasetemp() / "any2.safetensors", {"x": entry()["x"] | fields}, bytes(8))
    try:
        assert tensors_of(path, "any")["x"].shape == (2, 1)
    except ConfigError as error:
        assert "x" in str(error)


def test_our_reader_agrees_with_the_library(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {"a": rng.standard_normal((5, 3)).astype(np.float32), "b": rng.standard_normal((2, 7)).astype(np.float32)}
    save_file(tensors, tmp_path / "t.safetensors", metadata={"format": "np"})
    for key, value in tensors.items():
        found = map_tensor(tmp_path / "t.safetensors", key, "t")
        assert isinstance(found, np.memmap) and np.array_equal(found, value) and not found.flags.writeable


@pytest.mark.parametrize("kind", ["F16", "BF16", "odd"])
def test_other_layouts_are_converted_once(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSMOTIC_CACHE", str(tmp_path / "cache"))
    values = np.array([[1.5, -2.0], [0.25, 3e38 if kind != "F16" else 6.0]], np.float32)
    data = None
    if kind != "odd":
        data = values.astype("<f2").tobytes() if kind == "F16" else (values.view("<u4") >> 16).astype("<u2").tobytes()
    if data is None:
        body = json.dumps(entry(shape=[2, 2], place=[1, 17])).encode()
        body += b" " * (-len(body) % 8)  # so that the tensor starts at an odd byte
        path = write(tmp_path / "t.safetensors", body, b"\0" + values.tobytes())
    else:
        path = write(tmp_path / "t.safetensors", entry(kind, [2, 2], [0, 8]), data)
    expected = values if kind != "BF16" else (values.view("<u4") >> 16 << 16).view("<f4")
    for _ in range(2):
        found = map_tensor(path, "x", "t")
        assert found.dtype == np.float32 and np.array_equal(found, expected) and isinstance(found, np.memmap)
        assert len(list((tmp_path / "cache" / "tables").iterdir())) == 1
    (kept,) = (tmp_path / "cache" / "tables").iterdir()
    kept.write_bytes(b"broken")
    assert np.array_equal(map_tensor(path, "x", "t"), expected)
    blocked = tmp_path / "blocked"
    blocked.write_text("a file", encoding="utf-8")
    monkeypatch.setenv("OSMOTIC_CACHE", str(blocked))
    assert np.array_equal(map_tensor(path, "x", "t"), expected)
