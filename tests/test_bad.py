# SPDX-License-Identifier: Apache-2.0
"""Every bad input of tests/bad: its message and its exit code, no stack trace, soon; and nothing on the disk is lost by it."""

import fnmatch
import functools
import importlib
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry, build_registry
from osmotic.runtime import api, cli

BAD = Path(__file__).parent / "bad"
sys.path.insert(0, str(BAD))
cases = importlib.import_module("cases")
makers = importlib.import_module("makers")
CASES = cases.read_cases()
MADE = ("home", "osmotic-runs", "toy.sites.state", "light.sites.state")  # what a run may make
MANY = 200  # at least so many cases
WORST = 20


class Bench:
    """A copy of the good files, in which one thing is wrong."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.capsys, self.monkeypatch = folder, capsys, monkeypatch
        self.patched: list[tuple[Any, str, Any]] = []
        self.case: Any = None
        self.held: Any = None

    def spoil(self, case: Any) -> None:
        """Put the mistake in."""
        self.case = case
        if case.beside is not None and case.file:
            shutil.copyfile(case.beside, self.folder / case.file)
        for name, (old, new) in case.change.items():
            path = self.folder / name
            text = path.read_text(encoding="utf-8")
            assert text.count(old) >= 1, f"{name} has no {old!r}"
            path.write_text(text.replace(old, new, 1), encoding="utf-8")
        if case.make:
            getattr(makers, case.make)(self)

    def mend(self) -> None:
        """The good files again."""
        while self.patched:
            self.monkeypatch.setattr(*self.patched.pop())
        for path in (BAD / "base").iterdir():
            target = self.folder / path.name
            if target.is_symlink() or target.is_file():
                target.unlink()
            elif target.is_dir():
                shutil.rmtree(target)
            shutil.copyfile(path, target)

    def undo(self, target: Any, name: str, value: Any) -> None:
        """Patch something until `mend`."""
        self.patched.append((target, name, getattr(target, name)))
        self.monkeypatch.setattr(target, name, value)

    def osmotic(self, command: str) -> tuple[int, str]:
        """(exit code, standard error) of a command line; {folder} stands for the folder."""
        arguments = [part.replace("{folder}", str(self.folder)).replace("~", " ") for part in command.split()]
        self.monkeypatch.setattr(sys, "argv", ["osmotic", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        shown = self.capsys.readouterr()
        assert "Traceback" not in shown.out + shown.err
        return int(caught.value.code or 0), shown.err.replace(str(self.folder), "{folder}")

    def hasten(self) -> None:
        """The plugins are looked for once, not for every case: no case but those of plugins has any."""
        registry = _registry()
        self.monkeypatch.setattr(api, "build_registry", lambda *names: registry)

    def found(self) -> dict[str, object]:
        """What lies in the folder, what a run makes left out: path -> its content and when it was written."""
        paths = (p for p in sorted(self.folder.rglob("*")) if p.relative_to(self.folder).parts[0] not in MADE)
        return {str(p.relative_to(self.folder)): _state(p) for p in paths}


@functools.lru_cache(maxsize=1)
def _registry() -> Registry:
    return build_registry(names=())


def _state(path: Path) -> object:
    about = path.lstat()
    return about.st_mode, about.st_mtime_ns if path.is_file() else 0, about.st_size if path.is_file() else 0


def said(message: str, lines: str) -> str:
    """The first expected line that the message does not have after those before; nothing when all are there."""
    found = iter(message.splitlines())
    for line in filter(str.strip, lines.splitlines()):
        exact = "".join(f"[{letter}]" if letter in "[?*" else letter for letter in line.strip())
        pattern = f"*{exact.replace('{any}', '*')}*"
        if not any(fnmatch.fnmatchcase(one, pattern) for one in found):
            return line
    return ""


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OSMOTIC_PLUGINS", "")
    modules = set(sys.modules)
    made = Bench(tmp_path, capsys, monkeypatch)
    made.mend()
    yield made
    if made.held is not None:
        made.held.close()
    for name in set(sys.modules) - modules:
        if name.startswith("bad_"):
            del sys.modules[name]


def test_the_good_files_are_good(bench: Bench) -> None:
    before = bench.found()
    assert bench.osmotic("plan toy.yaml") == (0, "")
    assert bench.osmotic("run light.yaml --quiet --home home") == (0, "")
    assert bench.found() == before


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_bad_input(bench: Bench, case: Any) -> None:
    if not case.make or case.make not in ("install", "unknown_plugin"):
        bench.hasten()
    bench.spoil(case)
    before, begun = bench.found(), time.process_time()
    code, message = bench.osmotic(case.command)
    took = time.process_time() - begun
    missing = said(message, case.says)
    assert not missing, f"not said: {missing}\n--- what was said:\n{message}"
    assert code == case.exit, message
    limit = case.seconds * (3 if case.command.startswith("run ") else 1)  # a run makes stores and ledgers first
    assert took < limit, f"{took:.1f} s"
    assert all(len(line) < 600 for line in message.splitlines()), message
    assert bench.found() == before
    again = case.command if case.again == "" and case.command.startswith("run ") else case.again
    if again:
        bench.mend()
        assert bench.osmotic(again) == (0, "")


def test_there_are_many_and_each_is_another_mistake() -> None:
    assert len(CASES) >= MANY
    mistakes = [case.mistake for case in CASES]
    assert sorted(set(mistakes)) == sorted(mistakes)
    assert all(case.says.strip() for case in CASES)
    assert sorted(case.worst for case in CASES if case.worst) == list(range(1, WORST + 1))


def test_every_file_belongs_to_a_case() -> None:
    known = {case.beside for case in CASES}
    groups = [p for p in BAD.iterdir() if p.is_dir() and p.name not in ("base", "__pycache__")]
    assert [p for g in groups for p in g.iterdir() if p.suffix != ".expect" and p not in known] == []


def test_the_page_is_up_to_date() -> None:
    assert not cases.is_stale(), "run: python tests/bad/cases.py"
