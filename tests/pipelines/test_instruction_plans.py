# SPDX-License-Identifier: Apache-2.0
"""Synthetic instructions on their way to the server: what a private generator wrote may cross; the plan refuses half of it."""

import importlib.util
import json
import types
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.contract import Component, Config, Context, Document, Gathered, Out, Outputs, Records
from osmotic.plugins.hookspecs import hookimpl
from osmotic.plugins.host import Registry, build_registry
from osmotic.runtime import api

pytestmark = pytest.mark.skipif(importlib.util.find_spec("dp_accounting") is None, reason="needs the extra osmotic[dp]")
BOTH = ("north", "south")
SCHEMA = {"fields": {"label": {"domain": ["1", "2"]}, "instruction": {"text": True}, "response": {"text": True}}}
PATTERN = "instruction: (?P<instruction>.*) response: (?P<response>.*)"
TARGET = "instruction: {{ instruction }} response: {{ response }}"


class Nothing(Config):
    """No keys."""


class Reader(Component[Nothing]):
    """What the server sees of texts."""

    name = "reader"
    outputs = {"seen": Out(Document)}

    def run(self, context: Context, texts: Gathered[Records]) -> Outputs:
        return {"seen": Document({party: table.rows for party, table in texts.items()})}


@pytest.fixture(scope="module")
def registry() -> Registry:
    module = types.ModuleType("readers")
    module.register_components = hookimpl(lambda: (Reader,), specname="register_components")
    return build_registry(names=(), modules=[module])


def task(component: str, inputs: dict[str, str], **config: Any) -> dict[str, Any]:
    return {"component": component, "at": "clients", "inputs": inputs, "config": config}


PRIVACY = {"epsilon": 3, "delta": 1e-3, "batch": 10, "steps": 8}
TASKS: dict[str, Any] = {
    "items": task("record_loader", {}, data="items"),
    "generator": task("dp_generator", {"records": "items"}, model="slm", prompt="{{ label }}:", target=TARGET, privacy=PRIVACY),
    "local": task("task_trainer", {"records": "items"}, model="slm", mode="generation", prompt="{{ instruction }}",
                  target="{{ response }}", steps=2),
    "written": task("text_synthesizer", {"weights": "generator.weights"}, model="slm", prompt="{{ label }}:", per_label=5),
    "kept": task("instruction_filter", {"synthetic": "written"}, pattern=PATTERN),
    "chosen": task("ifs_selector", {"synthetic": "kept.kept"}, model="slm", keep=4),
    "chosen_by_global": task("ifs_selector", {"synthetic": "kept.kept", "weights": "generator.weights"}, model="slm"),
    "compared": task("instruction_filter", {"synthetic": "written", "against": "items"}, pattern=PATTERN),
    "chosen_after": task("ifs_selector", {"synthetic": "compared.kept"}, model="slm"),
    "chosen_by_local": task("ifs_selector", {"synthetic": "kept.kept", "weights": "local.weights"}, model="slm"),
    "shown": task("instruction_synthesizer", {"records": "items"}, model="slm"),
    "answered": task("response_synthesizer", {"records": "items", "instructions": "shown.instructions"}, model="slm"),
}  # fmt: skip


def plan(folder: Path, registry: Registry, *crossing: str) -> list[dict[str, Any]]:
    """What the plan refuses when the server reads these outputs."""
    parties: dict[str, Any] = {"hub": {}}
    for party in BOTH:
        rows = [{"id": f"{party}-{i}", "label": "1", "instruction": "say it", "response": "it"} for i in range(40)]
        (folder / f"{party}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        parties[party] = {"data": {"items": {"path": f"{party}.jsonl", "schema": SCHEMA}}}
    defaults = {"budget": {"*": {"per_record": {"epsilon": 4, "delta": 1e-3}}}}
    (folder / "i.sites.yaml").write_text(json.dumps({"osmotic_sites": 1, "defaults": defaults, "parties": parties}))
    lora = {"rank": 2, "alpha": 4, "target_modules": ["q_proj", "lm_head"]}
    slm = {"type": "transformers", "at": "clients", "config": {"path": "osmotic:shop/generator", "lora": lora}}
    reads = {f"read_{i}": {"component": "reader", "at": "server", "inputs": {"texts": one}} for i, one in enumerate(crossing)}
    pipeline = {"osmotic": 1, "name": "i", "parties": {"server": "hub", "clients": list(BOTH)}, "models": {"slm": slm}}
    (folder / "i.yaml").write_text(json.dumps({**pipeline, "tasks": {**TASKS, **reads}}))
    return list(api.plan(folder / "i.yaml", home=folder / "home", registry=registry)["refusals"])


def test_what_a_private_generator_wrote_crosses_when_nothing_private_is_read_after_it(
    tmp_path: Path, registry: Registry
) -> None:
    """Also selected by the private generator itself, or by the model as it is: W^g."""
    assert plan(tmp_path, registry, "kept.kept", "chosen.selected", "chosen_by_global.selected") == []


def test_half_of_it_is_refused(tmp_path: Path, registry: Registry) -> None:
    """A comparison with local records, a selection by W^l, or after that comparison; local demonstrations."""
    crossing = (
        "compared.kept", "compared.rejected", "chosen_after.selected", "chosen_by_local.selected", "chosen_by_local.scores",
        "shown.instructions", "answered.synthetic", "answered.rejected",
    )  # fmt: skip
    found = sorted(str(one["what"]) for one in plan(tmp_path, registry, "kept.kept", *crossing))
    wanted = [f"refused: private data of {party} (items) would cross" for party in BOTH for _ in crossing]
    assert len(found) == len(wanted) and all(one.startswith(start) for one, start in zip(found, wanted, strict=True))
