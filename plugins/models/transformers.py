# SPDX-License-Identifier: Apache-2.0
"""A causal language model from a local directory, a shipped one (``osmotic:clinic/teacher``), or a name of the model hub.

A local directory is read with the network off. The fingerprint of a directory is that of its files' contents; that of a hub
name is the name and the revision, so pin the revision to a commit where it matters. Code from a repository is never run.
"""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from osmotic.plugins.contract import ModelPlugin
from osmotic.plugins.models.causal import CausalConfig, CausalModel, fingerprint_of, load_module
from osmotic.plugins.spaces import resolve
from osmotic.schemas.errors import ConfigError, Problem

COUNTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


class TransformersConfig(CausalConfig):
    """Which model, and how to load it."""

    path: str = Field(description="A directory, 'osmotic:NAME' for a shipped one, or a name of the model hub.")
    revision: str = Field("main", description="Branch, tag or commit; for names of the hub only.")


class TransformersModel(ModelPlugin[TransformersConfig]):
    """Any decoder-only model that transformers loads without code of its own."""

    name = "transformers"
    provides: ClassVar[frozenset[str]] = frozenset({"text_generator", "scorer", "next_token", "trainable"})

    def fingerprint(self) -> str:
        """SHA-256 of the files' contents (or the hub name and revision) and of the settings."""
        folder = self._folder()
        files = digests(folder) if folder else {f"hub:{self.config.path}": self.config.revision}
        return fingerprint_of(files, self.config)

    def build(self) -> CausalModel:
        """The loaded model."""
        folder = self._folder()
        if folder:
            source, options = str(folder), dict[str, Any](local_files_only=True)
        else:
            source, options = self.config.path, dict[str, Any](revision=self.config.revision)
        return CausalModel(load_module(source, self.config, **options), self.config, self.fingerprint())

    def _folder(self) -> Path | None:
        return local_folder(self.config.path)


def local_folder(path: str) -> Path | None:
    """The directory of a model's path; None for a name of the hub. Raises ConfigError when there is no such directory."""
    if path.startswith("osmotic:"):
        return resolve(f"{path}/config.json", Path.cwd()).parent
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
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
