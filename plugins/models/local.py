# SPDX-License-Identifier: Apache-2.0
"""What the local models share, whatever their architecture: prompts to tokens, answers as they come, training copies.

A prompt is tokenised with the tokenizer's special tokens (or through its chat template), a continuation without any.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Self

from osmotic.plugins.contract import Answer, Generation, Weights
from osmotic.plugins.models import lockstep
from osmotic.plugins.models.adapters import put_tensors, with_adapters
from osmotic.plugins.models.decoding import Ends, Row, by_length, not_numbers, rows_of
from osmotic.plugins.models.loading import end_tokens
from osmotic.plugins.models.options import LOGITS, LocalConfig
from osmotic.schemas.errors import ComponentError, Problem

Pair = tuple[list[int], list[int]]  # token ids of a prompt, and of its target
MEMORY = "lower batch_tokens, or take a narrower dtype"


class LocalModel(ABC):
    """A loaded model. A TextGenerator, Scorer and Trainable; weights trained from it name `fingerprint` as their base."""

    def __init__(self, loaded: tuple[Any, Any], config: LocalConfig, fingerprint: str) -> None:
        self.config = config
        self.fingerprint = fingerprint
        self.module, self.tokenizer = loaded
        self.dtype = str(self.module.dtype).removeprefix("torch.")

    @property
    def device(self) -> Any:
        """torch's device that the module is on."""
        return next(self.module.parameters()).device

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt, special tokens or chat template included; uncut."""
        return encode_prompts(self.tokenizer, texts, self.config.chat)

    # ---- answers -------------------------------------------------------------------------------------------------

    def generate(self, prompts: Sequence[str], how: Generation) -> list[Answer]:
        """One answer a prompt, in order. Raises ComponentError when a prompt does not fit into the model."""
        encoded, problems = self._encoded(prompts, how.max_new_tokens)
        if problems:
            raise ComponentError(problems[min(problems)][1])
        answers = dict(self._answers(encoded, how))
        return [answers[i] for i in range(len(prompts))]

    def stream(self, prompts: Sequence[str], how: Generation) -> Iterator[tuple[int, Answer]]:
        """(index, answer) as answers end; prompts that do not fit come first, with their problem."""
        encoded, problems = self._encoded(prompts, how.max_new_tokens)
        for index, (word, _) in problems.items():
            yield index, Answer("", False, 0, len(encoded[index]), problem=word)
        yield from self._answers({i: ids for i, ids in encoded.items() if i not in problems}, how)

    def _answers(self, encoded: dict[int, list[int]], how: Generation) -> Iterator[tuple[int, Answer]]:
        rows = rows_of(encoded.items(), how)
        ends = Ends(self.tokenizer, how, self._ends())
        made = self._decode(rows, ends) if how.max_new_tokens > 0 else iter(rows)
        while (row := self._next(made)) is not None:
            yield row.index, ends.answer(row)

    def _next(self, made: Iterator[Row]) -> Row | None:
        import torch

        try:
            return next(made, None)
        except torch.OutOfMemoryError as error:
            what = "the device has no memory left for these answers"
            raise ComponentError(Problem(what, why=" ".join(str(error).split())[:200], fix=MEMORY)) from error

    def _decode(self, rows: Sequence[Row], ends: Ends) -> Iterator[Row]:
        yield from lockstep.stream(self.module, rows, ends, self.config.batch_tokens)

    def _encoded(self, prompts: Sequence[str], new: int) -> tuple[dict[int, list[int]], dict[int, tuple[str, Problem]]]:
        """Index -> token ids, cut where so configured; index -> what is wrong with it."""
        encoded = {i: self._cut(ids) for i, ids in enumerate(self.encode_prompts(prompts))}
        problems: dict[int, tuple[str, Problem]] = {}
        for i, ids in encoded.items():
            if not ids or not prompts[i].strip():
                problems[i] = "empty-prompt", Problem(f"prompt {i} has no tokens", fix="check the template")
            elif found := self._too_long(i, len(ids), new):
                problems[i] = "too-long", found
            elif found := self._unknown(i, ids):
                problems[i] = "refused-request", found
        return encoded, problems

    def _cut(self, ids: list[int]) -> list[int]:
        """Prompts that are too long lose their beginning, but for the token that begins every text."""
        most = self.config.max_prompt_tokens
        if most is None or len(ids) <= most:
            return ids
        starts = int(most > 1 and ids[0] == self.tokenizer.bos_token_id)
        return [*ids[:starts], *ids[len(ids) - most + starts :]]

    def _positions(self) -> int | None:
        return getattr(self.module.config.get_text_config(decoder=True), "max_position_embeddings", None)

    def _budget(self, longest: int) -> int:
        """Tokens of one batch whose longest row has so many."""
        return self.config.batch_tokens

    def _unknown(self, index: int, ids: Sequence[int]) -> Problem | None:
        """What is wrong with token ids for which the model has no row (words added to a tokenizer alone)."""
        rows = int(self.module.get_input_embeddings().weight.shape[0])
        if max(ids, default=0) < rows:
            return None
        why = f"token {max(ids)}; the model has {rows}"
        return Problem(f"prompt {index} has a token that the model does not know", why=why, fix="use the model's own tokenizer")

    @abstractmethod
    def _too_long(self, index: int, held: int, new: int) -> Problem | None:
        """What is wrong with a prompt of so many tokens and an answer of so many; None: both have room."""

    def _ends(self) -> frozenset[int]:
        end = self.tokenizer.eos_token_id
        return end_tokens(self.module) | (frozenset() if end is None else {int(end)})

    # ---- scores --------------------------------------------------------------------------------------------------

    def log_likelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
        """(sum of log-probabilities, number of tokens) of each target given its prompt; the end token is not counted.

        Raises ComponentError when a pair does not fit into the model, or the model gives no numbers.
        """
        targets = self.tokenizer([target for _, target in pairs], add_special_tokens=False)["input_ids"] if pairs else []
        heads = self.encode_prompts([prompt for prompt, _ in pairs])
        rows = [(self._fit(i, h, t), list(t)) for i, (h, t) in enumerate(zip(heads, targets, strict=True))]
        scores: dict[int, tuple[float, int]] = {}
        longest = max((len(h) + len(t) for h, t in rows), default=0)
        columns = int(self.module.get_output_embeddings().weight.shape[0])
        budget = min(self._budget(longest), max(1, LOGITS // columns))
        for group in by_length([len(h) + len(t) for h, t in rows], 0, budget):
            scores.update(zip(group, self._score([rows[i] for i in group]), strict=True))
        if any(math.isnan(total) for total, _ in scores.values()):
            raise ComponentError(not_numbers())
        return [scores[i] for i in range(len(rows))]

    def _fit(self, index: int, ids: list[int], new: Sequence[int]) -> list[int]:
        """The prompt's ids, cut where so configured, when there is room for them and for the new ones."""
        ids = self._cut(ids)
        if not ids:
            raise ComponentError(Problem(f"prompt {index} has no tokens", fix="check the template"))
        if found := self._too_long(index, len(ids), len(new)) or self._unknown(index, [*ids, *new]):
            raise ComponentError(found)
        return ids

    @abstractmethod
    def _score(self, rows: Sequence[Pair]) -> list[tuple[float, int]]:
        """Log-likelihoods of one batch."""

    # ---- training ------------------------------------------------------------------------------------------------

    def trainable(self) -> tuple[Any, Any]:
        """A fresh float32 copy of the module (with untrained adapters where configured) and the tokenizer."""
        module = copy.deepcopy(self.module).float()
        if self.config.lora is None:
            return module.train(), self.tokenizer
        return with_adapters(module, self.config.lora).train(), self.tokenizer

    def with_weights(self, weights: Weights) -> Self:
        """This model with trained weights in place. Raises ComponentError when they belong to another model."""
        if weights.meta.get("base") != self.fingerprint:
            why = f"trained from {str(weights.meta.get('base'))[:12]}, this model is {self.fingerprint[:12]}"
            raise ComponentError(
                Problem("the weights belong to another model", why=why, fix="use the model they were trained from")
            )
        module, tokenizer = self.trainable()
        put_tensors(module, weights)
        if self.config.lora is not None:
            module = module.merge_and_unload()
        cast_like(module, self.module)
        return type(self)((module.eval(), tokenizer), self.config, self.fingerprint)


def cast_like(module: Any, model: Any) -> None:
    """Give each parameter and buffer the dtype that it has in another module: tables of rotations stay float32, for one."""
    for kind in ("named_parameters", "named_buffers"):
        wanted = {name: tensor.dtype for name, tensor in getattr(model, kind)()}
        for name, tensor in getattr(module, kind)():
            tensor.data = tensor.data.to(wanted[name])


def encode_prompts(tokenizer: Any, texts: Sequence[str], chat: bool = False, keep_end: bool = False) -> list[list[int]]:
    """Token ids of prompts; an end token that a tokenizer appends on its own is taken off unless it is to be kept."""
    if not texts:
        return []
    if chat:
        shown = [
            tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
            for text in texts
        ]
        return [list(ids) for ids in tokenizer(shown, add_special_tokens=False, verbose=False)["input_ids"]]
    encoded = [list(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]
    return encoded if keep_end or not _appends_end(tokenizer) else [ids[:-1] for ids in encoded]


def _appends_end(tokenizer: Any) -> bool:
    """Whether a tokenizer ends what it encodes with an end token; one that a text itself ends with is the text's."""
    whole, plain = (tokenizer("a", add_special_tokens=more, verbose=False)["input_ids"] for more in (True, False))
    return bool(whole) and whole[-1] == tokenizer.eos_token_id and plain[-1:] != whole[-1:]


def likelihoods(logits: Any, targets: Sequence[tuple[int, list[int]]]) -> list[tuple[float, int]]:
    """(sum, number) for each row of [n, T, V]: its target's tokens stand at the given first column and on."""
    import torch

    found = []
    for row, (first, tail) in zip(logits, targets, strict=True):
        table = row[first : first + len(tail)].double().log_softmax(-1)
        wanted = torch.tensor(tail, dtype=torch.long, device=logits.device)[:, None]
        found.append((float(table.gather(1, wanted).sum()), len(tail)))
    return found
