# SPDX-License-Identifier: Apache-2.0
"""What components take and give: records, weights, metrics, documents; each can be written to files and read back.

The digest of an artifact is SHA-256 over its files in name order, so equal content has equal digests everywhere.
No pickle: records are Parquet, weights safetensors, everything else canonical JSON.
"""

import hashlib
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from osmotic.schemas.errors import DataError
from osmotic.schemas.lazy import LazyTensors

if TYPE_CHECKING:
    import numpy as np

Files = dict[str, bytes]
LARGEST = 10_000_000  # records of one table
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces, UTF-8; refuses NaN and infinities (ValueError)."""
    return _CANONICAL.encode(value).encode()


def json_text(value: Any) -> str:
    """A value, mostly a text, as it stands in canonical JSON."""
    return encode_basestring(value) if type(value) is str else canonical(value).decode()


def digest_of(kind: str, files: Files) -> str:
    """Hexadecimal SHA-256 of an artifact's kind and files."""
    return digest_of_hashes(kind, {name: hashlib.sha256(content).hexdigest() for name, content in files.items()})


def digest_of_hashes(kind: str, hashes: Mapping[str, str]) -> str:
    """The same from each file's hexadecimal SHA-256."""
    total = hashlib.sha256(kind.encode())
    for name in sorted(hashes):
        total.update(f"\0{name}\0{hashes[name]}".encode())
    return total.hexdigest()


def tensors_digest(tensors: "Iterable[tuple[str, np.ndarray]]") -> str:
    """Hexadecimal SHA-256 over (name, values) of tensors, one after another, in the order of the names as they come."""
    total = hashlib.sha256()
    for name, tensor in tensors:
        total.update(name.encode() + b"\0" + tensor.tobytes())
    return total.hexdigest()


class Artifact:
    """Base of the closed set of artifact kinds."""

    kind: ClassVar[str]

    def to_files(self) -> Files:
        """File name -> content."""
        raise TypeError(f"{type(self).__name__} cannot be written")

    @classmethod
    def from_files(cls, files: Files) -> Self:
        """The inverse of `to_files`; raises DataError when the content is damaged."""
        raise TypeError(f"{cls.__name__} cannot be read")


class Records(Artifact):
    """A table of records: a list of dictionaries with the same keys; values are str, int, float, bool or None.

    columns: the keys, needed only where there may be no rows to read them from.
    """

    kind = "records"

    def __init__(self, rows: list[dict[str, Any]], columns: Sequence[str] = ()) -> None:
        self.rows = rows
        self._columns = tuple(columns)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    @property
    def columns(self) -> list[str]:
        """The keys, in the order of the first record; of an empty table, those it was made with."""
        return list(self.rows[0]) if self.rows else list(self._columns)

    def by_id(self) -> dict[str, dict[str, Any]]:
        """id -> record."""
        return {row["id"]: row for row in self.rows}

    def to_files(self) -> Files:
        """One Parquet file. Raises DataError when records differ in their keys, or a column mixes or nests types."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = self.columns
        keys = set(columns)
        if any(row.keys() != keys for row in self.rows):
            raise DataError("records of one table must have the same keys")
        try:
            table = pa.table({name: [row[name] for row in self.rows] for name in columns})
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            raise DataError(f"records that cannot be written as a table: {type(error).__name__}") from error
        _check_columns(table.schema)
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        return {"records.parquet": sink.getvalue()}

    @classmethod
    def from_files(cls, files: Files) -> "Records":
        """Read and check: plain columns with different names only, at most ``LARGEST`` rows."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            rows = pq.read_metadata(io.BytesIO(files["records.parquet"])).num_rows
            if rows > LARGEST:  # said by a few bytes, before any row is made
                raise DataError(f"a table of {rows:,} records: at most {LARGEST:,} are taken")
            table = pq.read_table(io.BytesIO(files["records.parquet"]))
            _check_columns(table.schema)
            return cls(table.to_pylist(), table.column_names)
        except (KeyError, ValueError, OSError, pa.ArrowException) as error:
            raise DataError(f"the records are damaged: {error}") from error


def description(content: bytes) -> dict[str, Any]:
    """The JSON description of weights; raises DataError unless it is an object that can be written as it was read."""
    try:
        found = json.loads(content, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the description of weights is damaged: {error}") from error
    if not isinstance(found, dict):
        raise DataError("the description of weights is damaged: not an object")
    return found


def _no_number(word: str) -> Any:
    """json.loads takes NaN and infinities, which nothing here may write."""
    raise ValueError(f"{word} is no number")


class Weights(Artifact):
    """Named tensors (numpy, float32 unless said otherwise) and a JSON description: the base model, what was trained.

    Tensors of weights that were opened, not read (`Gathered.open`), come from their file at each access.
    """

    kind = "weights"

    def __init__(self, tensors: "Mapping[str, np.ndarray]", meta: dict[str, Any] | None = None) -> None:
        self.tensors: Mapping[str, np.ndarray] = tensors if isinstance(tensors, LazyTensors) else dict(tensors)
        self.meta = dict(meta or {})

    def outline(self) -> "dict[str, tuple[tuple[int, ...], np.dtype[Any]]]":
        """Name -> (shape, dtype); reads no tensor."""
        if isinstance(self.tensors, LazyTensors):
            return self.tensors.outline
        return {name: (tensor.shape, tensor.dtype) for name, tensor in self.tensors.items()}

    def part(self, name: str, start: int, stop: int) -> "np.ndarray":
        """Elements [start, stop) of a tensor in row-major order, one-dimensional; not to be written to."""
        if isinstance(self.tensors, LazyTensors):
            return self.tensors.part(name, start, stop)
        return self.tensors[name].reshape(-1)[start:stop]

    def share(self, other: "Weights") -> None:
        """Of opened weights that are alike, keep what says where the tensors lie once; changes nothing that can be seen."""
        if isinstance(self.tensors, LazyTensors) and isinstance(other.tensors, LazyTensors):
            self.tensors.share(other.tensors)

    def misfits(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """Names that are missing, unknown or, if there are none of these, of another shape than a model's parameters."""
        odd = sorted(set(shapes) ^ set(self.tensors))
        return odd or [name for name, shape in shapes.items() if shape != self.tensors[name].shape]

    def to_files(self) -> Files:
        """A safetensors file and the description."""
        import numpy as np
        from safetensors.numpy import save

        tensors = {name: np.ascontiguousarray(self.tensors[name]) for name in sorted(self.tensors)}
        return {"weights.safetensors": save(tensors), "meta.json": canonical(self.meta)}

    @classmethod
    def from_files(cls, files: Files) -> "Weights":
        """Read and check."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            return cls(load(files["weights.safetensors"]), description(files["meta.json"]))
        except (KeyError, SafetensorError, TypeError, ValueError) as error:
            raise DataError(f"the weights are damaged: {error}") from error


class Metrics(Artifact):
    """Declared numbers (name -> finite float) and, optionally, per-record outcomes for paired comparison.

    `outcomes`: name -> one float a test record, in the test set's order. `notes`: name -> a word beside the numbers, such as
    the class of a guarantee; shown in the table like a number, compared with nothing.
    """

    kind = "metrics"

    def __init__(
        self,
        values: dict[str, float],
        outcomes: dict[str, list[float]] | None = None,
        notes: dict[str, str] | None = None,
    ) -> None:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        bad += [name for name, row in (outcomes or {}).items() if not all(math.isfinite(value) for value in row)]
        if bad:
            raise DataError(f"metrics that are not finite numbers: {', '.join(bad)}")
        self.values = dict(values)
        self.outcomes = dict(outcomes or {})
        self.notes = dict(notes or {})
        if not all(isinstance(note, str) for note in self.notes.values()):
            raise DataError("notes of metrics that are not text")

    def to_json(self) -> dict[str, Any]:
        """Plain values; `notes` only where there are any."""
        body: dict[str, Any] = {"values": self.values, "outcomes": self.outcomes}
        return {**body, "notes": self.notes} if self.notes else body

    def to_files(self) -> Files:
        """One JSON file."""
        return {"metrics.json": canonical(self.to_json())}

    @classmethod
    def from_files(cls, files: Files) -> "Metrics":
        """Read and check."""
        body = _read_json(files, "metrics.json")
        try:
            return cls(body["values"], body["outcomes"], body.get("notes"))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError("metrics.json is damaged: not names with numbers") from error


class Document(Artifact):
    """Any JSON value: reports of a component (rejection reasons, curves), small tables."""

    kind = "document"

    def __init__(self, data: Any) -> None:
        self.data = data

    def to_files(self) -> Files:
        """One JSON file. Raises DataError for what is not JSON."""
        try:
            return {"document.json": canonical(self.data)}
        except (TypeError, ValueError) as error:
            raise DataError(f"a document that is not JSON: {error}") from error

    @classmethod
    def from_files(cls, files: Files) -> "Document":
        """Read and check."""
        return cls(_read_json(files, "document.json"))


KINDS: dict[str, type[Artifact]] = {kind.kind: kind for kind in (Records, Weights, Metrics, Document)}

A = TypeVar("A", bound=Artifact, covariant=True)


class Gathered(Mapping[str, A], Generic[A]):
    """Party name -> artifact, read lazily, iterated in party-name order: one artifact in memory at a time.

    openers: the same artifacts where they can be opened without being read whole; `open` falls back on loading.
    """

    def __init__(self, loaders: "Mapping[str, Any]", openers: "Mapping[str, Any] | None" = None) -> None:
        self._loaders = dict(sorted(loaders.items()))
        self._openers = dict(openers or {})

    def open(self, party: str) -> A:
        """The artifact, verified, with its content left on disk where its kind allows it (weights): many fit into memory."""
        artifact: A = self._openers.get(party, self._loaders[party])()
        return artifact

    def __getitem__(self, party: str) -> A:
        artifact: A = self._loaders[party]()
        return artifact

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaders)

    def __len__(self) -> int:
        return len(self._loaders)


def _read_json(files: Files, name: str) -> Any:
    try:
        return json.loads(files[name])
    except (KeyError, ValueError, RecursionError) as error:
        raise DataError(f"{name} is damaged: {error}") from error


def _check_columns(schema: Any) -> None:
    from pyarrow import types

    plain = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean, types.is_null)
    bad = [name for name, kind in zip(schema.names, schema.types, strict=True) if not any(test(kind) for test in plain)]
    if bad:
        raise DataError(f"values of a column must be text, numbers or true/false: {', '.join(bad)}")
    if len(set(schema.names)) < len(schema.names):
        raise DataError("two columns have the same name")
