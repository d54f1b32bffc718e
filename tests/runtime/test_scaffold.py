# SPDX-License-Identifier: Apache-2.0
"""`osmotic new`: packages that linters and the type checker accept for every choice of kinds, and names that are refused."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from osmotic.plugins.host import Registered, build_registry
from osmotic.runtime.api import prepare
from osmotic.runtime.scaffold.writing import KINDS, new_pipeline, new_plugin
from osmotic.schemas.errors import ConfigError

SUBSETS = [c for n in (1, 2, 3) for c in itertools.combinations(KINDS, n)]
SOURCE = Path(__file__).parents[2] / "src"


def tool(*command: str, folder: Path, **environment: str) -> None:
    """Run a tool on a package; what it says is the failure."""
    env = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kinds", SUBSETS, ids="+".join)
def test_every_choice_of_kinds_is_tidy_and_holds_what_was_asked_for(kinds: tuple[str, ...], tmp_path: Path) -> None:
    folder, commands = new_plugin("tide", kinds, tmp_path / "made", build_registry(names=[]))
    assert len(commands) == 3 and commands[1] == "pytest"
    parts = {p.stem for p in (folder / "src" / "osmotic_tide").glob("*.py")} - {"__init__"}
    assert parts == {{"component": "words", "mechanism": "ordinal", "model": "phrases"}[kind] for kind in kinds}
    hooks = (folder / "src" / "osmotic_tide" / "__init__.py").read_text(encoding="utf-8")
    assert [f"register_{kind}s" in hooks for kind in KINDS] == [kind in kinds for kind in KINDS]
    text = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file())
    assert "<<" not in text and "<%" not in text
    for path in folder.rglob("*.py"):
        compile(path.read_text(encoding="utf-8"), str(path), "exec")


@pytest.mark.parametrize("name", ["a", "quite-long-names-come-too"[:24]])
def test_ruff_accepts_it(name: str, tmp_path: Path) -> None:
    pytest.importorskip("ruff")
    registry = build_registry(names=[])
    for kinds in SUBSETS:
        new_plugin(name, kinds, tmp_path / "-".join(kinds), registry)
    tool("ruff", "check", "--no-cache", ".", folder=tmp_path)
    tool("ruff", "format", "--no-cache", "--check", ".", folder=tmp_path)


@pytest.mark.slow
def test_mypy_accepts_it_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    folder, _ = new_plugin("tide", (), tmp_path / "made", build_registry(names=[]))
    where = {"MYPYPATH": str(SOURCE)} if (SOURCE / "osmotic" / "schemas").is_dir() else {}
    tool("mypy", "--follow-imports", "silent", "--cache-dir", str(tmp_path / "cache"), folder=folder, **where)


def refused(name: str, *kinds: str, out: Path | None = None) -> str:
    registry = build_registry(names=[])
    registry.mechanisms["taken-ordinal"] = Registered(object, "osmotic-other", "2.1")
    with pytest.raises(ConfigError) as caught:
        new_plugin(name, kinds, out, registry)
    return str(caught.value)


@pytest.mark.parametrize("name", ["", "Tide", "1tide", "tide!", "../tide", "tide-", "a b", "t" * 25, "tidé", "tide\n"])
def test_names_that_are_none(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(name)
    assert "cannot be a name" in said and "for example: tide" in said and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("taken", "a mechanism 'taken-ordinal' is registered already\n    by osmotic-other 2.1"),
        ("fate", "osmotic-fate is a package of the osmotic project itself"),
        ("osmotic-tide", "osmotic new plugin tide"),
    ],
)
def test_names_that_are_taken(name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(name) and not list(tmp_path.iterdir())


def test_a_module_that_can_be_imported_already_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "osmotic_mine.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert "a module osmotic_mine can be imported already" in refused("mine", out=tmp_path / "new")


def test_an_unknown_kind(tmp_path: Path) -> None:
    assert "there is no such kind\n    known: component, mechanism, model" in refused("tide", "tables", out=tmp_path / "new")


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    assert "is there already" in refused("tide", out=tmp_path) and "is there already" in refused(
        "tide", out=tmp_path / "notes.txt"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(ConfigError, match="is there already"):
        new_pipeline("first", tmp_path)


def test_a_new_pipeline_is_valid_and_asks_for_what_its_sites_allow(tmp_path: Path) -> None:
    folder, commands = new_pipeline("first", tmp_path / "first")
    assert commands[1].startswith("osmotic run ") and sorted(p.name for p in folder.iterdir()) == [
        "first.sites.yaml",
        "first.yaml",
    ]
    ready = prepare(folder / "first.yaml", home=tmp_path / "home", registry=build_registry(names=[]))
    ready.open(passing=True)
    try:
        assert ready.refusals(ready.flow()) == [] and len(ready.graph.instances) == 8
    finally:
        ready.close()
    shutil.rmtree(folder)
