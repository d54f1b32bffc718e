# SPDX-License-Identifier: Apache-2.0
"""What is installed, and the schemas of every document."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from osmotic.runtime.commands.options import JsonOption


def components(json_: JsonOption = False) -> None:
    """The components that pipelines can name, with their ports."""
    from osmotic.plugins.host import build_registry
    from osmotic.runtime.screen.tables import components_text, components_values

    values = components_values(build_registry())
    print(json.dumps(values, sort_keys=True) if json_ else components_text(values))


def plugins(
    json_: JsonOption = False,
    lock: Annotated[Path | None, typer.Option("--lock", help="Write a lock file: versions, hashes of what is loaded.")] = None,
) -> None:
    """What is registered, by which distribution, and which plugins could not be loaded and why."""
    from osmotic.plugins.host import build_registry
    from osmotic.runtime.screen.tables import plugins_text, plugins_values

    registry = build_registry()
    if lock is not None:
        from osmotic.runtime.tools.locking import write_lock

        write_lock(lock, registry)
        print(f"written to {lock}; run with it: osmotic run PIPELINE --lock {lock}", file=sys.stderr)
    values = plugins_values(registry)
    print(json.dumps(values, sort_keys=True) if json_ else plugins_text(values))


def schema(
    name: Annotated[str | None, typer.Argument(help="Print one: pipeline, sites, records, ...")] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit 5 if the checked-in files are stale.")] = False,
    write: Annotated[Path | None, typer.Option("--write", help="Write all into a folder, with what is installed.")] = None,
) -> None:
    """JSON Schemas of every document, for editors and for others' tools."""
    from osmotic.runtime.screen.tables import schema_command

    if write is not None:
        from osmotic.plugins.host import build_registry
        from osmotic.runtime.storage.store import disk
        from osmotic.runtime.tools.editing import write_schemas

        with disk(write):
            written = write_schemas(write, build_registry())
        print(f"written to {write}: {', '.join(path.name for path in written)}")
        comment = f"# yaml-language-server: $schema={(write / 'pipeline.json').resolve().as_uri()}"
        print(f"first line of a pipeline, for the editor:\n{comment}")
        return
    print(schema_command(name, check))


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (components, plugins, schema):
        app.command()(command)
