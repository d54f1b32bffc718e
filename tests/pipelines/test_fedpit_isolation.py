# SPDX-License-Identifier: Apache-2.0
"""Two adapters at each client, one of which stays: on the bytes of finished runs, by the benchmark that users have for it."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osmotic.plugins.host import build_registry
from osmotic.runtime import api

FILE = Path(__file__).parents[2] / "benchmarks" / "isolation.py"
WORDS = ["<unk>", "<eos>", "ask", ":", "say", *(f"w{i}" for i in range(30))]
BOTH = ("north", "south")
SCHEMA = {"fields": {"kind": {"domain": ["tea", "bread"]}, "text": {"text": True}}}
TRAINED = {"model": "slm", "mode": "generation", "prompt": "ask :", "target": "{{ text }}", "steps": 3, "batch": 4}
WHY = "adapters of generated benchmark data"


@pytest.fixture(scope="module")
def isolation() -> Any:
    if not FILE.is_file():
        pytest.skip("the benchmarks are not here")
    spec = importlib.util.spec_from_file_location("isolation", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["isolation"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    import transformers as t
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("pico")
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "eos_token": "<eos>", "pad_token": "<eos>"}
    t.PreTrainedTokenizerFast(tokenizer_object=raw, **special).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"eos_token_id": 1, "pad_token_id": 1, "bos_token_id": None, "max_position_embeddings": 64}
    t.LlamaForCausalLM(t.LlamaConfig(vocab_size=len(WORDS), **sizes, **ends)).save_pretrained(folder)
    return folder


def write(folder: Path, model: Path, shared: str, freeze: bool = False, waive: str | None = WHY, **mixer: Any) -> Path:
    """Two clients whose task `shared` (or a mixture) goes up; returns the pipeline's file. mixer: of the task `mixed`."""
    folder.mkdir(exist_ok=True)
    parties: dict[str, Any] = {"hub": {}}
    for n, party in enumerate(BOTH):
        rng = np.random.Generator(np.random.PCG64(n))
        texts = [" ".join(f"w{i}" for i in rng.integers(0, 30, size=6)) for _ in range(12)]
        rows = [{"id": f"{party}-{i}", "kind": ("tea", "bread")[i % 2], "text": text} for i, text in enumerate(texts)]
        (folder / f"{party}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        parties[party] = {"data": {"items": {"path": f"{party}.jsonl", "schema": SCHEMA, "purpose": "benchmark"}}}
    sites = {
        "osmotic_sites": 1,
        "defaults": {"models": [str(model)], "waivers": [{"edge": "global.models", "observers": ["hub", *BOTH]}]},
        "parties": parties,
    }
    (folder / "toy.sites.yaml").write_text(json.dumps(sites))
    lora = {"rank": 2, "alpha": 4, "target_modules": ["q_proj", "v_proj"], "freeze_a": freeze}
    mixing = {"inputs": {"first": "local.weights", "second": "other.weights"}, "config": {}, **mixer}
    tasks: dict[str, Any] = {
        "local": {"component": "task_trainer", "at": "clients", "inputs": {"records": "items"}, "config": TRAINED},
        "other": {"component": "task_trainer", "at": "clients", "inputs": {"augmented": "made"}, "config": TRAINED},
        "mixed": {"component": "adapter_mixer", "at": "clients", **mixing},
        "global": {
            "component": "aggregator", "at": "server", "inputs": {"models": {"from": f"{shared}.weights", "waive": waive}},
            "config": {"adapters": "frozen-a" if freeze else "factors"},
        },
    }  # fmt: skip
    again = {"component": "task_trainer", "at": "clients", "config": TRAINED}
    tasks["local_again"] = {**again, "inputs": {"records": "items", "init": "global.weights"}}
    slm = {"type": "transformers", "at": "clients", "config": {"path": str(model), "device": "cpu", "lora": lora}}
    pipeline = {
        "osmotic": 1, "name": "toy", "parties": {"server": "hub", "clients": list(BOTH)}, "models": {"slm": slm},
        "tasks": {
            "items": {"component": "record_loader", "at": "clients", "config": {"data": "items"}},
            "made": {
                "component": "text_synthesizer", "at": "clients",
                "config": {"model": "slm", "prompt": "ask : {{ kind }}", "label_field": "kind", "labels": ["tea", "bread"],
                           "per_label": 4, "max_new_tokens": 6},
            },
            **tasks,
        },
    }  # fmt: skip
    (folder / "toy.yaml").write_text(json.dumps(pipeline))
    return folder / "toy.yaml"


def ran(folder: Path, model: Path, shared: str, freeze: bool = False) -> Path:
    """The home of the finished run."""
    api.run(write(folder, model, shared, freeze), home=folder / "home", registry=build_registry(names=()))
    return folder / "home"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """Only what was trained on synthetic records goes up."""
    return ran(tmp_path_factory.mktemp("runs") / "alone", model, "other")


def test_no_number_of_a_local_adapter_is_anywhere_else(alone: Path, isolation: Any) -> None:
    assert isolation.violations(alone, ["local", "local_again"]) == []
    shared = isolation.violations(alone, ["other"])  # what does go up is found, so the search does see
    assert any(line.startswith("north sent the weights of other@north") for line in shared)
    assert any(line.startswith("hub: parties/hub/store/objects/") for line in shared)


@pytest.mark.parametrize("freeze", [False, True])
def test_an_adapter_that_does_leave_is_found(tmp_path: Path, model: Path, isolation: Any, freeze: bool) -> None:
    home = ran(tmp_path / "run", model, "local", freeze)
    lines = isolation.violations(home, ["local"])
    assert {line for line in lines if "sent" in line} == {f"{party} sent the weights of local@{party}" for party in BOTH}
    assert all(any(line.startswith("hub: ") and f"local@{party} " in line for line in lines) for party in BOTH)
    assert isolation.violations(home, ["local_again"]) == []  # trained from the mean, and kept
    assert any("lora_A" in line for line in lines) != freeze  # a frozen A is in no weights at all


def test_a_mixture_is_private_by_what_is_wired_and_not_by_beta(tmp_path: Path, model: Path) -> None:
    both = {"first": "local.weights", "second": "other.weights"}
    for beta, inputs, private in ((0.5, both, True), (0, both, True), (0, {"second": "other.weights"}, False)):
        path = write(tmp_path, model, "mixed", waive=None, inputs=inputs, config={"beta": beta})
        refusals = api.plan(path, home=tmp_path / "home", registry=build_registry(names=()))["refusals"]
        assert bool(refusals) == private, (beta, inputs)
        assert all("private data of" in str(one["what"]) for one in refusals)


def test_a_few_numbers_in_the_middle_of_any_file_are_found(alone: Path, tmp_path: Path, isolation: Any) -> None:
    from safetensors.numpy import load

    home = tmp_path / "home"
    shutil.copytree(alone, home)
    (_, identity, digest), *_ = isolation._weights_of(home / "parties" / "north", ["local"])
    tensor = load((isolation._object(home / "parties" / "north", digest) / "weights.safetensors").read_bytes())
    name, values = next((n, t) for n, t in sorted(tensor.items()) if "lora_A" in n)
    hidden = home / "parties" / "hub" / "note.bin"
    hidden.write_bytes(b"abc" + values.reshape(-1)[5:10].tobytes() + b"xy")
    assert isolation.violations(home, ["local"]) == [
        f"hub: parties/hub/note.bin holds 2 runs of 4 numbers of {identity} {name}"
    ]


@pytest.mark.parametrize("form", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("turned", [False, True])
def test_numbers_that_were_turned_over_or_rounded_are_found(
    alone: Path, tmp_path: Path, isolation: Any, form: str, turned: bool
) -> None:
    import torch
    from safetensors.torch import load

    home = tmp_path / "home"
    shutil.copytree(alone, home)
    (_, identity, digest), *_ = isolation._weights_of(home / "parties" / "north", ["local"])
    tensors = load((isolation._object(home / "parties" / "north", digest) / "weights.safetensors").read_bytes())
    name, tensor = next((n, t) for n, t in sorted(tensors.items()) if "lora_A" in n)
    written = (tensor.T if turned else tensor).contiguous().to(getattr(torch, form))
    (home / "parties" / "hub" / "note.bin").write_bytes(b"abc" + written.reshape(-1).view(torch.uint8).numpy().tobytes())
    (line,) = isolation.violations(home, ["local"])
    assert line.startswith("hub: parties/hub/note.bin holds ") and f"{identity} {name}" in line
    if turned or form != "float32":
        assert line.endswith(f", {'turned over, ' if turned else ''}{form}")


def test_what_was_sent_and_is_gone_is_told(alone: Path, tmp_path: Path, isolation: Any) -> None:
    home = tmp_path / "home"
    shutil.copytree(alone, home)
    sent = isolation._crossed(home / "parties" / "north")[0]
    (digest,) = [one for one in sent if (isolation._object(home / "parties" / "north", one) / "weights.safetensors").is_file()]
    shutil.rmtree(isolation._object(home / "parties" / "north", digest))
    assert isolation.violations(home, ["local"]) == [
        f"north sent {digest[:12]}, which is in its store no more: it cannot be searched"
    ]


def test_a_search_for_nothing_is_no_proof(alone: Path, isolation: Any) -> None:
    for tasks in (["locale"], ["items"], []):
        with pytest.raises(ValueError, match="no weights of"):
            isolation.violations(alone, tasks)
