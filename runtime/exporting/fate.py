# SPDX-License-Identifier: Apache-2.0
"""`osmotic export fate`: pipelines, checked as for a run, written as a job of FATE 2.x."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osmotic.plugins.host import build_registry
from osmotic.runtime.exporting.fate_files import documents, write
from osmotic.runtime.exporting.fate_job import FateJob, FateTask
from osmotic.runtime.exporting.fate_parties import role_map, shares
from osmotic.runtime.party.policies import beside
from osmotic.runtime.plan.checks import Configs
from osmotic.runtime.plan.graph import Graph
from osmotic.runtime.plan.load import Loaded, find, load, shipped
from osmotic.schemas.errors import ConfigError, Problem


@dataclass(frozen=True)
class Exported:
    """What was written: the folder, the names of its files, the job."""

    folder: Path
    files: tuple[str, ...]
    job: FateJob


def export_fate(
    pipelines: Sequence[str], out: Path | None = None, parties: Sequence[str] = (), roles: Sequence[str] = (),
    overrides: tuple[str, ...] = (), sites: Path | None = None, force: bool = False,
) -> Exported:  # fmt: skip
    """Write a job with one task a pipeline into `out` (default: fate-NAME). Raises ConfigError with every problem found.

    parties, roles: see `fate_parties.shares`. sites: the site policies that the site file is to name; default: beside the
    pipeline.
    """
    registry = build_registry()
    tasks = []
    for reference in pipelines:
        loaded = load(reference, overrides)
        Configs(Graph(loaded, registry))  # a pipeline that cannot run is no job
        _check_files(loaded, _is_shipped(reference))
        text = reference if _is_shipped(reference) else loaded.text
        places = shares(loaded.pipeline.parties, parties, roles)
        tasks.append(FateTask(loaded.pipeline.name, text, loaded.overrides, places, _roles(loaded, roles)))
    job = FateJob(tuple(tasks))
    folder = (out or Path(f"fate-{tasks[0].name}")).resolve()
    content = documents(job, folder, sites or beside(find(pipelines[0])))
    write(folder, content, force)
    return Exported(folder, tuple(content), job)


def _check_files(loaded: Loaded, is_shipped: bool) -> None:
    """Raise ConfigError for values that name files: a job carries the pipeline's text, and no party reads files by its word."""
    problems = []
    for path, value in _texts(loaded.source.value, ()):
        if len(value) > 255 or "\n" in value or not Path(value).suffix or (is_shipped and not Path(value).is_absolute()):
            continue
        with contextlib.suppress(OSError, ValueError):
            if (loaded.folder / value).is_file():
                why = "a job has the pipeline's text alone: the other parties have no such file"
                fix = "write its content here, or name a shipped file (osmotic:...)"
                what = f"{value!r} is a file beside the pipeline"
                problems.append(Problem(what, loaded.source.where(path), ".".join(map(str, path)), why, fix))
    if problems:
        raise ConfigError(*problems)


def _texts(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every text in a document, with its place."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(one, (*path, key))


def _is_shipped(reference: str) -> bool:
    """Whether every party finds the pipeline by its name in its own installation."""
    return reference in shipped() and find(reference) == shipped()[reference]


def _roles(loaded: Loaded, given: Sequence[str]) -> dict[str, str | list[str]]:
    """The parameter `roles`, needed only where --role says what a role of the pipeline is."""
    found = role_map(loaded.pipeline.parties, given) if given else {}
    return {role: ["guest", "host"] if fate == "guest" else fate for role, fate in found.items()}
