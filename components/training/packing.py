# SPDX-License-Identifier: Apache-2.0
"""Rows of different lengths in one forward without padding: tokens one after another, attention within each row only.

The model sees one sequence ``[1, T]`` with positions that start anew at every row. Its attention is ours: it receives, in the
place of a mask, the grid ``[1, 1, rows, width]`` of token indices (-1 where a row has ended), lays queries, keys and values out
by it, rows of like lengths together, and runs causal attention; nothing else ever sees padding, and no row can see another.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ATTENTION = "osmotic_packed"
SHORT = 32  # tokens: shorter rows are laid out together
WHOLE_LAYERS = frozenset({"full_attention"})
PROBE = ((3, 1, 2, 4, 5, 2), (2, 3), (1, 4, 2, 5))
OTHERS = ((5, 2, 4, 1, 3, 4), (2, 3), (4, 1, 5, 3))  # the same in the middle row only
PARTIAL = ("window", "chunk", "local_att", "dilat", "sparse_att", "index_topk", "softcap")  # in names of settings
WHOLE = frozenset({"max_window_layers", "use_sliding_window"})  # say nothing on their own
ERRORS = (ValueError, TypeError, RuntimeError, KeyError, IndexError, AttributeError, AssertionError)


def base_of(module: Any) -> Any:
    """The transformers model inside adapters."""
    inner = getattr(module, "get_base_model", None)
    return inner() if callable(inner) else module


def takes(module: Any, argument: str) -> bool:
    """Whether the model's forward names an argument."""
    import inspect

    return argument in inspect.signature(base_of(module).forward).parameters


def switch(module: Any) -> str:
    """Give a decoder-only module our attention: why that cannot be ("" when it is done).

    Tried on a few tokens: the logits of packed rows must be those of each row alone, and must not change with other rows'
    tokens; else the module is left as it was. What a few tokens cannot show (windows) is read off its settings.
    """
    base = base_of(module)
    why = _unfit(base)
    if why:
        return why
    before = base.config._attn_implementation
    _register()
    try:
        base.set_attn_implementation(ATTENTION)
        if _agrees(module):
            return ""
        why = "its rows see each other when packed"
    except ERRORS as error:
        why = f"it does not run packed ({type(error).__name__})"
    base.set_attn_implementation(before)
    return why


def _unfit(base: Any) -> str:
    """What in a configuration our attention does not do: windows, chunks, states, caps, sinks."""
    if not getattr(base, "_supports_attention_backend", False) or not takes(base, "logits_to_keep"):
        return "its attention cannot be set"
    config = base.config.get_text_config()  # of a model of several parts: the one that writes
    layers = set(getattr(config, "layer_types", None) or WHOLE_LAYERS)
    if layers - WHOLE_LAYERS:
        return f"it has layers of {', '.join(sorted(layers - WHOLE_LAYERS))}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "its attention has a sliding window"
    if getattr(config, "attn_logit_softcapping", None):
        return "its attention caps its logits"
    known = WHOLE | {"sliding_window"}
    odd = sorted(name for name, value in vars(config).items() if value and name not in known and _partial(name))
    return f"its attention may be partial ({odd[0]} is set)" if odd else ""


def _partial(name: str) -> bool:
    return any(part in name for part in PARTIAL)


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def attention(
    module: Any, query: "Tensor", key: "Tensor", value: "Tensor", attention_mask: "Tensor | None", **options: Any
) -> "tuple[Tensor, None]":
    """Causal attention within the rows of a grid. query [1, heads, T, d], key and value alike -> [1, T, heads, d].

    A mask that is no grid (of an ordinary forward) goes to transformers' own function.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is None or attention_mask.dtype != torch.long:
        plain: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return plain
    odd = [name for name in ("s_aux", "softcap", "sliding_window", "position_bias") if options.get(name) is not None]
    if odd:
        raise ValueError(f"packed attention has no {odd[0]}")
    grid = attention_mask[0, 0]
    parts, places = [], []
    for rows in _alike((grid >= 0).sum(1).tolist()):
        some = grid[rows]
        some = some[:, : int((some >= 0).sum(1).max())]
        inside, at = some >= 0, some.clamp(min=0).flatten()
        laid = (part[0].index_select(1, at).unflatten(1, tuple(some.shape)).transpose(0, 1) for part in (query, key, value))
        found = torch.nn.functional.scaled_dot_product_attention(
            *laid,
            dropout_p=options.get("dropout", 0.0),
            scale=options.get("scaling"),
            is_causal=True,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        parts.append(found.transpose(1, 2)[inside])
        places.append(some[inside])
    if len(parts) == 1:
        return parts[0][None], None
    return torch.cat(parts).index_select(0, torch.cat(places).argsort())[None], None


def _alike(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of rows that are laid out together: at most about twice as wide as each of them is long."""
    groups: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        groups.setdefault(max(length - 1, SHORT - 1).bit_length(), []).append(row)
    return list(groups.values())


def pack(rows: Sequence[Sequence[int]]) -> "dict[str, Tensor]":
    """Arguments of a packed forward: input_ids and position_ids [1, T], attention_mask: the grid."""
    import torch

    lengths = torch.tensor([len(row) for row in rows])
    steps = torch.arange(int(lengths.max()))
    inside = steps[None, :] < lengths[:, None]
    starts = lengths.cumsum(0) - lengths
    grid = torch.where(inside, starts[:, None] + steps, -1)
    return {
        "input_ids": torch.tensor([[token for row in rows for token in row]]),
        "position_ids": steps.expand_as(inside)[inside][None],
        "attention_mask": grid[None, None],
    }


def _agrees(module: Any) -> bool:
    """Whether packed rows have the logits that each has alone, whatever the other rows are (eval mode, no gradients)."""
    import torch

    device, training = base_of(module).device, module.training
    module.eval()
    try:
        with torch.no_grad():
            one, other = (_logits(module, pack(rows), device) for rows in (PROBE, OTHERS))
            alone = [_logits(module, {"input_ids": torch.tensor([row])}, device) for row in PROBE]
    finally:
        module.train(training)
    apart, start = torch.cat(alone, dim=1), len(PROBE[0])
    scale, exact = float(apart.abs().max()) + 1e-6, apart.dtype == torch.float32
    moved = (one - other)[:, start : start + len(PROBE[1])].abs().max()  # in half precision the error hides a leak: not at all
    near = (one - apart).abs().max() <= scale * (1e-4 if exact else 3e-2)
    return bool(near and moved <= scale * (1e-6 if exact else 0.0))


def _logits(call: Callable[..., Any], arguments: "dict[str, Tensor]", device: Any) -> "Tensor":
    found: Tensor = call(**{name: part.to(device) for name, part in arguments.items()}, use_cache=False).logits
    return found
