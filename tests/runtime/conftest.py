# SPDX-License-Identifier: Apache-2.0
"""Toy plugins, a small data set and site policies for the tests of the runtime."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from osmotic.plugins.host import Registry, build_registry

TOYS = Path(__file__).parent / "toys"
SCHEMA = {"fields": {"colour": {"domain": ["red", "green", "blue", "white"]}, "size": {"domain": ["s", "m", "l"]}}}
SANITIZE = {"name": "list-rr", "epsilon": 2, "k": 1}


@pytest.fixture(scope="session")
def toys() -> Iterator[Registry]:
    """The registry with the toys; the module can be imported while the tests run."""
    sys.path.insert(0, str(TOYS))
    try:
        yield build_registry(names=(), modules=[importlib.import_module("osmotic_toys")])
    finally:
        sys.path.remove(str(TOYS))


@pytest.fixture
def toy_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started find the toys as an installed plugin."""
    monkeypatch.setenv("PYTHONPATH", str(TOYS))
    monkeypatch.setenv("OSMOTIC_PLUGINS", "toys")


class Shop:
    """A folder with two parties' records, their policies and a pipeline. `defaults`: policy keys of both."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.defaults: dict[str, Any] = {}
        self.binding: dict[str, Any] = {}
        self.records = {
            party: [
                {"id": f"{party}-{i}", "colour": SCHEMA["fields"]["colour"]["domain"][i % 4], "size": "sml"[i % 3]}
                for i in range(12)
            ]
            for party in ("north", "south")
        }

    def write(self, tasks: dict[str, Any], **document: Any) -> Path:
        """Write records, policies and pipeline; returns the pipeline's file."""
        parties = {}
        for party, rows in self.records.items():
            (self.folder / f"{party}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
            parties[party] = {"data": {"items": {"path": f"{party}.jsonl", "schema": SCHEMA, **self.binding}}}
        sites = {"osmotic_sites": 1, "defaults": self.defaults, "parties": {"hub": {}, **parties}}
        (self.folder / "shop.sites.yaml").write_text(yaml.safe_dump(sites), encoding="utf-8")
        pipeline = {"osmotic": 1, "name": "shop", "parties": {"server": "hub", "clients": ["north", "south"]}, **document}
        (self.folder / "shop.yaml").write_text(yaml.safe_dump({**pipeline, "tasks": tasks}), encoding="utf-8")
        return self.folder / "shop.yaml"


LOADED = {"component": "record_loader", "at": "clients", "config": {"data": "items"}}
SANITIZED = {
    "component": "dp_sanitizer", "at": "clients", "inputs": {"records": "items"},
    "config": {"mechanism": SANITIZE, "fields": ["colour", "size"]},
}  # fmt: skip
COUNTED = {"component": "counter", "at": "server", "inputs": {"records": "safe"}}


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """A fresh shop."""
    return Shop(tmp_path)


@pytest.fixture
def tasks() -> Callable[..., dict[str, Any]]:
    """Loaded, sanitized, counted at the server; with more tasks, or others in their place."""

    def make(**more: Any) -> dict[str, Any]:
        return {"items": LOADED, "safe": SANITIZED, "counted": COUNTED, **more}

    return make
