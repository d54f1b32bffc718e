# SPDX-License-Identifier: Apache-2.0
"""The vLLM plugin against a stand-in for the package: what it asks, what it makes of the answers. vLLM itself is not run."""

import sys
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from osmotic.plugins.contract import Generation, Scorer, TextGenerator
from osmotic.plugins.models.vllm import VllmConfig, VllmModel
from osmotic.schemas.errors import ComponentError, ConfigError


@dataclass
class SamplingParams:
    """The parameters that are used, by vLLM's names."""

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: list[str] | None = None
    seed: int | None = None
    structured_outputs: Any = None
    prompt_logprobs: int | None = None
    detokenize: bool = True


@dataclass
class StructuredOutputsParams:
    json: Any = None


@dataclass
class FakeLLM:
    """Answers with the prompt's last token, as often as there are tokens to be made; keeps what it was asked."""

    options: dict[str, Any]
    asked: list[Any] = field(default_factory=list)

    def __post_init__(self):
        from transformers import AutoTokenizer

        if "broken" in self.options["model"]:
            raise ValueError("no such architecture")
        self.tokenizer = AutoTokenizer.from_pretrained(self.options["model"])
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=self.options["max_model_len"] or 32))

    def get_tokenizer(self):
        return self.tokenizer

    def generate(self, prompts, sampling_params, use_tqdm):
        assert use_tqdm is False and len(prompts) == len(sampling_params)
        self.asked += list(zip(prompts, sampling_params, strict=True))
        return [self._one(p["prompt_token_ids"], how) for p, how in zip(prompts, sampling_params, strict=True)]

    def _one(self, ids, how):
        made = [ids[-1]] * how.max_tokens
        listed = None
        if how.prompt_logprobs is not None:
            listed = [None, *({token: SimpleNamespace(logprob=-0.5 * at)} for at, token in enumerate(ids[1:], 1))]
        out = SimpleNamespace(text=self.tokenizer.decode(made), token_ids=made, finish_reason="stop" if how.stop else "length")
        return SimpleNamespace(outputs=[out], prompt_logprobs=listed)


@pytest.fixture
def vllm(monkeypatch):
    package, parameters = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    package.__spec__ = ModuleSpec("vllm", None)
    package.LLM, package.SamplingParams = lambda **options: FakeLLM(options), SamplingParams
    parameters.StructuredOutputsParams = StructuredOutputsParams
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", parameters)
    return package


@pytest.fixture(scope="module")
def folder(tmp_path_factory, save_model):
    return save_model(tmp_path_factory.mktemp("llama"), "llama")


def build(folder, **config):
    return VllmModel(VllmConfig(path=str(folder), **config)).build()


def test_without_the_package_it_says_how_to_get_it(folder):
    if "vllm" in sys.modules:
        pytest.skip("vllm is installed")
    with pytest.raises(ConfigError, match=r"'vllm' is not installed(.|\n)*pip install vllm"):
        build(folder)


def test_what_is_asked_and_what_comes_back(vllm, folder):
    model = build(folder, batch=2, gpus=2, gpu_memory=0.5, dtype="bfloat16")
    assert isinstance(model, TextGenerator) and isinstance(model, Scorer)
    options = model._engine.options
    assert options["trust_remote_code"] is False and options["load_format"] == "safetensors"
    assert (options["tensor_parallel_size"], options["gpu_memory_utilization"], options["dtype"]) == (2, 0.5, "bfloat16")
    how = Generation(max_new_tokens=3, temperature=0.7, top_p=0.9, stop=("x",), seed=4, json_schema={"type": "object"})
    prompts = ["w1 w2", "w3", "w4 w5 w6"]
    answers = model.generate(prompts, how)
    assert [a.text for a in answers] == ["w2 w2 w2", "w3 w3 w3", "w6 w6 w6"]
    assert [(a.finished, a.tokens, a.prompt_tokens) for a in answers] == [(True, 3, 2), (True, 3, 1), (True, 3, 3)]
    ids, settings = zip(*model._engine.asked, strict=True)
    assert ids[0] == {"prompt_token_ids": [4, 5]} and settings[0].structured_outputs.json == {"type": "object"}
    assert (settings[0].max_tokens, settings[0].temperature, settings[0].top_p, settings[0].stop) == (3, 0.7, 0.9, ["x"])
    seeds = [s.seed for s in settings]
    assert len(set(seeds)) == 3 and all(0 <= seed < 2**31 for seed in seeds)
    model._engine.asked.clear()
    model.generate(prompts[::-1], how)
    assert [s.seed for _, s in model._engine.asked] == seeds[::-1]
    model._engine.asked.clear()
    model.generate(["w3"] * 3, Generation(max_new_tokens=3, temperature=1.0, top_k=40, seeds=(1, 2, 3)))
    assert [s.top_k for _, s in model._engine.asked] == [40] * 3 and len({s.seed for _, s in model._engine.asked}) == 3


def test_prompts_that_do_not_fit_and_scores(vllm, folder):
    model = build(folder, max_model_tokens=8)
    found = dict(model.stream(["w1", "", "w1 w2 w3 w4 w5 w6", " \n"], Generation(max_new_tokens=3)))
    assert [found[i].problem for i in range(4)] == ["", "empty-prompt", "too-long", "empty-prompt"]
    assert found[0].text == "w1 w1 w1" and not found[0].finished
    with pytest.raises(ComponentError, match="prompt 1: too-long"):
        model.generate(["w1", "w1 w2 w3 w4 w5 w6"], Generation(max_new_tokens=3))
    assert model.log_likelihood([("w1 w2", "w3 w4"), ("w1", "w2")]) == [(-2.5, 2), (-0.5, 1)]
    assert model.log_likelihood([]) == []
    with pytest.raises(ComponentError, match="pair 0 does not fit"):
        model.log_likelihood([("w1 w2 w3 w4 w5 w6", "w7 w8")])


def test_what_it_cannot_load(vllm, tmp_path, save_model, folder):
    with pytest.raises(ConfigError, match=r"vLLM cannot load(.|\n)*no such architecture"):
        build(save_model(tmp_path / "broken", "llama"))
    with pytest.raises(ConfigError, match="no chat template"):
        build(folder, chat=True)
    prints = [VllmModel(VllmConfig(path=str(folder), **c)).fingerprint() for c in ({}, {"batch": 3}, {"dtype": "float16"})]
    assert prints[0] == prints[1] != prints[2]
