# SPDX-License-Identifier: Apache-2.0
"""The command line. Exit codes: 0 done, 1 internal, 2 configuration, 3 data, 4 refused (policy, membrane, budget), 5 store,
6 component or model, 7 another party, 130 interrupted.
"""

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from osmotic.runtime.commands import books, catalogue, mechanisms, running

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


for group in (running, books, mechanisms, catalogue):
    group.register(app)


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
