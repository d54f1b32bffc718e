# SPDX-License-Identifier: Apache-2.0
"""The command line. Exit codes: 0 done, 1 internal, 2 configuration, 3 data, 4 refused (policy, membrane, budget), 5 store,
6 component or model, 7 another party, 130 interrupted.

Nothing is imported here but the standard library's smallest part: `osmotic --version` answers before typer is there, and the
modules of the commands are imported when the application is made.
"""

import io
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import typer

STOPPED = 130
# modules of runtime/commands, in the order of `--help`
GROUPS = ("running", "explaining", "books", "watching", "mechanisms", "catalogue", "making", "export", "sites")
EPILOG = (
    "Exit codes: 0 done, 1 internal error, 2 configuration, 3 data, 4 refused, 5 store, 6 component or model, "
    "7 another party, 130 stopped."
)


def application() -> "typer.Typer":
    """The typer application with the commands of every group."""
    import importlib
    from typing import Annotated

    import typer

    app = typer.Typer(
        name="osmotic",
        help="Knowledge crosses, private data doesn't.\n\nTry: osmotic run fedcot --isolate",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        epilog=EPILOG,
    )

    def show(value: bool) -> None:
        if value:
            _print_version()
            raise typer.Exit

    @app.callback()
    def root(
        version: Annotated[bool, typer.Option("--version", callback=show, is_eager=True, help="Print the version.")] = False,
    ) -> None:
        """Options that stand before the command."""

    for name in GROUPS:
        importlib.import_module(f"osmotic.runtime.commands.{name}").register(app)
    return app


def main() -> None:
    """Entry point: user errors are one message and an exit code, never a stack trace."""
    if sys.argv[1:] == ["--version"]:
        _print_version()
        sys.exit(0)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _protect()
    sys.exit(_guard(lambda: application()(standalone_mode=False)))


def _protect() -> None:
    """What others wrote cannot steer the terminal, and a letter that its encoding lacks stops nothing."""
    from osmotic.schemas.terminal import Harmless

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.stdout.isatty():
        sys.stdout = Harmless(sys.stdout)


def _print_version() -> None:
    from osmotic import __version__

    print(f"osmotic {__version__}")


def _guard(command: Callable[[], Any]) -> int:
    import typer

    from osmotic.schemas.errors import OsmoticError

    usage_error: Any = typer.BadParameter.__base__  # typer's own class: some versions bring their own click
    try:
        result = command()
        if result == STOPPED:  # typer's answer to an interrupt
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except OsmoticError as error:
        print(_shown(error), file=sys.stderr)
        return error.exit_code
    except usage_error as error:
        error.show()
        return 2
    except (KeyboardInterrupt, typer.Abort):
        print("stopped; run the same command again to go on from here", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:
        return 0


def _shown(error: Any) -> str:
    from osmotic.schemas.terminal import harmless

    count = len(error.problems)
    head = f"{count} problems:\n" if count > 1 else ""
    notes = "".join(f"\n    {note}" for note in getattr(error, "__notes__", ()))
    return f"{head}{error}{harmless(notes)}"
