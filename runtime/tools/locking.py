# SPDX-License-Identifier: Apache-2.0
"""The lock file of a run: which code it was made by. `--locked` refuses to run by any other.

It has the versions of osmotic, Python and the packages that results depend on and, for osmotic and every plugin that was
loaded, a hash of all files of its packages; for mechanisms, too, the hash that site policies name (`name@sha256-prefix`), which
covers the class, its bases and what draws for it (`osmotic.plugins.identity.code_digest`). Not covered: other packages that a
plugin imports (their versions are not in the lock unless osmotic itself needs them), data outside of its packages.
"""

import hashlib
import importlib
import importlib.util
import json
import platform
from collections.abc import Collection, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Literal

from pydantic import Field

from osmotic.plugins.certificate import code_digest
from osmotic.plugins.host import Registered, Registry
from osmotic.runtime.party.keys import environment, file_digest
from osmotic.runtime.storage.store import disk
from osmotic.schemas.base import Config
from osmotic.schemas.errors import ConfigError, Problem, RefusedError
from osmotic.schemas.source import read, validate

FILE = "plugins.lock.json"
OWN = ("schemas", "plugins", "components", "runtime")
SHORT = 12


class Locked(Config):
    """One distribution."""

    version: str
    code: str = Field(description="SHA-256 of the files of its packages.")
    mechanisms: dict[str, str] = Field(default_factory=dict, description="Name -> hash of its code, as site policies name it.")


class Lock(Config):
    """Which code a run was made by."""

    osmotic_lock: Literal[1] = Field(description="Version of this document's format.")
    python: str
    osmotic: Locked
    packages: dict[str, str] = Field(description="Versions of the packages that results depend on.")
    plugins: dict[str, Locked] = Field(description="Distribution -> what was loaded of it.")


def lock_of(registry: Registry) -> Lock:
    """The lock of what is loaded now."""
    from osmotic import __version__

    packages = {name: found for name, found in environment().items() if name != "python"}
    own = Locked(version=__version__, code=_digest(_own_modules()))
    plugins = {}
    for distribution in sorted({plugin.distribution for plugin in registry.plugins}):
        loaded = [plugin for plugin in registry.plugins if plugin.distribution == distribution]
        brought = [entry for table in _tables(registry) for entry in table.values() if entry.distribution == distribution]
        names = {plugin.module for plugin in loaded} | {entry.cls.__module__ for entry in brought}
        modules = {name.partition(".")[0] for name in names}
        mechanisms = {n: code_digest(e.cls) for n, e in registry.mechanisms.items() if e.distribution == distribution}
        code = _digest([importlib.import_module(name) for name in sorted(modules)], _others(distribution, modules))
        plugins[distribution] = Locked(version=loaded[0].version, code=code, mechanisms=mechanisms)
    return Lock(osmotic_lock=1, python=platform.python_version(), osmotic=own, packages=packages, plugins=plugins)


def write_lock(file: Path, registry: Registry) -> Lock:
    """Write the lock of what is loaded now."""
    lock = lock_of(registry)
    with disk(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(lock.model_dump(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return lock


def check_lock(file: Path, registry: Registry) -> None:
    """Raise RefusedError naming everything that is loaded otherwise than the file says; ConfigError for a file that is none."""
    if not file.is_file():
        fix = "run once without --locked, or write one: osmotic plugins --lock FILE"
        raise ConfigError(Problem("there is no lock file", str(file), fix=fix))
    wanted, here = validate(Lock, read(file)), lock_of(registry)
    failed = "".join(f"; plugin {name!r} could not be loaded: {why}" for name, why in registry.failures.items())
    differ = [
        *_versions("Python", wanted.python, here.python),
        *_one("osmotic", wanted.osmotic, here.osmotic),
        *(
            p
            for name in sorted(wanted.packages)
            for p in _versions(name, wanted.packages[name], here.packages.get(name, "absent"))
        ),
    ]
    for name in sorted({*wanted.plugins, *here.plugins}):
        if name not in here.plugins:
            fix = f"pip install {name}=={wanted.plugins[name].version}"
            differ.append(Problem(f"plugin {name} {wanted.plugins[name].version} is not loaded{failed}", fix=fix))
        elif name not in wanted.plugins:
            fix = f"leave it out (OSMOTIC_PLUGINS=...), or lock it: osmotic plugins --lock {file}"
            differ.append(Problem(f"plugin {name} {here.plugins[name].version} is loaded, and not locked", fix=fix))
        else:
            differ += _one(f"plugin {name}", wanted.plugins[name], here.plugins[name])
    if differ:
        raise RefusedError(*[Problem(p.what, str(file), why=p.why, fix=p.fix) for p in differ])


def lock_beside(pipeline: Path, home: Path) -> Path:
    """Where `--locked` looks: ``NAME.lock.json`` beside the pipeline, else the lock of the last run in its folder."""
    beside = pipeline.with_name(f"{pipeline.stem}.lock.json")
    return beside if beside.is_file() else home / FILE


def _versions(what: str, wanted: str, here: str) -> list[Problem]:
    fix = "install the locked version, or lock anew: osmotic plugins --lock FILE"
    return [] if wanted == here else [Problem(f"{what}: locked {wanted}, here {here}", fix=fix)]


def _one(what: str, wanted: Locked, here: Locked) -> list[Problem]:
    """How a distribution differs: its version, or its code under the same version."""
    if wanted.version != here.version:
        return _versions(what, wanted.version, here.version)
    if wanted.code == here.code:
        return []
    why = f"its files were changed: locked {wanted.code[:SHORT]}, here {here.code[:SHORT]}"
    fix = "install it again, or lock anew once you have read what changed"
    return [Problem(f"{what} {here.version}: other code under the same version", why=why, fix=fix)]


def _tables(registry: Registry) -> tuple[dict[str, Registered], ...]:
    return registry.components, registry.mechanisms, registry.models, registry.tables


def _own_modules() -> list[ModuleType]:
    return [importlib.import_module("osmotic"), *(importlib.import_module(f"osmotic.{name}") for name in OWN)]


def _digest(modules: list[ModuleType], others: Mapping[str, Path] = MappingProxyType({})) -> str:
    """SHA-256 over every file of the packages (a plain module: its file), by name and content. others: not imported ones."""
    total, places = hashlib.sha256(), [(module.__name__, module.__file__) for module in modules]
    for package, top in [*places, *sorted(others.items())]:
        files = dict(sorted(_files(package, Path(top)))) if top is not None else {}
        for name, path in files.items():
            total.update(f"{package}/{name}\0{file_digest(path)}\n".encode())
    return total.hexdigest()


def _others(distribution: str, known: Collection[str]) -> dict[str, Path]:
    """Further modules and packages that a distribution installs beside those of its plugin, without importing them."""
    try:
        found = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return {}
    names = set((found.read_text("top_level.txt") or "").split())
    names |= {file.parts[0].removesuffix(".py") for file in found.files or () if file.suffix == ".py" and file.parts[0] != ".."}
    places = {}
    for name in sorted(names - set(known)):
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is not None and spec.has_location and spec.origin:
            places[name] = Path(spec.origin)
    return places


def _files(package: str, top: Path) -> Iterator[tuple[str, Path]]:
    """(path within the package, file) of a package and its sub-packages, without compiled Python. top: its first file.

    Of osmotic itself, whose folders may lie in a source tree beside other things, Python code in packages counts alone.
    """
    if top.name != "__init__.py":
        yield top.name, top
        return
    for path in top.parent.rglob("*"):
        inside = path.relative_to(top.parent)
        if package == "osmotic" and len(inside.parts) > 1:
            continue
        if "__pycache__" in inside.parts or path.suffix == ".pyc" or not path.is_file():
            continue
        if package.startswith("osmotic.") and not _in_packages(top.parent, inside):
            continue
        yield inside.as_posix(), path


def _in_packages(top: Path, inside: Path) -> bool:
    """Whether it is Python code that lies in packages all the way up."""
    if inside.suffix != ".py":
        return False
    return all((top.joinpath(*inside.parts[:depth]) / "__init__.py").is_file() for depth in range(1, len(inside.parts)))
