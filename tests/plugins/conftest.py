# SPDX-License-Identifier: Apache-2.0
"""Small random models of several families, saved as directories: `save_model(folder, family)`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORDS = [f"w{i}" for i in range(40)]
SPECIAL = ["<pad>", "<unk>", "<eos>"]
SIZE = len(SPECIAL) + len(WORDS)
ENDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}


def save_tokenizer(folder: Path, **special: str) -> None:
    """One token a word; special: overrides, as in eos_token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *WORDS])}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>", **special}
    PreTrainedTokenizerFast(tokenizer_object=raw, **{k: v for k, v in names.items() if v}).save_pretrained(folder)


def module_of(family: str, **more: Any) -> Any:
    """A random model of about 10,000 parameters."""
    import transformers as hf

    llama = dict(
        vocab_size=SIZE, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.5, **ENDS,
    )  # fmt: skip
    bart = dict(
        vocab_size=SIZE, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=128, init_std=0.5, decoder_start_token_id=2,
        forced_eos_token_id=None, forced_bos_token_id=None, **ENDS,
    )  # fmt: skip
    t5 = dict(
        vocab_size=SIZE, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, initializer_factor=3.0,
        decoder_start_token_id=0, eos_token_id=2, pad_token_id=0, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    gpt2 = dict(vocab_size=SIZE, n_embd=16, n_layer=2, n_head=2, n_positions=128, initializer_range=0.5, **ENDS)
    bloom = dict(vocab_size=SIZE, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.5, **ENDS)
    made: dict[str, Callable[[], Any]] = {
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**{**llama, **more})),
        "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**{**llama, "sliding_window": 8, **more})),
        "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**{**llama, "sliding_window": None, **more})),
        "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**{**gpt2, **more})),
        "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(**{**bloom, **more})),
        "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**{**t5, **more})),
        "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**{**bart, **more})),
        "bert": lambda: hf.BertForMaskedLM(
            hf.BertConfig(
                vocab_size=SIZE,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
                pad_token_id=0,
            )
        ),
    }
    return made[family]()


@pytest.fixture(scope="session")
def save_model() -> Callable[..., Path]:
    """(folder, family, **configuration) -> the folder, with a tokenizer."""

    def save(folder: Path, family: str, seed: int = 0, **more: Any) -> Path:
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module_of(family, **more).save_pretrained(folder)
        save_tokenizer(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def tokenizer_of() -> Callable[..., None]:
    """(folder, **special tokens): write another tokenizer."""
    return save_tokenizer
