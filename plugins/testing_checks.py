# SPDX-License-Identifier: Apache-2.0
"""What the conformance kit checks of every plugin: name, docstring, light import, own folder, no socket, honest labels."""

import functools
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from osmotic.plugins.contract import Artifact, Component, Context, Mechanism, Records, config_type
from osmotic.plugins.guarding import Guard, guarded
from osmotic.plugins.holding import HOLDERS, content_hash
from osmotic.plugins.mechanisms import cache
from osmotic.schemas.artifacts import digest_of
from osmotic.schemas.errors import Code, OsmoticError, Problem
from osmotic.schemas.pipeline import NAME

__all__ = ["ConformanceError", "Recorded", "check_contained", "check_identity", "check_imports", "check_labels", "contained"]

HEAVY = ("torch", "transformers", "datasets", "deepspeed", "peft", "scipy", "sklearn", "pyarrow")
_PYTHONS_OWN = ("_abc_", "__builtins__", "__pydantic_", "__warningregistry__")  # what changes by itself
RELEASING = ("release", "feedback", "histogram", "noisy_votes", "private_training")


class ConformanceError(OsmoticError):
    """A plugin does not fit the contract; the problems say where, and what to mend (exit code 6)."""

    code = Code.COMPONENT
    exit_code = 6


# ---- name, docstring, import -----------------------------------------------------------------------------------------


def check_identity(cls: type[Any], kind: str) -> None:
    """A proper name that nobody else has registered, and a docstring. kind: ``components``, ``mechanisms``, ``models``."""
    from osmotic.plugins.host import build_registry

    problems, name = [], getattr(cls, "name", None)
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        fix = "name = '...': lower-case letters, digits, '_' and '-', a letter first"
        why = "pipelines and site policies call it by this name"
        problems.append(Problem(f"{cls.__name__} has no proper name (got {name!r})", why=why, fix=fix))
    else:
        other = getattr(build_registry(), kind).get(name)
        if other and (other.cls.__module__, other.cls.__qualname__) != (cls.__module__, cls.__qualname__):
            what, why = (
                f"{name!r} is registered already",
                f"by {other.distribution}: {other.cls.__module__}.{other.cls.__name__}",
            )
            problems.append(Problem(what, why=why, fix="choose another name, the plugin's own in front of it, say"))
    if not (cls.__dict__.get("__doc__") or "").strip():
        why = "its first line stands in `osmotic components`, the catalogue and editors"
        problems.append(Problem(f"{cls.__name__} has no docstring", why=why, fix="say in one line what comes in and goes out"))
    if problems:
        raise ConformanceError(*problems)


_PROBE = """
import importlib, importlib.util, json, sys
name, file, heavy = json.loads(sys.argv[1])
before = set(sys.modules)
try:
    importlib.import_module(name)
except ModuleNotFoundError as error:
    if error.name is None or not (name + ".").startswith(error.name + "."):
        raise
    spec = importlib.util.spec_from_file_location("osmotic_probed", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["osmotic_probed"] = module
    spec.loader.exec_module(module)
print(json.dumps([word for word in heavy if word in sys.modules and word not in before]))
"""


def check_imports(cls: type[Any]) -> None:
    """Import the class's module in a fresh process and look for heavy libraries; once for each state of its file."""
    file = Path(inspect.getsourcefile(cls) or "")
    changed = file.stat().st_mtime_ns if file.is_file() else 0
    status, said = _probed(cls.__module__, str(file), changed)
    if status:
        fix = "import what it needs from your own package or from its dependencies (pyproject.toml)"
        raise ConformanceError(Problem(f"the module {cls.__module__!r} cannot be imported on its own", why=said, fix=fix))
    heavy = json.loads(said)
    if heavy:
        why = "plugins are imported by every command, `osmotic --help` too"
        fix = "import it inside the functions that need it"
        raise ConformanceError(Problem(f"importing {cls.__module__!r} loads {', '.join(heavy)}", why=why, fix=fix))


@functools.lru_cache(maxsize=256)
def _probed(module: str, file: str, _changed: int) -> tuple[int, str]:
    """(exit status, last line that was printed) of the probe."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
    command = [sys.executable, "-c", _PROBE, json.dumps([module, file, HEAVY])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    said = (done.stderr if done.returncode else done.stdout).strip().splitlines() or ["no output"]
    return done.returncode, said[-1]


# ---- what is left behind --------------------------------------------------------------------------------------------


def remembered(cls: type[Any]) -> dict[str, str]:
    """Variables of the modules and classes of a plugin's package that can change, and a hash of what they hold now."""
    own = _package(cls.__module__)
    found: dict[str, str] = {}
    for name, module in sorted(sys.modules.items()):
        if (name == cls.__module__ or f"{name}.".startswith(f"{own}.")) and isinstance(module, ModuleType):
            found |= _held(name, vars(module))
            for member in list(vars(module).values()):
                if isinstance(member, type) and member.__module__ == name:
                    found |= _held(f"{name}.{member.__qualname__}", vars(member))
    return found


def _package(module: str) -> str:
    """The plugin's own package: the outermost that has a file (a namespace is shared with others), else the module alone."""
    parts = module.split(".")
    outer = (".".join(parts[:n]) for n in range(1, len(parts)))
    files = (name for name in outer if getattr(sys.modules.get(name), "__file__", None))
    package = next(files, module)
    return module if package == "osmotic" else package


def _held(where: str, names: Mapping[str, Any]) -> dict[str, str]:
    return {
        f"{where}.{name}": content_hash(value)
        for name, value in list(names.items())
        if not name.startswith(_PYTHONS_OWN) and isinstance(value, HOLDERS)
    }


def check_forgotten(cls: type[Any], before: Mapping[str, str]) -> None:
    """Nothing of a run stays in variables of the plugin: the next task may be one of another party."""
    after = remembered(cls)
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    if changed:
        why = "parties may share a process: what one leaves there, another's task can read, and no label follows it"
        fix = "give it as an output; what is to survive a kill goes to context.journal() or context.scratch()"
        raise ConformanceError(Problem(f"{cls.name}: a run left something behind in {', '.join(changed)}", why=why, fix=fix))


# ---- what a component does while it runs -----------------------------------------------------------------------------


@contextmanager
def contained(name: str, *allowed: Path, sockets: bool = True) -> Iterator[None]:
    """Run something that may write to these folders only and, with `sockets`, open none; ConformanceError if it tried.

    The attempt is refused, so whatever the code makes of that is not what is reported.
    """
    with guarded(allowed, sockets=sockets) as guard:
        try:
            yield
        except Exception as error:
            if guard.found:
                raise _not_contained(name, guard) from error
            raise
    if guard.found:
        raise _not_contained(name, guard)


def _not_contained(name: str, guard: Guard) -> ConformanceError:
    problems = []
    for what in guard.found:
        socket = what.startswith("opened a socket")
        why = "the runtime moves data, and so knows what crosses" if socket else "a party's files are the runtime's"
        fix = "ask a model by context.model(...)" if socket else "give results as outputs; checkpoints go to context.scratch()"
        problems.append(Problem(f"{name}: it {what}", why=why, fix=fix))
    return ConformanceError(*problems)


def check_contained(cls: type[Any], call: Any) -> Any:
    """Call something of a mechanism or a model that has no folder of its own; gives what it gives.

    A mechanism may keep what it computed from the public table in osmotic's cache folder, and nowhere else.
    """
    keeps = issubclass(cls, Mechanism) and cache.usable()  # makes the folder
    with contained(cls.name, *([cache.folder()] if keeps else [])):
        return call()


class Recorded:
    """A context that remembers digests of what the host released through it; else the context that it is made of."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.made: set[str] = set()
        self.read: list[str] = []

    def dataset(self, name: str) -> Any:
        """The data set, and that it was asked for."""
        self.read.append(name)
        return self._context.dataset(name)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._context, name)
        if name not in RELEASING:
            return found

        def releasing(*arguments: Any, **more: Any) -> Any:
            result = found(*arguments, **more)
            first = result[0] if isinstance(result, tuple) else result
            self.made.add(digest_of(first.kind, first.to_files()))
            return result

        return releasing


def check_labels(cls: type[Component[Any]], outputs: Mapping[str, Artifact], context: Recorded) -> None:
    """A port that claims to be released must hold exactly what the host released in this run; a source must read its data."""
    problems = []
    for port, out in cls.outputs.items():
        if out.label == "release" and port in outputs:
            artifact = outputs[port]
            if digest_of(artifact.kind, artifact.to_files()) not in context.made:
                why = "it claims less than its inputs: these are not the bytes that the host released and charged in this run"
                fix = f"outputs = {{{port!r}: Out(..., label='join')}}, or give on what context.release gave, unchanged"
                problems.append(Problem(f"{cls.name}: the output {port!r} is no release", why=why, fix=fix))
        if out.label == "source" and not context.read:
            why = "a source's label is that of the data set that its configuration key 'data' names"
            fix = "read it by context.dataset(self.config.data), or take the label 'join'"
            problems.append(Problem(f"{cls.name}: the output {port!r} is no source", why=why, fix=fix))
    if any(out.label == "source" for out in cls.outputs.values()) and "data" not in config_type(cls).model_fields:
        why = "it names the data set whose label the output gets"
        problems.append(Problem(f"{cls.name}: a source needs a configuration key 'data'", why=why, fix="data: DatasetName"))
    if problems:
        raise ConformanceError(*problems)


def changed_row(records: Records) -> tuple[Records, str] | None:
    """The records with another content in the last one, and its id; None where nothing could be changed."""
    rows = [dict(row) for row in records]
    if len(rows) < 2 or "id" not in rows[-1]:
        return None
    changed = {**rows[0], "id": rows[-1]["id"]}
    return None if changed == rows[-1] else (Records([*rows[:-1], changed], records.columns), str(changed["id"]))


def check_apart(
    cls: type[Component[Any]], first: Mapping[str, Artifact], second: Mapping[str, Artifact], ids: set[str]
) -> None:
    """What a component says by ``mixes() -> False``: rows of other ids are the same after some records have changed."""
    for port, out in cls.outputs.items():
        one, other = first.get(port), second.get(port)
        if out.label == "release" or not isinstance(one, Records) or not isinstance(other, Records):
            continue
        found = [{str(row["id"]): row for row in part if "id" in row and str(row["id"]) not in ids} for part in (one, other)]
        differ = sorted(i for i in {*found[0], *found[1]} if found[0].get(i) != found[1].get(i))
        if differ:
            what = f"{cls.name}: mixes() is False, but rows of {port!r} follow other records than their own"
            why = f"after a change of {', '.join(sorted(ids))}, row {differ[0]} is another"
            raise ConformanceError(Problem(what, why=why, fix="leave mixes() out: True is always safe"))
