# SPDX-License-Identifier: Apache-2.0
"""A linear head of classes on the hidden states of a decoder-only model: the module, its inputs, its weights.

The head reads the state of a text's last token, or the mean over all of them; it starts at zero, so it is the same at every
party. The language model's own output layer is left out: it is neither asked nor trained. Tensors keep the names that they have
in the language model, so its trained weights can be started from; the head's are ``head.weight`` [classes, d], ``head.bias``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from osmotic.components.training.batches import LEAST_PROMPT, Cut, cue_of
from osmotic.components.training.engines import layout_of, put_tensors
from osmotic.components.training.losses import kind_of, right_padded
from osmotic.components.training.packing import base_of, takes
from osmotic.components.training.parts import Example
from osmotic.plugins.contract import Weights
from osmotic.schemas.errors import ComponentError, Problem

if TYPE_CHECKING:
    import numpy as np

Pooling = Literal["last", "mean"]
Told = Callable[[int], None]
HEAD = ("head.weight", "head.bias")
META = "head"  # key of the weights' description
FIX = "train them by task_trainer with 'mode: head'"


def classifier(module: Any, classes: int, pooling: Pooling, packing: Literal["auto", "packed", "padded"]) -> tuple[Any, str]:
    """(a torch.nn.Module with a fresh head of so many classes, how its forwards run), made of a causal language model.

    Its forward takes what `packing.pack` gives, or input_ids and attention_mask [n, T] padded on the right, and gives class
    logits [n, classes]. The language model's parameters are shared, not copied. Raises ComponentError for other models.
    """
    if getattr(module.config, "is_encoder_decoder", False):
        fix = "name a decoder-only model, or use mode: generation"
        raise ComponentError(Problem("an encoder-decoder model cannot be given a head of classes", path="model", fix=fix))
    kind = "head-packed" if kind_of(module, packing) == "packed" else "head-padded"
    base = base_of(module)
    body = base.base_model
    if body is base:
        raise ComponentError(Problem(f"{type(base).__name__} has no part without its output layer", path="model"))
    place = next(name for name, part in module.named_modules() if part is body)
    return _class()(body, place, classes, pooling), kind


@lru_cache(maxsize=1)
def _class() -> type[Any]:
    """The module's class: torch is not imported with this file."""
    import torch

    class Classifier(torch.nn.Module):  # type: ignore[misc]
        """A language model's body under its own name, and a head."""

        def __init__(self, body: Any, place: str, classes: int, pooling: str) -> None:
            super().__init__()
            *outer, last = place.split(".")
            at: torch.nn.Module = self
            for name in outer:
                inner = torch.nn.Module()
                at.add_module(name, inner)
                at = inner
            at.add_module(last, body)
            weight = body.get_input_embeddings().weight
            self.head = torch.nn.Linear(int(body.config.get_text_config().hidden_size), classes, device=weight.device)
            torch.nn.init.zeros_(self.head.weight)
            torch.nn.init.zeros_(self.head.bias)
            self.config, self._place, self._mean = body.config, place, pooling == "mean"
            self._positions = takes(body, "position_ids")

        def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any = None) -> Any:
            """Class logits [n, classes]."""
            packed = attention_mask.ndim == 4
            if position_ids is None and self._positions:
                position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
            more = {"position_ids": position_ids} if self._positions else {}
            body = self.get_submodule(self._place)
            states = body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **more).last_hidden_state
            real = (attention_mask[0, 0] >= 0) if packed else attention_mask.bool()
            if packed:  # the grid says where each row's tokens are; a row that is shorter takes its first one, to be masked
                states = states[0][attention_mask[0, 0].clamp(min=0)] if self._mean else states[0]
            return self.head(self._pooled(states, real, attention_mask[0, 0] if packed else None).to(self.head.weight.dtype))

        def _pooled(self, states: Any, real: Any, grid: Any) -> Any:
            """[n, d]."""
            if self._mean:
                kept = states * real[:, :, None].to(states.dtype)
                return kept.sum(1) / real.sum(1, keepdim=True).to(states.dtype)
            last = real.sum(1) - 1
            rows = torch.arange(len(last), device=last.device)
            return states[grid[rows, last]] if grid is not None else states[rows, last]

    return Classifier


@dataclass
class HeadEncoder:
    """Texts to token ids, with the number of a class as the target; the interface of `batches.Encoder`.

    limit: tokens of a text. What is too long loses its beginning or its middle, never the start token, nor its last `cue`.
    rows: tokens that the model has; others, which a tokenizer may know (special ones, written in a text), are left out.
    """

    encode_prompts: Callable[[Sequence[str]], list[list[int]]]
    start: int | None
    limit: int
    rows: int
    cut: Cut = "left"

    def texts(self, texts: Sequence[str], cue: int = 0) -> tuple[list[list[int]], int]:
        """(token ids of each text, how many were cut); no ids for a text without tokens."""
        heads = [[token for token in head if token < self.rows] for head in self.encode_prompts(texts)] if texts else []
        return [self._shortened(head, cue) for head in heads], sum(len(head) > self.limit for head in heads)

    def _shortened(self, head: list[int], cue: int) -> list[int]:
        if len(head) <= self.limit:
            return head
        least = min(max(LEAST_PROMPT, cue), self.limit)
        starts = int(self.limit > least and head[0] == self.start)
        front = max(starts, (self.limit - least) // 2 if self.cut == "middle" else 0)
        return [*head[:front], *head[len(head) - self.limit + front :]]


def start_from(module: Any, init: Weights, labels: Sequence[str]) -> None:
    """Put weights in: those of a language model (its output layer is passed over), or of a classifier with the same labels.

    Raises ComponentError when they do not fit.
    """
    import torch

    told = init.meta.get(META)
    if isinstance(told, Mapping) and list(told.get("labels", ())) != list(labels):
        fix = "train both over the same labels, in the same order"
        raise ComponentError(Problem("'init' has a head for other labels", path="init", fix=fix))
    named = dict(module.named_parameters())
    wanted = {n: p for n, p in named.items() if p.requires_grad and (told is not None or n not in HEAD)}
    given = set(init.tensors)
    odd = sorted(set(wanted) - given) or sorted(n for n in given - set(wanted) if "lm_head" not in n and "embed_out" not in n)
    odd = odd or [n for n, p in wanted.items() if tuple(p.shape) != init.tensors[n].shape]
    if odd:
        raise ComponentError(Problem("'init' does not fit the model", why=f"{len(odd)} tensors differ, first {odd[0]!r}"))
    put_tensors(wanted, {name: torch.from_numpy(init.tensors[name]) for name in wanted})


@dataclass(frozen=True)
class HeadModel:
    """A trained classifier: `labels` in the order of the classes, the `prompt` that it was trained on."""

    module: Any
    encoder: HeadEncoder
    labels: tuple[str, ...]
    prompt: str

    @classmethod
    def of(cls, model: Any, weights: Weights | None) -> "HeadModel":
        """A model's object with trained weights. Raises ComponentError when they have no head, or belong to another model."""
        told = (weights.meta if weights is not None else {}).get(META)
        if weights is None or not isinstance(told, Mapping):
            what = "there are no weights with a head of classes" if weights is None else "the weights have no head of classes"
            raise ComponentError(Problem(what, path="modes", fix=f"{FIX}; or use the modes label or choice"))
        _check_model(model, weights)
        try:
            labels = tuple(str(label) for label in told["labels"])
            facts = told["pooling"], int(told["max_length"]), told["truncate"], str(told["prompt"])
        except (KeyError, TypeError, ValueError) as error:
            raise ComponentError(Problem("the weights' description of their head is damaged", fix=FIX)) from error
        source, tokenizer = model.trainable()
        if weights.meta.get("frozen") != layout_of(source).get("frozen"):
            raise ComponentError(Problem("the weights were trained beside another A", fix="use the model that they came from"))
        module, _ = classifier(source, len(labels), facts[0], "padded")
        start_from(module, weights, labels)
        encode = getattr(model, "encode_prompts", None) or plain_prompts(tokenizer)
        encoder = HeadEncoder(encode, tokenizer.bos_token_id, facts[1], rows_of(source), facts[2])
        return cls(module.eval(), encoder, labels, facts[3])

    def log_probabilities(self, texts: Sequence[str], batch: int = 128, told: Told | None = None) -> "np.ndarray":
        """float64 [n, classes], `batch` texts at a time. Raises ComponentError for a text without tokens.

        told: hears after each batch how many are done.
        """
        import numpy as np
        import torch

        cue = cue_of(self.prompt)
        rows, _ = self.encoder.texts(texts, len(self.encoder.encode_prompts([cue])[0]) if cue else 0)
        empty = next((i for i, row in enumerate(rows) if not row), None)
        if empty is not None:
            raise ComponentError(Problem(f"the prompt of record {empty + 1} has no tokens", fix="check its template"))
        found = np.empty((len(rows), len(self.labels)))
        for start in range(0, len(rows), batch):
            ids, mask = right_padded(rows[start : start + batch], self.module.head.weight.device)
            with torch.inference_mode():
                logits = self.module(input_ids=ids, attention_mask=mask)
            found[start : start + batch] = logits.double().log_softmax(-1).cpu().numpy()
            if told is not None:
                told(min(start + batch, len(rows)))
        return found


def _check_model(model: Any, weights: Weights) -> None:
    """Raises ComponentError for weights of another model, and for a model that takes none."""
    if not hasattr(model, "trainable"):
        raise ComponentError(Problem("the model cannot take weights", path="model", fix="name a local model"))
    base = str(getattr(model, "fingerprint", ""))
    if weights.meta.get("base") != base:
        why = f"trained from {str(weights.meta.get('base'))[:12]}, this model is {base[:12]}"
        raise ComponentError(
            Problem("the weights belong to another model", why=why, fix="use the model they were trained from")
        )


def rows_of(module: Any) -> int:
    """How many tokens a language model has: the rows of its table of embeddings."""
    return int(module.get_input_embeddings().weight.shape[0])


def plain_prompts(tokenizer: Any) -> Callable[[Sequence[str]], list[list[int]]]:
    """How a model's plugin that does not say so encodes prompts."""
    return lambda texts: [list(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]


def class_losses(module: Any, examples: Sequence[Example]) -> Any:
    """Cross entropy of each example, float32 [n]; an example's target is the number of its class."""
    import torch

    device = next(module.parameters()).device
    if not examples:
        return torch.zeros(0, device=device)
    ids, mask = right_padded([ids for ids, _ in examples], device)
    logits = module(input_ids=ids, attention_mask=mask)
    classes = torch.tensor([target[0] for _, target in examples], device=device)
    return torch.nn.functional.cross_entropy(logits.float(), classes, reduction="none")
