# SPDX-License-Identifier: Apache-2.0
"""The lock file: what it holds, what it refuses, and that it says what differs."""

import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins import host
from osmotic.plugins.certificate import code_digest
from osmotic.plugins.host import Registry, build_registry
from osmotic.runtime.tools.locking import FILE, Lock, check_lock, lock_beside, lock_of, write_lock
from osmotic.schemas.errors import ConfigError, RefusedError

PLUGIN = """
from osmotic.plugins.hookspecs import hookimpl

@hookimpl
def register_mechanisms():
    from osmotic_locked.flat import Flat

    return (Flat,)
"""
FLAT = """
import numpy as np
from osmotic.plugins.contract import Config, Guarantee, Mechanism

class Flat(Mechanism[Config]):
    name = "flat"

    def log_prob(self, rows):
        return np.full((len(rows), self.space.size), -np.log(self.space.size))

    def guarantee(self):
        return Guarantee(mechanism_class="certified", epsilon=0.1)
"""


class Distribution:
    """As much of an installed distribution as the host asks for."""

    name, version = "osmotic-locked", "1.2"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package on the path, as if it were installed; gives a function that loads it anew."""
    folder = tmp_path / "lib" / "osmotic_locked"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(PLUGIN, encoding="utf-8")
    (folder / "flat.py").write_text(FLAT, encoding="utf-8")
    (folder / "words.txt").write_text("one", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    point = EntryPoint("locked", "osmotic_locked", "osmotic")._for(Distribution())  # type: ignore[arg-type]
    monkeypatch.setattr(host, "entry_points", lambda group: [point])
    monkeypatch.delenv("OSMOTIC_PLUGINS", raising=False)
    yield folder
    for name in [name for name in sys.modules if name.startswith("osmotic_locked")]:
        del sys.modules[name]


def refused(file: Path, registry: Registry) -> list[str]:
    with pytest.raises(RefusedError) as caught:
        check_lock(file, registry)
    assert caught.value.exit_code == 4 and all(p.fix and p.where == str(file) for p in caught.value.problems)
    return [str(problem) for problem in caught.value.problems]


def test_a_lock_says_what_is_loaded_and_is_kept_by_the_same(installed: Path, tmp_path: Path) -> None:
    registry, file = build_registry(), tmp_path / "deep" / "a.lock.json"
    lock = write_lock(file, registry)
    assert lock.plugins["osmotic-locked"].version == "1.2" and len(lock.osmotic.code) == 64
    assert lock.plugins["osmotic-locked"].mechanisms == {"flat": code_digest(registry.mechanism("flat"))}
    assert {"torch", "transformers", "numpy"} <= set(lock.packages) and lock.python == sys.version.split()[0]
    assert Lock.model_validate(json.loads(file.read_text(encoding="utf-8"))) == lock == lock_of(registry)
    check_lock(file, registry)


@pytest.mark.parametrize("name", ["flat.py", "words.txt", "new.py"])
def test_changed_and_added_files_are_other_code(installed: Path, tmp_path: Path, name: str) -> None:
    registry, file = build_registry(), tmp_path / "a.lock.json"
    write_lock(file, registry)
    with (installed / name).open("a", encoding="utf-8") as more:
        more.write("# changed\n")
    (said,) = refused(file, registry)
    assert "plugin osmotic-locked 1.2: other code under the same version" in said and "its files were changed" in said


def test_a_second_package_of_the_same_distribution_counts_without_being_imported(installed: Path, tmp_path: Path) -> None:
    beside = installed.parent / "locked_beside.py"
    beside.write_text("raise SystemExit('imported')\n", encoding="utf-8")
    info = installed.parent / "osmotic_locked-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: osmotic-locked\nVersion: 1.2\n", encoding="utf-8")
    (info / "top_level.txt").write_text("osmotic_locked\nlocked_beside\nnowhere\n", encoding="utf-8")
    write_lock(tmp_path / "a.lock.json", build_registry())
    check_lock(tmp_path / "a.lock.json", build_registry())
    beside.write_text("raise SystemExit('imported') \n", encoding="utf-8")
    (text,) = refused(tmp_path / "a.lock.json", build_registry())
    assert "plugin osmotic-locked 1.2: other code under the same version" in text


def test_compiled_files_do_not_count(installed: Path, tmp_path: Path) -> None:
    registry, file = build_registry(), tmp_path / "a.lock.json"
    write_lock(file, registry)
    (installed / "__pycache__").mkdir(exist_ok=True)
    (installed / "__pycache__" / "flat.cpython-311.pyc").write_bytes(b"x")
    check_lock(file, registry)


def test_missing_added_and_other_versions_are_named_together(installed: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.lock.json"
    registry = build_registry()
    values = write_lock(file, registry).model_dump()
    values["plugins"]["osmotic-gone"] = {"version": "3.0", "code": "0" * 64, "mechanisms": {}}
    del values["plugins"]["osmotic-locked"]
    values["packages"]["torch"], values["python"] = "0.1", "3.10.1"
    values["osmotic"]["version"] = "0.0.9"
    file.write_text(json.dumps(values), encoding="utf-8")
    text = "\n".join(refused(file, registry))
    for part in (
        "Python: locked 3.10.1, here 3.1", "torch: locked 0.1, here ", "osmotic: locked 0.0.9, here ",
        "plugin osmotic-gone 3.0 is not loaded", "pip install osmotic-gone==3.0",
        "plugin osmotic-locked 1.2 is loaded, and not locked",
    ):  # fmt: skip
        assert part in text


def test_a_plugin_that_fails_to_load_is_quoted(installed: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.lock.json"
    write_lock(file, build_registry())
    (installed / "__init__.py").write_text("import nowhere_at_all", encoding="utf-8")
    del sys.modules["osmotic_locked"]
    (said,) = refused(file, build_registry())
    assert "is not loaded" in said and "nowhere_at_all" in said


def test_osmotics_own_code_counts(tmp_path: Path) -> None:
    registry, file = build_registry(names=[]), tmp_path / "a.lock.json"
    values = write_lock(file, registry).model_dump()
    values["osmotic"]["code"] = "0" * 64
    file.write_text(json.dumps(values), encoding="utf-8")
    (said,) = refused(file, registry)
    assert "other code under the same version" in said and "locked 000000000000, here " in said


def test_files_that_are_no_lock(tmp_path: Path) -> None:
    registry = build_registry(names=[])
    with pytest.raises(ConfigError, match=r"there is no lock file[\s\S]*osmotic plugins --lock FILE"):
        check_lock(tmp_path / "none.json", registry)
    (tmp_path / "odd.json").write_text('{"osmotic_lock": 2, "pythn": "3"}', encoding="utf-8")
    with pytest.raises(ConfigError, match="did you mean 'python'"):
        check_lock(tmp_path / "odd.json", registry)


def test_where_a_lock_is_looked_for(tmp_path: Path) -> None:
    assert lock_beside(tmp_path / "p.yaml", tmp_path / "home") == tmp_path / "home" / FILE
    (tmp_path / "p.lock.json").write_text("{}", encoding="utf-8")
    assert lock_beside(tmp_path / "p.yaml", tmp_path / "home") == tmp_path / "p.lock.json"
