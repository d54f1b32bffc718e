# SPDX-License-Identifier: Apache-2.0
"""Decoding of a whole batch, token by token, for models that keep their own kind of cache; rows that end leave the batch.

Causal prompts are padded on the left and masked, with positions that count real tokens only. Encoder-decoder models read
their prompts padded on the right, once; all their answers begin at the same place.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from osmotic.plugins.models.decoding import Ends, Row, accepts, by_length, choose, left_pad, right_pad

if TYPE_CHECKING:
    from torch import Tensor


def stream(module: Any, rows: Sequence[Row], ends: Ends, budget: int) -> Iterator[Row]:
    """The rows, each as it ends. budget: tokens of one batch, padding and new tokens included."""
    start = _start_encoded if module.config.is_encoder_decoder else _start_causal
    for group in by_length([len(row.prompt) for row in rows], ends.how.max_new_tokens, budget):
        yield from _stream_group(start(module, [rows[i] for i in group]), [rows[i] for i in group], ends)


class _Batch(ABC):
    """A batch under way: the module, the last tokens of each row, the mask of real ones, the model's cache."""

    def __init__(self, module: Any, ids: "Tensor", mask: "Tensor") -> None:
        self._module, self._ids, self._mask, self._cache = module, ids, mask, None

    def logits(self) -> "Tensor":
        """Of the next token, [n, V]."""
        import torch

        with torch.inference_mode():
            out = self._module(attention_mask=self._mask, past_key_values=self._cache, use_cache=True, **self._inputs())
        self._cache = out.past_key_values
        found: Tensor = out.logits[:, -1]
        return found

    def go_on(self, kept: "Tensor | None", chosen: "Tensor") -> None:
        """One more token a row; kept: the rows that stay, None for all."""
        import torch

        with torch.inference_mode():
            if kept is not None:
                _select(self._cache, kept)
                self._keep(kept)
            self._ids = chosen[:, None]

    @abstractmethod
    def _inputs(self) -> dict[str, Any]:
        """What this kind of model is given besides."""

    def _keep(self, kept: "Tensor") -> None:
        self._mask = self._mask[kept]


class _Causal(_Batch):
    """A batch of a causal model; its mask is [n, seen], and each row has positions of its own."""

    def __init__(self, module: Any, ids: "Tensor", mask: "Tensor") -> None:
        super().__init__(module, ids, mask)
        self._positions = (mask.cumsum(1) - 1).clamp(min=0)
        self._takes = accepts(module, "position_ids", "logits_to_keep")

    def _inputs(self) -> dict[str, Any]:
        more: dict[str, Any] = {"position_ids": self._positions, "logits_to_keep": 1}
        return {"input_ids": self._ids, **{name: more[name] for name in self._takes}}

    def _keep(self, kept: "Tensor") -> None:
        super()._keep(kept)
        self._positions = self._positions[kept]

    def go_on(self, kept: "Tensor | None", chosen: "Tensor") -> None:
        """See `_Batch.go_on`; the token is seen, too, and has the next position."""
        import torch

        super().go_on(kept, chosen)
        with torch.inference_mode():
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(chosen), 1)], dim=1)
            self._positions = self._positions[:, -1:] + 1


class _Encoded(_Batch):
    """A batch of an encoder-decoder model; `hidden`: what the encoder gave, and the mask is that of the prompts."""

    def __init__(self, module: Any, hidden: "Tensor", mask: "Tensor", ids: "Tensor") -> None:
        super().__init__(module, ids, mask)
        self._hidden = hidden

    def _inputs(self) -> dict[str, Any]:
        return {"encoder_outputs": (self._hidden,), "decoder_input_ids": self._ids}

    def _keep(self, kept: "Tensor") -> None:
        super()._keep(kept)
        self._hidden = self._hidden[kept]


def _select(cache: Any, kept: "Tensor") -> None:
    """Keep some rows of a cache, of whatever kind it is."""
    select = getattr(cache, "batch_select_indices", None) or cache.reorder_cache
    select(kept)


def _start_causal(module: Any, rows: Sequence[Row]) -> _Causal:
    device = next(module.parameters()).device
    ids, mask = left_pad([row.prompt for row in rows], 0)
    return _Causal(module, ids.to(device), mask.to(device))


def _start_encoded(module: Any, rows: Sequence[Row]) -> _Encoded:
    import torch

    hidden, mask = encode(module, [row.prompt for row in rows])
    first = torch.full((len(rows), 1), first_token(module), device=mask.device)
    return _Encoded(module, hidden, mask, first)


def encode(module: Any, prompts: Sequence[Sequence[int]]) -> "tuple[Tensor, Tensor]":
    """(what the encoder gives [n, longest, d], mask [n, longest]) for tokenised prompts."""
    import torch

    device = next(module.parameters()).device
    ids, mask = (t.to(device) for t in right_pad(prompts, 0))
    with torch.inference_mode():
        return module.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state, mask


def first_token(module: Any) -> int:
    """The token that every answer of an encoder-decoder model begins with; it is no part of the answer."""
    config = module.config
    first = getattr(config, "decoder_start_token_id", None)
    return int(first if first is not None else getattr(config, "bos_token_id", None) or 0)


def _stream_group(batch: _Causal | _Encoded, active: Sequence[Row], ends: Ends) -> Iterator[Row]:
    import torch

    while active:
        logits = batch.logits()
        chosen = choose(logits, ends.how, active)
        ends.extend(active, chosen)
        left = [i for i, row in enumerate(active) if not ends.done(row)]
        yield from (row for row in active if ends.done(row))
        if left:
            kept = torch.tensor(left, device=logits.device) if len(left) < len(active) else None
            batch.go_on(kept, torch.tensor([chosen[i] for i in left], device=logits.device))
        active = [active[i] for i in left]
