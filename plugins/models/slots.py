# SPDX-License-Identifier: Apache-2.0
"""Continuous batching for causal models: a key-value cache of fixed slots, refilled as rows end, with one shared prefix.

Every row has a slot of its own, filled from position 0 without padding; what a row may see is said by a mask of its own
length. What all prompts begin with (the demonstrations of a template, say) is computed once and copied into the slots. A slot
whose row has ended takes the next prompt, so that the batch stays full; no tensor grows from token to token.

This needs a model that takes a mask of its own and keeps plain keys and values. Whether one does is not read off its name: it
is tried, on the model itself, with a few tokens (`fits_slots`); other models decode in lockstep.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from osmotic.plugins.models.decoding import Ends, Row, choose

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = {"cpu": 1024, "cuda": 8192}  # prompt tokens of one forward pass
LEAST_PREFIX = 8  # tokens, below which a shared prefix is not worth its copies
UNEQUAL = 2.0  # rows share slots while the longest is at most this many times as long as the shortest
WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")  # how configurations call it
DIFFER = {"float32": 1e-3, "bfloat16": 0.15, "float16": 0.05}  # of logits, in their standard deviations


@dataclass
class _Pass:
    """The size of the pool, and what its current forward pass writes: slots [k, 1] from `first` on, positions in them [k, q].

    upto: how many positions are read. The layers know this and nothing else of the pool: what refers to it in a circle would
    keep its memory until the garbage collector comes by.
    """

    count: int
    room: int
    slots: "Tensor | None" = None
    places: "Tensor | None" = None
    first: int = 0
    upto: int = 0


@dataclass
class _Layer:
    """Keys and values of one layer, [slots, heads, positions + 1, width]; the last position takes what padding writes."""

    at: _Pass
    keys: "Tensor | None" = None
    values: "Tensor | None" = None
    is_initialized: bool = field(default=True, init=False)
    is_compileable: bool = field(default=False, init=False)
    is_sliding: bool = field(default=False, init=False)
    is_croppable: bool = field(default=False, init=False)

    def update(self, keys: "Tensor", values: "Tensor", *_: Any, **__: Any) -> "tuple[Tensor, Tensor]":
        """Write [k, heads, q, width] at the places that the pool names; return all that those slots hold."""
        if self.keys is None or self.values is None:
            self.keys, self.values = self._empty(keys), self._empty(values)
        at = self.at
        self.keys[at.slots, :, at.places] = keys.transpose(1, 2)
        self.values[at.slots, :, at.places] = values.transpose(1, 2)
        rows = slice(at.first, at.first + len(keys))
        return self.keys[rows, :, : at.upto], self.values[rows, :, : at.upto]

    def _empty(self, like: "Tensor") -> "Tensor":
        return like.new_zeros((self.at.count, like.shape[1], self.at.room + 1, like.shape[3]))

    def get_seq_length(self) -> int:
        """Positions in use."""
        return self.at.upto

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(positions read, offset)."""
        return self.at.upto, 0

    def get_max_length(self) -> int:
        """Positions that a slot has."""
        return self.at.room


class Slots:
    """`count` slots of `room` positions in every layer of a module; the first `active` of them are in use."""

    def __init__(self, module: Any, count: int, room: int) -> None:
        from transformers.cache_utils import Cache

        self.module, self.count, self.room = module, count, room
        self.device = next(module.parameters()).device
        self.chunk = CHUNK.get(self.device.type, CHUNK["cuda"])
        self._at = _Pass(count, room)
        self._layers = [_Layer(self._at) for _ in range(module.config.get_text_config(decoder=True).num_hidden_layers)]
        self._cache = Cache(layers=self._layers)

    def feed(self, first: int, rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> "Tensor":
        """Logits [k, V] after more tokens for the slots from `first` on, which hold `lengths` positions already.

        Rows may be of unequal length: they end together, padded in front, in chunks.
        """
        import torch

        width, step = max(map(len, rows)), max(1, self.chunk // len(rows))
        ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=self.device)
        starts = torch.tensor([n - (width - len(row)) for n, row in zip(lengths, rows, strict=True)], device=self.device)
        held = torch.tensor(lengths, device=self.device)
        with torch.inference_mode():
            for begin in range(0, width, step):
                part = ids[:, begin : begin + step]
                places = starts[:, None] + torch.arange(begin, begin + part.shape[1], device=self.device)
                logits = self._forward(first, part, places, held, max(map(sum, zip(lengths, map(len, rows), strict=True))))
        return logits

    def _forward(self, first: int, ids: "Tensor", places: "Tensor", held: "Tensor", upto: int) -> "Tensor":
        import torch

        slots = torch.arange(first, first + len(ids), device=self.device)[:, None]
        real = places >= held[:, None]
        self._at.slots, self._at.places = slots, torch.where(real, places, self.room)
        self._at.first, self._at.upto = first, upto
        seen = torch.arange(upto, device=self.device) <= places.clamp(min=0)[:, :, None]
        dtype = self.module.get_input_embeddings().weight.dtype
        mask = torch.zeros(seen.shape, dtype=dtype, device=self.device).masked_fill_(~seen, torch.finfo(dtype).min)
        out = self.module(
            input_ids=ids,
            attention_mask=mask[:, None],
            position_ids=places.clamp(min=0),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        found: Tensor = out.logits[:, -1]
        return found

    def share(self, length: int) -> None:
        """Copy the first `length` positions of slot 0 into all the others."""
        import torch

        with torch.inference_mode():
            for tensor in self._tensors():
                tensor[1:, :, :length] = tensor[:1, :, :length]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy `length` positions of one slot over another."""
        import torch

        with torch.inference_mode():
            for tensor in self._tensors():
                tensor[target, :, :length] = tensor[source, :, :length]

    def _tensors(self) -> "list[Tensor]":
        return [t for layer in self._layers for t in (layer.keys, layer.values) if t is not None]


def stream(module: Any, rows: Sequence[Row], ends: Ends, budget: int) -> Iterator[Row]:
    """The rows, each as it ends. budget: positions of all slots together."""
    new = ends.how.max_new_tokens
    waiting = sorted(rows, key=lambda row: (-len(row.prompt), row.index))
    while waiting:
        room = len(waiting[0].prompt) + new
        group = [row for row in waiting if UNEQUAL * (len(row.prompt) + new) >= room]
        waiting = waiting[len(group) :]
        yield from _stream_group(Slots(module, max(1, min(len(group), budget // room)), room), group, ends)


def _stream_group(pool: Slots, waiting: Sequence[Row], ends: Ends) -> Iterator[Row]:
    queue = list(waiting)
    prefix = common_prefix([row.prompt for row in queue]) if len(queue) > 1 else 0
    if prefix < LEAST_PREFIX:
        prefix = 0
    else:
        pool.feed(0, [queue[0].prompt[:prefix]], [0])
        pool.share(prefix)
    active: list[Row] = []
    lengths: list[int] = []  # positions that each active slot holds
    filling = True
    while queue or active:
        free = pool.count - len(active)
        filling = bool(queue and free and (filling or not active or free >= pool.count // 8))
        if filling:
            # neighbours in the queue are of like length, so that few of them together need little padding
            count = min(free, max(1, pool.chunk // (len(queue[0].prompt) - prefix)))
            fresh, queue = queue[:count], queue[count:]
            logits = pool.feed(len(active), [row.prompt[prefix:] for row in fresh], [prefix] * len(fresh))
            ends.extend(fresh, choose(logits, ends.how, fresh))
            active, lengths = active + fresh, lengths + [len(row.prompt) for row in fresh]
        else:
            logits = pool.feed(0, [row.ids[-1:] for row in active], lengths)
            lengths = [n + 1 for n in lengths]
            ends.extend(active, choose(logits, ends.how, active))
        yield from _leave(pool, active, lengths, ends)


def _leave(pool: Slots, active: list[Row], lengths: list[int], ends: Ends) -> list[Row]:
    """Take the rows that are done out of the batch; the last ones move into their slots."""
    done = [i for i, row in enumerate(active) if ends.done(row)]
    left = [active[i] for i in done]
    for i in reversed(done):
        row, length = active.pop(), lengths.pop()
        if i < len(active):
            pool.move(len(active), i, length)
            active[i], lengths[i] = row, length
    return left


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with; each keeps at least one of its own."""
    low, high = min(map(tuple, prompts)), max(map(tuple, prompts))
    same = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return min(same, min(map(len, prompts)) - 1)


def fits_slots(module: Any, dtype: str) -> bool:
    """Whether slots give this module's own logits: two rows of unequal length behind a prefix, then one more token each."""
    import torch

    columns = int(module.get_input_embeddings().weight.shape[0])
    prompts = [[(7 * i + 3 * n) % columns for i in range(n)] for n in (7, 4)]
    prompts = [[1 % columns, 2 % columns, *prompt] for prompt in prompts]
    try:
        pool = Slots(module, 2, 12)
        pool.feed(0, [prompts[0][:2]], [0])
        pool.share(2)
        found = [pool.feed(0, [prompt[2:] for prompt in prompts], [2, 2])]
        found.append(pool.feed(0, [[5 % columns], [6 % columns]], [len(prompt) for prompt in prompts]))
        wanted = []
        with torch.inference_mode():
            for rows in (prompts, [[*prompts[0], 5 % columns], [*prompts[1], 6 % columns]]):
                made = [module(input_ids=torch.tensor([row], device=pool.device), use_cache=False).logits for row in rows]
                wanted.append(torch.stack([logits[0, -1] for logits in made]))
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError):
        return False
    gap = max(float((a.float() - b.float()).abs().max()) for a, b in zip(found, wanted, strict=True))
    return gap <= DIFFER.get(dtype, 0.0) * max(float(b.float().std()) for b in wanted)


def window_of(module: Any) -> int | None:
    """The shortest window of attention that a layer has; slots hold more only where there is none. None: no layer has one."""
    config = module.config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None)
    windows = [value for key in WINDOWS if isinstance(value := getattr(config, key, None), int) and value > 0]
    full = (kinds and set(kinds) == {"full_attention"}) or getattr(config, "use_sliding_window", True) is False
    return None if full or not windows else min(windows)


def changes_with_length(module: Any, longest: int) -> bool:
    """Whether rows of so many positions turn the module's rotary frequencies over, for every row of their batch."""
    config = module.config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    for one in (rope, *(part for part in rope.values() if isinstance(part, dict))):
        known = one.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        short = known or getattr(config, "max_position_embeddings", None)
        if one.get("rope_type") in ("longrope", "dynamic") and short is not None and longest > short:
            return True
    return False
