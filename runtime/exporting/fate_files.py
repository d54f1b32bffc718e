# SPDX-License-Identifier: Apache-2.0
"""The files of `osmotic export fate`: DAG, task configurations, class for fate_client, site file, README."""

import json
import shlex
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from osmotic import __version__
from osmotic.runtime.exporting.fate_job import FateJob, FateTask
from osmotic.runtime.exporting.fate_parties import FateParty
from osmotic.schemas.errors import ConfigError, Problem, StoreError


def documents(job: FateJob, folder: Path, sites: Path | None) -> dict[str, str]:
    """Name relative to `folder` -> content. sites: the policy that the site file names; None: one that has to be written."""
    folder = folder.resolve()
    found = {"dag.yaml": _yaml(job.dag())}
    for task in job.tasks:
        for place in task.parties.values():
            found[_config_name(job, task, place)] = _yaml(job.task_config(task, place, f"{folder}/out"))
    found["site.json"] = json.dumps(site_file(folder, sites), indent=2) + "\n"
    found["osmotic_client.py"] = _filled("fate_client.py.txt", {})
    found["README.md"] = _readme(job, folder)
    return found


def site_file(folder: Path, sites: Path | None) -> dict[str, str]:
    """What OSMOTIC_FATE_SITE names: this interpreter, the policies, where stores and ledgers lie."""
    policy = sites.resolve() if sites is not None else folder / "sites.yaml"
    return {"python": sys.executable, "sites": str(policy), "home": str(folder / "home")}


def write(folder: Path, content: Mapping[str, str], force: bool) -> None:
    """Write the files. Raises ConfigError when one is there and `force` is not given: a site file may have been changed."""
    there = [name for name in content if (folder / name).exists()]
    if there and not force:
        fix = "give another folder: --out DIR, or --force to write over them"
        raise ConfigError(Problem(f"{folder / there[0]} is there already", f"--out {folder}", fix=fix))
    try:
        for name, text in content.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(Problem(f"cannot be written: {error.strerror or error}", str(folder))) from error


def _config_name(job: FateJob, task: FateTask, place: FateParty) -> str:
    prefix = f"{task.name}-" if len(job.tasks) > 1 else ""
    return f"tasks/{prefix}{place.file}.yaml"


def _yaml(document: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)


def _readme(job: FateJob, folder: Path) -> str:
    rows = ["| party of the pipeline | party of FATE | task |", "|---|---|---|"]
    rows += [f"| {party} | {place} | {task.name} |" for task in job.tasks for party, place in task.parties.items()]
    commands = "\n".join(_command(job, task, place, folder) for task in job.tasks for place in task.parties.values())
    names = ", ".join(task.name for task in job.tasks)
    values = {"NAMES": names, "VERSION": __version__, "SHARES": "\n".join(rows), "FOLDER": str(folder), "COMMANDS": commands}
    return _filled("fate_readme.md.txt", values)


def _command(job: FateJob, task: FateTask, place: FateParty, folder: Path) -> str:
    one = f"{task.name}-{place.file}"
    run = f"$RUN-{task.name}" if len(job.tasks) > 1 else "$RUN"
    config, final = folder / _config_name(job, task, place), folder / "out" / one / "final.json"
    ids = f"-p conf.federation.metadata.federation_id={run} -p conf.computing.metadata.computing_id={run}-{place.file}"
    return (
        f"    python -m fate.components component execute --config {shlex.quote(str(config))} \\\n"
        f"        {ids} \\\n"
        f"        --execution-final-meta-path {shlex.quote(str(final))} &"
    )


def _filled(name: str, values: Mapping[str, str]) -> str:
    text = (files("osmotic.runtime.exporting") / name).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@@{key}@@", value)
    return text
