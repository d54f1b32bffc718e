# SPDX-License-Identifier: Apache-2.0
"""The student's loss, and how a step's rows are shared among processes and accumulated forwards.

loss = sum over tasks of weight * (mean cross entropy of that task's target tokens in the whole step). Targets end with the
model's own end token, which carries loss; prompts and padding carry none. Every row brings the weight of one of its tokens
along, so the losses of all forwards of a step *add up* to the step's loss, however the rows were shared out.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from osmotic.components.training.packing import pack, switch, takes
from osmotic.components.training.parts import Example, Micro, Step
from osmotic.schemas.errors import ComponentError, Problem

if TYPE_CHECKING:
    from torch import Tensor

Packing = Literal["auto", "packed", "padded"]
Kind = Literal["packed", "padded", "whole", "seq2seq", "head-packed", "head-padded"]  # whole: the model always gives all logits


def kind_of(module: Any, wanted: Packing) -> Kind:
    """How a module's forwards run. Switches the attention of a module that is to run packed (before any engine wraps it).

    Raises ComponentError when `packed` is wanted of a model that cannot; `auto` then falls back to padding.
    """
    if getattr(module.config, "is_encoder_decoder", False):
        why = "its encoder reads the prompt, its decoder the target"
    elif wanted == "padded":
        why = "not asked for"
    else:
        why = switch(module)
    if not why:
        return "packed"
    if wanted == "packed":
        raise ComponentError(Problem("this model cannot be trained packed", why=why, fix="packing: auto, or padded"))
    if getattr(module.config, "is_encoder_decoder", False):
        return "seq2seq"
    return "padded" if takes(module, "logits_to_keep") else "whole"


def share(step: Step, weights: Mapping[str, float], parts: int, smoothing: float = 0.0) -> list[Micro]:
    """A step's rows in `parts` forwards of about equal numbers of tokens; equal arguments give equal parts.

    weights: task -> its weight in the loss. Where there are fewer rows than parts, a part has the step's shortest row with
    weight 0, so that every process runs the same number of forwards.
    """
    rows: list[tuple[Example, str, float]] = []
    for task, examples in step.examples.items():
        tokens = sum(len(target) for _, target in examples)
        rows += [(example, task, weights[task] / tokens) for example in examples]
    sizes = [len(prompt) + len(target) for (prompt, target), _, _ in rows]
    loads, members = [0] * parts, [[] for _ in range(parts)]  # type: list[int], list[list[int]]
    for row in sorted(range(len(rows)), key=lambda i: (-sizes[i], i)):
        least = loads.index(min(loads))
        loads[least] += sizes[row]
        members[least].append(row)
    filler = min(range(len(rows)), key=lambda i: (sizes[i], i))
    return [_micro([rows[i] for i in sorted(part)] or [(*rows[filler][:2], 0.0)], smoothing) for part in members]


def balance(step: Step, weights: Mapping[str, float], pooled: bool) -> Mapping[str, float]:
    """Weight in this step's loss of each task that it has examples of.

    pooled: every target token counts by its task's weight, and the loss is their weighted mean.
    """
    counts = {task: sum(len(target) for _, target in rows) for task, rows in step.examples.items() if rows}
    if not pooled:
        return {task: weights[task] for task in counts}
    total = sum(weights[task] * count for task, count in counts.items())
    return {task: weights[task] * count / total for task, count in counts.items()}


def _micro(rows: Sequence[tuple[Example, str, float]], smoothing: float) -> Micro:
    return Micro([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows], smoothing)


def loss_of(forward: Callable[..., Any], micro: Micro, kind: str) -> "tuple[Tensor, dict[str, float]]":
    """(the forward's part of the step's loss, task -> its share of that): float32 scalar, and floats that add up to it.

    forward: the module, or what an engine wraps it in. kind: of `kind_of`. Raises ComponentError when the micro has no rows.
    """
    import torch

    if not micro.rows:
        raise ComponentError(Problem("a forward without rows", fix="share rows out by `share`"))
    device = next((p.device for p in getattr(forward, "parameters", tuple)()), torch.device("cpu"))
    logits, targets, row_of = KINDS[kind](forward, micro, device)
    weights = torch.tensor(micro.weights, device=device)[row_of]
    losses = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=micro.smoothing)
    each = losses * weights
    return each.sum(), _by_task(each.detach().double(), micro.tasks, row_of)


def _by_task(each: "Tensor", tasks: Sequence[str], row_of: "Tensor") -> dict[str, float]:
    import torch

    names = sorted(set(tasks))
    task_of = torch.tensor([names.index(task) for task in tasks], device=each.device)[row_of]
    sums = torch.zeros(len(names), dtype=each.dtype, device=each.device).index_add_(0, task_of, each)
    return dict(zip(names, sums.tolist(), strict=True))


def _targets(rows: Sequence[Example], device: Any) -> "tuple[Tensor, Tensor]":
    """(token ids of all targets, the row of each), row after row."""
    import torch

    ids = torch.tensor([token for _, target in rows for token in target], device=device)
    counts = torch.tensor([len(target) for _, target in rows], device=device)
    return ids, torch.repeat_interleave(torch.arange(len(rows), device=device), counts)


def _packed(forward: Any, micro: Micro, device: Any) -> "tuple[Tensor, Tensor, Tensor]":
    """Logits at target positions only: the head never sees a prompt's token."""
    import torch

    given = {name: part.to(device) for name, part in pack([[*head, *tail[:-1]] for head, tail in micro.rows]).items()}
    keep: list[int] = []
    start = 0
    for head, tail in micro.rows:
        keep.extend(range(start + len(head) - 1, start + len(head) + len(tail) - 1))
        start += len(head) + len(tail) - 1
    logits = forward(**given, use_cache=False, logits_to_keep=torch.tensor(keep, device=device)).logits[0]
    return logits, *_targets(micro.rows, device)


def _padded(forward: Any, micro: Micro, device: Any, whole: bool = False) -> "tuple[Tensor, Tensor, Tensor]":
    """Rows padded on the right: under causal attention no real token sees the padding."""
    import torch

    rows = [[*head, *tail[:-1]] for head, tail in micro.rows]
    ids, mask = right_padded(rows, device)
    first = 0 if whole else min(len(head) for head, _ in micro.rows) - 1
    more = {} if whole else {"logits_to_keep": torch.arange(first, ids.shape[1], device=device)}
    logits = forward(input_ids=ids, attention_mask=mask, use_cache=False, **more).logits
    at = [(i, j - first) for i, (h, t) in enumerate(micro.rows) for j in range(len(h) - 1, len(h) + len(t) - 1)]
    row, column = torch.tensor(at, device=device).T
    return logits[row, column], *_targets(micro.rows, device)


def _seq2seq(forward: Any, micro: Micro, device: Any) -> "tuple[Tensor, Tensor, Tensor]":
    """Prompts to the encoder, targets to the decoder, which starts from the model's own start token."""
    start = start_of(forward)
    ids, mask = right_padded([head for head, _ in micro.rows], device)
    decoder, real = right_padded([[start, *tail[:-1]] for _, tail in micro.rows], device)
    logits = forward(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder, use_cache=False).logits
    return logits[real.bool()], *_targets(micro.rows, device)


def start_of(forward: Any) -> int:
    """The token that a decoder starts from, in training as in generation: the model's own, else its first token."""
    config = getattr(forward, "config", None)
    if not hasattr(config, "decoder_start_token_id"):  # an engine's `config` is its own settings
        config = getattr(getattr(forward, "module", None), "config", None)
    start = getattr(config, "decoder_start_token_id", None)
    return int(start if start is not None else getattr(config, "bos_token_id", None) or 0)


def right_padded(rows: Sequence[Sequence[int]], device: Any) -> "tuple[Tensor, Tensor]":
    """(ids, mask): int64 [n, longest], padded on the right; the mask is 1 at real tokens."""
    import torch

    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    return ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)


def _whole(forward: Any, micro: Micro, device: Any) -> "tuple[Tensor, Tensor, Tensor]":
    return _padded(forward, micro, device, whole=True)


def _head_packed(forward: Any, micro: Micro, device: Any) -> "tuple[Tensor, Tensor, Tensor]":
    """Class logits of rows without padding; a row's target is the number of its class."""
    given = {name: part.to(device) for name, part in pack([head for head, _ in micro.rows]).items()}
    return forward(**given), *_targets(micro.rows, device)


def _head_padded(forward: Any, micro: Micro, device: Any) -> "tuple[Tensor, Tensor, Tensor]":
    """The same, padded on the right."""
    ids, mask = right_padded([head for head, _ in micro.rows], device)
    return forward(input_ids=ids, attention_mask=mask), *_targets(micro.rows, device)


KINDS = {
    "packed": _packed, "padded": _padded, "whole": _whole, "seq2seq": _seq2seq,
    "head-packed": _head_packed, "head-padded": _head_padded,
}  # fmt: skip
