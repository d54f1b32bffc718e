# SPDX-License-Identifier: Apache-2.0
"""Vectors from files, mapped into memory instead of read: float32 tensors of .safetensors and .npy files.

A safetensors file is 8 bytes (little-endian: the header's length), a JSON header with the type, shape and place of each tensor,
then the bytes. The header is checked before it is believed. Half-precision tensors, and float32 ones at odd places, are
converted once into the cache (OSMOTIC_CACHE, or ~/.cache/osmotic).
"""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard

from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.source import did_you_mean

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Tensor", "map_array", "map_tensor", "tensors_of"]

HEADER_LIMIT = 100_000_000  # bytes, that of the format itself
SIZES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4,
    "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
HALF = ("F16", "BF16")
BLOCK = 4096  # rows converted at a time


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies. start: byte offset in the file."""

    kind: str
    shape: tuple[int, ...]
    start: int


def map_tensor(path: Path, key: str, shown: str) -> "np.ndarray":
    """float32 tensor `key` of a safetensors file, mapped read-only. `shown`: how the table is called in messages.

    Raises ConfigError: not such a file, a header that cannot be true, no such key, a type that is not F32, F16 or BF16.
    """
    import numpy as np

    found = tensors_of(path, shown)
    if key not in found:
        raise ConfigError(
            Problem(f"the table {shown!a} has no tensor of that name", str(path), "table", fix=did_you_mean(key, found))
        )
    tensor = found[key]
    if tensor.kind not in ("F32", *HALF):
        why, fix = f"it is {tensor.kind}", "save it as float32"
        raise ConfigError(Problem(f"the table {shown!a} must be float32", str(path), "table", why, fix))
    if tensor.kind in HALF or tensor.start % 4 or not math.prod(tensor.shape):
        return _converted(path, key, tensor)
    return np.memmap(path, dtype="<f4", mode="r", offset=tensor.start, shape=tensor.shape)


def tensors_of(path: Path, shown: str) -> dict[str, Tensor]:
    """What a safetensors file holds, from its header alone. Raises ConfigError when the header does not fit the file."""
    try:
        with path.open("rb") as file:
            return _header(file, path.stat().st_size)
    except (OSError, ValueError, RecursionError) as error:
        what = f"the table {shown!a} is not a readable safetensors file"
        raise ConfigError(Problem(what, str(path), "table", str(error)[:200], "write the file again")) from error


def _header(file: BinaryIO, size: int) -> dict[str, Tensor]:
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > min(HEADER_LIMIT, size - 8):
        raise ValueError(f"it has {size} bytes, and its header claims {length if len(first) == 8 else 'none'}")
    content = json.loads(file.read(length))
    if not isinstance(content, dict):
        raise ValueError("its header is not a mapping")
    return {name: _tensor(name, entry, 8 + length, size) for name, entry in content.items() if name != "__metadata__"}


def _tensor(name: str, entry: Any, base: int, size: int) -> Tensor:
    """One entry of the header. Raises ValueError when it cannot be true."""
    fields = entry if isinstance(entry, dict) else {}
    kind, shape, place = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(kind, str) or not _naturals(shape) or not _naturals(place) or len(place) != 2:
        raise ValueError(f"its header does not say type, shape and place of {name[:80]!a}")
    start, end = place
    if not start <= end <= size - base:
        raise ValueError(f"its header puts {name[:80]!a} outside the file")
    if kind in SIZES and end - start != math.prod(shape) * SIZES[kind]:
        raise ValueError(f"its header gives {name[:80]!a} {end - start} bytes for shape {shape} of {kind}")
    return Tensor(kind, tuple(shape), base + start)


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def map_array(path: Path, shown: str) -> "np.ndarray":
    """The float32 array of a .npy file, mapped read-only. Raises ConfigError: not such a file, or another type."""
    import numpy as np

    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        what = f"the table {shown!a} is not a readable .npy file"
        raise ConfigError(Problem(what, str(path), "table", str(error)[:200], "write the file again")) from error
    if not isinstance(vectors, np.ndarray) or vectors.dtype != np.dtype("<f4"):
        why = f"it is {getattr(vectors, 'dtype', 'an archive')}"
        fix = "numpy.save(file, vectors.astype('float32'))"
        raise ConfigError(Problem(f"the table {shown!a} must be float32", str(path), "table", why, fix))
    return vectors


# ---- conversion ------------------------------------------------------------------------------------------------------


def _converted(path: Path, key: str, tensor: Tensor) -> "np.ndarray":
    """The tensor as float32, from the cache; a cache that cannot be written is no error."""
    import numpy as np

    status = path.stat()
    changed = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]  # times alone can be set back
    stamp = [str(path.resolve()), *changed, key, tensor.kind, tensor.shape, tensor.start]
    folder = Path(os.environ.get("OSMOTIC_CACHE") or Path.home() / ".cache" / "osmotic") / "tables"
    kept = folder / f"{hashlib.sha256(json.dumps(stamp).encode()).hexdigest()[:32]}.npy"
    try:
        vectors = np.lib.format.open_memmap(kept, mode="r")
        if vectors.shape == tensor.shape and vectors.dtype == np.float32:
            return vectors
    except (OSError, ValueError, EOFError):
        pass
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, suffix=".npy.tmp")
        os.close(handle)
        _fill(path, tensor, np.lib.format.open_memmap(name, mode="w+", dtype="<f4", shape=tensor.shape))
        Path(name).replace(kept)
        return np.lib.format.open_memmap(kept, mode="r")
    except OSError:
        return _fill(path, tensor, np.empty(tensor.shape, dtype="<f4"))


def _fill(path: Path, tensor: Tensor, out: "np.ndarray") -> "np.ndarray":
    """Write the tensor's values into `out`, a block of rows at a time. BF16 is the upper half of a float32."""
    import numpy as np

    kind = {"F16": "<f2", "BF16": "<u2", "F32": "<f4"}[tensor.kind]
    if not out.size:
        return out
    source = np.memmap(path, dtype=kind, mode="r", offset=tensor.start, shape=tensor.shape)
    for start in range(0, tensor.shape[0] if tensor.shape else 1, BLOCK):
        block = source[start : start + BLOCK] if tensor.shape else source
        if tensor.kind == "BF16":
            block = (block.astype("<u4") << 16).view("<f4")
        out[start : start + BLOCK] = block
    return out
