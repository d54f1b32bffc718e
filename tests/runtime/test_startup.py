# SPDX-License-Identifier: Apache-2.0
"""What is imported before a command answers, and how many system calls a task may make: what the start-up times rest on."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.storage import ledger, store

LOADED = """
import json, sys
before = set(sys.modules)
sys.argv = ["osmotic", *json.loads(sys.argv[1])]
from osmotic.runtime.cli import main
try:
    main()
except SystemExit as stop:
    code = stop.code
print(json.dumps([code, sorted(set(sys.modules) - before)]))
"""
LIGHT = ("typer", "pydantic", "yaml", "numpy", "jinja2", "pluggy", "jsonschema", "rich", "sqlite3", "importlib.metadata")


def modules(*arguments: str) -> set[str]:
    """What a command imports, beyond what Python itself has loaded."""
    command = [sys.executable, "-c", LOADED, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    code, found = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return set(found)


def test_the_version_is_told_before_anything_is_imported() -> None:
    found = modules("--version")
    assert not found & set(LIGHT) and len([name for name in found if name.startswith("osmotic")]) == 3


@pytest.mark.parametrize("arguments", [("--help",), ("status", "--help"), ("keys", "--help")])
def test_help_needs_typer_and_nothing_of_the_runtime(arguments: tuple[str, ...]) -> None:
    found = modules(*arguments)
    own_choice = {"typer", "importlib.metadata", "rich", "pydantic"}  # typer's own imports: some versions coerce by pydantic
    assert "typer" in found and not found & (set(LIGHT) - own_choice)
    own = {name for name in found if name.startswith("osmotic.")}
    assert not any(name.startswith(("osmotic.plugins", "osmotic.components")) for name in own)
    assert "osmotic.runtime.party.site" not in own and "osmotic.runtime.plan.graph" not in own


def test_short_tasks_do_not_wait_for_the_disk_and_crossings_do(
    shop: Any, tasks: Callable[..., Any], toys: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The artifacts of a short task are left to the operating system."""
    synced: list[str] = []
    monkeypatch.setattr(store, "sync", lambda path: synced.append(str(path)))
    monkeypatch.setattr(ledger, "SYNC_EVERY", 1e9)
    file = shop.write(tasks())
    api.run(file, home=shop.home, registry=toys)
    assert synced == []
    monkeypatch.setattr(ledger, "SYNC_EVERY", 0.0)  # as if every task had taken long
    api.run(file, home=shop.folder / "other", registry=toys)
    assert len({Path(name).name for name in synced}) > 5


def test_a_power_cut_that_takes_an_artifact_costs_its_task_alone(shop: Any, tasks: Callable[..., Any], toys: Registry) -> None:
    file = shop.write(tasks())
    first = api.run(file, home=shop.home, registry=toys)
    artifact = next(path for path in (shop.home / "parties/hub/store/objects").glob("*/*/*") if path.suffix == ".json")
    artifact.write_bytes(b"")
    again = api.run(file, home=shop.home, registry=toys)
    assert again["outcome"]["ran"] == 1 and again["table"] == first["table"]
