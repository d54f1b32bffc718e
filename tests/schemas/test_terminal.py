# SPDX-License-Identifier: Apache-2.0
"""What others wrote cannot steer a terminal: not through errors, not through progress, not through what a command shows."""

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from osmotic.runtime.screen.console import Console
from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.terminal import Harmless, harmless

EVIL = "a\x1b[2J\x1b]0;owned\x07b\u202ec\u2066d\x9b1me\rf"
SHOWN = "a\\x1b[2J\\x1b]0;owned\\x07b\\u202ec\\u2066d\\x9b1me\\x0df"


def test_codes_are_written_out_and_other_letters_stay() -> None:
    assert harmless(EVIL) == SHOWN
    plain = "tab\tline\nžluť 漢字 ‌می‌خواهم 👩‍👩‍👧 ½ \u00a0"
    assert harmless(plain) == plain
    assert harmless("\ud800").encode() == b"\\ud800"


@pytest.mark.parametrize("key", ["what", "where", "path", "why", "fix"])
def test_problems_show_no_codes_and_forge_no_lines(key: str) -> None:
    shown = str(ConfigError(Problem(**{"what": "wrong", key: f"{EVIL}\nnorth: all is well"})))
    assert SHOWN in shown and "\x1b" not in shown
    assert "    north: all is well" in shown and not any(line.startswith("north") for line in shown.splitlines())


def test_progress_of_another_party_is_one_harmless_line() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    Console(stream).progress("north", "train", 1, 2, f"rows {EVIL}\n\x1b[A")
    assert "\n" not in stream.getvalue()
    assert [part[:1] for part in stream.getvalue().split("\x1b[")[1:]] == ["K"]  # its own: clear the line


def test_a_stream_keeps_what_else_it_can() -> None:
    inner = io.StringIO()
    stream = Harmless(inner)
    print(EVIL, file=stream)  # type: ignore[call-overload]
    stream.flush()
    assert inner.getvalue() == f"{SHOWN}\n" and stream.getvalue() == inner.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_on_a_terminal_a_command_shows_no_codes_and_elsewhere_the_letters_themselves(tmp_path: Path, terminal: bool) -> None:
    text = f"from osmotic.runtime import cli\ncli.application = lambda: lambda standalone_mode: print({EVIL!r})\ncli.main()"
    ours, theirs = pty.openpty() if terminal else os.pipe()
    try:
        subprocess.run([sys.executable, "-c", text], stdout=theirs, check=True, timeout=60)
        said = os.read(ours, 4096)
    finally:
        os.close(ours)
        os.close(theirs)
    assert said.decode().strip() == (SHOWN if terminal else EVIL)


def test_a_letter_that_the_encoding_lacks_stops_nothing() -> None:
    shown = "print('caf\\xe9 \\udcff')"
    text = f"from osmotic.runtime import cli\ncli.application = lambda: lambda standalone_mode: {shown}\ncli.main()"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, check=True, timeout=60, env=environment)
    assert done.stdout == b"caf\\xe9 \\udcff\n"
