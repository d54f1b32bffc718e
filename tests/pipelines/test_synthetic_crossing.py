# SPDX-License-Identifier: Apache-2.0
"""Private records to synthetic texts at the server, as a pipeline: what may cross, what is charged, what the plan refuses."""

import importlib.util
import json
import re
import types
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.contract import Component, Config, Context, Document, Gathered, Metrics, Out, Outputs, Records
from osmotic.plugins.hookspecs import hookimpl
from osmotic.plugins.host import Registry, build_registry
from osmotic.runtime import api
from osmotic.runtime.results.verifying import verify
from osmotic.runtime.storage.ledger import Ledger
from osmotic.runtime.storage.store import Store
from osmotic.schemas.errors import ConfigError, RefusedError
from osmotic.schemas.records import NUMBERED

pytestmark = pytest.mark.skipif(importlib.util.find_spec("dp_accounting") is None, reason="needs the extra osmotic[dp]")
LABELS = ("1", "2", "10")
WORDS = [
    "<unk>",
    "<eos>",
    "score",
    ":",
    *LABELS,
    "the",
    "team",
    "won",
    "soup",
    "and",
    "bread",
    "came",
    "hot",
    "nothing",
    "to",
    "say",
    "canary",
]
CANARY = "canary canary canary"
BOTH = ("north", "south")
SCHEMA = {"fields": {"label": {"domain": list(LABELS)}, "text": {"text": True}}}


class Nothing(Config):
    """No keys."""


class Reader(Component[Nothing]):
    """What the server sees of texts."""

    name = "reader"
    outputs = {"seen": Out(Document)}

    def run(self, context: Context, texts: Gathered[Records]) -> Outputs:
        return {"seen": Document({party: table.rows for party, table in texts.items()})}


class RateReader(Component[Nothing]):
    """What the server sees of metrics."""

    name = "rate_reader"
    outputs = {"seen": Out(Document)}

    def run(self, context: Context, rates: Gathered[Metrics]) -> Outputs:
        return {"seen": Document({party: one.values for party, one in rates.items()})}


class CurveReader(Component[Nothing]):
    """What the server sees of documents."""

    name = "curve_reader"
    outputs = {"seen": Out(Document)}

    def run(self, context: Context, curves: Gathered[Document]) -> Outputs:
        return {"seen": Document({party: one.data for party, one in curves.items()})}


class NearCopyFilter(Component[Nothing]):
    """What must not be: leaves out texts that private records hold."""

    name = "near_copy_filter"
    outputs = {"texts": Out(Records)}

    def run(self, context: Context, records: Records, texts: Records) -> Outputs:
        known = {row["text"] for row in records}
        return {"texts": Records([row for row in texts if row["text"] not in known], texts.columns)}


@pytest.fixture(scope="module")
def registry() -> Registry:
    module = types.ModuleType("readers")
    module.register_components = hookimpl(
        lambda: (Reader, RateReader, CurveReader, NearCopyFilter), specname="register_components"
    )
    return build_registry(names=(), modules=[module])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    import transformers as t
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("pico")
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    t.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>").save_pretrained(
        folder
    )
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": len(WORDS),
    }
    ends = {"eos_token_id": 1, "pad_token_id": 1, "bos_token_id": None, "max_position_embeddings": 64}
    t.LlamaForCausalLM(t.LlamaConfig(**sizes, **ends)).save_pretrained(folder)
    return folder


GENERATOR = {
    "component": "dp_generator", "at": "clients", "inputs": {"records": "items"},
    "config": {
        "model": "slm", "prompt": "score {{ label }} :", "max_length": 32,
        "privacy": {"epsilon": 3, "delta": 1e-3, "batch": 10, "steps": 8},
    },
}  # fmt: skip
SYNTHETIC = {
    "component": "text_synthesizer", "at": "clients", "inputs": {"weights": "generator.weights"},
    "config": {"model": "slm", "prompt": "score {{ label }} :", "per_label": 5, "max_new_tokens": 8, "top_p": 1.0},
}  # fmt: skip
VALID = {
    "component": "synthetic_filter", "at": "clients", "inputs": {"texts": "synthetic"},
    "config": {"min_words": 1, "near_duplicate": None},
}  # fmt: skip
READ = {"component": "reader", "at": "server", "inputs": {"texts": "valid.valid"}}


def write(folder: Path, model: Path, epsilon: float = 4.0, **tasks: Any) -> Path:
    """Two clients of 40 records, one of them a canary; returns the pipeline's file."""
    parties: dict[str, Any] = {"hub": {}}
    for party in BOTH:
        rows = [{"id": f"{party}-{i}", "label": LABELS[i % 3], "text": "soup and bread" if i else CANARY} for i in range(40)]
        (folder / f"{party}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        parties[party] = {"data": {"items": {"path": f"{party}.jsonl", "schema": SCHEMA}}}
    budget = {"*": {"per_record": {"epsilon": epsilon, "delta": 1e-3}}}
    sites = {"osmotic_sites": 1, "defaults": {"budget": budget, "models": [str(model)]}, "parties": parties}
    (folder / "texts.sites.yaml").write_text(json.dumps(sites), encoding="utf-8")
    loaded = {"component": "record_loader", "at": "clients", "config": {"data": "items"}}
    pipeline = {
        "osmotic": 1, "name": "texts", "parties": {"server": "hub", "clients": ["north", "south"]},
        "models": {"slm": {"type": "transformers", "at": "clients", "config": {"path": str(model), "device": "cpu"}}},
        "tasks": {"items": loaded, "generator": GENERATOR, "synthetic": SYNTHETIC, "valid": VALID, "read": READ, **tasks},
    }  # fmt: skip
    (folder / "texts.yaml").write_text(json.dumps(pipeline), encoding="utf-8")
    return folder / "texts.yaml"


def refused(path: Path, registry: Registry) -> list[str]:
    """What the plan refuses."""
    return [str(one["what"]) for one in api.plan(path, home=path.parent / "home", registry=registry)["refusals"]]


def whose(texts: list[str]) -> list[str]:
    """Whose private data would cross, by refusals that say nothing else."""
    return [found[1] if (found := re.match(r"refused: private data of (\w+) \(items\) would cross", t)) else t for t in texts]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, model: Path, registry: Registry) -> tuple[Path, dict[str, Any]]:
    """The pipeline's file, run once beside it, and the summary."""
    path = write(tmp_path_factory.mktemp("ran"), model)
    return path, api.run(path, home=path.parent / "home", registry=registry)


def test_synthetic_texts_cross_as_protected_and_the_run_says_what_that_means(ran: Any, registry: Registry) -> None:
    path, summary = ran
    home = path.parent / "home"
    plan = api.plan(path, home=home, registry=registry)
    assert plan["refusals"] == [] and {crossing["label"] for crossing in plan["crossings"]} == {"protected"}
    line = summary["guarantee"]["line"]
    assert re.search(r"run: dp-sgd: epsilon 2\.99\d*, delta 0\.001 a record \(add-or-remove-one\)", line), line
    for account in summary["guarantee"]["parties"]:
        if account["party"] != "hub":
            assert account["word"] == "dp-sgd" and 2.9 < account["parts"][0]["epsilon"] <= 3.0 and not account["void"]
    assert verify(home)["problems"] == []
    assert api.run(path, home=home, registry=registry)["guarantee"]["line"] == line  # found again, charged once


def test_the_server_sees_numbered_rows_and_nothing_else(ran: Any) -> None:
    hub = ran[0].parent / "home" / "parties" / "hub"
    ledger = Ledger(hub)
    ((outputs,),) = ledger.query("SELECT t.outputs FROM instances i JOIN tasks t ON t.key = i.key WHERE i.id LIKE 'read%'")
    ledger.close()
    seen = Store(hub / "store").get(Document.kind, json.loads(outputs)["seen"]["digest"]).data
    assert set(seen) == set(BOTH)
    for rows in seen.values():
        assert rows and all(set(row) == {"id", "label", "text"} and NUMBERED.fullmatch(row["id"]) for row in rows)
        assert all(row["label"] in LABELS for row in rows)


def test_a_filter_that_reads_records_may_not_cross(tmp_path: Path, model: Path, registry: Registry) -> None:
    near = {"component": "near_copy_filter", "at": "clients", "inputs": {"records": "items", "texts": "synthetic"}}
    path = write(tmp_path, model, near=near, read={**READ, "inputs": {"texts": "near"}})
    assert whose(refused(path, registry)) == list(BOTH)
    with pytest.raises(RefusedError, match="would cross"):
        api.run(path, home=tmp_path / "home", registry=registry)


def test_a_copy_check_stays_at_home(tmp_path: Path, model: Path, registry: Registry) -> None:
    copies = {"component": "copy_checker", "at": "clients", "inputs": {"records": "items", "texts": "synthetic"}}
    path = write(tmp_path, model, copies=copies)
    assert api.plan(path, home=tmp_path / "home", registry=registry)["refusals"] == []
    told = {"component": "rate_reader", "at": "server", "inputs": {"rates": "copies"}}
    found = refused(write(tmp_path, model, copies=copies, told=told), registry)
    assert whose(found) == list(BOTH)
    path = write(tmp_path, model, told={**told, "inputs": {"rates": "valid.report"}})  # of the texts alone: it may cross
    assert api.plan(path, home=tmp_path / "home", registry=registry)["refusals"] == []


def test_the_curve_may_not_cross_and_raw_records_may_not(tmp_path: Path, model: Path, registry: Registry) -> None:
    raw = write(tmp_path, model, read={**READ, "inputs": {"texts": "items"}})
    assert refused(raw, registry) == [
        f"refused: private data of {p} (items) would cross: the plan asks for no waiver" for p in BOTH
    ]
    private = {**SYNTHETIC, "inputs": {"weights": "generator.weights", "counts": "items"}}
    counted = write(tmp_path, model, synthetic=private)  # counts that are no release make the texts private
    assert whose(refused(counted, registry)) == list(BOTH)
    curve = {"component": "curve_reader", "at": "server", "inputs": {"curves": "generator.curve"}}
    assert len(refused(write(tmp_path, model, told=curve), registry)) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"engine": "deepspeed"}, "Opacus"),
        ({"prompt": "score {{ lable }} :"}, "lable"),
        ({"prompt": "score {{ text }} :"}, "free text"),
    ],
)
def test_mistakes_stop_the_plan(tmp_path: Path, model: Path, registry: Registry, changes: dict[str, Any], said: str) -> None:
    bad = {**GENERATOR, "config": {**GENERATOR["config"], **changes}}
    with pytest.raises(ConfigError, match=said):
        api.plan(write(tmp_path, model, generator=bad), home=tmp_path / "home", registry=registry)


def test_a_training_over_the_cap_is_refused_in_plan(tmp_path: Path, model: Path, registry: Registry) -> None:
    path = write(tmp_path, model, epsilon=1.0)
    assert all("epsilon 2.99" in text and "over the cap" in text for text in refused(path, registry))
    with pytest.raises(RefusedError, match="over the cap"):
        api.run(path, home=tmp_path / "home", registry=registry)
