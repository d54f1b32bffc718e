# SPDX-License-Identifier: Apache-2.0
"""GGUF files: dequantised once into a directory of safetensors in a cache, from which the model then loads in seconds.

The cache is OSMOTIC_CACHE, or ~/.cache/osmotic. Quantised weights become bfloat16, which is finer than any quantisation step;
files of float16 or float32 keep their type. The model is the file: its fingerprint is the file's digest.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from osmotic.schemas.errors import ConfigError, Problem, StoreError

FORMAT = 1  # raise it when the conversion changes
INSTALL = "pip install gguf"
SIZES = ".sizes.json"
LEFT = 86_400  # seconds, after which a conversion that has not ended was killed
BROKEN = (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, NotImplementedError, EOFError)


def is_gguf(path: str) -> bool:
    """Whether a model's path names a GGUF file."""
    return path.lower().endswith(".gguf")


def existing_file(path: str) -> Path:
    """The file. Raises ConfigError when it is missing or does not begin as a GGUF file does."""
    try:
        file = Path(path).expanduser()
        with file.open("rb") as opened:
            magic = opened.read(4)
    except (OSError, RuntimeError, ValueError) as error:
        fix = "give the path of a .gguf file"
        raise ConfigError(Problem(f"no such GGUF file: {path!r}", path="path", why=str(error), fix=fix)) from error
    if magic != b"GGUF":
        why = "it does not begin with the letters GGUF"
        raise ConfigError(Problem(f"{path!r} is no GGUF file", path="path", why=why, fix="download it again"))
    return file


def files_of(file: Path) -> dict[str, str]:
    """What a GGUF model's fingerprint is made of."""
    return {"gguf": known_digest(file), "conversion": str(FORMAT)}


def converted_place(file: Path, name: str) -> Path:
    """The directory that `converted` makes of the file, whether it is there or not."""
    return cache() / f"{name}-{known_digest(file)[:16]}-{FORMAT}"


def converted(file: Path, name: str = "gguf", install: str = INSTALL) -> Path:
    """The converted model's directory, made on the first call. Raises ConfigError when that cannot be done."""
    folder = converted_place(file, name)
    if not _complete(folder):
        _convert(file, folder, install)
    return folder


def _complete(folder: Path) -> bool:
    """Whether the files are those that were written, by their sizes: a crash of the machine may leave some of them empty."""
    if not (folder / "config.json").is_file():
        return False
    sizes = read_json(folder / SIZES)
    if not (folder / SIZES).exists():
        return True  # of a version that did not note them
    return isinstance(sizes, dict) and sizes == _sizes(folder)


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != SIZES}


def _convert(source: Path, folder: Path, install: str) -> None:
    """Dequantise, write beside the place, rename: another process sees all of it or nothing."""
    from safetensors import SafetensorError

    from osmotic.plugins.models.loading import quiet

    if find_spec("gguf") is None:
        raise ConfigError(Problem("the package 'gguf' is not installed", why=f"it reads {source.name}", fix=install))
    _sweep(folder)
    work = None
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        module, tokenizer = _read(source)
        with quiet():
            module.save_pretrained(work)
            tokenizer.save_pretrained(work)
        (work / SIZES).write_text(json.dumps(_sizes(work)), encoding="utf-8")
        work.rename(folder)
    except (OSError, SafetensorError) as error:
        if not _complete(folder):
            fix = "make room there, or set OSMOTIC_CACHE to another folder"
            raise StoreError(Problem(f"the model cannot be written to {str(folder)!r}", why=str(error), fix=fix)) from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove a damaged conversion, and what killed ones left behind a day ago or earlier."""
    if folder.exists() and not _complete(folder):  # another process may have ended just now
        shutil.rmtree(folder, ignore_errors=True)
    for left in folder.parent.glob(f".{folder.name}-*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > LEFT:
                shutil.rmtree(left, ignore_errors=True)


def _read(source: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from osmotic.plugins.models.loading import quiet, whole

    place, name = str(source.parent), source.name
    try:
        with quiet():
            dtype = getattr(torch, _dtype(source))
            tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name, local_files_only=True)
            found = AutoModelForCausalLM.from_pretrained(
                place, gguf_file=name, quantization_config=GgufConfig(dequantize=True), dtype=dtype, local_files_only=True,
                output_loading_info=True,
            )  # fmt: skip
            module = whole(found)
    except (*BROKEN, OSError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        fix = "it may be cut short: compare its size and digest with the source's; or transformers cannot read this kind"
        raise ConfigError(Problem(f"the GGUF file {str(source)!r} cannot be read", path="path", why=why, fix=fix)) from error
    return module, tokenizer


def _dtype(source: Path) -> str:
    """float32 or float16 where all matrices are so; bfloat16 for what is quantised, which loses less than that did."""
    from gguf import GGUFReader

    kinds = {tensor.tensor_type.name for tensor in GGUFReader(source).tensors if len(tensor.shape) > 1}
    if kinds == {"F32"}:
        return "float32"
    return "float16" if kinds <= {"F16", "F32"} else "bfloat16"


# ---- the cache -------------------------------------------------------------------------------------------------------


def cache() -> Path:
    """The folder of things that can be made again. Raises StoreError when it cannot be made."""
    folder = Path(os.environ.get("OSMOTIC_CACHE") or Path.home() / ".cache" / "osmotic")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fix = "set OSMOTIC_CACHE to a folder that can be written"
        raise StoreError(Problem(f"the cache {str(folder)!r} cannot be made", why=str(error), fix=fix)) from error
    why = _writable_by_others(folder)
    if why:
        fix = "set OSMOTIC_CACHE to a folder of your own, that nobody else can write"
        raise StoreError(Problem(f"the cache {str(folder)!r} is not safe: models are loaded from it", why=why, fix=fix))
    return folder


def _writable_by_others(folder: Path) -> str:
    status = folder.stat()
    if os.name == "posix" and status.st_uid not in (os.getuid(), 0):
        return f"it belongs to another user (id {status.st_uid})"
    return "every user can write to it" if os.name == "posix" and status.st_mode & 0o002 else ""


def known_digest(path: Path) -> str:
    """SHA-256 of a large file, remembered in the cache with its size and time."""
    status = path.stat()
    path = path.resolve()
    stamp = {"path": str(path), "size": status.st_size, "time": status.st_mtime_ns, "changed": status.st_ctime_ns}
    stamp["inode"] = status.st_ino  # another file in its place may have the same size and time
    note = cache() / f"digest-{hashlib.sha256(str(path).encode()).hexdigest()[:16]}.json"
    known = read_json(note)
    if isinstance(known, dict) and {k: known.get(k) for k in stamp} == stamp and isinstance(known.get("sha256"), str):
        return str(known["sha256"])
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    with suppress(OSError):  # a note that cannot be written is no loss
        _write(note, json.dumps({**stamp, "sha256": found}))
    return found


def _write(path: Path, text: str) -> None:
    """All of it or nothing."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as draft:
        try:
            draft.write(text)
            draft.flush()
            Path(draft.name).replace(path)
        except OSError:
            Path(draft.name).unlink(missing_ok=True)
            raise


def read_json(path: Path) -> Any:
    """A JSON file's value; None when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
