# SPDX-License-Identifier: Apache-2.0
"""Write a pipeline for another system; read another system's files."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from osmotic.runtime.commands.options import JsonOption, SetOption, SitesOption

PipelinesArgument = Annotated[list[str], typer.Argument(help="Paths of pipelines, or names of shipped ones; a task each.")]
PartiesOption = Annotated[
    list[str] | None,
    typer.Option("--parties", help="ROLE:ID of FATE, or NAME=ROLE:ID for a party of the pipeline; several: with commas."),
]
RoleOption = Annotated[
    list[str] | None, typer.Option("--role", help="ROLE=arbiter|guest|host: what a role of the pipeline is in FATE.")
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Folder to write into; default fate-NAME.")]


def fate(
    pipelines: PipelinesArgument, out: OutOption = None, parties: PartiesOption = None, role: RoleOption = None,
    set_: SetOption = None, sites: SitesOption = None, json_: JsonOption = False,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
) -> None:  # fmt: skip
    """Write a job for FATE 2.x: DAG, task configurations, class for fate_client, site file, README with the commands."""
    from osmotic.runtime.exporting.fate import export_fate

    found = export_fate(pipelines, out, parties or (), role or (), tuple(set_ or ()), sites, force)
    if json_:
        shares = {task.name: {party: str(place) for party, place in task.parties.items()} for task in found.job.tasks}
        print(json.dumps({"folder": str(found.folder), "files": found.files, "parties": shares}))
        return
    for task in found.job.tasks:
        print(f"{task.name}: {', '.join(f'{party} = {place}' for party, place in task.parties.items())}")
    print(f"{len(found.files)} files in {found.folder}; the commands are in README.md there")


def fate_llm(
    path: Annotated[Path, typer.Argument(help="A data set file (YAML), a sanitizer kit (folder), or results (.jsonl, .json).")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write into.")] = Path("fate-llm"),
    json_: JsonOption = False,
) -> None:
    """Convert what FATE-LLM reads and writes: prompts, token tables, records with perturbed_doc. Pickles are refused."""
    from osmotic.runtime.tools.converting import convert

    found = convert(path, out)
    if json_:
        print(json.dumps(found.to_json()))
        return
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    for file in found.files:
        print(f"# {file}")
    print(found.blocks)


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for name, command, text in (
        ("export", fate, "Write a pipeline as a job of another system."),
        ("convert", fate_llm, "Convert files of another system."),
    ):
        group = typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None)
        group.callback()(_group)
        group.command(command.__name__.replace("_", "-"))(command)
        app.add_typer(group, name=name, help=text)


def _group() -> None:
    """So that the name of the system stands as a command, though there is one."""
