# SPDX-License-Identifier: Apache-2.0
"""Sentence embedders: pooling by hand, layers, padding, truncation, every family, what is refused, the shipped MiniLM."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from osmotic.plugins.contract import Embedder
from osmotic.plugins.models import embedding
from osmotic.plugins.models.embedding import EmbedderConfig, EmbedderModel, MiniLmConfig, MiniLmModel
from osmotic.plugins.tables import minilm
from osmotic.plugins.testing import check_model
from osmotic.schemas.errors import ConfigError

TEXTS = ["w1 w2 w3", "w9", " ".join(f"w{i}" for i in range(30)), "w5 w4", "w1 w2 w3 w1"]
needs_minilm = pytest.mark.skipif(
    not any(find_spec(package) for package, _ in minilm.PLACES), reason="no package with MiniLM is installed"
)


@pytest.fixture(scope="module", params=["llama", "gpt2", "bert", "t5", "bart"])
def folder(request, save_model, tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp(request.param), request.param)


def build(folder: Path, **config):
    return EmbedderModel(EmbedderConfig(path=str(folder), **config)).build()


def by_hand(model, text: str, layer: int | None) -> np.ndarray:
    """The text alone, without padding or mask."""
    import torch

    ids = torch.tensor([model.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        out = model.module(input_ids=ids, output_hidden_states=True)
    states = out.last_hidden_state if layer is None else out.hidden_states[layer]
    if layer == 0:
        states = model.module.get_input_embeddings()(ids).detach()
    mean = states[0].double().numpy().mean(0)
    return mean / np.linalg.norm(mean)


@pytest.mark.parametrize("layer", [None, 0, 1])
def test_it_is_the_mean_over_a_texts_own_tokens(folder, layer):
    model = build(folder, layer=layer)
    found = model.embed(TEXTS)
    assert isinstance(model, Embedder) and found.dtype == np.float32 and found.shape[0] == len(TEXTS)
    for row, text in zip(found, TEXTS, strict=True):
        np.testing.assert_allclose(row, by_hand(model, text, layer), atol=2e-5)


def test_neither_company_nor_order_matters(folder):
    model = build(folder)
    together = model.embed(TEXTS)
    np.testing.assert_allclose(together, np.concatenate([model.embed([text]) for text in TEXTS]), atol=2e-5)
    np.testing.assert_allclose(together[::-1], model.embed(TEXTS[::-1]), atol=2e-5)
    np.testing.assert_allclose(together, build(folder, batch_tokens=1).embed(TEXTS), atol=2e-5)


def test_layers_differ_and_the_fingerprint_says_so(folder):
    plugins = [EmbedderModel(EmbedderConfig(path=str(folder), layer=layer)) for layer in (None, 0, 1)]
    assert len({plugin.fingerprint() for plugin in plugins}) == 3
    first, second = (plugin.build().embed(TEXTS) for plugin in plugins[:2])
    assert np.abs(first - second).max() > 0.01
    fast = EmbedderModel(EmbedderConfig(path=str(folder), batch_tokens=7))
    assert fast.fingerprint() == plugins[0].fingerprint() and (fast.memory(False) or 0) > 1000


def test_conformance(folder):
    check_model(EmbedderModel, {"path": str(folder)})


def test_long_texts_lose_their_end_and_empty_ones_have_a_vector(folder):
    model = build(folder, max_tokens=4)
    long = " ".join(["w3", "w4", "w5", "w6", *["w7"] * 900])
    np.testing.assert_allclose(*model.embed([long, "w3 w4 w5 w6"]), atol=2e-5)
    assert np.isfinite(build(folder).embed([long])).all()  # more than the model's own positions
    empty = model.embed(["", "w1"])
    np.testing.assert_allclose(np.linalg.norm(empty, axis=1), 1, atol=1e-5)
    assert model.embed([]).shape == (0, empty.shape[1])


def test_what_is_refused(folder, tmp_path, tokenizer_of):
    with pytest.raises(ConfigError, match="layer: 9, but"):
        build(folder, layer=9)
    with pytest.raises(ConfigError, match=r"no such model directory"):
        build(tmp_path / "nothing" / "there")
    (tmp_path / "config.json").write_text("{}")
    tokenizer_of(tmp_path)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        build(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(save_model, tmp_path):
    from transformers import AutoTokenizer

    folder = save_model(tmp_path, "bert")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["extra"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match="belongs to another model"):
        build(folder)


def test_a_missing_tensor_is_refused(save_model, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save_model(tmp_path, "bert")
    tensors = load_file(folder / "model.safetensors")
    gone = next(name for name in tensors if name.endswith("intermediate.dense.weight"))
    save_file({n: t for n, t in tensors.items() if n != gone}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="lack 1 tensors"):
        build(folder)


def test_minilm_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(minilm, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match="no installed package has the model 'minilm'") as caught:
        MiniLmModel(MiniLmConfig()).build()
    assert "pip install" in caught.value.problems[0].fix


@needs_minilm
def test_minilm_knows_what_sentences_mean():
    plugin = MiniLmModel(MiniLmConfig())
    model = plugin.build()
    cat, kitten, stock = model.embed(["A cat sits on the mat.", "A kitten rests on a rug.", "Share prices fell sharply today."])
    assert cat.shape == (384,) and cat @ kitten > 0.5 > 0.2 > cat @ stock
    np.testing.assert_allclose(cat, by_hand(model, "A cat sits on the mat.", None), atol=2e-5)
    assert embedding.minilm_folder().is_dir() and 90e6 < (plugin.memory(False) or 0) < 92e6
