# SPDX-License-Identifier: Apache-2.0
"""Write a new plugin package or a new pipeline."""

from pathlib import Path
from typing import Annotated

import typer

OutOption = Annotated[Path | None, typer.Option("--out", help="Folder to write; it must not exist, or be empty.")]
KindOption = Annotated[list[str] | None, typer.Option("--kind", help="component, mechanism, model; default: all three.")]


def plugin(
    name: Annotated[str, typer.Argument(help="Name, without 'osmotic-': tide, word-tools.")], kind: KindOption = None,
    out: OutOption = None,
) -> None:  # fmt: skip
    """A package with a component, a mechanism and a model, tests and a pipeline, which works as written."""
    from osmotic.plugins.host import build_registry
    from osmotic.runtime.scaffold.writing import new_plugin

    _say(*new_plugin(name, kind or (), out, build_registry()))


def pipeline(name: Annotated[str, typer.Argument(help="Name of the pipeline.")], out: OutOption = None) -> None:
    """A small commented pipeline with its site policies and data, which runs as written."""
    from osmotic.runtime.scaffold.writing import new_pipeline

    _say(*new_pipeline(name, out))


def _say(folder: Path, commands: list[str]) -> None:
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    print(f"written to {folder}: {len(files)} files\n  " + "\n  ".join(files))
    print("next:\n  " + "\n  ".join(commands))


def register(app: typer.Typer) -> None:
    """Add `new` with these commands below it."""
    group = typer.Typer(help="Write a plugin package or a pipeline to start from.", no_args_is_help=True, rich_markup_mode=None)
    for command in (plugin, pipeline):
        group.command()(command)
    app.add_typer(group, name="new")
