# SPDX-License-Identifier: Apache-2.0
"""Causal language models of transformers: what the built-in model plugins build.

`CausalModel` is a text generator, a scorer, a source of next-token logits and a trainable. A prompt and its continuation are
joined as token ids, in training as in scoring. Answers are decoded in slots (see `slots`) where the model allows it.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from osmotic.plugins.models import lockstep, slots, stepping
from osmotic.plugins.models.decoding import Ends, Row, accepts, right_pad, text_of
from osmotic.plugins.models.local import LocalModel, Pair, likelihoods
from osmotic.schemas.errors import Problem

if TYPE_CHECKING:
    import numpy as np


class CausalModel(LocalModel):
    """A loaded decoder-only model. A TextGenerator, Scorer, NextToken and Trainable."""

    @cached_property
    def _slots(self) -> bool:
        return slots.fits_slots(self.module, self.dtype)

    def _decode(self, rows: Sequence[Row], ends: Ends) -> Iterator[Row]:
        longest = max((len(row.prompt) for row in rows), default=0) + ends.how.max_new_tokens
        window, budget = slots.window_of(self.module), self._budget(longest)
        way = slots if rows and (window is None or longest <= window) and self._slots else lockstep
        yield from way.stream(self.module, rows, ends, budget)

    def _budget(self, longest: int) -> int:
        return 1 if slots.changes_with_length(self.module, longest) else self.config.batch_tokens

    def _score(self, rows: Sequence[Pair]) -> list[tuple[float, int]]:
        import torch

        ids, mask = (t.to(self.device) for t in right_pad([head + tail for head, tail in rows], 0))
        first = min(len(head) for head, _ in rows) - 1
        keep = {"logits_to_keep": torch.arange(first, ids.shape[1], device=self.device)}
        if not accepts(self.module, "logits_to_keep"):
            first, keep = 0, {}
        with torch.inference_mode():
            logits = self.module(input_ids=ids, attention_mask=mask, use_cache=False, **keep).logits
        return likelihoods(logits, [(len(head) - 1 - first, tail) for head, tail in rows])

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
        rows = [self._fit(i, ids, [0]) for i, ids in enumerate(self.encode_prompts(prompts))]
        pad = self.tokenizer.pad_token_id
        return stepping.start(self.module, rows, 0 if pad is None else pad)

    def fits(self, prompt: str, new: int) -> bool:
        """Whether a prompt has a token, and room in the model for `new` ones after it."""
        held = len(self._cut(self.encode_prompts([prompt])[0]))
        return held > 0 and self._too_long(0, held, new) is None

    def advance(self, state: stepping.Stepping, tokens: Sequence[int]) -> "tuple[stepping.Stepping, np.ndarray]":
        """(state, logits) after one more token for each prompt; the state given is used up."""
        return stepping.advance(self.module, state, tokens)

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as text, without special ones."""
        return text_of(tokens, self.tokenizer)

    def _too_long(self, index: int, held: int, new: int) -> Problem | None:
        positions = self._positions()
        if positions is None or held + new <= positions:
            return None
        why = f"{held} tokens and {new} new ones; the model has {positions} positions"
        return Problem(f"prompt {index} is too long", why=why, fix="set the model's max_prompt_tokens")
