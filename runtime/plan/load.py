# SPDX-License-Identifier: Apache-2.0
"""Find a pipeline (a path, or the name of a shipped one), apply --set, parse it and validate its outer document."""

import json
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.pipeline import Pipeline
from osmotic.schemas.source import Key, Source, did_you_mean, parse, read, read_text, validate

SHOWN = 120  # characters of an option in a message


@dataclass
class Overridden(Source):
    """A source whose values were changed on the command line: errors there name the option."""

    options: dict[Key, str] = field(default_factory=dict)

    def where(self, path: Key) -> str:
        """The option that set the path (or an ancestor of it), else its place in the file."""
        for cut in range(len(path), 0, -1):
            if path[:cut] in self.options:
                return f"--set {self.options[path[:cut]]}"
        return super().where(path)


@dataclass(frozen=True)
class Loaded:
    """A validated pipeline, where its keys stand, its text and overrides (what is sent to every site), its folder."""

    pipeline: Pipeline
    source: Source
    text: str
    overrides: tuple[str, ...]
    name: str
    folder: Path


def shipped(suffix: str = ".yaml") -> dict[str, Path]:
    """Shipped pipelines by name (site files left out)."""
    folder = Path(str(files("osmotic.pipelines")))
    found = {p.name.removesuffix(suffix): p for p in sorted(folder.glob(f"*{suffix}"))}
    return {name: path for name, path in found.items() if not name.endswith((".sites", ".schema", ".set"))}


def find(reference: str) -> Path:
    """The file of a pipeline given by path or shipped name; raises ConfigError naming what there is."""
    path = Path(reference)
    if path.suffix in (".yaml", ".yml") or "/" in reference or path.is_file():
        return path
    known = shipped()
    if reference not in known:
        fix = f"{did_you_mean(reference, known)}; or give a path ending in .yaml"
        raise ConfigError(Problem(f"no shipped pipeline is called {reference!r}", fix=fix))
    return known[reference]


def sites_file(reference: Path) -> Path:
    """A file of site policies: the path itself, or that of a shipped NAME.sites.yaml."""
    return reference if reference.suffix or reference.is_file() else shipped(".sites.yaml").get(str(reference), reference)


def load(reference: str, overrides: tuple[str, ...] = ()) -> Loaded:
    """Load by path or shipped name."""
    path, overrides = find(reference), expanded(overrides)
    return load_text(read_text(path, str(path)), path.name, overrides, path.resolve().parent)


def expanded(overrides: tuple[str, ...]) -> tuple[str, ...]:
    """Each ``@FILE`` or ``@NAME`` (a shipped NAME.set.yaml) by the options that it holds: a mapping of a.b.c to a value."""
    found: list[str] = []
    for option in overrides:
        found += _of_file(option[1:]) if option.startswith("@") else [option]
    return tuple(found)


def _of_file(reference: str) -> list[str]:
    path = shipped(".set.yaml").get(reference, Path(reference))
    if not path.exists():
        fix = did_you_mean(reference, shipped(".set.yaml"))
        raise ConfigError(Problem(f"--set @{reference}: no such file, and no shipped settings of that name", fix=fix))
    source = read(path, path.name)
    if not isinstance(source.value, dict):
        what = f"{path.name} is not a mapping of keys to values"
        raise ConfigError(Problem(what, fix="write lines such as: tasks.student.config.steps: 60"))
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in source.value.items()]


def load_text(text: str, name: str, overrides: tuple[str, ...] = (), folder: Path | None = None) -> Loaded:
    """Load from text (as a site receives it)."""
    parsed = parse(text, name)
    if isinstance(parsed.value, dict) and "osmotic_sites" in parsed.value and "tasks" not in parsed.value:
        what, why = "this is a file of site policies, not a pipeline", "it has the key 'osmotic_sites'"
        fix = "name the pipeline; this file goes to --sites"
        raise ConfigError(Problem(what, parsed.where(("osmotic_sites",)), why=why, fix=fix))
    source = Overridden(parsed.name, parsed.value, parsed.marks)
    for option in overrides:
        _apply(source, option)
    return Loaded(validate(Pipeline, source), source, text, overrides, name, folder or Path())


def _apply(source: Overridden, option: str) -> None:
    """Set one key of a parsed document: the value is YAML as in the file itself."""
    dotted, equals, text = option.partition("=")
    option = option if len(option) <= SHOWN else f"{option[:SHOWN]}..."
    keys = dotted.split(".")
    if not equals or not all(keys):
        fix = "write it as path.to.key=value, e.g. tasks.student.config.steps=60"
        raise ConfigError(Problem(f"--set {option}: this says no key and value", fix=fix))
    value = _value(option, text)
    target = source.value
    path: Key = ()
    while True:
        key, keys = _next(target, keys, option, path)
        path = (*path, key)
        if not keys:
            break
        if isinstance(target, dict) and target.get(key) is None:
            target[key] = {}
        target = target[key]
    target[key] = value
    source.options[path] = option


def _value(option: str, text: str) -> Any:
    try:
        found = parse(f"- {text}", "value").value
    except ConfigError as error:
        why = error.problems[0].what.removeprefix("not valid YAML: ")
        fix = f"quote it for YAML and for the shell: --set '{option.partition('=')[0]}=\"...\"'"
        raise ConfigError(Problem(f"--set {option}: the value is not valid YAML", why=why, fix=fix)) from error
    if not isinstance(found, list) or len(found) != 1:
        raise ConfigError(Problem(f"--set {option}: give one value", fix="quote it"))
    return found[0]


def _next(target: Any, keys: list[str], option: str, path: Key) -> tuple[str | int, list[str]]:
    """(the next key, the rest): a place in a list, or a key of a mapping, which may have dots in it."""
    if isinstance(target, list):
        if keys[0].isdigit() and int(keys[0]) < len(target):
            return int(keys[0]), keys[1:]
        raise _nothing(option, path, f"{keys[0]!r} is no place in a list of {len(target)}", "places count from 0")
    if not isinstance(target, dict):
        raise _nothing(option, (), f"{'.'.join(map(str, path))!r} is a value: there is nothing in it", "set the whole value")
    for cut in range(len(keys), 0, -1):
        joined = ".".join(keys[:cut])
        if joined in target:
            return joined, keys[cut:]
    fixed = not path or path[-1] in ("tasks", "models")  # these are not made by naming something inside them
    if fixed and len(keys) > 1 and (path or keys[0] not in Pipeline.model_fields):
        raise _nothing(option, path, f"there is no {keys[0]!r}", did_you_mean(keys[0], target))
    return keys[0], keys[1:]


def _nothing(option: str, path: Key, why: str, fix: str) -> ConfigError:
    place = f" in {'.'.join(map(str, path))}" if path else ""
    return ConfigError(Problem(f"--set {option}: nothing can be set there", why=f"{why}{place}", fix=fix))
