# SPDX-License-Identifier: Apache-2.0
"""The task's own model in a pipeline: what may cross, what is refused, an attack and an exam beside it."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry, build_registry
from osmotic.runtime import api
from osmotic.runtime.results.verifying import verify

pytestmark = pytest.mark.skipif(importlib.util.find_spec("dp_accounting") is None, reason="needs the extra osmotic[dp]")
WORDS = ["<unk>", "<eos>", "hot", "cold", "soup", "and", "bread", "came", "again", "rated:"]
LABELS = ("bad", "good")
BOTH = ("north", "south")
SCHEMA = {"fields": {"label": {"domain": list(LABELS)}, "text": {"text": True}}}
CONFIG = {"model": "slm", "prompt": "{{ text }} rated:", "max_length": 16, "learning_rate": 0.02}
PRIVACY = {"epsilon": 3, "delta": 1e-3, "batch": 10, "steps": 4}
TASKS: dict[str, Any] = {
    "items": {"component": "record_loader", "at": "clients", "config": {"data": "items"}},
    "exam": {"component": "record_loader", "at": "clients", "config": {"data": "exam"}},
    "task": {"component": "task_trainer", "at": "clients", "inputs": {"records": "items"}, "config": {**CONFIG, "steps": 30}},
    "private": {
        "component": "dp_task_trainer", "at": "clients", "inputs": {"records": "items"},
        "config": {**CONFIG, "privacy": PRIVACY},
    },
    "mean": {"component": "aggregator", "at": "server", "inputs": {"models": "private.weights"}},
    "score": {
        "component": "evaluator", "at": "clients", "inputs": {"records": "exam", "weights": "task.weights"},
        "config": {"model": "slm", "label_prompt": CONFIG["prompt"], "label_target": "{{ label }}", "modes": ["head"]},
    },
    "attack": {
        "component": "membership_attack", "at": "clients",
        "inputs": {"members": "items", "others": "exam", "weights": "private.weights"},
        "config": {"model": "slm", "prompt": CONFIG["prompt"], "target": "{{ label }}", "draws": 100},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def registry() -> Registry:
    return build_registry(names=())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    import transformers as t
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("pico")
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = t.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>")
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"eos_token_id": 1, "pad_token_id": 1, "bos_token_id": None, "max_position_embeddings": 64}
    t.LlamaForCausalLM(t.LlamaConfig(vocab_size=len(WORDS), **sizes, **ends)).save_pretrained(folder)
    return folder


def rows(party: str, count: int) -> list[dict[str, str]]:
    said = ("cold soup and bread", "hot soup came again")
    return [{"id": f"{party}-{i}", "label": LABELS[i % 2], "text": said[i % 2]} for i in range(count)]


def write(folder: Path, model: Path, **tasks: Any) -> Path:
    parties: dict[str, Any] = {"hub": {}}
    for party in BOTH:
        for name, found in (("items", rows(party, 40)), ("exam", rows(f"{party}-exam", 10))):
            (folder / f"{party}-{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
        data = {name: {"path": f"{party}-{name}.jsonl", "schema": SCHEMA} for name in ("items", "exam")}
        parties[party] = {"data": data}
    budget = {"*": {"per_record": {"epsilon": 4.0, "delta": 1e-3}}}
    sites = {"osmotic_sites": 1, "defaults": {"budget": budget, "models": [str(model)]}, "parties": parties}
    (folder / "task.sites.yaml").write_text(json.dumps(sites), encoding="utf-8")
    pipeline = {
        "osmotic": 1, "name": "task", "parties": {"server": "hub", "clients": list(BOTH)},
        "models": {"slm": {"type": "transformers", "at": "clients", "config": {"path": str(model), "device": "cpu"}}},
        "tasks": {**TASKS, **tasks},
    }  # fmt: skip
    (folder / "task.yaml").write_text(json.dumps(pipeline), encoding="utf-8")
    return folder / "task.yaml"


def refusals(path: Path, registry: Registry) -> list[str]:
    return [str(one["what"]) for one in api.plan(path, home=path.parent / "home", registry=registry)["refusals"]]


def test_privately_trained_heads_cross_and_are_averaged(tmp_path: Path, model: Path, registry: Registry) -> None:
    path = write(tmp_path, model)
    assert refusals(path, registry) == []
    summary = api.run(path, home=tmp_path / "home", registry=registry)
    line = summary["guarantee"]["line"]
    assert "dp-sgd: epsilon 2.9" in line and "a record" in line, line
    assert verify(tmp_path / "home")["problems"] == []


def test_weights_of_raw_records_do_not_cross(tmp_path: Path, model: Path, registry: Registry) -> None:
    mean = {"component": "aggregator", "at": "server", "inputs": {"models": "task.weights"}}
    found = refusals(write(tmp_path, model, mean=mean), registry)
    assert found and all("private data of" in text and "would cross" in text for text in found)


def test_what_is_private_is_no_place_to_start_a_private_training_from(tmp_path: Path, model: Path, registry: Registry) -> None:
    private = {**TASKS["private"], "inputs": {"records": "items", "init": "task.weights"}}
    path = write(tmp_path, model, private=private)
    assert refusals(path, registry) == ["several inputs are private (items.records, task.weights), and only the records may be"]
