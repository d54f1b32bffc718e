# SPDX-License-Identifier: Apache-2.0
"""The command line. Exit codes: 0 done, 1 internal, 2 configuration, 3 data, 4 refused (policy, membrane, budget), 5 store,
6 component or model, 7 another party, 130 interrupted.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

STOPPED = 130
UsageError: Any = typer.BadParameter.__base__  # typer's own class: some versions bring their own click

app = typer.Typer(
    name="osmotic",
    help="Knowledge crosses, private data doesn't.\n\nTry: osmotic run fedcot --isolate",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog=(
        "Exit codes: 0 done, 1 internal error, 2 configuration, 3 data, 4 refused, 5 store, 6 component or model, "
        "7 another party, 130 stopped."
    ),
)

PipelineArgument = Annotated[str, typer.Argument(help="Path of a pipeline, or the name of a shipped one (fedcot).")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Change a key: a.b=value (YAML), or several: @FILE.")]
SitesOption = Annotated[Path | None, typer.Option("--sites", help="Site policies; default: PIPELINE.sites.yaml beside it.")]
BindOption = Annotated[list[str] | None, typer.Option("--bind", help="NAME=FILE: the file of a data set that a site binds.")]
HomeOption = Annotated[Path | None, typer.Option("--home", help="Folder of stores and ledgers; default osmotic-runs/NAME.")]
KeyOption = Annotated[list[str] | None, typer.Option("--set", help="A key of its configuration: key=value (YAML); repeat.")]
TableOption = Annotated[str | None, typer.Option("--table", help="NAME:ARGUMENT or FILE; default minilm:pieces.")]
ModelOption = Annotated[str | None, typer.Option("--model", help="TYPE:PATH, for mechanisms that ask a model.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON to standard output, nothing else.")]


@app.command()
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
    options = _options(set_, sites, bind, home)
    summary = api.run(pipeline, isolate=isolate, watcher=watcher, **options)
    if json_:
        print(json.dumps(summary, sort_keys=True))
    else:
        from osmotic.runtime.tables import result_text

        print(result_text(summary))


@app.command()
def plan(
    pipeline: PipelineArgument, set_: SetOption = None, sites: SitesOption = None, bind: BindOption = None,
    home: HomeOption = None, json_: JsonOption = False,
) -> None:  # fmt: skip
    """Show what a run would do: tasks and why, what crosses under which label, budget. Exit code 4 if a site refuses."""
    from osmotic.runtime import api
    from osmotic.runtime.tables import plan_text
    from osmotic.schemas.errors import Problem, RefusedError

    described = api.plan(pipeline, **_options(set_, sites, bind, home))
    print(json.dumps(described, sort_keys=True) if json_ else plan_text(described))
    if described["refusals"]:
        raise RefusedError(*[Problem(**p) for p in described["refusals"]])


@app.command()
def validate(
    pipeline: PipelineArgument, set_: SetOption = None, sites: SitesOption = None, json_: JsonOption = False
) -> None:  # fmt: skip
    """Check a pipeline: keys, types, names, references, configurations; all errors at once, with their places."""
    from osmotic.runtime import api

    ready = api.prepare(pipeline, overrides=tuple(set_ or ()), sites=sites)
    nodes, tasks = len(ready.graph.nodes), len(ready.graph.instances)
    found = {"pipeline": ready.loaded.pipeline.name, "nodes": nodes, "tasks": tasks}
    print(json.dumps(found) if json_ else f"{ready.loaded.name}: valid; {nodes} tasks as written, {tasks} to run")


@app.command()
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


@app.command()
def ledger(home: Annotated[Path, typer.Argument(help="Folder of a run.")], json_: JsonOption = False) -> None:
    """What each party of a run folder has spent: per data set, per document, by which mechanisms."""
    from osmotic.runtime.tables import ledger_text
    from osmotic.runtime.verifying import ledgers_of

    found = ledgers_of(home)
    print(json.dumps(found, sort_keys=True) if json_ else ledger_text(found))


@app.command()
def verify(home: Annotated[Path, typer.Argument(help="Folder of a run.")], json_: JsonOption = False) -> None:
    """Check ledgers and transcripts: chains unbroken, charges equal releases, both ends of every crossing agree."""
    from osmotic.runtime.verifying import verify as check
    from osmotic.schemas.errors import Problem, StoreError

    found = check(home)
    if json_:
        print(json.dumps(found, sort_keys=True))
    else:
        for party in found["parties"]:
            print(f"{party['party']}: {party['charges']} charges, {party['crossings']} crossings, heads {party['heads']}")
    if found["problems"]:
        raise StoreError(*[Problem(p) for p in found["problems"]])
    if not json_:
        print("all chains hold, every charge has its release, both ends of every crossing agree")


@app.command()
def certify(
    mechanism: Annotated[str, typer.Argument(help="Name of a mechanism, or all.")],
    epsilon: Annotated[list[float], typer.Option("--epsilon", help="May be repeated.")],
    set_: KeyOption = None, table: TableOption = None, model: ModelOption = None, json_: JsonOption = False,
    sampled: Annotated[bool, typer.Option("--sampled", help="Audit by draws too: a lower bound, 95% confidence.")] = False,
    draws: Annotated[int, typer.Option("--draws", help="Draws of each of the two inputs of the audit, twice.")] = 200_000,
    prior: Annotated[Path | None, typer.Option("--prior", help="Public prior for the attack: SYMBOL<tab>WEIGHT.")] = None,
) -> None:  # fmt: skip
    """Compute the true epsilon of a mechanism over a table, and its card. Exit code 4 when a claim does not hold."""
    from osmotic.plugins.host import build_registry
    from osmotic.runtime.certifying import certify_command, found_json, found_text
    from osmotic.schemas.errors import Problem, RefusedError

    found = certify_command(build_registry(), mechanism, epsilon, tuple(set_ or ()), table, sampled, draws, prior, model)
    print(found_json(found) if json_ else found_text(found))
    failed = [f for f in found if f.failed]
    if failed:
        raise RefusedError(*[Problem(f"{f.name} at epsilon {f.epsilon:g} does not hold", why=f.failed) for f in failed])


@app.command()
def sanitize(
    mechanism: Annotated[str, typer.Option("--mechanism", help="Name of a mechanism.")],
    epsilon: Annotated[float, typer.Option("--epsilon", help="Of the unit that the mechanism declares.")],
    file: Annotated[Path | None, typer.Argument(help="UTF-8 text, a line a document; default: standard input.")] = None,
    set_: KeyOption = None, table: TableOption = None, model: ModelOption = None, json_: JsonOption = False,
) -> None:  # fmt: skip
    """Try a mechanism on text: sanitised lines to standard output, the card's numbers to standard error.

    Nothing is stored or charged: every call draws anew, and the epsilons of all calls on the same text add up.
    """
    from osmotic.plugins.host import build_registry
    from osmotic.runtime.sanitizing import prepare, read_input, sanitize_command

    ready = prepare(build_registry(), mechanism, epsilon, tuple(set_ or ()), table, model)
    sanitize_command(ready, read_input(file, sys.stdin.buffer), json_)


@app.command()
def prompts(
    file: Annotated[Path, typer.Argument(help="A data set file of FATE-LLM (YAML, ten keys).")],
    strict: Annotated[bool, typer.Option("--strict", help="Refuse what FATE-LLM's own parser cannot read back.")] = False,
    json_: JsonOption = False,
) -> None:
    """Convert the prompts of a FATE-LLM data set file, or say where they cannot work (exit code 2). No model is loaded."""
    from osmotic.plugins.labelled.fate_llm import read_fate_llm
    from osmotic.runtime.prompts import prompts_json, prompts_text

    found = read_fate_llm(file, strict)
    for note in () if json_ else found.notes:
        print(f"note: {note}", file=sys.stderr)
    print(prompts_json(found) if json_ else prompts_text(found))


@app.command()
def components(json_: JsonOption = False) -> None:
    """The components that pipelines can name, with their ports."""
    from osmotic.plugins.host import build_registry
    from osmotic.runtime.tables import components_text, components_values

    values = components_values(build_registry())
    print(json.dumps(values, sort_keys=True) if json_ else components_text(values))


@app.command()
def plugins(json_: JsonOption = False) -> None:
    """What is registered, by which distribution, and which plugins could not be loaded and why."""
    from osmotic.plugins.host import build_registry
    from osmotic.runtime.tables import plugins_text, plugins_values

    values = plugins_values(build_registry())
    print(json.dumps(values, sort_keys=True) if json_ else plugins_text(values))


@app.command()
def schema(
    name: Annotated[str | None, typer.Argument(help="Print one: pipeline, sites, records, ...")] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit 5 if the checked-in files are stale.")] = False,
    write: Annotated[Path | None, typer.Option("--write", help="Write all into a folder.")] = None,
) -> None:
    """JSON Schemas of every document, for editors and for others' tools."""
    from osmotic.runtime.tables import schema_command

    print(schema_command(name, check, write))


def _options(set_: list[str] | None, sites: Path | None, bind: list[str] | None, home: Path | None) -> dict[str, Any]:
    return {"overrides": tuple(set_ or ()), "sites": sites, "binds": tuple(bind or ()), "home": home}


def _version(value: bool) -> None:
    if value:
        from osmotic import __version__

        print(f"osmotic {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Options that stand before the command."""


def main() -> None:
    """Entry point: user errors are one message and an exit code, never a stack trace."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(_guard(lambda: app(standalone_mode=False)))


def _guard(command: Callable[[], Any]) -> int:
    from osmotic.schemas.errors import OsmoticError

    try:
        result = command()
        if result == STOPPED:  # typer's answer to an interrupt
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except OsmoticError as error:
        print(_shown(error), file=sys.stderr)
        return error.exit_code
    except UsageError as error:
        error.show()
        return 2
    except (KeyboardInterrupt, typer.Abort):
        print("stopped; run the same command again to go on from here", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:
        return 0


def _shown(error: Any) -> str:
    count = len(error.problems)
    head = f"{count} problems:\n" if count > 1 else ""
    notes = "".join(f"\n    {note}" for note in getattr(error, "__notes__", ()))
    return f"{head}{error}{notes}"
