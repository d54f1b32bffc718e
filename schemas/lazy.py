# SPDX-License-Identifier: Apache-2.0
"""Tensors of a safetensors file that are read when they are asked for, a part at a time.

The file is read once from end to end when it is opened, so that the caller can compare its SHA-256 with the digest that it
expects; of that reading a hash of every 16 KiB is kept, and every later read is compared with it. So what is used is what was
verified, though it does not stay in memory: a file that is changed in between is noticed, not believed.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.schemas.errors import DataError, Problem, StoreError

if TYPE_CHECKING:
    import numpy as np

BLOCK = 1 << 14
KEPT = 16  # bytes of each block's SHA-256 that are kept
LONGEST_HEADER = 100_000_000
MOST_AXES = 32
DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip


class LazyTensors(Mapping[str, "np.ndarray"]):
    """Name -> array, read from a safetensors file at each access: nothing is kept in memory but the hashes of its blocks.

    sha256: hexadecimal digest of the whole file as it was opened, to be compared by whoever opened it. Raises DataError when
    the file is not of the format, StoreError when a part of it is no longer what it was.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        total, blocks = hashlib.sha256(), []
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                total.update(block)
                blocks.append(hashlib.sha256(block).digest()[:KEPT])
                self._size = file.tell()
        if not blocks:
            raise DataError(f"the weights are damaged: {path.name} is empty")
        self._blocks = b"".join(blocks)
        self.sha256 = total.hexdigest()
        self._where: dict[str, tuple[int, tuple[int, ...], str]] | None = None

    @property
    def outline(self) -> dict[str, tuple[tuple[int, ...], "np.dtype[Any]"]]:
        """Name -> (shape, dtype), without reading any tensor."""
        import numpy as np

        return {name: (shape, np.dtype(dtype)) for name, (_, shape, dtype) in self._index().items()}

    def __getitem__(self, name: str) -> "np.ndarray":
        _, shape, _ = self._index()[name]
        return self.part(name, 0, math.prod(shape)).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index())

    def __len__(self) -> int:
        return len(self._index())

    def part(self, name: str, start: int, stop: int) -> "np.ndarray":
        """Elements [start, stop) of a tensor in row-major order, one-dimensional; the array is the caller's own."""
        import numpy as np

        offset, shape, code = self._index()[name]
        stop, dtype = min(stop, math.prod(shape)), np.dtype(code)
        if start >= stop:
            return np.empty(0, dtype=dtype)
        content = self._read(offset + start * dtype.itemsize, offset + stop * dtype.itemsize)
        return np.frombuffer(content, dtype=dtype)

    def check(self) -> None:
        """Raise DataError when the file is not of the format; to be called when its digest was compared."""
        self._index()

    def share(self, other: "LazyTensors") -> None:
        """Use another one's index, where it is equal: of many files that are alike, it is then in memory once."""
        if self._index() == other._index():
            self._where = other._where

    def _read(self, start: int, stop: int) -> bytearray:
        """Bytes [start, stop) of the file, each block of them compared with the hash that was kept."""
        first, last = start // BLOCK, -(-stop // BLOCK)
        try:
            with self._path.open("rb") as file:
                file.seek(first * BLOCK)
                content = bytearray(file.read((last - first) * BLOCK))
        except OSError as error:
            raise self._changed() from error
        view = memoryview(content)
        for i in range(first, last):
            block = view[(i - first) * BLOCK : (i - first + 1) * BLOCK]
            if hashlib.sha256(block).digest()[:KEPT] != self._blocks[i * KEPT : (i + 1) * KEPT]:
                raise self._changed()
        return bytearray(view[start - first * BLOCK : stop - first * BLOCK])

    def _changed(self) -> StoreError:
        what = "a stored artifact was changed or removed while it was being read"
        return StoreError(Problem(what, str(self._path), fix="run the same command again"))

    def _index(self) -> dict[str, tuple[int, tuple[int, ...], str]]:
        """Name -> (offset in the file, shape, dtype); read when first needed, after the digest was compared."""
        if self._where is None:
            try:
                self._where = self._parse()
            except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
                raise DataError(f"the weights are damaged: {type(error).__name__}") from error
        return self._where

    def _parse(self) -> dict[str, tuple[int, tuple[int, ...], str]]:
        import numpy as np

        length = int.from_bytes(self._read(0, min(8, self._size)), "little")
        if not 2 <= length <= min(LONGEST_HEADER, self._size - 8):
            raise ValueError("the header does not fit into the file")
        header = json.loads(self._read(8, 8 + length))
        found, spans = {}, []
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            shape, code, (start, stop) = tuple(entry["shape"]), DTYPES[entry["dtype"]], entry["data_offsets"]
            if not all(type(n) is int and n >= 0 for n in (*shape, start, stop)):
                raise ValueError("sizes must be numbers from 0 on")
            size = np.dtype(code).itemsize
            if stop - start != math.prod(shape) * size or len(shape) > MOST_AXES:
                raise ValueError("a tensor is not as long as its shape says")
            if math.prod(max(n, 1) for n in shape) * size >= 1 << 63:
                raise ValueError("a tensor has a shape that no array can have")
            found[name] = (8 + length + start, shape, code)
            spans.append((start, stop))
        ends = [0, *(stop for _, stop in sorted(spans))]
        if [start for start, _ in sorted(spans)] != ends[:-1] or 8 + length + ends[-1] != self._size:
            raise ValueError("the tensors do not lie one after the other, up to the end of the file")
        return found
