# SPDX-License-Identifier: Apache-2.0
"""Encoder-decoder language models of transformers (T5, BART and their like): generation, scores, training copies.

The encoder reads the prompt with the end token that the tokenizer appends; the decoder begins with the model's own start token.
A token that a generation configuration forces to come first is not forced: a student is trained without one.
"""

from collections.abc import Sequence

from osmotic.plugins.models.decoding import right_pad
from osmotic.plugins.models.local import LocalModel, Pair, encode_prompts, likelihoods
from osmotic.plugins.models.lockstep import encode, first_token
from osmotic.schemas.errors import Problem


class Seq2SeqModel(LocalModel):
    """A loaded encoder-decoder model. A TextGenerator, Scorer and Trainable (module.config.is_encoder_decoder says which)."""

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt for the encoder, end token included; uncut."""
        return encode_prompts(self.tokenizer, texts, self.config.chat, keep_end=True)

    def _score(self, rows: Sequence[Pair]) -> list[tuple[float, int]]:
        import torch

        hidden, mask = encode(self.module, [head for head, _ in rows])
        first = first_token(self.module)
        ids, seen = (t.to(self.device) for t in right_pad([[first, *tail[:-1]] for _, tail in rows], 0))
        with torch.inference_mode():
            logits = self.module(
                encoder_outputs=(hidden,),
                attention_mask=mask,
                decoder_input_ids=ids,
                decoder_attention_mask=seen,
                use_cache=False,
            ).logits
        return likelihoods(logits, [(0, tail) for _, tail in rows])

    def _too_long(self, index: int, held: int, new: int) -> Problem | None:
        positions = self._positions()
        if positions is None or max(held, new + 1) <= positions:
            return None
        why = f"{held} tokens, {new} new ones; encoder and decoder have {positions} positions each"
        return Problem(f"prompt {index} is too long", why=why, fix="set the model's max_prompt_tokens, or shorten the answer")
