# SPDX-License-Identifier: Apache-2.0
"""Configuration keys that all local models have, and the fingerprint made of them."""

import hashlib
from typing import Literal, Protocol

from pydantic import Field

from osmotic.plugins.contract import Config
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ConfigError, Problem

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda"]
LOGITS = 2**26  # of scores, that are held at a time
FAST = frozenset({"path", "batch_tokens", "device"})  # keys that change where and how fast, not what


class LoraConfig(Config):
    """Low-rank adapters for training (peft). The adapters' start depends on nothing but the model."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    target_modules: tuple[str, ...] = Field(("q_proj", "k_proj", "v_proj", "o_proj"), strict=False, min_length=1)
    freeze_a: bool = Field(
        False,
        description="Train B alone. A is alike everywhere and in no upload: the mean of B is the mean of the updates.",
    )


class LocalConfig(Config):
    """Keys that every model has that runs here on torch."""

    layers: int | None = Field(None, ge=1, description="Keep the first N layers only (of the encoder and of the decoder).")
    weights: Literal["pretrained", "random"] = Field("pretrained", description="random: the architecture alone, drawn anew.")
    seed: int = Field(0, ge=0, lt=2**63, description="Of random weights.")
    device: Device = Field("auto", description="auto: a CUDA device where there is one.")
    dtype: Dtype = Field(
        "float32",
        description="Of the loaded weights; bfloat16 also trains under bfloat16 autocast. auto: bfloat16 on CUDA, else float32",
    )
    chat: bool = Field(False, description="Put each prompt into the tokenizer's chat template, as the user's turn.")
    lora: LoraConfig | None = Field(None, description="Train adapters instead of all weights.")
    batch_tokens: int = Field(16384, ge=1, description="Tokens that are in work at a time, padding and new tokens included.")
    max_prompt_tokens: int | None = Field(None, ge=1, description="Cut longer prompts from the left.")


class Placed(Protocol):
    """A configuration that says where a model runs, and in which numbers."""

    @property
    def device(self) -> Device:
        """See `LocalConfig`."""

    @property
    def dtype(self) -> Dtype:
        """See `LocalConfig`."""


def fingerprint_of(files: dict[str, str], config: LocalConfig) -> str:
    """SHA-256 over file digests and every setting that decides what the model is (not where and how fast it runs).

    The device is left out: it changes results by rounding only, and parties with different ones share a base model. ``auto``
    stands for the dtype that it comes to on this machine.
    """
    unused = {"weights", "seed"} if config.weights == "pretrained" else set()
    settings = config.model_dump(mode="json", exclude={*FAST, *unused})
    if config.lora is not None and not config.lora.freeze_a:  # models keep the fingerprints that they had without this key
        del settings["lora"]["freeze_a"]
    return hashlib.sha256(canonical({"files": files, "settings": {**settings, "dtype": dtype_of(config)}})).hexdigest()


def device_of(config: Placed) -> str:
    """``cpu`` or ``cuda``. Imports torch, unless the answer is ``cpu``. Raises ConfigError for a device that is not there."""
    if config.device == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if config.device == "cuda":
        why = f"torch {torch.__version__} finds no CUDA device"
        raise ConfigError(Problem("device: cuda, but there is none here", path="device", why=why, fix="device: auto"))
    return "cpu"


def dtype_of(config: Placed) -> str:
    """The name of torch's dtype that is used; imports torch only where both dtype and device say auto."""
    if config.dtype != "auto":
        return config.dtype
    return "bfloat16" if device_of(config) == "cuda" else "float32"
