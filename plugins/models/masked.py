# SPDX-License-Identifier: Apache-2.0
"""Masked language models of transformers (BERT and its like): candidates and logits at the one ``[MASK]`` of a text.

A model from a local directory, a shipped one (``osmotic:NAME``) or the hub. Texts always say ``[MASK]``, whatever the
tokenizer's own mask token is called.
"""

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from osmotic.plugins.contract import Config, ModelPlugin
from osmotic.plugins.models.decoding import by_length, right_pad
from osmotic.plugins.models.transformers import digests, local_folder
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ComponentError, ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np

MASK = "[MASK]"


class MaskedConfig(Config):
    """Which model, and how to load it."""

    path: str = Field(description="A directory, 'osmotic:NAME' for a shipped one, or a name of the model hub.")
    revision: str = Field("main", description="Branch, tag or commit; for names of the hub only.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Of the loaded weights.")
    batch_tokens: int = Field(4096, ge=1, description="Tokens of one forward batch, padding included.")


class TransformersMasked(ModelPlugin[MaskedConfig]):
    """Any masked model that transformers loads without code of its own."""

    name = "transformers-masked"
    provides: ClassVar[frozenset[str]] = frozenset({"masked_lm"})

    def fingerprint(self) -> str:
        """SHA-256 of the files' contents (or the hub name and revision) and of the settings."""
        import hashlib

        folder = local_folder(self.config.path)
        files = digests(folder) if folder else {f"hub:{self.config.path}": self.config.revision}
        return hashlib.sha256(canonical({"masked": files, "dtype": self.config.dtype})).hexdigest()

    def build(self) -> "MaskedModel":
        """The loaded model. Raises ConfigError when it cannot be loaded or has no mask token."""
        return MaskedModel(*_load(self.config), self.config.batch_tokens)


class MaskedModel:
    """A loaded masked model."""

    def __init__(self, module: Any, tokenizer: Any, batch_tokens: int = 4096) -> None:
        self.module, self.tokenizer, self.batch_tokens = module, tokenizer, batch_tokens

    def vocabulary(self) -> tuple[str, ...]:
        """Every token as its tokenizer spells it, in the order of the columns; empty for special tokens and unnamed columns."""
        return self._vocabulary

    @cached_property
    def _vocabulary(self) -> tuple[str, ...]:
        columns = int(self.module.get_output_embeddings().weight.shape[0])
        return spelled(self.tokenizer, columns, set(self.tokenizer.all_special_ids))

    def logits(self, texts: Sequence[str]) -> "np.ndarray":
        """float32 [n, V] at the mask. Raises ComponentError unless each text has exactly one and fits into the model."""
        import numpy as np

        rows = self._encode(texts)
        out = np.empty((len(rows), len(self._vocabulary)), dtype=np.float32)
        for group in by_length([len(row) for row in rows], 0, self.batch_tokens):
            out[group] = self._forward([rows[i] for i in group])
        return out

    def fill(self, texts: Sequence[str], top_k: int) -> list[list[tuple[str, float]]]:
        """(token, log-probability among all tokens), best first, special tokens left out."""
        import numpy as np

        named = np.array([i for i, word in enumerate(self._vocabulary) if word], dtype=np.int64)
        found = []
        for row in self.logits(texts).astype(np.float64):
            log = row - row.max()
            log -= np.log(np.exp(log).sum())
            best = named[np.argsort(-log[named], kind="stable")[:top_k]]
            found.append([(self._vocabulary[i], float(log[i])) for i in best.tolist()])
        return found

    def fits(self, text: str) -> bool:
        """Whether a text, of one mask, has room in the model."""
        limit = getattr(self.module.config, "max_position_embeddings", None)
        ids = self.tokenizer(text.replace(MASK, self.tokenizer.mask_token), verbose=False)["input_ids"]
        return limit is None or len(ids) <= min(limit, self.tokenizer.model_max_length)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        for i, text in enumerate(texts):
            if text.count(MASK) != 1:
                raise ComponentError(Problem(f"text {i} must have exactly one {MASK} (it has {text.count(MASK)})"))
        if not texts:
            return []
        shown = [text.replace(MASK, self.tokenizer.mask_token) for text in texts]
        rows = [list(ids) for ids in self.tokenizer(shown, verbose=False)["input_ids"]]
        limit = getattr(self.module.config, "max_position_embeddings", None)
        for i, row in enumerate(rows):
            if row.count(self.tokenizer.mask_token_id) != 1:
                raise ComponentError(Problem(f"text {i} names the model's mask token besides {MASK}"))
            if limit is not None and len(row) > limit:
                why = f"{len(row)} tokens, the model has {limit} positions"
                raise ComponentError(Problem(f"text {i} is too long for the masked model", why=why, fix="shorten the texts"))
        return rows

    def _forward(self, rows: Sequence[Sequence[int]]) -> Any:
        import torch

        ids, mask = right_pad(rows, self.tokenizer.pad_token_id or 0)
        with torch.inference_mode():
            logits = self.module(input_ids=ids, attention_mask=mask).logits
        at = torch.tensor([list(row).index(self.tokenizer.mask_token_id) for row in rows])
        return logits[torch.arange(len(rows)), at].float().numpy()


def spelled(tokenizer: Any, columns: int, special: Collection[int]) -> tuple[str, ...]:
    """Every token as its tokenizer spells it, in the order of the columns; empty for special tokens and unnamed columns."""
    words = [""] * columns
    for word, number in tokenizer.get_vocab().items():
        if number not in special and number < columns:
            words[number] = word
    return tuple(words)


def _load(config: MaskedConfig) -> tuple[Any, Any]:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    from osmotic.plugins.models.loading import BROKEN, quiet, refuse_foreign, whole

    folder = local_folder(config.path)
    source = str(folder) if folder else config.path
    options: dict[str, Any] = {"local_files_only": True} if folder else {"revision": config.revision}
    refuse_foreign(source)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
            found = AutoModelForMaskedLM.from_pretrained(
                source, dtype=getattr(torch, config.dtype), trust_remote_code=False, use_safetensors=True,
                output_loading_info=True, **options,
            )  # fmt: skip
            module = whole(found)
    except (SafetensorError, *BROKEN) as error:
        why = " ".join(str(error).split())[:300]
        fix = "give a directory with config.json, model.safetensors and tokenizer.json of a masked model"
        raise ConfigError(Problem(f"the masked model {source!r} cannot be loaded", why=why, fix=fix)) from error
    if tokenizer.mask_token_id is None:
        raise ConfigError(Problem(f"the tokenizer of {source!r} has no mask token", fix="give a masked model (BERT, say)"))
    return module.eval(), tokenizer
