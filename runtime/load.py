# SPDX-License-Identifier: Apache-2.0
"""Find a pipeline (a path, or the name of a shipped one), apply --set, parse it and validate its outer document."""

from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.pipeline import Pipeline
from osmotic.schemas.source import Key, Source, did_you_mean, parse, read, validate


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
    return {name: path for name, path in found.items() if not name.endswith((".sites", ".schema"))}


def find(reference: str) -> Path:
    """The file of a pipeline given by path or shipped name; raises ConfigError naming what there is."""
    path = Path(reference)
    if path.suffix in (".yaml", ".yml") or "/" in reference or path.is_file():
        return path
    known = shipped()
    if reference not in known:
        fix = did_you_mean(reference, known) + "; or give a path ending in .yaml"
        raise ConfigError(Problem(f"no shipped pipeline is called {reference!r}", fix=fix))
    return known[reference]


def load(reference: str, overrides: tuple[str, ...] = ()) -> Loaded:
    """Load by path or shipped name."""
    path = find(reference)
    read(path)  # a missing or unreadable file is reported with its place
    return load_text(path.read_text(encoding="utf-8-sig"), path.name, overrides, path.resolve().parent)


def load_text(text: str, name: str, overrides: tuple[str, ...] = (), folder: Path | None = None) -> Loaded:
    """Load from text (as a site receives it)."""
    parsed = parse(text, name)
    source = Overridden(parsed.name, parsed.value, parsed.marks)
    for option in overrides:
        _apply(source, option)
    return Loaded(validate(Pipeline, source), source, text, overrides, name, folder or Path())


def _apply(source: Overridden, option: str) -> None:
    dotted, equals, text = option.partition("=")
    if not equals or not dotted:
        raise ConfigError(Problem(f"--set {option}: write it as path.to.key=value"))
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(Problem(f"--set {option}: the value is not valid YAML", fix="quote it")) from error
    keys: list[str | int] = [int(k) if k.isdigit() else k for k in dotted.split(".")]
    target = source.value
    for i, key in enumerate(keys[:-1]):
        target = _descend(target, key, option, keys[: i + 1])
    last = keys[-1]
    if isinstance(target, list) and isinstance(last, int) and last < len(target):
        target[last] = value
    elif isinstance(target, dict):
        target[str(last)] = value
    else:
        raise ConfigError(Problem(f"--set {option}: nothing can be set there"))
    source.options[tuple(keys)] = option


def _descend(target: Any, key: str | int, option: str, so_far: list[str | int]) -> Any:
    if isinstance(target, list) and isinstance(key, int) and key < len(target):
        return target[key]
    if isinstance(target, dict):
        if str(key) in target:
            if target[str(key)] is None:
                target[str(key)] = {}
            return target[str(key)]
        if len(so_far) > 1 and so_far[-2] not in ("tasks", "models"):
            return target.setdefault(str(key), {})
    known = did_you_mean(str(key), target if isinstance(target, dict) else ())
    raise ConfigError(Problem(f"--set {option}: there is no {'.'.join(map(str, so_far))}", fix=known))
