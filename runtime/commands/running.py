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
    LockedOption,
    LockOption,
    PipelineArgument,
    SetOption,
    SitesOption,
    options,
)


def run(
    pipeline: PipelineArgument, set_: SetOption = None, sites: SitesOption = None, bind: BindOption = None,
    home: HomeOption = None, json_: JsonOption = False,
    isolate: Annotated[bool, typer.Option("--isolate", help="A process a party (and so one core each).")] = False,
    jobs: Annotated[int, typer.Option("--jobs", help="So many processes a party; more than one isolates too.")] = 1,
    table: Annotated[Path | None, typer.Option("--table", help="Write the table, a line a row, as CSV.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    locked: LockedOption = False, lock: LockOption = None,
) -> None:  # fmt: skip
    """Run a pipeline; running it again does only what is missing and spends nothing twice."""
    from osmotic.runtime import api
    from osmotic.runtime.screen.console import Console

    watcher = api.Quiet() if quiet else Console(sys.stderr)
    given = options(set_, sites, bind, home)
    summary = api.run(pipeline, isolate=isolate, jobs=jobs, watcher=watcher, lock=lock or locked, **given)
    if table is not None:
        from osmotic.runtime.results.table_file import write_table

        write_table(summary, table)
    if json_:
        print(json.dumps(summary, sort_keys=True))
    else:
        from osmotic.runtime.results.result_text import result_text

        print(result_text(summary))


def plan(
    pipeline: PipelineArgument, set_: SetOption = None, sites: SitesOption = None, bind: BindOption = None,
    home: HomeOption = None, json_: JsonOption = False,
) -> None:  # fmt: skip
    """Show what a run would do: tasks and why, what crosses under which label, budget. Exit code 4 if a site refuses."""
    from osmotic.runtime import api
    from osmotic.runtime.screen.plan_text import plan_text
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


def report(
    home: Annotated[Path, typer.Argument(help="Folder of a run (osmotic-runs/NAME).")],
    party: Annotated[str | None, typer.Option("--party", help="The own report of this party, not that of the whole.")] = None,
    open_: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Write the report of a finished run again and say where it is."""
    from osmotic.runtime.reporting.page import rendered
    from osmotic.runtime.results.verifying import own_summary_of, summary_of
    from osmotic.runtime.storage.store import disk

    folder = home / "parties" / party if party else home
    text = rendered(own_summary_of(home, party) if party else summary_of(home), folder)
    with disk(folder):
        (folder / "report.html").write_text(text, encoding="utf-8")
    print(folder / "report.html")
    if open_:
        import webbrowser

        if not webbrowser.open((folder / "report.html").resolve().as_uri()):
            print("no browser could be started; open the file above", file=sys.stderr)


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (run, plan, validate, report):
        app.command()(command)
