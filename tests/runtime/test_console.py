# SPDX-License-Identifier: Apache-2.0
"""Progress: plain lines into a file, one live line at a terminal."""

import io

import pytest

from osmotic.runtime.plan.graph import Instance
from osmotic.runtime.screen import console
from osmotic.runtime.screen.console import Console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def instance(party: str) -> Instance:
    return Instance(f"train@{party}", "train", party, (), None, None, {})


def test_plain_lines_count_and_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    watcher = Console(stream)
    watcher.started(3)
    for step in range(200):
        clock[0] += 0.1
        watcher.progress("north", "train@north", step + 1, 200, "steps")
    watcher.task(instance("north"), False, 20.0)
    watcher.task(instance("south"), True, 0.0)
    watcher.task(instance("hub"), True, 0.0)
    lines = [line[8:] for line in stream.getvalue().splitlines()]
    assert lines[0] == "3 tasks" and lines[1] == "    train@north 1/200 steps"
    assert len([line for line in lines if "/200" in line]) == 2
    assert lines[-2:] == ["[1/3] train@north 20.0 s", "[3/3] done, 2 found finished"]
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_has_one_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    stream = Terminal()
    watcher = Console(stream)
    watcher.started(2)
    watcher.progress("north", "train@north", 1, 9, "steps and a long note")
    shown = stream.getvalue().rpartition("\x1b[K")[2]
    assert shown == "train@north 1/9 steps and a l"
    watcher.task(instance("north"), False, 1.0)
    assert stream.getvalue().endswith("[1/2] train@north 1.0 s\n\r\x1b[K")
