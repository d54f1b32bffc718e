# SPDX-License-Identifier: Apache-2.0
"""What is refused when a model is loaded, and said how to mend; random weights; device and dtype."""

import json
import re
import shutil
from pathlib import Path

import pytest

from osmotic.plugins.contract import Generation, Weights
from osmotic.plugins.models.masked import MaskedConfig, TransformersMasked
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel
from osmotic.schemas.errors import ComponentError, ConfigError


def plugin(path, **config):
    return TransformersModel(TransformersConfig(path=str(path), **config))


@pytest.fixture(scope="module")
def llama(tmp_path_factory, save_model):
    return save_model(tmp_path_factory.mktemp("llama"), "llama")


def test_adapters_without_a_place_say_which_exist(llama, tmp_path, save_model):
    with pytest.raises(ConfigError, match=r"no linear layer called 'c_attn', 'qkv'(.|\n)*down_proj, gate_proj, k_proj, o_proj"):
        plugin(llama, lora={"target_modules": ["q_proj", "c_attn", "qkv"]}).build()
    gpt2 = save_model(tmp_path / "gpt2", "gpt2")
    with pytest.raises(ConfigError, match="it has: c_attn, c_fc, c_proj"):
        plugin(gpt2, lora={}).build()
    module, _ = plugin(gpt2, lora={"target_modules": ["c_attn"]}).build().trainable()
    assert sum(p.requires_grad for p in module.parameters()) == 4


def test_no_end_token(llama, tmp_path, save_model, tokenizer_of):
    other = shutil.copytree(llama, tmp_path / "other")
    tokenizer_of(other, eos_token="")
    model = plugin(other).build()  # the model's configuration names one
    assert model.tokenizer.eos_token == "<eos>" and model.end == 2
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((other / name).read_text())
        (other / name).write_text(json.dumps({**settings, "eos_token_id": None}))
    with pytest.raises(ConfigError, match=r"no end token(.|\n)*eos_token in tokenizer_config"):
        plugin(other).build()


@pytest.mark.parametrize("family", ["llama", "t5", "bart"])
def test_no_tokenizer(family, tmp_path, save_model):
    folder = save_model(tmp_path, family)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ConfigError, match="no tokenizer"):
        plugin(folder).build()


def test_a_tokenizer_of_another_model_layers_and_masked_models(llama, tmp_path, save_model):
    small = save_model(tmp_path / "small", "llama", vocab_size=20)
    with pytest.raises(ConfigError, match=r"belongs to another model(.|\n)*43 tokens, the model 20"):
        plugin(small).build()
    with pytest.raises(ConfigError, match=r"layers: 3(.|\n)*at most 2"):
        plugin(llama, layers=3).build()
    with pytest.raises(ConfigError, match=r"masked model(.|\n)*transformers-masked"):
        plugin(save_model(tmp_path / "bert", "bert")).build()
    t5 = save_model(tmp_path / "t5", "t5", num_decoder_layers=1)
    with pytest.raises(ConfigError, match="has 1"):
        plugin(t5, layers=2).build()


def test_damaged_and_missing_weights(llama, tmp_path):
    torn = shutil.copytree(llama, tmp_path / "torn")
    whole = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="cannot be loaded"):
        plugin(torn).build()
    with pytest.raises(ConfigError, match="no such model directory"):
        plugin(tmp_path / "nowhere").build()


def test_a_device_that_is_not_there(llama, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"device: cuda, but there is none(.|\n)*device: auto"):
        plugin(llama, device="cuda").build()
    assert plugin(llama).build().device.type == "cpu"
    auto, plain = plugin(llama, dtype="auto"), plugin(llama)
    assert auto.build().dtype == "float32" and auto.fingerprint() == plain.fingerprint()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert auto.fingerprint() == plugin(llama, dtype="bfloat16").fingerprint()
    assert plugin(llama, device="cpu").fingerprint() == plain.fingerprint() == plugin(llama, device="cuda").fingerprint()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_dtypes_answer_and_train_in_float32(llama, dtype):
    model = plugin(llama, dtype=dtype).build()
    assert model.dtype == dtype and str(model.trainable()[0].dtype) == "torch.float32"
    answers = model.generate(["w1 w2", "w3"], Generation(max_new_tokens=4))
    assert all(answer.tokens for answer in answers)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_random_weights_come_from_the_seed_alone(family, tmp_path, save_model):
    import torch

    folder = save_model(tmp_path / "whole", family)
    whole = plugin(folder, weights="random").fingerprint()
    (folder / "model.safetensors").unlink()
    state = torch.get_rng_state()
    one, again, other = (plugin(folder, weights="random", seed=seed).build() for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    pairs = [dict(model.module.named_parameters()) for model in (one, again, other)]
    assert all(torch.equal(p, pairs[1][name]) for name, p in pairs[0].items())
    assert any(not torch.equal(p, pairs[2][name]) for name, p in pairs[0].items())
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert plugin(folder, weights="random").fingerprint() == whole  # the weights that are not read do not count
    assert len(plugin(folder, weights="random", layers=1).build().generate(["w1"], Generation(max_new_tokens=2))) == 1


def altered(folder, to, name, **keys):
    """A copy of a model's directory with keys of one of its JSON files set."""
    copy = Path(shutil.copytree(folder, to))
    settings = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps({**settings, **keys}))
    return copy


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_tensor_that_the_files_lack_is_not_drawn_at_random(family, tmp_path, save_model):
    from safetensors.numpy import load_file, save_file

    folder = save_model(tmp_path, family)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(tensors) if re.search(r"(layers|block)\.1\.", name))
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=rf"lack 1 tensors of the architecture, first '{re.escape(name)}'"):
        plugin(folder).build()
    assert plugin(folder, layers=1).build()  # nothing of the second layer is wanted


def test_a_masked_model_without_its_head_is_refused(tmp_path, save_model):
    from safetensors.numpy import load_file, save_file

    folder = save_model(tmp_path, "bert")
    tensors = {n: t for n, t in load_file(folder / "model.safetensors").items() if n.startswith("bert.")}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for damage, words in ((None, "lack"), (b"\xff" * 12, "cannot be loaded")):
        if damage:
            (folder / "model.safetensors").write_bytes(damage)
        with pytest.raises(ConfigError, match=words):
            TransformersMasked(MaskedConfig(path=str(folder))).build()


def test_adapters_pickles_and_code_are_refused_in_plain_words(llama, tmp_path):
    adapters = Path(shutil.copytree(llama, tmp_path / "adapters"))
    (adapters / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(llama), "peft_type": "LORA"}))
    with pytest.raises(ConfigError, match=r"directory of adapters(.|\n)*merge"):
        plugin(adapters).build()
    pickled = Path(shutil.copytree(llama, tmp_path / "pickled"))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"not safetensors(.|\n)*pytorch_model\.bin is a pickle"):
        plugin(pickled).build()
    assert plugin(pickled, weights="random").build()
    code = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    foreign = altered(llama, tmp_path / "foreign", "config.json", model_type="foreign", auto_map=code)
    (foreign / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ConfigError, match="code from its own repository, which is never run") as caught:
        plugin(foreign).build()
    assert "trust_remote_code" not in str(caught.value) and not (tmp_path / "ran").exists()


def test_a_chat_template_that_refuses_a_user_and_a_missing_package(llama, tmp_path):
    stern = altered(llama, tmp_path / "stern", "tokenizer_config.json", chat_template="{{ raise_exception('system first') }}")
    with pytest.raises(ConfigError, match=r"chat template(.|\n)*system first"):
        plugin(stern, chat=True).build()
    quantised = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
    packed = altered(llama, tmp_path / "packed", "config.json", quantization_config=quantised)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        plugin(packed).build()


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x", "a" * 5000, "a\0b.gguf", "~nobody-of-that-name/x.gguf", "osmotic:"])
def test_odd_paths_are_errors_of_configuration(path):
    with pytest.raises(ConfigError):
        plugin(path).fingerprint()


def test_words_that_only_the_tokenizer_knows(llama, tmp_path):
    folder = Path(shutil.copytree(llama, tmp_path / "grown"))
    tokenizer = plugin(folder).build().tokenizer
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(folder)
    model = plugin(folder).build()
    answers = dict(model.stream(["w1 more", "w1"], Generation(max_new_tokens=2)))
    assert answers[0].problem == "refused-request" and answers[1].tokens
    for call in (lambda: model.generate(["more"], Generation()), lambda: model.log_likelihood([("w1", "more")])):
        with pytest.raises(ComponentError, match="token that the model does not know"):
            call()


@pytest.mark.parametrize("more", [{}, {"weights": "random"}])
def test_narrow_weights_leave_the_rotations_in_float32(llama, more):
    """Rounded to bfloat16, positions past a hundred or so would turn by tenths of a radian."""
    import torch
    from torch.testing import assert_close

    model = plugin(llama, dtype="bfloat16", **more).build()
    weights = {name: p.detach().numpy() for name, p in model.trainable()[0].named_parameters()}
    back = model.with_weights(Weights(weights, {"base": model.fingerprint}))
    wide = plugin(llama, **more).build().module.model.rotary_emb.inv_freq
    for found in (model, back):
        assert_close(found.module.model.rotary_emb.inv_freq, wide, rtol=0, atol=0)
        assert {p.dtype for p in found.module.parameters()} == {torch.bfloat16}
    prompts = [" ".join(f"w{i % 40}" for i in range(100))]
    assert back.generate(prompts, Generation(max_new_tokens=9)) == model.generate(prompts, Generation(max_new_tokens=9))


def test_the_fingerprint_is_not_of_what_is_not_read(llama, tmp_path):
    copy = Path(shutil.copytree(llama, tmp_path / "copy"))
    before, drawn = plugin(copy).fingerprint(), plugin(copy, weights="random").fingerprint()
    (copy / "LICENSE.txt").write_text("free")
    (copy / "model.safetensors.index.json").write_text("{}")
    assert plugin(copy, weights="random").fingerprint() == drawn
    (copy / "model.safetensors.index.json").unlink()
    assert plugin(copy).fingerprint() == before
    seen = {before}
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "merges.txt"):
        (copy / name).write_text(((copy / name).read_text() if (copy / name).exists() else "") + " ")
        seen.add(plugin(copy).fingerprint())
    assert len(seen) == 6
    settings = ({"chat": True}, {"layers": 1}, {"max_prompt_tokens": 9}, {"lora": {}}, {"lora": {"rank": 9}}, {"dtype": "auto"})
    found = {plugin(copy, device="cpu", **more).fingerprint() for more in settings}
    assert len(found - {plugin(copy).fingerprint()}) == 5  # auto: float32 here


def test_a_hub_that_cannot_be_reached_is_told_in_one_error(monkeypatch, capfd):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"'someone/some-model' cannot be loaded(.|\n)*give its directory"):
        plugin("someone/some-model").build()
    assert capfd.readouterr() == ("", "")
