# SPDX-License-Identifier: Apache-2.0
"""A masked language model made of a causal one: words for the one ``[MASK]`` of a text, by what stands on both sides.

The candidates are the causal model's likeliest next words after the text on the left of the mask; each is then weighed by how
likely it makes the first tokens on the right: log p(word | left) + log p(right | left, word). By the chain rule that orders
the candidates as the probability of the whole does, up to where the right side is cut. What no left context suggests is never a
candidate: a true masked model (`transformers-masked`) is better where there is one.

A mask after white space, or at the beginning, stands for a new word; after anything else for the rest of one. Tokens that spell
the other are no candidates, where a tokenizer marks the beginnings of words. A text's candidates do not depend on its company.
"""

import copy
import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from osmotic.plugins.contract import Config, ModelPlugin
from osmotic.plugins.models.causal import CausalModel
from osmotic.plugins.models.decoding import accepts, not_numbers
from osmotic.plugins.models.masked import MASK, spelled
from osmotic.plugins.models.options import LOGITS, Device, Dtype
from osmotic.plugins.models.smollm2 import SmolLm2, SmolLm2Config
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ComponentError, ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np

MARKS = ("Ġ", "▁")  # how tokenizers spell the space before a word
PIECE = "##"  # and how others spell what continues one


class FillConfig(Config):
    """How a causal model fills a mask."""

    candidates: int = Field(64, ge=1, description="Next words by the left side that are weighed by the right side.")
    right_tokens: int = Field(8, ge=0, description="Tokens of the right side that weigh; 0: the left side alone.")
    device: Device = Field("auto", description="auto: a CUDA device where there is one.")
    dtype: Dtype = Field("float32", description="Of the loaded weights.")
    batch_tokens: int = Field(16384, ge=1, description="Tokens that are in work at a time, the left side of each included.")


class CausalFillConfig(FillConfig):
    """Which causal model, and how it fills a mask."""

    path: str = Field(description="A directory, a .gguf file, 'osmotic:NAME' for a shipped one, or a name of the model hub.")
    revision: str = Field("main", description="Branch, tag or commit; for names of the hub only.")


class CausalFill(ModelPlugin[CausalFillConfig]):
    """Masks filled by any decoder-only model that the plugin `transformers` loads."""

    name = "causal-fill"
    provides: ClassVar[frozenset[str]] = frozenset({"masked_lm"})

    def fingerprint(self) -> str:
        """SHA-256 of the causal model's and of how masks are filled."""
        return _fingerprint(self._inner(), self.config)

    def memory(self, training: bool) -> int | None:
        """Bytes of the causal model; None where these are not known."""
        return self._inner().memory(False)

    def build(self) -> "FillModel":
        """The loaded model. Raises ConfigError for an encoder-decoder model, or when it cannot be loaded."""
        model = self._inner().build()
        if not isinstance(model, CausalModel):
            what = f"{self.config.path!r} is an encoder-decoder model: it has no next word"
            raise ConfigError(Problem(what, path="path", fix="give a decoder-only model"))
        return FillModel(model, self.config.candidates, self.config.right_tokens)

    def _inner(self) -> TransformersModel:
        given = {"path": self.config.path, "revision": self.config.revision, **_shared(self.config)}
        return TransformersModel(TransformersConfig.model_validate(given))


class SmolLm2Fill(ModelPlugin[FillConfig]):
    """Masks filled by the SmolLM2 that a registry package ships: see `smollm2`."""

    name = "smollm2-fill"
    provides: ClassVar[frozenset[str]] = frozenset({"masked_lm"})

    def fingerprint(self) -> str:
        """SHA-256 of the shipped model's and of how masks are filled."""
        return _fingerprint(self._inner(), self.config)

    def memory(self, training: bool) -> int | None:
        """Bytes, roughly; None before the model has been converted."""
        return self._inner().memory(False)

    def build(self) -> "FillModel":
        """The loaded model; converts it first where that has not been done."""
        return FillModel(self._inner().build(), self.config.candidates, self.config.right_tokens)

    def _inner(self) -> SmolLm2:
        return SmolLm2(SmolLm2Config.model_validate({"chat": False, **_shared(self.config)}))


class FillModel:
    """A loaded causal model that fills masks. A MaskedLM; log-probabilities are among the candidates of a text."""

    def __init__(self, model: CausalModel, candidates: int = 64, right_tokens: int = 8) -> None:
        self.model, self.candidates, self.right_tokens = model, candidates, right_tokens

    def vocabulary(self) -> tuple[str, ...]:
        """Every token as its tokenizer spells it, in the order of the columns; empty for special tokens and unnamed columns."""
        return self._vocabulary

    @cached_property
    def _vocabulary(self) -> tuple[str, ...]:
        tokenizer = self.model.tokenizer
        reserved = {i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
        return spelled(tokenizer, self.model.vocabulary, {*tokenizer.all_special_ids, *reserved})

    def fill(self, texts: Sequence[str], top_k: int) -> list[list[tuple[str, float]]]:
        """(token, log-probability among the text's candidates), best first: `top_k` of them, or as many as there are.

        Raises ComponentError unless a text has exactly one ``[MASK]`` and fits into the model.
        """
        import numpy as np

        found = []
        for _, tokens, right in self._looked_up(texts):
            log = right - right.max()
            log -= np.log(np.exp(log).sum())
            order = np.argsort(-log, kind="stable")[:top_k].tolist()
            found.append([(self._vocabulary[tokens[i]], float(log[i])) for i in order])
        return found

    def logits(self, texts: Sequence[str]) -> "np.ndarray":
        """float32 [n, V]: log p(token | left) + log p(right | left, token) of the candidates.

        All others have the lowest right side of any candidate, so that they come after the candidates that they are like.
        """
        import numpy as np

        out = np.empty((len(texts), len(self._vocabulary)), dtype=np.float32)
        for row, (left, tokens, both) in zip(out, self._looked_up(texts), strict=True):
            row[:] = left + (both - left[tokens]).min()
            row[tokens] = both
        return out

    def fits(self, text: str) -> bool:
        """Whether a text, of one mask, has room in the model: its left side, the word, and what weighs of the right side."""
        return self._room(len(self._sides(text)[0]))

    def _room(self, left: int) -> bool:
        positions = getattr(self.model.module.config.get_text_config(decoder=True), "max_position_embeddings", None)
        return positions is None or left + 1 + self.right_tokens <= positions

    def _looked_up(self, texts: Sequence[str]) -> "list[tuple[np.ndarray, list[int], np.ndarray]]":
        """(log-probabilities by the left side [V], candidates, both sides' [m]) of each text; alike texts once."""
        known: dict[str, tuple[np.ndarray, list[int], np.ndarray]] = {}
        for i, text in enumerate(texts):
            if text in known:
                continue
            if text.count(MASK) != 1:
                raise ComponentError(Problem(f"text {i} must have exactly one {MASK} (it has {text.count(MASK)})"))
            left, right = self._sides(text)
            if not self._room(len(left)):
                why = f"{len(left)} tokens stand before its mask"
                raise ComponentError(Problem(f"text {i} is too long for the model", why=why, fix="shorten the texts"))
            known[text] = self._weighed(left, right, text.partition(MASK)[0])
        return [known[text] for text in texts]

    def _sides(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids before the mask (a token that begins or ends texts, where there is nothing), and after it."""
        before, _, after = text.partition(MASK)
        tokenizer = self.model.tokenizer
        left = self.model.encode_prompts([before.rstrip()])[0]
        start = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), 0)
        return left or [start], self._after(after)[: self.right_tokens]

    def _after(self, text: str) -> list[int]:
        """Tokens of what follows a word: a tokenizer may begin a text of its own in another way."""
        if not text.strip():
            return []
        encode = self.model.tokenizer
        if text[0].isspace():
            word, whole = (list(encode(t, add_special_tokens=False, verbose=False)["input_ids"]) for t in ("a", "a" + text))
            if word and whole[: len(word)] == word:
                return whole[len(word) :]
        return list(encode(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _weighed(self, left: list[int], right: list[int], before: str) -> "tuple[np.ndarray, list[int], np.ndarray]":
        import numpy as np
        import torch

        module, ids = self.model.module, torch.tensor([left], device=self.model.device)
        last = {"logits_to_keep": 1} if accepts(module, "logits_to_keep") else {}
        with torch.inference_mode():
            out = module(input_ids=ids, use_cache=True, **last)
            first = out.logits[0, -1].double().log_softmax(-1).cpu().numpy()
        if np.isnan(first).any():
            raise ComponentError(not_numbers())
        allowed = self._allowed[not before or before[-1].isspace()]
        tokens = allowed[np.argsort(-first[allowed], kind="stable")[: self.candidates]].tolist()
        both = first[tokens]
        if right:
            both = both + self._right(left, tokens, right, getattr(out, "past_key_values", None))
        return first, tokens, both

    @cached_property
    def _allowed(self) -> "dict[bool, np.ndarray]":
        """Columns that may stand at a mask: {True: at the beginning of a word, False: within one}."""
        import numpy as np

        words = self._vocabulary
        named = [i for i, word in enumerate(words) if word]
        if any(words[i].startswith(MARKS) and len(words[i]) > 1 for i in named):
            parted = {begins: [i for i in named if words[i].startswith(MARKS) is begins] for begins in (True, False)}
        else:
            parted = {True: [i for i in named if not words[i].startswith(PIECE)], False: named}
        return {begins: np.array(found or named, dtype=np.int64) for begins, found in parted.items()}

    def _right(self, left: list[int], tokens: list[int], right: list[int], cache: Any) -> "np.ndarray":
        """log p(right | left, token) of each token, float64 [m]; the left side is computed once, and shared."""
        import numpy as np

        rows = self.model.config.batch_tokens // (len(left) + len(right))
        step = max(1, min(rows, LOGITS // (len(right) * self.model.vocabulary)))
        parts = [self._part(left, tokens[i : i + step], right, cache) for i in range(0, len(tokens), step)]
        return np.concatenate(parts)

    def _part(self, left: list[int], tokens: list[int], right: list[int], cache: Any) -> "np.ndarray":
        import torch

        shared: dict[str, Any] = {"use_cache": False}
        rows = [[*left, token, *right[:-1]] for token in tokens]
        if hasattr(cache, "batch_repeat_interleave"):
            kept = copy.deepcopy(cache)
            kept.batch_repeat_interleave(len(tokens))
            shared, rows = {"past_key_values": kept, "use_cache": True}, [row[len(left) :] for row in rows]
        if accepts(self.model.module, "logits_to_keep"):
            shared["logits_to_keep"] = len(right)
        wanted = torch.tensor(right, device=self.model.device)
        with torch.inference_mode():
            logits = self.model.module(input_ids=torch.tensor(rows, device=self.model.device), **shared).logits
            table = logits[:, -len(right) :].float()
            picked = table.gather(-1, wanted.expand(len(tokens), -1)[..., None])[..., 0]
            found: np.ndarray = (picked - table.logsumexp(-1)).double().sum(1).cpu().numpy()
        return found


def _shared(config: FillConfig) -> dict[str, Any]:
    return {"device": config.device, "dtype": config.dtype, "batch_tokens": config.batch_tokens}


def _fingerprint(inner: ModelPlugin[Any], config: FillConfig) -> str:
    said = {"fill": inner.fingerprint(), "candidates": config.candidates, "right_tokens": config.right_tokens}
    return hashlib.sha256(canonical(said)).hexdigest()
