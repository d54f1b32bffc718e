# SPDX-License-Identifier: Apache-2.0
"""Sentence embeddings: the mean of a model's hidden states over the real tokens of a text, at length 1 (Reimers and Gurevych
2019, Sentence-BERT, mean pooling).

Any encoder (BERT and its like), the encoder of a pair, or a decoder. Which layer is a choice: the last one, or ``layer``, of
which 0 is the table of input embeddings (a bag of words, without a forward). Padding takes no part in the mean, so neither the
company of a text in its batch nor its order changes its vector, but for rounding. Deterministic. Guarantee: none; the model is
public.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from osmotic.plugins.contract import Config, ModelPlugin
from osmotic.plugins.models.decoding import by_length, right_pad
from osmotic.plugins.models.options import Device, Dtype, device_of, dtype_of
from osmotic.plugins.models.sizes import BYTES, parameters, shapes
from osmotic.plugins.models.transformers import digests, local_folder
from osmotic.plugins.tables.minilm import model_folder
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ComponentError, ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np

UNUSED = ("pooler.",)  # parts that a mean of hidden states never asks; their absence from the files does not matter
GIVE = "give a directory with config.json, model.safetensors and tokenizer.json, or a name of the hub"


class PoolingConfig(Config):
    """What every embedder has."""

    layer: int | None = Field(
        None,
        ge=0,
        description="Hidden states of which layer: 0 = the input embeddings, 1 = after the first layer; null: the last.",
    )
    max_tokens: int = Field(512, ge=1, description="Longer texts lose their end; at most what the model itself can hold.")
    dtype: Dtype = Field("float32", description="Of the loaded weights; auto: bfloat16 on CUDA, else float32.")
    device: Device = Field("auto", description="auto: a CUDA device where there is one.")
    batch_tokens: int = Field(8192, ge=1, description="Tokens of one forward, padding included; changes nothing else.")


class EmbedderConfig(PoolingConfig):
    """Which model, and how its states are pooled."""

    path: str = Field(description="A directory, 'osmotic:NAME' for a shipped one, or a name of the model hub.")
    revision: str = Field("main", description="Branch, tag or commit; for names of the hub only.")


class MiniLmConfig(PoolingConfig):
    """How the states of all-MiniLM-L6-v2 are pooled; as it was made unless said otherwise."""

    max_tokens: int = Field(256, ge=1, description="Longer texts lose their end; at most 512.")


class EmbedderModel(ModelPlugin[EmbedderConfig]):
    """Sentence vectors by any model that transformers loads without code of its own."""

    name = "embedder"
    provides: ClassVar[frozenset[str]] = frozenset({"embedder"})

    def fingerprint(self) -> str:
        """SHA-256 of the files' contents (or the hub name and revision) and of the settings."""
        folder = local_folder(self.config.path)
        return _fingerprint(digests(folder) if folder else {f"hub:{self.config.path}": self.config.revision}, self.config)

    def memory(self, training: bool) -> int | None:
        """Bytes of the weights; None for a name of the hub."""
        folder = local_folder(self.config.path)
        return _memory(folder, self.config) if folder else None

    def build(self) -> "SentenceEmbedder":
        """The loaded model. Raises ConfigError when it cannot be loaded."""
        folder = local_folder(self.config.path)
        options: dict[str, Any] = {"local_files_only": True} if folder else {"revision": self.config.revision}
        return load_embedder(str(folder or self.config.path), self.config, **options)


class MiniLmModel(ModelPlugin[MiniLmConfig]):
    """all-MiniLM-L6-v2 (Apache-2.0), a real sentence encoder of 22 million parameters that a registry package ships."""

    name = "minilm"
    provides: ClassVar[frozenset[str]] = frozenset({"embedder"})

    def fingerprint(self) -> str:
        """SHA-256 of the shipped files and of the settings."""
        return _fingerprint(digests(minilm_folder()), self.config)

    def memory(self, training: bool) -> int | None:
        """Bytes of the weights."""
        return _memory(minilm_folder(), self.config)

    def build(self) -> "SentenceEmbedder":
        """The loaded model. Raises ConfigError when no installed package has it."""
        return load_embedder(str(minilm_folder()), self.config, local_files_only=True)


def minilm_folder() -> Path:
    """The directory of all-MiniLM-L6-v2 in an installed package. Raises ConfigError, with what to install, when none has it."""
    return model_folder("the model 'minilm'")


def _fingerprint(files: dict[str, str], config: PoolingConfig) -> str:
    settings = {"layer": config.layer, "max_tokens": config.max_tokens, "dtype": dtype_of(config)}
    return hashlib.sha256(canonical({"embedder": files, "settings": settings})).hexdigest()


def _memory(folder: Path, config: PoolingConfig) -> int | None:
    found = shapes(folder)
    return parameters(found) * BYTES[dtype_of(config)] if found else None


class SentenceEmbedder:
    """A loaded model. An Embedder."""

    def __init__(self, module: Any, tokenizer: Any, config: PoolingConfig) -> None:
        self.module, self.tokenizer, self.config = module, tokenizer, config
        self._most = _room(module, tokenizer, config.max_tokens)

    @property
    def device(self) -> Any:
        """torch's device that the module is on."""
        return next(self.module.parameters()).device

    def embed(self, texts: Sequence[str]) -> "np.ndarray":
        """float32 [n, d], each row of length 1. Raises ComponentError when the model gives no numbers."""
        import numpy as np

        rows = self._encode(texts)
        groups = list(by_length([len(row) for row in rows], 0, self.config.batch_tokens))
        if not groups:
            return np.zeros((0, int(self.module.config.hidden_size)), dtype=np.float32)
        found = np.concatenate([self._pooled([rows[i] for i in group]) for group in groups])
        out = np.empty_like(found)
        out[[i for group in groups for i in group]] = found
        if not np.isfinite(out).all():
            why = "its hidden states are not finite numbers"
            raise ComponentError(Problem("the embedder gives no vectors", path="dtype", why=why, fix="dtype: float32"))
        return out

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids, special ones included, cut to the room there is; an empty text is one end token."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self._most, verbose=False)["input_ids"]
        ends = (self.tokenizer.sep_token_id, self.tokenizer.eos_token_id, self.tokenizer.unk_token_id, 0)
        stand_in = next(i for i in ends if i is not None)
        return [list(ids) or [stand_in] for ids in encoded]

    def _pooled(self, rows: Sequence[Sequence[int]]) -> "np.ndarray":
        """float32 [n, d] of one batch."""
        import torch

        ids, mask = (part.to(self.device) for part in right_pad(rows, self.tokenizer.pad_token_id or 0))
        with torch.inference_mode():
            states = self._states(ids, mask).float()
            real = mask[:, :, None].to(states.dtype)
            mean = (states * real).sum(1) / real.sum(1)
            found: np.ndarray = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
        return found

    def _states(self, ids: Any, mask: Any) -> Any:
        """[n, T, d] of the layer that is wanted."""
        layer = self.config.layer
        if layer == 0:
            return self.module.get_input_embeddings()(ids)
        if layer is None:
            return self.module(input_ids=ids, attention_mask=mask).last_hidden_state
        return self.module(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[layer]


def _room(module: Any, tokenizer: Any, wanted: int) -> int:
    """Tokens that a text may have."""
    positions = getattr(module.config, "max_position_embeddings", None)
    if positions is not None and "roberta" in str(module.config.model_type):
        positions -= int(getattr(module.config, "pad_token_id", None) or 0) + 1  # their positions begin after the padding's
    return min(wanted, int(positions or wanted), int(tokenizer.model_max_length))


def load_embedder(source: str, config: PoolingConfig, **options: Any) -> SentenceEmbedder:
    """A model without its head, in eval mode on its device. Raises ConfigError saying what is wrong."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer

    from osmotic.plugins.models.loading import BROKEN, quiet, refuse_foreign

    refuse_foreign(source)
    device = device_of(config)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
            module, told = AutoModel.from_pretrained(
                source, dtype=getattr(torch, dtype_of(config)), trust_remote_code=False, use_safetensors=True,
                output_loading_info=True, **options,
            )  # fmt: skip
        _complete(module, told)
    except (SafetensorError, *BROKEN) as error:
        why = " ".join(str(error).split())[:300]
        raise ConfigError(Problem(f"the embedder {source!r} cannot be loaded", path="path", why=why, fix=GIVE)) from error
    if getattr(module.config, "is_encoder_decoder", False):
        module = module.get_encoder()
    _check(module, tokenizer, source, config)
    return SentenceEmbedder(module.eval().to(device), tokenizer, config)


def _complete(module: Any, told: dict[str, Any]) -> None:
    """Raises ValueError when a parameter that the mean needs was not in the files, and was drawn."""
    names = {name for name, _ in module.named_parameters()}
    missing = sorted(name for name in names & set(told["missing_keys"]) if not name.startswith(UNUSED))
    if missing:
        raise ValueError(f"its files lack {len(missing)} tensors of the architecture, first {missing[0]!r}")


def _check(module: Any, tokenizer: Any, source: str, config: PoolingConfig) -> None:
    layers = getattr(module.config, "num_hidden_layers", None)
    if config.layer is not None and layers is not None and config.layer > layers:
        what = f"layer: {config.layer}, but {source!r} has {layers}"
        raise ConfigError(Problem(what, path="layer", fix=f"at most {layers}, or null for the last"))
    rows = int(module.get_input_embeddings().weight.shape[0])
    if len(tokenizer) > rows:
        why = f"the tokenizer has {len(tokenizer)} tokens, the model {rows}"
        raise ConfigError(Problem(f"the tokenizer of {source!r} belongs to another model", why=why, fix=GIVE))
