# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer


def shipped(incomplete: str) -> list[str]:
    """Names of shipped pipelines, for the shell's completion."""
    from importlib.resources import files

    names = sorted(entry.name for entry in files("osmotic.pipelines").iterdir())
    whole = [name.removesuffix(".yaml") for name in names if name.count(".") == 1 and name.endswith(".yaml")]
    return [name for name in whole if name.startswith(incomplete)]


PipelineArgument = Annotated[
    str, typer.Argument(help="Path of a pipeline, or the name of a shipped one (fedcot).", autocompletion=shipped)
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Change a key: a.b=value (YAML), or several: @FILE.")]
SitesOption = Annotated[Path | None, typer.Option("--sites", help="Site policies; default: PIPELINE.sites.yaml beside it.")]
BindOption = Annotated[list[str] | None, typer.Option("--bind", help="NAME=FILE: the file of a data set that a site binds.")]
HomeOption = Annotated[Path | None, typer.Option("--home", help="Folder of stores and ledgers; default osmotic-runs/NAME.")]
KeyOption = Annotated[list[str] | None, typer.Option("--set", help="A key of its configuration: key=value (YAML); repeat.")]
TableOption = Annotated[str | None, typer.Option("--table", help="NAME:ARGUMENT or FILE; default minilm:pieces.")]
ModelOption = Annotated[str | None, typer.Option("--model", help="TYPE:PATH, for mechanisms that ask a model.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON to standard output, nothing else.")]
LockedOption = Annotated[
    bool,
    typer.Option("--locked", help="Refuse other code than PIPELINE.lock.json says, or else the lock of the last run."),
]
LockOption = Annotated[Path | None, typer.Option("--lock", help="The same, by this lock file (osmotic plugins --lock).")]


def options(set_: list[str] | None, sites: Path | None, bind: list[str] | None, home: Path | None) -> dict[str, Any]:
    """The keyword arguments that `api.run` and `api.plan` share."""
    return {"overrides": tuple(set_ or ()), "sites": sites, "binds": tuple(bind or ()), "home": home}
