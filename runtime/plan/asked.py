# SPDX-License-Identifier: Apache-2.0
"""What a run was asked to do, kept beside its summary, so that a later command can ask about the same plan again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osmotic.schemas.errors import DataError, Problem

RUNS = Path("osmotic-runs")


@dataclass(frozen=True)
class Asked:
    """A pipeline and the options it was run with. pipeline: a path or a shipped name; home: of the run."""

    pipeline: str
    overrides: tuple[str, ...] = ()
    sites: Path | None = None
    binds: tuple[str, ...] = ()
    home: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, paths made whole; without the home, which may be moved."""
        file = Path(self.pipeline)
        whole = str(file.resolve()) if file.is_file() else self.pipeline
        sites = str(self.sites.resolve()) if self.sites and self.sites.is_file() else str(self.sites) if self.sites else None
        return {"pipeline": whole, "overrides": list(self.overrides), "sites": sites, "binds": [_whole(b) for b in self.binds]}


def _whole(bind: str) -> str:
    """A bind with its file's whole path."""
    name, equals, file = bind.partition("=")
    return f"{name}={Path(file).resolve()}" if equals and Path(file).is_file() else bind


def asked_of(
    pipeline: str | None, overrides: tuple[str, ...], sites: Path | None, binds: tuple[str, ...], home: Path | None
) -> Asked:
    """What is meant: a pipeline that is named, else what the run in a folder (default: the latest one) was asked.

    Options that are given replace those of the run. Raises DataError where there is no such run.
    """
    if pipeline is not None:
        return Asked(pipeline, overrides, sites, binds, home)
    place = home or _latest()
    kept = _kept(place)
    return Asked(
        str(kept["pipeline"]), overrides or tuple(kept["overrides"]), sites or (Path(kept["sites"]) if kept["sites"] else None),
        binds or tuple(kept["binds"]), place,
    )  # fmt: skip


def _latest() -> Path:
    """The folder of the run that ended last, of those below `RUNS`."""
    found = sorted(RUNS.glob("*/run.json"), key=lambda file: file.stat().st_mtime)
    if not found:
        what = f"no run was found below {RUNS}"
        raise DataError(Problem(what, fix="name the pipeline with --pipeline, or the folder of a run with --home"))
    return found[-1].parent


def _kept(home: Path) -> Mapping[str, Any]:
    file = home / "run.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["asked"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        what, fix = "it is not known which pipeline ran here", "name it with --pipeline"
        raise DataError(Problem(what, str(home), why="there is no summary of a finished run", fix=fix)) from error
    kept: Mapping[str, Any] = found
    return kept
