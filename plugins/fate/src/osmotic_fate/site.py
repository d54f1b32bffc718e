# SPDX-License-Identifier: Apache-2.0
"""What a site decides and no submitter of a job may: which interpreter runs, which policy holds, where its state lies.

The file is named by the environment variable OSMOTIC_FATE_SITE of the FATE service. A path to an interpreter among a job's
parameters would let anybody who may submit a job run code here; a job may only choose one of `workers` by its name.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any, Mapping

from osmotic_fate.status import TaskError

FILE = "OSMOTIC_FATE_SITE"
PYTHON = "OSMOTIC_FATE_PYTHON"
PATHS = ("python", "sites", "home", "state")
KEYS = {
    **{key: (str, "a path") for key in PATHS},
    "party": (str, "a name of the pipeline's"),
    "workers": (dict, "paths by name"),
    "parties": (dict, "role:party_id by the pipeline's party"),
    "inputs": (dict, "names of inputs by data set"),
    "plugins": (list, "a list of modules"),
}
HOW = (
    "install osmotic in an environment of its own (Python 3.11 to 3.13) and say where it is:\n"
    "        python3 -m venv /opt/osmotic && /opt/osmotic/bin/pip install osmotic\n"
    f"        {PYTHON}=/opt/osmotic/bin/python in the environment of the FATE service,\n"
    f'        or {FILE}=FILE with the JSON {{"python": "/opt/osmotic/bin/python"}}'
)


def load(environment: Mapping[str, str]) -> dict[str, Any]:
    """The site's file with absolute paths; empty without one. Raises TaskError for anything in it that is not known."""
    name = environment.get(FILE, "")
    if not name:
        return {}
    try:
        if Path(name).stat().st_mode & stat.S_IWOTH:
            raise TaskError(
                f"{name}: everybody may write this file, and it says what runs here\n    chmod o-w {name}", "config"
            )
        given = json.loads(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise TaskError(f"{name}: {FILE} names it, and it cannot be read: {error.strerror}", "config") from None
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{name}: not JSON: {error}", "config") from None
    return _checked(given, name)


def _checked(given: Any, name: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise TaskError(f"{name}: a mapping is wanted", "config")
    for key, value in given.items():
        if key not in KEYS:
            raise TaskError("{}: {}: no such key\n    known: {}".format(name, key, ", ".join(sorted(KEYS))), "config")
        kind, wanted = KEYS[key]
        if not isinstance(value, kind):
            raise TaskError(f"{name}: {key}: {wanted} is wanted", "config")
    folder = Path(name).absolute().parent
    found = {key: str(folder / Path(value).expanduser()) if key in PATHS else value for key, value in given.items()}
    workers = given.get("workers", {})
    return {**found, "workers": {str(name): str(folder / Path(str(path)).expanduser()) for name, path in workers.items()}}


def interpreter(site: Mapping[str, Any], worker: str | None, environment: Mapping[str, str]) -> str:
    """The interpreter of the worker. Raises TaskError that says how to install one."""
    workers = site.get("workers", {})
    if worker:
        if worker not in workers:
            known = ", ".join(sorted(workers)) or f"none: {FILE} names no file with `workers`"
            raise TaskError(f"parameters.worker: this site has no worker {worker!r}\n    known: {known}", "config")
        return _usable(workers[worker], f"workers.{worker}")
    if "python" in site:
        return _usable(site["python"], "python")
    if len(workers) == 1:
        return _usable(next(iter(workers.values())), "workers")
    if workers:
        raise TaskError("parameters.worker: name one of {}".format(", ".join(sorted(workers))), "config")
    if environment.get(PYTHON):
        return _usable(environment[PYTHON], PYTHON)
    return _on_path(environment)


def _usable(path: str, where: str) -> str:
    if not (Path(path).is_file() and os.access(path, os.X_OK)):
        raise TaskError(f"{where}: {path} is no program that can be started\n    {HOW}", "config", why="start")
    return path


def _on_path(environment: Mapping[str, str]) -> str:
    """The interpreter beside the command `osmotic`, which may be a link into its environment."""
    command = shutil.which("osmotic", path=environment.get("PATH"))
    for place in (Path(command), Path(command).resolve()) if command else ():
        if os.access(place.with_name("python"), os.X_OK):
            return str(place.with_name("python"))
    raise TaskError(f"there is no osmotic worker at this party\n    {HOW}", "config", why="start")
