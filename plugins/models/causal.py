# SPDX-License-Identifier: Apache-2.0
"""Causal language models of transformers: what the built-in model plugins share.

`CausalModel` is a text generator, a scorer, a source of next-token logits and a trainable. A prompt is tokenised with the
tokenizer's special tokens (or through its chat template), a continuation without any; the two are joined as token ids, in
training as in scoring.
"""

import copy
import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from osmotic.plugins.contract import Answer, Config, Generation, Weights
from osmotic.plugins.models import stepping
from osmotic.plugins.models.decoding import by_length, decode, right_pad, text_of
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ComponentError, ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np

Dtype = Literal["float32", "bfloat16"]


class LoraConfig(Config):
    """Low-rank adapters for training (peft). The adapters' start depends on nothing but the model."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    target_modules: tuple[str, ...] = Field(("q_proj", "k_proj", "v_proj", "o_proj"), strict=False, min_length=1)


class CausalConfig(Config):
    """Keys that every causal model has."""

    layers: int | None = Field(None, ge=1, description="Keep the first N layers only.")
    dtype: Dtype = Field("float32", description="Of the loaded weights; bfloat16 also trains under bfloat16 autocast.")
    chat: bool = Field(False, description="Put each prompt into the tokenizer's chat template, as the user's turn.")
    lora: LoraConfig | None = Field(None, description="Train adapters instead of all weights.")
    batch_tokens: int = Field(16384, ge=1, description="Tokens of one forward batch, padding and new tokens included.")
    max_prompt_tokens: int | None = Field(None, ge=1, description="Cut longer prompts from the left.")


def fingerprint_of(files: dict[str, str], config: CausalConfig) -> str:
    """SHA-256 over file digests and every setting that decides what the model is (not how fast it runs)."""
    settings = config.model_dump(mode="json", exclude={"path", "batch_tokens"})
    return hashlib.sha256(canonical({"files": files, "settings": settings})).hexdigest()


def load_module(source: str, config: CausalConfig, **options: Any) -> tuple[Any, Any]:
    """(module in eval mode, tokenizer) of a local directory or hub name. Raises ConfigError when it cannot be loaded."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        with quiet():
            settings = AutoConfig.from_pretrained(source, trust_remote_code=False, **options)
            _shorten(settings, config.layers, source)
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
            module = AutoModelForCausalLM.from_pretrained(
                source,
                config=settings,
                dtype=getattr(torch, config.dtype),
                trust_remote_code=False,
                use_safetensors=True,
                **options,
            )
    except (OSError, ValueError, KeyError) as error:
        why = " ".join(str(error).split())[:300]
        fix = "give a directory with config.json, model.safetensors and tokenizer.json, or a name of the hub"
        raise ConfigError(Problem(f"the model {source!r} cannot be loaded", why=why, fix=fix)) from error
    if config.chat and not getattr(tokenizer, "chat_template", None):
        raise ConfigError(Problem(f"the tokenizer of {source!r} has no chat template", fix="chat: false"))
    return module.eval(), tokenizer


def _shorten(settings: Any, layers: int | None, source: str) -> None:
    if layers is None:
        return
    if layers > settings.num_hidden_layers:
        raise ConfigError(Problem(f"layers: {layers}, but {source!r} has {settings.num_hidden_layers}"))
    settings.num_hidden_layers = layers
    if getattr(settings, "layer_types", None):
        settings.layer_types = settings.layer_types[:layers]


class quiet:  # noqa: N801 - reads as a word where it is used
    """No progress bars and load reports while a model is loaded; what was set before comes back."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self.bars, self.level = logging.is_progress_bar_enabled(), logging.get_verbosity()
        logging.disable_progress_bar()
        logging.set_verbosity_error()

    def __exit__(self, *exc: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self.level)
        if self.bars:
            logging.enable_progress_bar()


class CausalModel:
    """A loaded model. A TextGenerator, Scorer, NextToken and Trainable; weights trained from it name `fingerprint` as base."""

    def __init__(self, loaded: tuple[Any, Any], config: CausalConfig, fingerprint: str) -> None:
        self.config = config
        self.fingerprint = fingerprint
        self.dtype: Dtype = config.dtype
        self.module, self.tokenizer = loaded

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt, special tokens or chat template included; uncut."""
        return encode_prompts(self.tokenizer, texts, self.config.chat)

    def generate(self, prompts: Sequence[str], how: Generation) -> list[Answer]:
        """One answer a prompt, in order. Raises ComponentError when a prompt does not fit into the model."""
        encoded = [self._fit(i, ids, how.max_new_tokens) for i, ids in enumerate(self.encode_prompts(prompts))]
        answers: dict[int, Answer] = {}
        for group in by_length([len(ids) for ids in encoded], how.max_new_tokens, self.config.batch_tokens):
            made = decode(self.module, self.tokenizer, [encoded[i] for i in group], how, self._ends())
            answers.update(zip(group, made, strict=True))
        return [answers[i] for i in range(len(encoded))]

    def log_likelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
        """(sum of log-probabilities, number of tokens) of each target given its prompt; the end token is not counted."""
        targets = self.tokenizer([target for _, target in pairs], add_special_tokens=False)["input_ids"] if pairs else []
        heads = self.encode_prompts([prompt for prompt, _ in pairs])
        rows = [(self._fit(i, h, len(t)), t) for i, (h, t) in enumerate(zip(heads, targets, strict=True))]
        scores: dict[int, tuple[float, int]] = {}
        for group in by_length([len(h) + len(t) for h, t in rows], 0, self.config.batch_tokens):
            scores.update(zip(group, self._score([rows[i] for i in group]), strict=True))
        return [scores[i] for i in range(len(rows))]

    def _score(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, int]]:
        import torch

        ids, mask = right_pad([head + tail for head, tail in rows], 0)
        with torch.inference_mode():
            logits = self.module(input_ids=ids, attention_mask=mask, use_cache=False).logits
        found = []
        for i, (head, tail) in enumerate(rows):
            at = logits[i, len(head) - 1 : len(head) + len(tail) - 1].double().log_softmax(-1)
            found.append((float(at.gather(1, torch.tensor(tail, dtype=torch.long)[:, None]).sum()), len(tail)))
        return found

    @property
    def vocabulary(self) -> int:
        """Number of tokens: columns of the logits."""
        return stepping.columns(self.module)

    @property
    def end(self) -> int:
        """The token that ends an answer; -1, which never comes, where the tokenizer has none."""
        end = self.tokenizer.eos_token_id
        return -1 if end is None else int(end)

    def start(self, prompts: Sequence[str]) -> "tuple[stepping.Stepping, np.ndarray]":
        """(state, float32 [n, vocabulary] logits of the token after each prompt). Raises ComponentError for unfit prompts."""
        rows = [self._fit(i, ids, 1) for i, ids in enumerate(self.encode_prompts(prompts))]
        pad = self.tokenizer.pad_token_id
        return stepping.start(self.module, rows, 0 if pad is None else pad)

    def fits(self, prompt: str, new: int) -> bool:
        """Whether a prompt has a token, and room in the model for `new` ones after it."""
        ids = self.encode_prompts([prompt])[0]
        most = self.config.max_prompt_tokens
        held, positions = len(ids) if most is None else min(len(ids), most), self._positions()
        return held > 0 and (positions is None or held + new <= positions)

    def advance(self, state: stepping.Stepping, tokens: Sequence[int]) -> "tuple[stepping.Stepping, np.ndarray]":
        """(state, logits) after one more token for each prompt; the state given is used up."""
        return stepping.advance(self.module, state, tokens)

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as text, without special ones."""
        return text_of(tokens, self.tokenizer)

    def trainable(self) -> tuple[Any, Any]:
        """A fresh float32 copy of the module (with untrained adapters where configured) and the tokenizer."""
        module = copy.deepcopy(self.module).float()
        if self.config.lora is None:
            return module.train(), self.tokenizer
        return with_adapters(module, self.config.lora).train(), self.tokenizer

    def with_weights(self, weights: Weights) -> "CausalModel":
        """This model with trained weights in place. Raises ComponentError when they belong to another model."""
        import torch

        if weights.meta.get("base") != self.fingerprint:
            why = f"trained from {str(weights.meta.get('base'))[:12]}, this model is {self.fingerprint[:12]}"
            raise ComponentError(
                Problem("the weights belong to another model", why=why, fix="use the model they were trained from")
            )
        module, tokenizer = self.trainable()
        put_tensors(module, weights)
        if self.config.lora is not None:
            module = module.merge_and_unload()
        ready = module.to(getattr(torch, self.dtype)).eval()
        return CausalModel((ready, tokenizer), self.config, self.fingerprint)

    def _ends(self) -> frozenset[int]:
        """Every token that ends an answer, from the tokenizer and from the generation settings."""
        settings = getattr(self.module, "generation_config", None)
        listed = getattr(settings, "eos_token_id", None)
        more = listed if isinstance(listed, list) else [listed]
        return frozenset(i for i in (self.tokenizer.eos_token_id, *more) if i is not None)

    def _positions(self) -> int | None:
        return getattr(self.module.config, "max_position_embeddings", None)

    def _fit(self, index: int, ids: list[int], new: int) -> list[int]:
        positions = self._positions()
        if self.config.max_prompt_tokens is not None:
            ids = ids[-self.config.max_prompt_tokens :]
        if not ids:
            raise ComponentError(Problem(f"prompt {index} has no tokens", fix="check the template"))
        if positions is not None and len(ids) + new > positions:
            why = f"{len(ids)} tokens and {new} new ones; the model has {positions} positions"
            raise ComponentError(Problem(f"prompt {index} is too long", why=why, fix="set the model's max_prompt_tokens"))
        return ids


def encode_prompts(tokenizer: Any, texts: Sequence[str], chat: bool = False) -> list[list[int]]:
    """Token ids of prompts; an end token that a tokenizer appends on its own is taken off."""
    if not texts:
        return []
    if chat:
        shown = [
            tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
            for text in texts
        ]
        return [list(ids) for ids in tokenizer(shown, add_special_tokens=False)["input_ids"]]
    encoded = [list(ids) for ids in tokenizer(list(texts))["input_ids"]]
    return [ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids for ids in encoded]


def with_adapters(module: Any, lora: LoraConfig) -> Any:
    """The module with fresh adapters; their start is the same at every party (seeded; torch's generator is put back)."""
    import torch
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    wanted = PeftConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.target_modules), lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads names that transformers has renamed
        torch.manual_seed(0)
        try:
            return get_peft_model(module, wanted)
        except ValueError as error:
            raise ConfigError(Problem("the adapters do not fit the model", why=str(error)[:300])) from error


def put_tensors(module: Any, weights: Weights) -> None:
    """Load named tensors into the trainable parameters. Raises ComponentError on missing, unknown or misshapen ones."""
    import torch

    wanted = {name: p for name, p in module.named_parameters() if p.requires_grad}
    odd = weights.misfits({name: tuple(p.shape) for name, p in wanted.items()})
    if odd:
        raise ComponentError(Problem("the weights do not fit the model", why=f"{len(odd)} tensors differ, first {odd[0]!r}"))
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(torch.from_numpy(weights.tensors[name]))


def read_json(path: Path) -> Any:
    """A JSON file's value; None when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
