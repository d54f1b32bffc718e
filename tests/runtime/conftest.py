# SPDX-License-Identifier: Apache-2.0
"""Toy plugins, a small data set and site policies for the tests of the runtime."""

import copy
import importlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from osmotic.plugins.host import Registry, build_registry
from osmotic.runtime import api
from osmotic.runtime.plan.graph import Graph
from osmotic.runtime.plan.load import load_text
from osmotic.runtime.storage.ledger import Ledger

TOYS = Path(__file__).parent / "toy_plugin"
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
def rounds(toys: Registry) -> Registry:
    """The toys, and components of rounds."""
    return build_registry(names=(), modules=[importlib.import_module(f"osmotic_{name}") for name in ("toys", "rounds")])


@pytest.fixture
def net(shop: Any, rounds: Registry, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Five clients and a server, any of which can be lost."""
    losing = importlib.import_module("osmotic_losing")
    shop.records = dict.fromkeys(losing.CLIENTS, shop.records["north"])
    return losing.Net(shop, rounds, monkeypatch)


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
        defaults = {"budget": {"*": {"per_document": 1000}}, **self.defaults}
        sites = {"osmotic_sites": 1, "defaults": defaults, "parties": {"hub": {}, **parties}}
        (self.folder / "shop.sites.yaml").write_text(json.dumps(sites, indent=1), encoding="utf-8")
        pipeline = {"osmotic": 1, "name": "shop", "parties": {"server": "hub", "clients": ["north", "south"]}, **document}
        (self.folder / "shop.yaml").write_text(json.dumps({**pipeline, "tasks": tasks}, indent=1), encoding="utf-8")
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
        return {**copy.deepcopy({"items": LOADED, "safe": SANITIZED, "counted": COUNTED}), **more}

    return make


@pytest.fixture(scope="session")
def jobs(toys: Registry) -> Any:
    """The module of the tests of private training and votes."""
    return importlib.import_module("osmotic_private_jobs")


# ---- for the tests of plans: text in, graph out ----


@pytest.fixture(scope="session")
def pieces(toys: Registry) -> Registry:
    """The registry with the components of ``osmotic_pieces``."""
    return build_registry(names=(), modules=[importlib.import_module("osmotic_pieces")])


@pytest.fixture(scope="session")
def graph(pieces: Registry) -> Callable[..., Graph]:
    """Text of a pipeline (its head may be left out) and options of --set -> graph."""

    def build(text: str, *overrides: str) -> Graph:
        head = "" if "osmotic: 1" in text else "osmotic: 1\nname: toy\n"
        if "parties:" not in text:
            head += "parties: {server: hub, clients: [north, south]}\n"
        return Graph(load_text(head + text, "toy.yaml", overrides), pieces)

    return build


@pytest.fixture
def place(tmp_path: Path) -> Callable[..., Path]:
    """Write a pipeline with a sites file, a schema and a data file beside it; returns the pipeline's path."""

    def write(pipeline: str, sites: str | None = None, rows: int = 6) -> Path:
        data = [{"id": f"r{i}", "colour": ("red", "green", "blue")[i % 3], "size": "s"} for i in range(rows)]
        (tmp_path / "numbers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data), encoding="utf-8")
        (tmp_path / "schema.yaml").write_text(yaml.safe_dump(SCHEMA), encoding="utf-8")
        if sites is not None:
            (tmp_path / "toy.sites.yaml").write_text(f"osmotic_sites: 1\n{sites}", encoding="utf-8")
        (tmp_path / "toy.yaml").write_text(pipeline, encoding="utf-8")
        return tmp_path / "toy.yaml"

    return write


@pytest.fixture
def hashes() -> Callable[[Path], dict[str, str]]:
    """The folder of a run -> digests of all that its tasks last gave, by ``TASK.port``."""

    def read(home: Path) -> dict[str, str]:
        found = {}
        for folder in sorted((home / "parties").iterdir()):
            ledger = Ledger(folder)
            for identity, outputs in ledger.query("SELECT i.id, t.outputs FROM instances i JOIN tasks t ON t.key = i.key"):
                found.update({f"{identity}.{port}": ref["digest"] for port, ref in json.loads(outputs).items()})
            ledger.close()
        return found

    return read


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A table of 40 words in 4 dimensions, as a file; the cache of cards in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("OSMOTIC_CACHE", raising=False)
    np.save(tmp_path / "words.npy", np.random.Generator(np.random.PCG64(3)).standard_normal((40, 4)).astype(np.float32))
    (tmp_path / "words.txt").write_text("\n".join(f"{a}{b}" for a in "abcdefgh" for b in "abcde") + "\n", encoding="utf-8")
    return str(tmp_path / "words.npy")


# ---- for the tests of models behind servers ----


@pytest.fixture
def server(toys: Registry) -> Iterator[Any]:
    """A model server that listens while the test runs."""
    made = importlib.import_module("osmotic_model_server").ModelServer()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def run_at(shop: Any, toys: Registry) -> Callable[..., dict[str, Any]]:
    """Tasks, models and options of a run -> its summary."""

    def go(made: dict[str, Any], given: dict[str, Any], **options: Any) -> dict[str, Any]:
        return api.run(shop.write(made, models=given), home=shop.home, registry=toys, **options)

    return go
