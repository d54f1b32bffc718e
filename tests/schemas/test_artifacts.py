# SPDX-License-Identifier: Apache-2.0
"""Artifacts: equal content, equal digest; what was written is read back; what is damaged or does not fit is refused."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmotic.schemas.artifacts import (
    KINDS,
    Artifact,
    Document,
    Files,
    Gathered,
    Metrics,
    Records,
    Weights,
    canonical,
    digest_of,
)
from osmotic.schemas.errors import DataError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ROWS = st.lists(
    st.fixed_dictionaries({
        "id": TEXT,
        "text": st.none() | TEXT,
        "count": st.integers(-(2**63), 2**63 - 1),
        "score": st.floats(allow_nan=False),
        "good": st.booleans(),
    }),
    max_size=5,
)  # fmt: skip


def parquet(table: pa.Table) -> Files:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return {"records.parquet": sink.getvalue()}


@given(ROWS)
def test_records_round_trip(rows: list[dict[str, Any]]) -> None:
    files = Records(rows, ["id"]).to_files()
    again = Records.from_files(files)
    assert again.rows == rows and again.to_files() == files


def test_an_empty_table_keeps_its_columns() -> None:
    assert Records.from_files(Records([], ["id", "text"]).to_files()).columns == ["id", "text"]
    assert Records([]).columns == [] and len(Records.from_files(Records([]).to_files())) == 0


def test_records_by_id() -> None:
    records = Records([{"id": "a", "x": 1}, {"id": "b", "x": 2}])
    assert records.by_id()["b"]["x"] == 2 and [row["id"] for row in records] == ["a", "b"] and len(records) == 2


@pytest.mark.parametrize(
    "rows",
    [
        [{"id": "a"}, {"id": "b", "more": 1}],
        [{"id": "a", "more": 1}, {"id": "b"}],
        [{"x": 1}, {"x": "one"}],
        [{"x": True}, {"x": "one"}],
        [{"x": 2**70}],
        [{"x": [1, 2]}],
        [{"x": {"y": 1}}],
        [{"x": b"bytes"}],
        [{"x": "\ud800"}],
        [{"x": object()}],
    ],
)
def test_rows_that_are_no_table_are_refused(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(DataError):
        Records(rows).to_files()


def test_a_message_never_quotes_a_value() -> None:
    with pytest.raises(DataError) as caught:
        Records([{"x": 1}, {"x": "secret-value"}]).to_files()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"records.parquet": b""},
        {"records.parquet": b"PAR1 nonsense PAR1"},
        {"records.parquet": Records([{"id": "a"}]).to_files()["records.parquet"][:-9]},
        parquet(pa.table({"x": [[1], [2]]})),
        parquet(pa.table({"x": [b"bytes"]})),
        parquet(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])),
    ],
)
def test_damaged_records_are_refused(files: Files) -> None:
    with pytest.raises(DataError):
        Records.from_files(files)


def test_weights_round_trip_whatever_the_order_and_layout() -> None:
    tensor = np.arange(6, dtype=np.float32).reshape(2, 3)
    one, two = Weights({"a": tensor.T, "b": tensor}, {"base": "x"}), Weights({"b": tensor, "a": tensor.T.copy()}, {"base": "x"})
    assert one.to_files() == two.to_files()
    again = Weights.from_files(one.to_files())
    assert np.array_equal(again.tensors["a"], tensor.T) and again.meta == {"base": "x"}


@pytest.mark.parametrize("files", [{}, {"weights.safetensors": b"", "meta.json": b"{}"}, {"weights.safetensors": b"\x00" * 40}])
def test_damaged_weights_are_refused(files: Files) -> None:
    with pytest.raises(DataError):
        Weights.from_files(files)


@pytest.mark.parametrize("meta", [b"[1]", b"3", b"{"])
def test_a_damaged_description_of_weights_is_refused(meta: bytes) -> None:
    with pytest.raises(DataError):
        Weights.from_files(Weights({"w": np.ones(1, np.float32)}).to_files() | {"meta.json": meta})


def test_metrics() -> None:
    metrics = Metrics({"accuracy": 0.5, "count": 3}, {"correct": [1.0, 0.0]})
    again = Metrics.from_files(metrics.to_files())
    assert (again.values, again.outcomes) == (metrics.values, metrics.outcomes)
    for values, outcomes in (({"x": float("nan")}, None), ({"x": float("inf")}, None), ({}, {"y": [float("nan")]})):
        with pytest.raises(DataError, match="not finite"):
            Metrics(values, outcomes)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"values":{"x":"y"},"outcomes":{}}', b'{"values":3,"outcomes":{}}', b"[" * 99_999]
)
def test_damaged_metrics_are_refused(body: bytes) -> None:
    with pytest.raises(DataError):
        Metrics.from_files({"metrics.json": body})


def test_documents() -> None:
    assert Document.from_files(Document({"é": [1, None, True]}).to_files()).data == {"é": [1, None, True]}
    for bad in ({1, 2}, float("nan"), {"x": object()}, {1: 2, "a": 3}):
        with pytest.raises(DataError):
            Document(bad).to_files()
    with pytest.raises(DataError):
        Document.from_files({"document.json": b"{"})


def test_canonical_and_digest() -> None:
    assert canonical({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical(float("inf"))
    files = {"a": b"1", "b": b"2"}
    assert digest_of("records", files) == digest_of("records", dict(reversed(files.items())))
    others = [
        digest_of("weights", files),
        digest_of("records", {"a": b"12", "b": b""}),
        digest_of("records", {"a": b"2", "b": b"1"}),
    ]
    assert len({digest_of("records", files), *others}) == 4


def test_gathered_is_lazy_and_in_party_order() -> None:
    loaded: list[str] = []

    def loader(name: str) -> Any:
        return lambda: loaded.append(name) or Document(name)

    gathered: Gathered[Document] = Gathered({name: loader(name) for name in ("south", "east", "north")})
    assert list(gathered) == ["east", "north", "south"] and len(gathered) == 3 and loaded == []
    assert gathered["north"].data == "north" and loaded == ["north"]
    assert [d.data for d in gathered.values()] == ["east", "north", "south"]


def test_the_set_of_kinds_is_closed_and_the_base_is_no_kind() -> None:
    assert set(KINDS) == {"records", "weights", "metrics", "document"}
    with pytest.raises(TypeError):
        Artifact().to_files()
    with pytest.raises(TypeError):
        Artifact.from_files({})


def test_a_table_that_claims_too_many_rows_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": pa.nulls(10_000_001)}), sink, compression="zstd")
    monkeypatch.setattr(pq, "read_table", None)  # not even begun
    with pytest.raises(DataError, match="10,000,001 records: at most 10,000,000"):
        Records.from_files({"records.parquet": sink.getvalue()})
