# SPDX-License-Identifier: Apache-2.0
"""GGUF files: read as the model that they hold, converted once, fingerprinted by content; missing, cut, foreign files."""

import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from osmotic.plugins.contract import Generation
from osmotic.plugins.models import gguf as local
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel
from osmotic.schemas.errors import ConfigError, StoreError

pytest.importorskip("gguf", reason="the package gguf is not installed")
BYTES = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))] + [chr(256 + i) for i in range(68)]
TOKENS = ["<|end|>", *BYTES, "Ġa", "Ġb"]
HEADS, PAIRS = 4, 2


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OSMOTIC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def turned(weight, heads):
    """The order in which GGUF keeps the rows of queries and keys."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write(path, module):
    """A Llama of transformers as a float32 GGUF file with a byte-level tokenizer."""
    from gguf import GGUFWriter, TokenType

    config, writer = module.config, GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(PAIRS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([TokenType.CONTROL, *[TokenType.NORMAL] * (len(TOKENS) - 1)])
    writer.add_token_merges(["Ġ a", "Ġ b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    state = {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}  # fmt: skip
    for ours, theirs in (("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")):
        writer.add_tensor(f"{theirs}.weight", state[f"{ours}.weight"])
    for i in range(config.num_hidden_layers):
        for ours, theirs in names.items():
            weight = state[f"model.layers.{i}.{ours}.weight"]
            heads = {"attn_q": HEADS, "attn_k": PAIRS}.get(theirs)
            writer.add_tensor(f"blk.{i}.{theirs}.weight", np.ascontiguousarray(turned(weight, heads) if heads else weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def module():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(TOKENS),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=HEADS,
                num_key_value_heads=PAIRS,
                max_position_embeddings=64,
                initializer_range=0.5,
                bos_token_id=0,
                eos_token_id=0,
                tie_word_embeddings=False,
            )
        ).eval()


@pytest.fixture(scope="module")
def file(module, tmp_path_factory):
    return write(tmp_path_factory.mktemp("gguf") / "model.gguf", module)


def plugin(path, **config):
    return TransformersModel(TransformersConfig(path=str(path), device="cpu", **config))


def test_a_file_is_the_model_it_holds_and_is_converted_once(file, module, cache, monkeypatch):
    import torch

    assert plugin(file).memory(False) is None
    model = plugin(file).build()
    ids = torch.tensor([[5, 60, 7, 190, 23]])
    with torch.inference_mode():
        assert torch.allclose(model.module(input_ids=ids).logits, module(input_ids=ids).logits, atol=1e-4)
    assert model.encode_prompts(["a b a"])[0] == [TOKENS.index(t) for t in ("a", "Ġb", "Ġa")]
    answer = model.generate(["a b a"], Generation(max_new_tokens=5))[0]
    assert answer.tokens and plugin(file).memory(False) > 4 * sum(p.numel() for p in module.parameters())
    monkeypatch.setattr(local, "_read", None)  # nothing is read again
    assert plugin(file, layers=1).build().module.config.num_hidden_layers == 1
    assert plugin(file).build().generate(["a b a"], Generation(max_new_tokens=5)) == [answer]
    assert [p.name for p in cache.iterdir() if p.name.startswith(".")] == []


def test_the_fingerprint_is_of_the_content(file, tmp_path):
    copy = tmp_path / "other name.gguf"
    copy.write_bytes(file.read_bytes())
    assert plugin(copy).fingerprint() == plugin(file).fingerprint() != plugin(file, dtype="bfloat16").fingerprint()
    raw = bytearray(copy.read_bytes())
    raw[-1] ^= 1
    copy.write_bytes(raw)
    os.utime(copy, ns=(1, 1))
    assert plugin(copy).fingerprint() != plugin(file).fingerprint()


def test_missing_foreign_and_cut_files(file, tmp_path, cache):
    with pytest.raises(ConfigError, match="no such GGUF file"):
        plugin(tmp_path / "nothing.gguf").fingerprint()
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(ConfigError, match="is no GGUF file"):
        plugin(tmp_path / "text.gguf").build()
    whole = file.read_bytes()
    for share in (0.02, 0.5, 0.98):
        cut = tmp_path / f"cut{share}.gguf"
        cut.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ConfigError, match="cannot be read"):
            plugin(cut).build()
    assert [p for p in cache.iterdir() if p.is_dir()] == []


def test_two_at_once_and_a_killed_one(file, cache, monkeypatch):
    """Both convert at the same time and have the whole; what was killed is never read, and swept away after a day."""
    place = local.converted_place(file, "gguf")
    for name, age in ((f".{place.name}-killed", 2 * local.LEFT), (f".{place.name}-working", 0)):
        (place.parent / name).mkdir()
        (place.parent / name / "config.json").write_text("{")
        os.utime(place.parent / name, (time.time() - age,) * 2)
    read, both = local._read(file), threading.Barrier(2, timeout=60)

    def wait(source):
        both.wait()
        return read

    monkeypatch.setattr(local, "_read", wait)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(local.converted, [file, file])) == [place, place]
    assert plugin(file).build().generate(["a"], Generation(max_new_tokens=2))
    assert [p.name for p in cache.iterdir() if p.name.startswith(".")] == [f".{place.name}-working"]


def test_a_conversion_that_a_crash_tore_is_made_again(file):
    folder = local.converted(file)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(b"")
    assert local.converted(file) == folder and weights.read_bytes() == whole
    (folder / "tokenizer.json").unlink()
    assert local.converted(file) == folder and (folder / "tokenizer.json").is_file()


def test_a_full_disk(file, cache, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("transformers.PreTrainedModel.save_pretrained", full)
        with pytest.raises(StoreError, match=r"cannot be written(.|\n)*No space left(.|\n)*OSMOTIC_CACHE"):
            plugin(file).build()
        patched.setattr(local.tempfile, "mkdtemp", full)
        with pytest.raises(StoreError, match="No space left"):
            plugin(file).build()
        patched.setattr(local.tempfile, "NamedTemporaryFile", full)
        for note in cache.glob("digest-*"):
            note.unlink()
        fingerprint = plugin(file).fingerprint()  # the note is a convenience
    assert [p for p in cache.iterdir() if p.name.startswith(".") or p.name.startswith("tmp")] == []
    assert plugin(file).fingerprint() == fingerprint


@pytest.mark.skipif(os.name != "posix", reason="owners and modes are those of POSIX")
def test_a_cache_that_others_can_write_is_refused(file, cache, monkeypatch):
    plugin(file).fingerprint()
    cache.chmod(0o777)
    with pytest.raises(StoreError, match=r"every user can write(.|\n)*folder of your own"):
        plugin(file).build()
    cache.chmod(0o755)
    if cache.stat().st_uid == 0:
        os.chown(cache, 4321, -1)
    else:
        monkeypatch.setattr(local.os, "getuid", lambda: 4321)
    with pytest.raises(StoreError, match="another user"):
        plugin(file).build()
