# SPDX-License-Identifier: Apache-2.0
"""How much memory a model needs, from its configuration and the headers of its weights: nothing is loaded.

Parameters are counted exactly where there are safetensors, roughly from the configuration where weights are drawn anew. On top
of the weights: for answering, keys and values of `batch_tokens` positions, and the logits that are held at a time; for
training, a float32 copy, its gradients and AdamW's two moments (of the adapters only, where there are some), and the
activations of a batch of 1,024 tokens. Rough: the process itself, what a library allocates, and a trainer's own copies come on
top.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from osmotic.plugins.models.gguf import read_json
from osmotic.plugins.models.options import LOGITS, LocalConfig, dtype_of

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
TRAIN_TOKENS = 1024
KEPT = 20  # activations that a layer keeps for the backward pass, in vectors of the hidden size
MOST_HEADER = 100_000_000
Shapes = Mapping[str, tuple[int, ...]]


def memory_of(folder: Path, config: LocalConfig, training: bool) -> int | None:
    """Bytes for a model in a directory; None when its configuration or its headers cannot be read."""
    settings = read_json(folder / "config.json")
    if not isinstance(settings, dict):
        return None
    shape = _Shape(settings, config.layers)
    found = None if config.weights == "random" else shapes(folder, config.layers)
    total = parameters(found) if found else shape.parameters()
    if total is None:
        return None
    dtype = dtype_of(config)
    if not training:
        logits = 4 * min(LOGITS, config.batch_tokens * shape.vocabulary)
        return total * BYTES[dtype] + shape.cache(config.batch_tokens, BYTES[dtype]) + logits
    trained = total if config.lora is None else adapters(found, shape, config)
    return total * (BYTES[dtype] + 4) + trained * 12 + shape.activations(TRAIN_TOKENS)


def shapes(folder: Path, layers: int | None = None) -> dict[str, tuple[int, ...]] | None:
    """Tensor name -> shape, of the first layers where so asked; None without safetensors or when a header is damaged."""
    found: dict[str, tuple[int, ...]] = {}
    for file in _files(folder):
        header = _header(file)
        if header is None:
            return None
        try:
            found |= {name: tuple(map(int, value["shape"])) for name, value in header.items() if name != "__metadata__"}
        except (KeyError, TypeError, ValueError):
            return None
    return {name: shape for name, shape in found.items() if layers is None or _layer(name) < layers} or None


def parameters(found: Shapes) -> int:
    """Number of parameters."""
    return sum(_product(shape) for shape in found.values())


def adapters(found: Shapes | None, shape: "_Shape", config: LocalConfig) -> int:
    """Parameters of the adapters: rank x (rows + columns) of every matrix that they are put on."""
    if config.lora is None:
        return 0
    if found is None:
        return config.lora.rank * 2 * shape.hidden * shape.layers * len(config.lora.target_modules)
    wanted = [s for name, s in found.items() if len(s) == 2 and _target(name, config)]
    return config.lora.rank * sum(map(sum, wanted))


def _target(name: str, config: LocalConfig) -> bool:
    module = name.rpartition(".")[0]
    return config.lora is not None and any(module == t or module.endswith(f".{t}") for t in config.lora.target_modules)


def _files(folder: Path) -> Iterator[Path]:
    """The files that are loaded: the whole, or the parts that the index names."""
    index = read_json(folder / "model.safetensors.index.json")
    if (folder / "model.safetensors").is_file():
        yield folder / "model.safetensors"
    elif isinstance(index, dict) and isinstance(index.get("weight_map"), dict):
        yield from (folder / name for name in sorted({str(name) for name in index["weight_map"].values()}))


def _header(file: Path) -> dict[str, Any] | None:
    try:
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(size)) if size <= MOST_HEADER else None
    except (OSError, ValueError):
        return None
    return header if isinstance(header, dict) else None


def _layer(name: str) -> int:
    """Which layer a tensor belongs to, from 0: the first number in its name; -1 for one outside the layers."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


class _Shape:
    """What the configuration of a transformer says of its size, under the names that the families use."""

    def __init__(self, settings: dict[str, Any], layers: int | None) -> None:
        inner = settings.get("text_config")
        self._settings = {**settings, **(inner if isinstance(inner, dict) else {})}
        self.two = bool(settings.get("is_encoder_decoder"))
        self.hidden = self._of("hidden_size", "d_model", "n_embd")
        stack = layers or self._of("num_hidden_layers", "num_layers", "n_layer", "encoder_layers")
        second = layers or self._of("num_decoder_layers", "decoder_layers") or stack
        self.layers = stack + second if self.two else stack
        self.decoders = second if self.two else stack
        self.vocabulary = self._of("vocab_size")
        heads = self._of("num_attention_heads", "num_heads", "n_head", "decoder_attention_heads") or 1
        self.width = self._of("head_dim", "d_kv") or self.hidden // heads
        self.heads, self.pairs = heads, self._of("num_key_value_heads") or heads

    def _of(self, *names: str) -> int:
        return next((value for name in names if isinstance(value := self._settings.get(name), int)), 0)

    def parameters(self) -> int | None:
        """Roughly; None when the configuration does not say enough."""
        if not (self.hidden and self.layers and self.vocabulary):
            return None
        inner = self._of("intermediate_size", "n_inner", "d_ff", "ffn_dim", "decoder_ffn_dim") or 4 * self.hidden
        gated = "num_key_value_heads" in self._settings or str(self._settings.get("feed_forward_proj", "")).startswith("gated")
        attention = 2 * self.hidden * self.width * (self.heads + self.pairs)
        cross = self.decoders * attention if self.two else 0
        tied = self._settings.get("tie_word_embeddings", self.two or not gated)
        places = 0 if gated or self._settings.get("model_type") in ("t5", "mt5", "umt5") else self._places()
        return (
            self.layers * (attention + (3 if gated else 2) * self.hidden * inner) + cross
            + self.vocabulary * self.hidden * (1 if tied else 2) + places
        )  # fmt: skip

    def _places(self) -> int:
        return self._of("max_position_embeddings", "n_positions") * self.hidden * (2 if self.two else 1)

    def cache(self, tokens: int, size: int) -> int:
        """Bytes of the keys and values of so many positions."""
        return 2 * self.decoders * self.pairs * self.width * size * tokens

    def activations(self, tokens: int) -> int:
        """Bytes that a backward pass over so many tokens needs, logits included."""
        return 4 * tokens * (KEPT * self.layers * self.hidden + 2 * self.vocabulary)
