# SPDX-License-Identifier: Apache-2.0
"""What is trained with differential privacy, as jobs for `Context.private_training`: a causal language model, prompt -> target.

The loss of a record is the mean cross entropy of its target's tokens, the model's own end token included (also where it is the
padding token). The prompt carries none, padding neither: rows are padded on the right, with an attention mask and positions of
their own. Encoding never fails and reads one record alone, since whether a training ends would tell something about a record:
what is too long is cut, and an empty target teaches nothing.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field

from osmotic.components.templates import Template, slots
from osmotic.components.training.engines import layout_of
from osmotic.components.training.heads import plain_prompts, rows_of
from osmotic.components.training.losses import KINDS
from osmotic.components.training.packing import takes
from osmotic.components.training.parts import Example, Micro
from osmotic.components.training.settings import EngineName
from osmotic.plugins.contract import Config, PrivateJob, Trainable
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ComponentError, ConfigError, Problem
from osmotic.schemas.noise import TrainingNoise
from osmotic.schemas.records import RecordSchema

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DEEPSPEED", "Learning", "PrivateConfig", "language_job", "language_losses", "privacy_problems", "public_rows"]
DEEPSPEED = (
    "engine: differentially private training does not run on deepspeed: it needs each record's own gradient (Opacus), and "
    "DeepSpeed gives out none; engine: torch"
)
DUMMY_WORDS = (5, 2, 9, 1)  # words of a free text that stands for a record's, when the model is tried
PLAIN = "some words that stand for a text which nobody wrote"
SHOWN = 40  # characters of a long label in a message


class PrivateConfig(Config):
    """Configuration keys of every component that trains by DP-SGD."""

    privacy: TrainingNoise = Field(description="epsilon or noise_multiplier; delta, clip, batch, steps.")
    learning_rate: float = Field(2e-3, gt=0, strict=False, allow_inf_nan=False)
    warmup: int = Field(0, ge=0, description="Steps of linear warm-up.")
    schedule: Literal["constant", "linear"] = "constant"
    weight_decay: float = Field(0.0, ge=0, strict=False, allow_inf_nan=False)
    max_length: int = Field(256, ge=16, description="Tokens of prompt and text together; a longer text loses its end.")
    at_once: int = Field(32, ge=1, description="Records in memory at a time; changes nothing else.")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16 is for GPUs; records are then taken one at a time, for it rounds coarsely."
    )
    engine: EngineName = Field("torch", description="torch; deepspeed is refused, for it gives out no gradient a record.")


@dataclass(frozen=True)
class Learning:
    """How a job learns; all of it is public. max_length: tokens of prompt and target together.

    dtype: bfloat16 rounds so coarsely that records in memory together could move each other's gradients by more than the noise
    has room for: they are then taken one at a time, whatever `at_once` says.
    """

    learning_rate: float
    warmup: int = 0
    schedule: Literal["constant", "linear"] = "constant"
    weight_decay: float = 0.0
    max_length: int = 256
    at_once: int = 32
    dtype: Literal["float32", "bfloat16"] = "float32"

    @classmethod
    def of(cls, config: "PrivateConfig") -> Self:
        """What a component's configuration says of it."""
        return cls(**{one.name: getattr(config, one.name) for one in fields(cls)})

    def arguments(self) -> dict[str, Any]:
        """Those of `PrivateJob` that have the same names."""
        return {name: value for name, value in asdict(self).items() if name != "max_length"}


def privacy_problems(config: PrivateConfig) -> list[str]:
    """What no data set could make right, for a component's `check`: the engine, and settings of the privacy."""
    found, privacy, warmup = [DEEPSPEED] if config.engine == "deepspeed" else [], config.privacy, config.warmup
    if privacy.delta * privacy.batch >= 1:  # a batch is at most the data set
        least = f"of which there must be {privacy.batch} at least"
        found.append(f"privacy.delta: {privacy.delta:g} is not below 1 / records, {least}")
    if warmup >= privacy.steps:
        found.append(f"warmup: {warmup} of {privacy.steps} steps; the rate would never be reached")
    return found


def language_job(model: Any, prompt: Template, target: Template, schema: RecordSchema, learning: Learning) -> PrivateJob:
    """A job that trains a fresh copy of a causal model; its weights fit `model.with_weights`.

    Where all slots of the prompt (of the target) have domains, each must fit: raises ConfigError for one that does not
    (the schema is public), for a model that cannot be trained here, and for an encoder-decoder.
    """
    if not isinstance(model, Trainable):
        raise ComponentError(Problem("the model cannot be trained here", path="model", fix="name a local model"))
    module, tokenizer = model.trainable()
    _check_kind(module, tokenizer)
    positions = getattr(module.config, "max_position_embeddings", None) or learning.max_length
    limit = min(learning.max_length, positions)
    prompts = getattr(model, "encode_prompts", None) or plain_prompts(tokenizer)
    encode = _Encode(prompts, tokenizer, prompt, target, limit, rows_of(module))
    _check_room(encode, schema)
    base, layout = str(getattr(model, "fingerprint", "")), layout_of(module)
    told = {name: value for name, value in asdict(learning).items() if name != "at_once"}
    named = ["language", 1, base, layout, prompt.source, target.source, {**told, "max_length": limit}]
    return PrivateJob(
        module=module,
        encode=encode,
        losses=partial(
            language_losses,
            kind="padded" if takes(module, "logits_to_keep") else "whole",
            positions=takes(module, "position_ids"),
        ),
        dummies=[one for row in public_rows((prompt.source, target.source), schema, limit) if (one := encode(row)) is not None],
        key=hashlib.sha256(canonical(named)).hexdigest(),
        meta={"base": base, **layout},
        **learning.arguments(),
    )


def language_losses(module: Any, examples: Sequence[Example], kind: str = "padded", positions: bool = True) -> "Tensor":
    """float32 [n]: of each example, the mean cross entropy of its target's tokens.

    kind: padded, or whole for a model that always gives all logits. positions: whether the model takes `position_ids`.
    """
    import torch

    device = next(module.parameters()).device
    if not examples:
        return torch.zeros(0, device=device)
    forward = _with_positions(module) if positions else module
    micro = Micro(examples, ["text"] * len(examples), [1 / len(target) for _, target in examples])
    logits, targets, row_of = KINDS[kind](forward, micro, device)
    each = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    shares = each * torch.tensor(micro.weights, device=device)[row_of]
    return torch.zeros(len(examples), device=device).index_add(0, row_of, shares)


def _with_positions(module: Any) -> Callable[..., Any]:
    """The module, told each row's positions: a table of positions that is looked up once for a whole batch (GPT-2's) would have
    one gradient for all records."""

    def forward(*, attention_mask: Any, **given: Any) -> Any:
        places = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        return module(attention_mask=attention_mask, position_ids=places, **given)

    return forward


class _Encode:
    """One record -> (prompt ids, target ids), at most `limit` together; None for an empty target. Total: it never fails.

    rows: tokens that the model has; a tokenizer may know more (special ones, written in a text), which are left out.
    """

    def __init__(
        self,
        prompts: Callable[[Sequence[str]], list[list[int]]],
        tokenizer: Any,
        prompt: Template,
        target: Template,
        limit: int,
        rows: int,
    ) -> None:
        self._prompts, self._tokenizer, self.limit, self._rows = prompts, tokenizer, limit, rows
        self.prompt, self.target = prompt, target

    def __call__(self, row: Mapping[str, Any]) -> Example | None:
        """The example of a record."""
        tail = self.tail(row)
        if not tail:
            return None
        head = self.head(row)
        head = self._shortened(head, max(self.limit - len(tail), self.limit // 2))
        return head, tail[: self.limit - len(head)]  # the end of a text that goes on is not taught

    def head(self, row: Mapping[str, Any]) -> list[int]:
        """The prompt, uncut; of an empty one, the token that texts begin with."""
        start = self._tokenizer.bos_token_id
        plain = self._tokenizer.eos_token_id if start is None else start
        return self._known(self._prompts([_clean(self.prompt.render(row))])[0]) or [plain]

    def tail(self, row: Mapping[str, Any]) -> list[int]:
        """The target with the end token, uncut; nothing for an empty one."""
        text = _clean(self.target.render(row))
        ids = self._known(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text.strip() else []
        return [*ids, self._tokenizer.eos_token_id] if ids else []

    def _known(self, ids: Sequence[int]) -> list[int]:
        return [token for token in ids if token < self._rows]

    def _shortened(self, head: list[int], room: int) -> list[int]:
        """Without its beginning, but for the token that begins every text."""
        if len(head) <= room:
            return head
        starts = int(room > 1 and head[0] == self._tokenizer.bos_token_id)
        return [*head[:starts], *head[len(head) - room + starts :]]


def _clean(text: str) -> str:
    """Text that every tokenizer takes: halves of characters are replaced."""
    return text.encode("utf-8", "replace").decode()


def _check_kind(module: Any, tokenizer: Any) -> None:
    if getattr(module.config, "is_encoder_decoder", False):
        what = f"{module.config.model_type!r} is an encoder-decoder: private training of texts takes a causal model"
        raise ConfigError(Problem(what, path="model", fix="name a decoder-only model: a Llama, SmolLM2 or GPT-2, say"))
    if tokenizer.eos_token_id is None:
        raise ConfigError(Problem("the tokenizer has no end token", path="model", why="a text must end with one"))


def _check_room(encode: _Encode, schema: RecordSchema) -> None:
    """Raise ConfigError for a control code, or a target of public values alone, that would be cut."""
    half = encode.limit // 2
    for path, template, most in (("prompt", encode.prompt, half), ("target", encode.target, encode.limit - half)):
        size_of = encode.head if path == "prompt" else encode.tail
        for row, name, value in _values(template, schema):
            size = len(size_of(row))
            if size > most:
                what = (
                    f"the {path} with {name} {value[:SHOWN]!r} has {size} tokens: at most {most} of {encode.limit} are for it"
                )
                raise ConfigError(Problem(what, path=path, fix=f"raise max_length, or shorten the {path} or the value"))


def _values(template: Template, schema: RecordSchema) -> Iterator[tuple[dict[str, str], str, str]]:
    """(row, field, value) for each value of a template's fields, the others at their longest; none where one has no domain."""
    names = slots(template.source)
    domains = {name: spec.domain for name in names if (spec := schema.fields.get(name)) is not None and spec.domain}
    if len(domains) < len(names):
        return
    longest = {name: max(domain, key=len) for name, domain in domains.items()}
    for name, domain in sorted(domains.items()):
        for value in domain:
            yield {**longest, name: value}, name, value


def public_rows(sources: Sequence[str], schema: RecordSchema, longest: int) -> list[dict[str, str]]:
    """Rows of unequal length from the templates' own words and the schema's domains: public, and no record's.

    The last one has `longest` words: as many tokens as any record may have, since some models work otherwise on long texts.
    """
    domains = {name: spec.domain for name, spec in schema.fields.items() if spec.domain}
    said = " ".join([*(re.sub(r"\{\{.*?\}\}", " ", text) for text in sources), *(d[0] for d in domains.values()), PLAIN])
    names = set[str]().union(*map(slots, sources))
    return [
        {name: domains[name][i % len(domains[name])] if name in domains else _words(said, i, count) for name in names}
        for i, count in enumerate([*DUMMY_WORDS, longest])
    ]


def _words(said: str, start: int, count: int) -> str:
    return " ".join(islice(_around(said.split()), start, start + count))


def _around(words: Sequence[str]) -> Iterator[str]:
    while True:
        yield from words
