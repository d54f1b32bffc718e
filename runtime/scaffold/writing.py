# SPDX-License-Identifier: Apache-2.0
"""Write a plugin package, or a pipeline, that works as written: from templates, into a folder that does not exist yet."""

import importlib.util
import json
import random
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from osmotic.plugins.host import Registry
from osmotic.runtime.storage.store import disk
from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.pipeline import NAME

KINDS = ("component", "mechanism", "model")
OURS = ("fate",)  # what the project itself publishes beside osmotic
LONGEST = 24
PARTS = {"component": "words.py", "mechanism": "ordinal.py", "model": "phrases.py"}
MOODS, ENERGY = ("awful", "bad", "fair", "good", "great"), ("none", "low", "middle", "high")


@dataclass(frozen=True)
class Names:
    """What a new plugin and its parts are called."""

    name: str
    kinds: tuple[str, ...]

    @property
    def distribution(self) -> str:
        """As pip knows it."""
        return f"osmotic-{self.name.replace('_', '-')}"

    @property
    def module(self) -> str:
        """As Python imports it."""
        return f"osmotic_{self.snake}"

    @property
    def snake(self) -> str:
        """With low lines."""
        return self.name.replace("-", "_")

    @property
    def camel(self) -> str:
        """The beginning of class names."""
        return "".join(part.capitalize() for part in self.snake.split("_") if part)

    def part(self, kind: str) -> str:
        """What pipelines call it."""
        return {
            "component": f"{self.snake}_words",
            "mechanism": f"{self.name.replace('_', '-')}-ordinal",
            "model": f"{self.name.replace('_', '-')}-phrases",
        }[kind]


def new_plugin(name: str, kinds: Sequence[str], out: Path | None, registry: Registry) -> tuple[Path, list[str]]:
    """Write a plugin package: (its folder, the commands that come next). out: default ./osmotic-NAME.

    Raises ConfigError for a name that is none, or that is taken, for an unknown kind, or for a folder that is there.
    """
    names = Names(name, _kinds(kinds))
    _check_name(name)
    _check_free(names, registry)
    folder = out or Path(names.distribution)
    where, given = f"src/{names.module}", _given(names)
    files = {
        "pyproject.toml": "pyproject.toml", "README.md": "README.md", f"{where}/__init__.py": "__init__.py",
        "tests/test_plugin.py": "test_plugin.py", "demo/pipeline.yaml": "pipeline.yaml",
        "demo/pipeline.sites.yaml": "pipeline.sites.yaml", "demo/schema.yaml": "schema.yaml",
    }  # fmt: skip
    files |= {f"{where}/{PARTS[kind]}": PARTS[kind] for kind in names.kinds}
    texts = {path: _filled("plugin", template, given) for path, template in files.items()}
    texts |= {f"{where}/py.typed": "", ".gitignore": "__pycache__/\n*.egg-info/\nbuild/\nosmotic-runs/\n"}
    texts |= {f"demo/{party}.jsonl": _diary(party) for party in ("north", "south")}
    _write(folder, texts)
    return folder, [f"cd {shlex.quote(str(folder))} && pip install -e .", "pytest", "osmotic run demo/pipeline.yaml"]


def new_pipeline(name: str, out: Path | None) -> tuple[Path, list[str]]:
    """Write a commented pipeline with its site policies and data: (its folder, the commands that come next)."""
    _check_name(name)
    folder = out or Path(name)
    given = {"name": name}
    files = ("pipeline.yaml", "pipeline.sites.yaml")
    _write(folder, {f.replace("pipeline", name, 1): _filled("pipeline", f, given) for f in files})
    file = shlex.quote(str(folder / f"{name}.yaml"))
    return folder, [f"osmotic plan {file}", f"osmotic run {file}", f"osmotic ledger osmotic-runs/{name}"]


def _kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    asked = [part.strip() for kind in kinds for part in kind.split(",") if part.strip()] or list(KINDS)
    unknown = [kind for kind in asked if kind not in KINDS]
    if unknown:
        raise ConfigError(Problem(f"--kind {unknown[0]}: there is no such kind", fix=f"known: {', '.join(KINDS)}"))
    return tuple(kind for kind in KINDS if kind in asked)


def _check_name(name: str) -> None:
    if not re.fullmatch(NAME, name) or len(name) > LONGEST:
        why = f"lower-case letters, digits, '-' and '_', a letter first; at most {LONGEST} characters"
        raise ConfigError(Problem(f"{name!r} cannot be a name", why=why, fix="for example: tide, word-tools"))
    if name.startswith(("osmotic-", "osmotic_")):
        short = name[len("osmotic-") :] or "tide"
        raise ConfigError(Problem(f"{name!r}: 'osmotic-' is put in front by itself", fix=f"osmotic new plugin {short}"))


def _check_free(names: Names, registry: Registry) -> None:
    """Raise ConfigError when a part, the package or the module exists already."""
    problems = []
    tables = {"component": registry.components, "mechanism": registry.mechanisms, "model": registry.models}
    for kind in names.kinds:
        if entry := tables[kind].get(names.part(kind)):
            what = f"a {kind} {names.part(kind)!r} is registered already"
            problems.append(Problem(what, why=f"by {entry.distribution} {entry.version}", fix="choose another name"))
    if names.name in OURS:
        what = f"{names.distribution} is a package of the osmotic project itself"
        problems.append(Problem(what, fix="choose another name"))
    try:
        found = distribution(names.distribution)
        what = f"the package {names.distribution} is installed already ({found.version})"
        problems.append(Problem(what, fix=f"choose another name, or: pip uninstall {names.distribution}"))
    except PackageNotFoundError:
        if importlib.util.find_spec(names.module) is not None:
            problems.append(Problem(f"a module {names.module} can be imported already", fix="choose another name"))
    if problems:
        raise ConfigError(*problems)


def _given(names: Names) -> dict[str, Any]:
    """What the templates ask for."""
    kinds, classes = names.kinds, {"component": "Component", "mechanism": "Mechanism", "model": "ModelPlugin"}
    found = [f'registry.{kind}s["{names.part(kind)}"]' for kind in kinds]
    crosses = "model" in kinds or "component" in kinds
    word = '("certified", 6.0)' if crosses else '("nothing", 0.0)'
    return {
        "name": names.name, "distribution": names.distribution, "module": names.module, "camel": names.camel,
        **{kind: names.part(kind) if kind in kinds else "" for kind in KINDS},
        "contract": ", ".join(classes[kind] for kind in kinds),
        "found": found,
        "field": "rationale" if "model" in kinds else "mood",
        "asked": f"name: {names.part('mechanism')}" if "mechanism" in kinds else "name: list-rr, k: 2, lists: order",
        "ask": " and ask for advice" if "model" in kinds else "",
        "guarantee": f'{{"north": {word}, "south": {word}}}',
    }  # fmt: skip


def _filled(folder: str, template: str, given: Mapping[str, Any]) -> str:
    """A template's text with what is given; missing names are an error, not an empty text."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        variable_start_string="<<", variable_end_string=">>", block_start_string="<%", block_end_string="%>",
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined, autoescape=False,
    )  # fmt: skip
    source = resources.files("osmotic.runtime.scaffold").joinpath(folder, f"{template}.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(**given)


def _diary(party: str) -> str:
    """Eight invented records, always the same ones."""
    draw = random.Random(party)
    rows = [{"id": f"{party}-{i}", "mood": draw.choice(MOODS), "energy": draw.choice(ENERGY)} for i in range(8)]
    return "".join(json.dumps(row) + "\n" for row in rows)


def _write(folder: Path, texts: Mapping[str, str]) -> None:
    """All files, into a folder that is not there or empty; raises ConfigError for one that has something in it."""
    with disk(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            why = "nothing of yours is ever overwritten"
            raise ConfigError(Problem(f"{folder} is there already", why=why, fix="choose another name, or --out FOLDER"))
        for path, text in texts.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
