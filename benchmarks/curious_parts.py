# SPDX-License-Identifier: Apache-2.0
"""The round that `curious_server.py` looks at: three firms train an adapter of a tiny model, the server averages."""

import json
from pathlib import Path
from typing import Any

CLIENTS = ["inn", "workshop", "bakery"]
RANGE = 0.5  # no number of these updates is larger
WAIVE = "a benchmark: generated records, to see what the server sees"


def write(folder: Path, arm: str) -> Path:
    """Pipeline and policies: load, train, take the difference, average."""
    base = {
        "type": "transformers",
        "config": {"path": "osmotic:handbook/base", "lora": {"rank": 16, "alpha": 16, "target_modules": ["q_proj", "v_proj"]}},
    }
    training = {
        "model": "base",
        "mode": "generation",
        "prompt": "instruction: {{ instruction }} response:",
        "target": "{{ response }}",
    }
    secure: dict[str, Any] = {"range": RANGE, "at_least": 3}
    if arm == "noise":
        secure = {"range": RANGE, "clip": 1.0, "at_least": 3, "noise_multiplier": 1.0}
    asked: dict[str, Any] = {"from": "update", **({} if arm == "noise" else {"waive": WAIVE})}
    merged: dict[str, Any] = {"component": "secure_aggregator", "at": "server", "config": {"start": "judged"}}
    merged["inputs"] = {"total": {**asked, "secure_sum": secure}}
    if arm == "plain":
        merged = {"component": "aggregator", "at": "server", "inputs": {"models": asked}}
    tasks = {
        "records": {"component": "record_loader", "at": "clients", "config": {"data": "instructions"}},
        "local": {
            "component": "task_trainer",
            "at": "clients",
            "inputs": {"records": "records"},
            "config": {**training, "steps": 30, "batch": 16, "learning_rate": 0.01, "clip": 1.0},
        },
        "update": {
            "component": "update_maker",
            "at": "clients",
            "inputs": {"weights": "local.weights"},
            "config": {"start": "base"},
        },
        "merged": merged,
    }
    parties = {"server": "hub", "clients": CLIENTS}
    models = {"base": {**base, "at": "clients"}, "judged": {**base, "at": "server"}}
    data = "osmotic:handbook/data"
    sites = {
        name: {
            "data": {"instructions": {"path": f"{data}/{name}.jsonl", "schema": f"{data}/schema.yaml", "purpose": "benchmark"}}
        }
        for name in CLIENTS
    }
    port = "models" if arm == "plain" else "total"
    defaults: dict[str, Any] = {"waivers": [{"edge": f"merged.{port}", "observers": ["hub"]}]}
    if arm == "noise":
        defaults = {"budget": {"*": {"per_client": {"epsilon": 20, "delta": 1e-5}}}}
    policy = {"osmotic_sites": 1, "defaults": defaults, "parties": {"hub": {}, **sites}}
    (folder / "round.sites.yaml").write_text(json.dumps(policy, indent=1), encoding="utf-8")
    document = {"osmotic": 1, "name": "round", "parties": parties, "models": models, "tasks": tasks}
    (folder / "round.yaml").write_text(json.dumps(document, indent=1), encoding="utf-8")
    return folder / "round.yaml"
