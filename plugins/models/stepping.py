# SPDX-License-Identifier: Apache-2.0
"""Next-token distributions of a causal model, one token after another, for transformers' models.

Prompts of unequal length are padded on the left and masked, with positions that count real tokens only; a key-value cache
keeps each step at one token a row. Batching changes logits by rounding alone; a mechanism whose guarantee does not allow even
that asks for one prompt at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from osmotic.plugins.models.decoding import accepts, left_pad
from osmotic.schemas.errors import ComponentError, Problem

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass
class Stepping:
    """Where a batch stands: the cache, the mask of real tokens [n, seen], and the next position of each row [n, 1]."""

    cache: Any
    mask: "Tensor"
    position: "Tensor"


def start(module: Any, rows: Sequence[Sequence[int]], pad: int) -> "tuple[Stepping, np.ndarray]":
    """(state, float32 [n, vocabulary] logits of the token after each row of token ids)."""
    import numpy as np
    import torch

    if not rows:
        empty = torch.zeros((0, 1), dtype=torch.long)
        return Stepping(None, empty, empty), np.zeros((0, columns(module)), dtype=np.float32)
    ids, mask = (t.to(_device(module)) for t in left_pad(rows, pad))
    return _forward(module, None, ids, mask, (mask.cumsum(1) - 1).clamp(min=0))


def advance(module: Any, state: Stepping, tokens: Sequence[int]) -> "tuple[Stepping, np.ndarray]":
    """(state, logits) after one more token a row; the state given is used up. Raises ComponentError when nothing more fits."""
    import torch

    if len(tokens) != len(state.mask):
        raise ComponentError(Problem(f"{len(tokens)} tokens were given for {len(state.mask)} prompts"))
    if not len(tokens):
        return start(module, [], 0)
    limit = getattr(module.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is not None and int(state.position.max()) >= limit:
        fix = "shorten the prompt (max_prompt_tokens of the model) or the answer"
        raise ComponentError(Problem("the answer does not fit into the model", why=f"it has {limit} positions", fix=fix))
    mask = torch.cat([state.mask, state.mask.new_ones(len(tokens), 1)], dim=1)
    ids = torch.tensor([[int(token)] for token in tokens], device=_device(module))
    return _forward(module, state.cache, ids, mask, state.position)


def columns(module: Any) -> int:
    """Number of columns of the logits, which may be more than the tokenizer names."""
    return int(module.get_output_embeddings().weight.shape[0])


def _device(module: Any) -> Any:
    return next(module.parameters()).device


def _forward(module: Any, cache: Any, ids: "Tensor", mask: "Tensor", at: "Tensor") -> "tuple[Stepping, np.ndarray]":
    import torch

    more: dict[str, Any] = {"position_ids": at, "logits_to_keep": 1}
    with torch.inference_mode():
        out = module(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **{name: more[name] for name in accepts(module, *more)},
        )
    return Stepping(out.past_key_values, mask, at[:, -1:] + 1), out.logits[:, -1].float().cpu().numpy()
