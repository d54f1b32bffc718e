# SPDX-License-Identifier: Apache-2.0
"""Watch a run from a second terminal, tidy a run's folder, and look after the parties' keys."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from osmotic.runtime.commands.options import JsonOption

HomeArgument = Annotated[Path, typer.Argument(help="Folder of a run (osmotic-runs/NAME).")]
PlaceArgument = Annotated[Path, typer.Argument(help="Folder of a run or of a site, or a policy file.")]
PartyOption = Annotated[str | None, typer.Option("--party", help="This party only.")]


def status(
    home: Annotated[Path | None, typer.Argument(help="Folder of a run; default: the latest under osmotic-runs.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every second until the run ends.")] = False,
    json_: JsonOption = False,
) -> None:
    """How far a run has come: tasks, what each party is doing and how fast, what was spent. Reads only; safe beside the run."""
    from osmotic.runtime.screen.status_text import latest, status_of, status_text

    place = home or latest(Path("osmotic-runs"))
    live, lines = watch and sys.stdout.isatty(), 0
    while True:
        found = status_of(place)
        text = json.dumps(found, sort_keys=True) if json_ else status_text(found)
        if live and lines and sys.__stdout__ is not None:
            print(f"\x1b[{lines}F\x1b[J", end="", file=sys.__stdout__, flush=True)
        print(text, flush=True)
        lines = text.count("\n") + 1
        if not watch or found["state"] != "running":
            return
        time.sleep(1.0 if live else 10.0)


def gc(
    home: HomeArgument,
    delete: Annotated[bool, typer.Option("--delete", help="Take it away; without it, only say what would be.")] = False,
    keep_last: Annotated[
        bool, typer.Option("--keep-last/--keep-all", help="Keep what the last run needs, or every task ever finished here.")
    ] = True,
    json_: JsonOption = False,
) -> None:
    """Take away artifacts, scratch and answers that the last run does not need. Never releases, ledgers or keys."""
    from osmotic.runtime.storage.collecting import collect

    found = collect(home, delete, keep_all=not keep_last)
    if json_:
        print(json.dumps(found, sort_keys=True))
        return
    for one in found:
        print(
            f"{one['party']}: {one['objects']} artifacts, {one['scratch']} scratch folders, {one['answers']} sets of answers, "
            f"{one['tasks']} tasks: {one['bytes'] / 1e6:.1f} MB; {one['kept']} artifacts stay"
        )
    print("taken away" if delete else "nothing was taken away; with --delete it is")


keys = typer.Typer(
    name="keys",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Back up, restore and rotate the keys that find releases; show who signs.",
)


@keys.command()
def backup(
    home: HomeArgument, folder: Annotated[Path, typer.Argument(help="A folder to make; keep it as safe as the records.")],
    party: PartyOption = None, json_: JsonOption = False,
) -> None:  # fmt: skip
    """Copy each party's ledger, keys and what belongs to them, checked. Refused while a run is on."""
    from osmotic.runtime.storage.keeping import backup as make

    _told(make(home, folder, party), json_, "{party}: {charges} charges, {keys} keys, in {folder}")


@keys.command()
def restore(
    home: HomeArgument, folder: Annotated[Path, typer.Argument(help="The folder that 'keys backup' made.")],
    party: PartyOption = None,
    older: Annotated[bool, typer.Option("--older", help="Even where more of the ledger was seen, or nobody can tell.")] = False,
    json_: JsonOption = False,
) -> None:  # fmt: skip
    """Put back keys that were lost, or a whole ledger. A ledger that is there is never replaced by an older one."""
    from osmotic.runtime.storage.keeping import restore as put_back

    _told(put_back(home, folder, party, older), json_, "{party}: restored {restored}")


@keys.command()
def rotate(home: HomeArgument, party: PartyOption = None, json_: JsonOption = False) -> None:
    """Put a fresh key over the others and re-key all look-ups, in one transaction: nothing is lost or spent."""
    from osmotic.runtime.storage.keeping import rotate as change

    _told(change(home, party), json_, "{party}: {keys} keys now, {releases} releases re-keyed; make a backup")


@keys.command()
def identity(place: PlaceArgument, party: PartyOption = None, json_: JsonOption = False) -> None:
    """The public key that each party signs with in secure sums; the others write it under 'identities' in their policies."""
    from osmotic.runtime.secure.identities import identities

    _told(identities(place, party), json_, "{party}: {public}")


def _told(found: list[dict[str, Any]], json_: bool, line: str) -> None:
    print(json.dumps(found, sort_keys=True) if json_ else "\n".join(line.format(**one) for one in found))


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (status, gc):
        app.command()(command)
    app.add_typer(keys)
