# SPDX-License-Identifier: Apache-2.0
"""A causal language model answered by vLLM in this process, where that package is installed (Linux with a GPU, as a rule).

A server of vLLM's is reached by the `openai` plugin instead. Prompts become token ids here, as the other local models make
them; sampling is seeded for each prompt by itself, so that its company in a batch does not decide its draws. vLLM's own
kernels round otherwise than torch's: near ties of logits may come out differently from `transformers`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

from pydantic import Field

from osmotic.plugins.contract import Answer, Config, Generation, ModelPlugin
from osmotic.plugins.models.local import encode_prompts
from osmotic.plugins.models.transformers import digests, local_folder
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ComponentError, ConfigError, Problem

INSTALL = "pip install vllm (it brings its own torch: use an environment of its own), or serve the model and use type: openai"
DECIDES = ("revision", "dtype", "chat", "max_prompt_tokens")  # settings that decide what the model is


class VllmConfig(Config):
    """Which model, and how vLLM is to hold it."""

    path: str = Field(description="A directory, 'osmotic:NAME' for a shipped one, or a name of the model hub.")
    revision: str = Field("main", description="Branch, tag or commit; for names of the hub only.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: as the model was saved.")
    chat: bool = Field(False, description="Put each prompt into the tokenizer's chat template, as the user's turn.")
    max_prompt_tokens: int | None = Field(None, ge=1, description="Cut longer prompts from the left.")
    max_model_tokens: int | None = Field(None, ge=1, description="Room for prompt and answer; default: the model's own.")
    gpu_memory: float = Field(0.9, gt=0, le=1, description="Share of the GPU's memory that vLLM may take.")
    gpus: int = Field(1, ge=1, description="GPUs that share the model (tensor parallel).")
    batch: int = Field(256, ge=1, description="Prompts handed over at a time; answers come batch by batch.")


class VllmModel(ModelPlugin[VllmConfig]):
    """Any causal model that vLLM serves without code of the model's own."""

    name = "vllm"
    provides: ClassVar[frozenset[str]] = frozenset({"text_generator", "scorer"})

    def fingerprint(self) -> str:
        """SHA-256 of the files' contents (or the hub name and revision) and of the settings."""
        folder = local_folder(self.config.path)
        files = digests(folder) if folder else {f"hub:{self.config.path}": self.config.revision}
        settings = {name: getattr(self.config, name) for name in DECIDES}
        return hashlib.sha256(canonical({"vllm": files, "settings": settings})).hexdigest()

    def build(self) -> "VllmTexts":
        """The loaded model. Raises ConfigError when vLLM is not installed or cannot load it."""
        if find_spec("vllm") is None:
            raise ConfigError(Problem("the package 'vllm' is not installed", path="type", fix=INSTALL))
        from vllm import LLM

        folder = local_folder(self.config.path)
        config, source = self.config, str(folder) if folder else self.config.path
        try:
            engine = LLM(
                model=source,
                revision=None if folder else config.revision,
                dtype=config.dtype,
                max_model_len=config.max_model_tokens,
                gpu_memory_utilization=config.gpu_memory,
                tensor_parallel_size=config.gpus,
                trust_remote_code=False,
                load_format="safetensors",
                seed=0,
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            why = " ".join(str(error).split())[:300]
            fix = "give a causal model that vLLM knows; lower max_model_tokens or gpu_memory where memory is short"
            raise ConfigError(Problem(f"vLLM cannot load {source!r}", why=why, fix=fix)) from error
        tokenizer = engine.get_tokenizer()
        if config.chat and not getattr(tokenizer, "chat_template", None):
            raise ConfigError(Problem(f"the tokenizer of {source!r} has no chat template", path="chat", fix="chat: false"))
        return VllmTexts(engine, tokenizer, config)


class VllmTexts:
    """A loaded vLLM engine. A TextGenerator and a Scorer."""

    def __init__(self, engine: Any, tokenizer: Any, config: VllmConfig) -> None:
        self._engine, self.tokenizer, self.config = engine, tokenizer, config
        self._room = config.max_model_tokens or int(engine.llm_engine.model_config.max_model_len)

    def generate(self, prompts: Sequence[str], how: Generation) -> list[Answer]:
        """One answer a prompt, in order. Raises ComponentError when a prompt does not fit into the model."""
        for index, ids in enumerate(self._encode(prompts)):
            if problem := self._problem(prompts[index], ids, how.max_new_tokens):
                why = f"{len(ids)} tokens and {how.max_new_tokens} new ones; there is room for {self._room}"
                fix = "check the template, or set max_prompt_tokens"
                raise ComponentError(Problem(f"prompt {index}: {problem}", why=why, fix=fix))
        answers = dict(self.stream(prompts, how))
        return [answers[i] for i in range(len(prompts))]

    def stream(self, prompts: Sequence[str], how: Generation) -> Iterator[tuple[int, Answer]]:
        """(index, answer), batch by batch; prompts that do not fit come first, with their problem."""
        encoded = self._encode(prompts)
        found = {i: self._problem(prompts[i], ids, how.max_new_tokens) for i, ids in enumerate(encoded)}
        yield from ((i, Answer("", False, 0, len(encoded[i]), problem=word)) for i, word in found.items() if word)
        good = [i for i, word in found.items() if not word]
        for begin in range(0, len(good), self.config.batch):
            part = good[begin : begin + self.config.batch]
            settings = [self._sampling(encoded[i], how.of(i)) for i in part]
            outputs = self._ask([encoded[i] for i in part], settings)
            for i, output in zip(part, outputs, strict=True):
                made = output.outputs[0]
                ended = made.finish_reason == "stop"
                yield i, Answer(made.text, ended, len(made.token_ids), len(encoded[i]))

    def log_likelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
        """(sum of log-probabilities, number of tokens) of each target given its prompt; the end token is not counted."""
        from vllm import SamplingParams

        if not pairs:
            return []
        heads = self._encode([prompt for prompt, _ in pairs])
        tails = self.tokenizer([target for _, target in pairs], add_special_tokens=False)["input_ids"]
        for index, (head, tail) in enumerate(zip(heads, tails, strict=True)):
            if not head or len(head) + len(tail) + 1 > self._room:
                why = f"{len(head)} and {len(tail)} tokens; there is room for {self._room}"
                raise ComponentError(Problem(f"pair {index} does not fit into the model", why=why, fix="set max_prompt_tokens"))
        rows = [[*head, *tail] for head, tail in zip(heads, tails, strict=True)]
        how = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        outputs = self._ask(rows, [how] * len(rows))
        return [_total(o.prompt_logprobs, row, len(h)) for o, row, h in zip(outputs, rows, heads, strict=True)]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        most = self.config.max_prompt_tokens
        encoded = encode_prompts(self.tokenizer, texts, self.config.chat)
        return encoded if most is None else [ids[-most:] for ids in encoded]

    def _problem(self, prompt: str, ids: Sequence[int], new: int) -> str:
        if not ids or not prompt.strip():
            return "empty-prompt"
        return "too-long" if len(ids) + new > self._room else ""

    def _ask(self, rows: Sequence[Sequence[int]], settings: Sequence[Any]) -> Any:
        given = [{"prompt_token_ids": list(row)} for row in rows]
        return self._engine.generate(given, list(settings), use_tqdm=False)

    def _sampling(self, ids: Sequence[int], how: Generation) -> Any:
        from vllm import SamplingParams

        more = {"structured_outputs": _structure(how)} if how.json_schema is not None else {}
        more |= {"top_k": how.top_k} if how.top_k > 0 else {}
        return SamplingParams(
            max_tokens=how.max_new_tokens, temperature=how.temperature, top_p=how.top_p, stop=list(how.stop),
            seed=_seed(how, ids), **more,
        )  # fmt: skip


def _structure(how: Generation) -> Any:
    try:
        from vllm.sampling_params import StructuredOutputsParams
    except ImportError as error:
        why = "this version of vLLM has no StructuredOutputsParams"
        raise ConfigError(Problem("json_schema needs vLLM 0.11 or later", why=why, fix="pip install -U vllm")) from error
    return StructuredOutputsParams(json=dict(how.json_schema or {}))


def _seed(how: Generation, ids: Sequence[int]) -> int:
    """A seed of the prompt's own, below 2^31."""
    key = f"{how.seed}:{','.join(map(str, ids))}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") >> 1


def _total(listed: Any, row: Sequence[int], first: int) -> tuple[float, int]:
    """(sum, number) of the log-probabilities of a row's tokens from `first` on."""
    return float(sum(listed[at][row[at]].logprob for at in range(first, len(row)))), len(row) - first
