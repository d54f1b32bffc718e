# SPDX-License-Identifier: Apache-2.0
"""Batched decoding for causal language models: left padding, a key-value cache, rows that end leave the batch.

Sampling draws from a stream of each prompt's own (seed, prompt), by inverse CDF: torch's global generator is never
touched, and neither the order nor the company of a prompt in its batch decides its draws.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from osmotic.plugins.contract import Answer, Generation

if TYPE_CHECKING:
    from torch import Tensor


def left_pad(rows: Sequence[Sequence[int]], pad: int) -> "tuple[Tensor, Tensor]":
    """(ids, mask), int64 [n, longest], the padding on the left."""
    return _padded(rows, pad, left=True)


def right_pad(rows: Sequence[Sequence[int]], pad: int) -> "tuple[Tensor, Tensor]":
    """(ids, mask), int64 [n, longest], the padding on the right."""
    return _padded(rows, pad, left=False)


def _padded(rows: Sequence[Sequence[int]], pad: int, left: bool) -> "tuple[Tensor, Tensor]":
    import torch

    width = max(len(row) for row in rows)
    ids, mask = [], []
    for row in rows:
        fill = width - len(row)
        real, blank = [1] * len(row), [0] * fill
        ids.append([pad] * fill + list(row) if left else list(row) + [pad] * fill)
        mask.append(blank + real if left else real + blank)
    return torch.tensor(ids), torch.tensor(mask)


def by_length(lengths: Sequence[int], extra: int, budget: int) -> Iterator[list[int]]:
    """Groups of indices, long rows first, so that rows x (longest + extra) stays within the budget of tokens."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        widest = lengths[group[0]] if group else lengths[index]
        if group and (len(group) + 1) * (widest + extra) > budget:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


@dataclass
class _Row:
    """One answer in the making."""

    rng: random.Random | None
    ids: list[int] = field(default_factory=list)
    text: str | None = None  # set when the row has ended by itself


def decode(
    module: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], how: Generation, ends: frozenset[int]
) -> list[Answer]:
    """One answer a tokenised prompt, in order. `ends`: the tokens that end an answer."""
    import torch

    rows = [_Row(_stream(how, prompt)) for prompt in prompts]
    active = list(rows)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    ids, mask = left_pad(prompts, pad)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = None
    with torch.inference_mode():
        for step in range(how.max_new_tokens):
            out = module(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache, chosen = out.past_key_values, _choose(out.logits[:, -1].float(), how, active)
            _extend(active, chosen, tokenizer, how, ends)
            left = [i for i, row in enumerate(active) if row.text is None]
            if not left or step + 1 == how.max_new_tokens:
                break
            if len(left) < len(active):
                keep = torch.tensor(left)
                cache.batch_select_indices(keep)
                mask, positions = mask[keep], positions[keep]
                active, chosen = [active[i] for i in left], [chosen[i] for i in left]
            ids = torch.tensor(chosen)[:, None]
            mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
            positions = positions[:, -1:] + 1
    return [_answer(row, tokenizer) for row in rows]


def _stream(how: Generation, prompt: Sequence[int]) -> random.Random | None:
    if how.temperature <= 0:
        return None
    key = f"{how.seed}:{','.join(map(str, prompt))}"
    return random.Random(hashlib.sha256(key.encode()).digest())


def _choose(logits: "Tensor", how: Generation, rows: Sequence[_Row]) -> list[int]:
    """Greedy, or by inverse CDF within the smallest set of tokens that holds top_p of the probability."""
    import torch

    if how.temperature <= 0:
        return [int(i) for i in logits.argmax(-1)]
    probabilities, order = torch.softmax(logits.double() / how.temperature, -1).sort(descending=True, stable=True)
    cdf = probabilities.cumsum(-1)
    size = (cdf - probabilities < how.top_p).sum(-1, keepdim=True).clamp(min=1)
    kept = cdf.gather(1, size - 1)
    draws = torch.tensor([[row.rng.random() if row.rng else 0.0] for row in rows], dtype=torch.float64)
    place = torch.minimum((cdf <= draws * kept).sum(-1, keepdim=True), size - 1)
    return [int(i) for i in order.gather(1, place)[:, 0]]


def _extend(rows: Sequence[_Row], chosen: Iterable[int], tokenizer: Any, how: Generation, ends: frozenset[int]) -> None:
    for row, token in zip(rows, chosen, strict=True):
        row.ids.append(token)
        if token in ends:
            row.text = text_of(row.ids[:-1], tokenizer)
        elif how.stop:
            text = text_of(row.ids, tokenizer)
            found = [text.index(stop) for stop in how.stop if stop in text]
            row.text = text[: min(found)] if found else None


def text_of(ids: Sequence[int], tokenizer: Any) -> str:
    """Tokens as text, without special ones."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _answer(row: _Row, tokenizer: Any) -> Answer:
    text = row.text if row.text is not None else text_of(row.ids, tokenizer)
    return Answer(text, row.text is not None, len(row.ids))
