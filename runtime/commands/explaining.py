# SPDX-License-Identifier: Apache-2.0
"""Why a task would run, and what differs between two runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from osmotic.runtime.commands.options import BindOption, HomeOption, JsonOption, SetOption, SitesOption


def why(
    task: Annotated[str, typer.Argument(help="A task as written, or one run of it: 'student[seed=1]@north'.")],
    pipeline: Annotated[
        str | None, typer.Option("--pipeline", help="Path or shipped name; default: that of the run in the folder.")
    ] = None,
    set_: SetOption = None, sites: SitesOption = None, bind: BindOption = None, home: HomeOption = None,
    json_: JsonOption = False,
) -> None:  # fmt: skip
    """Say why a task would run or is found finished, what it depends on, who needs it, and whose data its inputs carry."""
    from osmotic.runtime import api
    from osmotic.runtime.plan.asked import asked_of
    from osmotic.runtime.plan.explaining import why_text

    asked = asked_of(pipeline, tuple(set_ or ()), sites, tuple(bind or ()), home)
    found = api.why(task, asked.pipeline, overrides=asked.overrides, sites=asked.sites, binds=asked.binds, home=asked.home)
    print(json.dumps(found, sort_keys=True) if json_ else why_text(found))


def diff(
    first: Annotated[Path, typer.Argument(help="Folder of a run.")],
    second: Annotated[Path, typer.Argument(help="Folder of another run.")],
    json_: JsonOption = False,
) -> None:
    """Compare two runs: configuration, data, code, guarantee, bytes, results with their intervals."""
    from osmotic.runtime.results.diffing import diff as compare
    from osmotic.runtime.results.diffing import diff_text

    found = compare(first, second)
    print(json.dumps(found, sort_keys=True) if json_ else diff_text(found))


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (why, diff):
        app.command()(command)
