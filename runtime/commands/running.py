# SPDX-License-Identifier: Apache-2.0
"""Run, plan and check a pipeline; write its report again."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from osmotic.runtime.commands.options import (
    BindOption,
    HomeOption,
    JsonOption,
    PipelineArgument,
    SetOption,
    SitesOption,
    options,
)


def run(
    pipeline: PipelineArgument, set_: SetOption = None, sites: SitesOption = None, bind: BindOption = None,
    home: HomeOption = None, json_: JsonOption = False,
    isolate: Annotated[bool, typer.Option("--isolate", help="A process a party (and so one core each).")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:  # fmt: skip
    """Run a pipeline; running it again does only what is missing and spends nothing twice."""
    from osmotic.runtime import api
    from osmotic.runtime.console import Console

    watcher = api.Quiet() if quiet else Console(sys.stderr)
    given = options(set_, sites, bind, home)
    summary = api.run(pipeline, isolate=isolate, watcher=watcher, **given)
    if json_:
        print(json.dumps(summary, sort_keys=True))
    else:
        from osmotic.runtime.tables import result_text

        print(result_text(summary))


def plan(
    pipeline: PipelineArgument, set_: SetOption = None, sites: SitesOption = None, bind: BindOption = None,
    home: HomeOption = None, json_: JsonOption = False,
) -> None:  # fmt: skip
    """Show what a run would do: tasks and why, what crosses under which label, budget. Exit code 4 if a site refuses."""
    from osmotic.runtime import api
    from osmotic.runtime.tables import plan_text
    from osmotic.schemas.errors import Problem, RefusedError

    described = api.plan(pipeline, **options(set_, sites, bind, home))
    print(json.dumps(described, sort_keys=True) if json_ else plan_text(described))
    if described["refusals"]:
        raise RefusedError(*[Problem(**p) for p in described["refusals"]])


def validate(
    pipeline: PipelineArgument, set_: SetOption = None, sites: SitesOption = None, json_: JsonOption = False
) -> None:  # fmt: skip
    """Check a pipeline: keys, types, names, references, configurations; all errors at once, with their places."""
    from osmotic.runtime import api

    ready = api.prepare(pipeline, overrides=tuple(set_ or ()), sites=sites)
    nodes, tasks = len(ready.graph.nodes), len(ready.graph.instances)
    found = {"pipeline": ready.loaded.pipeline.name, "nodes": nodes, "tasks": tasks}
    print(json.dumps(found) if json_ else f"{ready.loaded.name}: valid; {nodes} tasks as written, {tasks} to run")


def report(home: Annotated[Path, typer.Argument(help="Folder of a run (osmotic-runs/NAME).")]) -> None:
    """Write the report of a finished run again and say where it is."""
    from osmotic.runtime.report import render
    from osmotic.runtime.store import disk
    from osmotic.runtime.verifying import summary_of

    target = home / "report.html"
    text = render(summary_of(home))
    with disk(home):
        target.write_text(text, encoding="utf-8")
    print(target)


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (run, plan, validate, report):
        app.command()(command)
