# SPDX-License-Identifier: Apache-2.0
"""Pico models of many kinds, examples, and the loss of a causal model: `pico(kind)`, `examples`, `job_of(module)`."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from osmotic.plugins.contract import PrivateJob

VOCABULARY = 96
LLAMA = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPT = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "word_embed_proj_dim": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
NEOX = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
NEO = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64,
    "attention_types": [[["global", "local"], 1]], "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MAMBA = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 1, "state_size": 4}


def pico(kind: str) -> Any:
    """A random model of about 20,000 parameters: "llama", "llama-tied", "gpt2-lora" and so on; in training mode."""
    import torch
    import transformers as hf

    torch.manual_seed(0)
    family, _, how = kind.partition("-")
    made = {
        "llama": lambda: hf.LlamaForCausalLM(
            hf.LlamaConfig(**LLAMA, tie_word_embeddings=how == "tied", attention_bias=not how)
        ),
        "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**LLAMA)),
        "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**LLAMA, head_dim=8)),
        "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**LLAMA)),
        "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**LLAMA, head_dim=8)),
        "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
        "opt": lambda: hf.OPTForCausalLM(hf.OPTConfig(**OPT)),
        "neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**NEOX)),
        "gptneo": lambda: hf.GPTNeoForCausalLM(hf.GPTNeoConfig(**NEO)),
        "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)),
        "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**LLAMA)),
        "mamba": lambda: hf.MambaForCausalLM(hf.MambaConfig(**MAMBA)),
    }[family]()
    return _adapted(made, family, how).train() if how in ("lora", "dora") else made.train()


def _adapted(module: Any, family: str, how: str) -> Any:
    from peft import LoraConfig, get_peft_model

    others = {
        "gpt2": ["c_attn", "c_fc"],
        "neox": ["query_key_value"],
        "bloom": ["query_key_value"],
        "mamba": ["in_proj", "x_proj"],
    }
    targets = others.get(family, ["q_proj", "v_proj"] if family == "mixtral" else ["q_proj", "v_proj", "down_proj"])
    wanted = LoraConfig(
        r=4, target_modules=targets, task_type="CAUSAL_LM", lora_dropout=0.1, use_dora=how == "dora",
        fan_in_fan_out=family == "gpt2",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what peft and transformers say to each other
        return get_peft_model(module, wanted)


def losses(module: Any, rows: Sequence[Sequence[int]]) -> Any:
    """Mean cross entropy of each row's own tokens after the first; padding carries none."""
    import torch

    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    logits = module(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
    each = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    weights = mask[:, 1:].float()
    return (each * weights).sum(1) / weights.sum(1)


def rows_of(count: int, seed: int = 0) -> list[list[int]]:
    """Token ids of 4 to 19 tokens."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 20, (count,), generator=generator).tolist()
    return [torch.randint(1, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def job_of(module: Any, **more: Any) -> PrivateJob:
    """A job on such rows."""
    given = {"losses": losses, "learning_rate": 3e-3, "at_once": 8, **more}
    return PrivateJob(module, lambda row: row, dummies=rows_of(3, seed=9), key="test", **given)


@pytest.fixture(name="pico")
def _pico() -> Callable[[str], Any]:
    return pico


@pytest.fixture(name="job_of")
def _job_of() -> Callable[..., PrivateJob]:
    return job_of


@pytest.fixture(name="rows_of")
def _rows_of() -> Callable[..., list[list[int]]]:
    return rows_of
