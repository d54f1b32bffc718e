# SPDX-License-Identifier: Apache-2.0
"""A causal or encoder-decoder language model: a directory, a GGUF file, a shipped one (``osmotic:clinic/teacher``), a hub name.

A local directory is read with the network off. The fingerprint of a directory is that of its files' contents, of a GGUF file
the file's; that of a hub name is the name and the revision, so pin the revision to a commit where it matters. Code from a
repository is never run, and weights are read from safetensors (or the GGUF file) alone.
"""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from osmotic.plugins.contract import ModelPlugin
from osmotic.plugins.models.causal import CausalModel
from osmotic.plugins.models.gguf import converted, converted_place, existing_file, files_of, is_gguf
from osmotic.plugins.models.loading import load_module
from osmotic.plugins.models.local import LocalModel
from osmotic.plugins.models.options import LocalConfig, fingerprint_of
from osmotic.plugins.models.seq2seq import Seq2SeqModel
from osmotic.plugins.models.sizes import memory_of
from osmotic.plugins.spaces import resolve
from osmotic.schemas.errors import ConfigError, Problem

COUNTED = ("*.json", "*.safetensors", "*.model", "vocab.txt", "merges.txt", "*.jinja")
WEIGHTS = (".safetensors", ".safetensors.index.json")


class TransformersConfig(LocalConfig):
    """Which model, and how to load it."""

    path: str = Field(description="A directory, a .gguf file, 'osmotic:NAME' for a shipped one, or a name of the model hub.")
    revision: str = Field("main", description="Branch, tag or commit; for names of the hub only.")


class TransformersModel(ModelPlugin[TransformersConfig]):
    """Any decoder-only or encoder-decoder model that transformers loads without code of its own.

    Encoder-decoder models have no next-token protocol: mechanisms that draw tokens themselves need a decoder-only one.
    """

    name = "transformers"
    provides: ClassVar[frozenset[str]] = frozenset({"text_generator", "scorer", "next_token", "trainable"})

    def fingerprint(self) -> str:
        """SHA-256 of the files' contents (or the hub name and revision) and of the settings."""
        path, config = self.config.path, self.config
        if is_gguf(path):
            return fingerprint_of(files_of(existing_file(path)), config)
        folder = local_folder(path)
        files = digests(folder) if folder else {f"hub:{path}": config.revision}
        if config.weights == "random":
            files = {name: digest for name, digest in files.items() if not name.endswith(WEIGHTS)}
        return fingerprint_of(files, config)

    def memory(self, training: bool) -> int | None:
        """Bytes, roughly; None for a name of the hub and for a GGUF file that has not been converted yet."""
        if is_gguf(self.config.path):
            return memory_of(converted_place(existing_file(self.config.path), "gguf"), self.config, training)
        folder = local_folder(self.config.path)
        return memory_of(folder, self.config, training) if folder else None

    def build(self) -> LocalModel:
        """The loaded model. Raises ConfigError when it cannot be loaded."""
        source, options = self.config.path, dict[str, Any](revision=self.config.revision)
        folder = converted(existing_file(source)) if is_gguf(source) else local_folder(source)
        if folder:
            source, options = str(folder), dict[str, Any](local_files_only=True)
        loaded = load_module(source, self.config, **options)
        kind = Seq2SeqModel if loaded[0].config.is_encoder_decoder else CausalModel
        return kind(loaded, self.config, self.fingerprint())


def local_folder(path: str) -> Path | None:
    """The directory of a model's path; None for a name of the hub. Raises ConfigError when there is no such directory."""
    if path.startswith("osmotic:"):
        return resolve(f"{path}/config.json", Path.cwd()).parent
    try:
        folder = Path(path).expanduser()
        if folder.is_dir():
            return folder
    except (OSError, RuntimeError, ValueError) as error:
        what = f"not a model directory: {path[:200]!r}"
        raise ConfigError(
            Problem(what, path="path", why=str(error)[:200], fix="give a directory that holds config.json")
        ) from error
    if path.startswith(("/", ".", "~")) or path.count("/") > 1:
        raise ConfigError(Problem(f"no such model directory: {path!r}", fix="give a directory that holds config.json"))
    return None


def digests(folder: Path) -> dict[str, str]:
    """File name -> SHA-256 of every configuration, weights and tokenizer file. Raises ConfigError when there is none."""
    files = sorted({path for pattern in COUNTED for path in folder.glob(pattern) if path.is_file()})
    if not any(path.name == "config.json" for path in files):
        raise ConfigError(Problem(f"no config.json in {str(folder)!r}", fix="give a directory written by save_pretrained"))
    return {path.name: file_digest(path) for path in files}


def file_digest(path: Path) -> str:
    """SHA-256 of a file; read once a process while its size and time stay the same."""
    status = path.stat()
    return _digest(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _digest(path: str, size: int, time: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
