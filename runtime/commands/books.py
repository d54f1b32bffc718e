# SPDX-License-Identifier: Apache-2.0
"""What was spent, and whether the books agree."""

import json
from pathlib import Path
from typing import Annotated

import typer

from osmotic.runtime.commands.options import JsonOption


def ledger(home: Annotated[Path, typer.Argument(help="Folder of a run.")], json_: JsonOption = False) -> None:
    """What each party of a run folder has spent: per data set, per document, by which mechanisms."""
    from osmotic.runtime.results.verifying import ledgers_of
    from osmotic.runtime.screen.tables import ledger_text

    found = ledgers_of(home)
    print(json.dumps(found, sort_keys=True) if json_ else ledger_text(found))


def verify(home: Annotated[Path, typer.Argument(help="Folder of a run.")], json_: JsonOption = False) -> None:
    """Check ledgers and transcripts: chains unbroken, charges equal releases, both ends of every crossing agree."""
    from osmotic.runtime.results.verifying import verify as check
    from osmotic.schemas.errors import Problem, StoreError

    found = check(home)
    if json_:
        print(json.dumps(found, sort_keys=True))
    else:
        for party in found["parties"]:
            print(f"{party['party']}: {party['charges']} charges, {party['crossings']} crossings, heads {party['heads']}")
        print("".join(f"note: {note}\n" for note in found["notes"]), end="")
    if found["problems"]:
        raise StoreError(*[Problem(p) for p in found["problems"]])
    if not json_:
        here = " that both lie here" if found["notes"] else ""
        print(f"all chains hold, every charge has its release, both ends of every crossing{here} agree")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (ledger, verify):
        app.command()(command)
