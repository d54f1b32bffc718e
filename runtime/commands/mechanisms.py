# SPDX-License-Identifier: Apache-2.0
"""Certify and try mechanisms; read other suites' prompts."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from osmotic.runtime.commands.options import JsonOption, KeyOption, ModelOption, TableOption


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
    from osmotic.runtime.tools.certifying import certify_command, found_json, found_text
    from osmotic.schemas.errors import Problem, RefusedError

    found = certify_command(build_registry(), mechanism, epsilon, tuple(set_ or ()), table, sampled, draws, prior, model)
    print(found_json(found) if json_ else found_text(found))
    failed = [f for f in found if f.failed]
    if failed:
        raise RefusedError(*[Problem(f"{f.name} at epsilon {f.epsilon:g} does not hold", why=f.failed) for f in failed])


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
    from osmotic.runtime.tools.sanitizing import prepare, read_input, sanitize_command

    given = read_input(file, sys.stdin.buffer) if file else None  # a file that cannot be read is told before a long certificate
    ready = prepare(build_registry(), mechanism, epsilon, tuple(set_ or ()), table, model)
    sanitize_command(ready, read_input(None, sys.stdin.buffer) if given is None else given, json_)


def prompts(
    file: Annotated[Path, typer.Argument(help="A data set file of FATE-LLM (YAML, ten keys).")],
    strict: Annotated[bool, typer.Option("--strict", help="Refuse what FATE-LLM's own parser cannot read back.")] = False,
    json_: JsonOption = False,
) -> None:
    """Convert the prompts of a FATE-LLM data set file, or say where they cannot work (exit code 2). No model is loaded."""
    from osmotic.plugins.labelled.fate_llm import read_fate_llm
    from osmotic.runtime.tools.prompts import prompts_json, prompts_text

    found = read_fate_llm(file, strict)
    for note in () if json_ else found.notes:
        print(f"note: {note}", file=sys.stderr)
    print(prompts_json(found) if json_ else prompts_text(found))


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (certify, sanitize, prompts):
        app.command()(command)
