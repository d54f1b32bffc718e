# SPDX-License-Identifier: Apache-2.0
"""docs/plugins.md: its walk-through is run as written, in a fresh environment; its reference names all hooks and checks."""

import inspect
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from osmotic import testing
from osmotic.plugins import hookspecs

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "plugins.md"
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)

if not FILE.is_file():
    pytest.skip("the source tree is not here", allow_module_level=True)

TEXT = FILE.read_text(encoding="utf-8")


def test_every_hook_has_a_section() -> None:
    hooks = {name for name, _ in inspect.getmembers(hookspecs, inspect.isfunction) if name.startswith("register_")}
    assert hooks == set(re.findall(r"^### `(register_\w+)`$", TEXT, re.MULTILINE)) and len(hooks) >= 4


def test_every_check_and_every_fake_of_the_kit_is_named() -> None:
    public = {name for name in testing.__all__ if name.startswith(("check_", "Fake", "run_"))} - {"FakeJournal"}
    assert sorted(name for name in public if f"`{name}" not in TEXT and f"testing.{name}" not in TEXT) == []


def test_the_version_of_the_contract_is_the_one_in_the_text() -> None:
    assert f"`{hookspecs.API_NAME} = {hookspecs.API_VERSION}`" in TEXT


def test_every_link_leads_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert targets and [target for target in targets if not (FILE.parent / target).exists()] == []


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A fresh virtual environment over the packages of this one, with its own commands; nothing is downloaded."""
    folder = tmp_path_factory.mktemp("fresh") / "env"
    venv.create(folder, with_pip=False, symlinks=True)
    mine = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    parent = sysconfig.get_path("purelib")
    (mine / "parent.pth").write_text(f"import site; site.addsitedir({parent!r})\n", encoding="utf-8")
    python, commands = folder / "bin" / "python", {"pip": "-m pip", "pytest": "-m pytest -p no:cacheprovider"}
    commands["osmotic"] = "-c 'import sys; from osmotic.runtime.cli import main; sys.exit(main())'"
    for name, how in commands.items():
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {python} {how} "$@"\n', encoding="utf-8")
        (folder / "bin" / name).chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OSMOTIC_", "PYTEST_", "PYTHONPATH"))}
    quiet = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "OMP_NUM_THREADS": "1"}
    return {**kept, **quiet, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "COLUMNS": "80"}


def commands_of(block: str) -> list[tuple[str, list[str]]]:
    """(command, lines that are shown below it) of a console block."""
    found: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def pattern(shown: list[str]) -> str:
    """What is shown, as a regular expression: ``...`` alone on a line stands for any lines, inside one for any text of it.

    Columns may stand farther apart: the longest names in a table are those of whatever else is installed.
    """
    parts = []
    for line in shown:
        if line == "...":
            parts.append(r"(?:.*\n)*?")
        else:
            texts = (re.sub(r"(?<=\S) {2,}(?=\S)", "\0", part) for part in line.rstrip().split("..."))
            parts.append(".*".join(re.escape(text).replace("\0", " {2,}") for text in texts) + r"[ ]*\n")
    return "".join(parts)


def test_patterns_tell_texts_apart() -> None:
    assert re.fullmatch(pattern(["a", "...", "b ... c"]), "a\nx\ny\nb 1 c\n")
    assert re.fullmatch(pattern(["a", "...", "b"]), "a\nb\n") and not re.fullmatch(pattern(["a", "b"]), "a\nx\nb\n")
    assert re.fullmatch(pattern(["a  b...c  1"]), "a    b  c     1\n") and not re.fullmatch(pattern(["a  b"]), "a b\n")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_walk_through_does_what_it_says(environment: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("setuptools", reason="pip install -e needs it")
    folder, ran = tmp_path, 0
    begin, end = TEXT.index("## In five minutes"), TEXT.index("## The hooks")
    for kind, name, block in BLOCK.findall(TEXT[begin:end]):
        if kind == "python":
            (folder / name).write_text(block, encoding="utf-8")
            continue
        assert kind == "console"
        for command, shown in commands_of(block):
            script = f"{{ {command}\n}} 2>&1; pwd > {tmp_path / 'where'}"
            done = subprocess.run(
                ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=200
            )
            said = re.sub(r"\r", "\n", done.stdout)
            assert "Traceback" not in said, said
            lines = [line for line in said.splitlines() if not re.match(r"^ +\d+\.\ds ", line)]  # progress
            assert re.fullmatch(pattern(shown), "".join(line + "\n" for line in lines)), f"$ {command}\n{said}"
            folder, ran = Path((tmp_path / "where").read_text(encoding="utf-8").strip()), ran + 1
    assert ran == 11 and folder.name == "osmotic-tide" and sys.version_info >= (3, 11)
