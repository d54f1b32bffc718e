# SPDX-License-Identifier: Apache-2.0
"""Memory estimates: the exact count of parameters from the headers, near it from a configuration, adapters, layers."""

import json
import shutil
import subprocess
import sys

import pytest

from osmotic.plugins.models.options import LocalConfig
from osmotic.plugins.models.sizes import TRAIN_TOKENS, _Shape, adapters, memory_of, parameters, shapes
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel


def plugin(path, **config):
    return TransformersModel(TransformersConfig(path=str(path), device="cpu", **config))


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bart", "bloom"])
def test_parameters_are_those_of_the_module(family, tmp_path, save_model):
    folder = save_model(tmp_path, family)
    for layers in (None, 1):
        module = plugin(folder, layers=layers).build().module
        count = sum(p.numel() for p in module.parameters())
        found = shapes(folder, layers)
        held = sum(b.numel() for name, b in module.named_buffers() if name in found)  # BART saves a constant
        assert parameters(found) == count + held
        rough = _Shape(json.loads((folder / "config.json").read_text()), layers).parameters()
        assert rough == pytest.approx(count, rel=0.15), (family, layers)


def test_adapters_and_training(tmp_path, save_model):
    folder = save_model(tmp_path, "llama")
    lora = {"rank": 4, "target_modules": ["q_proj", "down_proj"]}
    module, _ = plugin(folder, lora=lora).build().trainable()
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    config = LocalConfig(lora=lora)
    found = shapes(folder)
    shape = _Shape({"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 43}, None)
    assert adapters(found, shape, config) == trained
    total = parameters(found)
    full, light = plugin(folder).memory(True), plugin(folder, lora=lora).memory(True)
    assert full - light == 12 * (total - trained)
    assert full == total * (4 + 4 + 12) + 4 * TRAIN_TOKENS * (20 * 2 * 16 + 2 * 43)
    few = {"batch_tokens": 100}
    assert plugin(folder, dtype="bfloat16", **few).memory(False) < plugin(folder, **few).memory(False) < full
    assert plugin(folder).memory(False) == 4 * (total + 16384 * (2 * 2 * 2 * 4 + 43))  # keys and values, logits
    assert plugin(folder).memory(False) > 4 * total


def test_parts_damage_and_names_of_the_hub(tmp_path, save_model):
    folder = save_model(tmp_path / "whole", "llama")
    from osmotic.plugins.models.loading import quiet

    parts = shutil.copytree(folder, tmp_path / "parts")
    (parts / "model.safetensors").unlink()
    with quiet():
        plugin(folder).build().module.save_pretrained(parts, max_shard_size="20KB")
    assert len(list(parts.glob("*.safetensors"))) > 1 and shapes(parts) == shapes(folder)
    (folder / "model.safetensors").write_bytes(b"\xff" * 12)
    assert shapes(folder) is None and memory_of(folder, LocalConfig(), False) is not None  # from the configuration
    for header in (b'{"a": 3}', b'{"a": {}}', b'{"a": {"shape": [null]}}', b"[]"):
        (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
        assert shapes(folder) is None
    (folder / "config.json").write_text("{")
    assert plugin(folder).memory(False) is None and plugin("someone/some-model").memory(True) is None


def test_nothing_heavy_is_imported(tmp_path, save_model):
    folder = save_model(tmp_path, "llama")
    code = (
        "import sys\nfrom osmotic.plugins.models.transformers import TransformersConfig, TransformersModel\n"
        f"found = TransformersModel(TransformersConfig(path={str(folder)!r}))\n"
        "found.memory(True), found.memory(False), found.fingerprint()\n"
        "sys.exit(', '.join({'torch', 'transformers', 'peft', 'gguf'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
