# SPDX-License-Identifier: Apache-2.0
"""Reads the bad inputs that lie beside it, and writes docs/bad-input.md from them.

A case is ``GROUP/NAME.expect`` (YAML):

  mistake   what is wrong, in words
  command   arguments of `osmotic` (default: plan toy.yaml)
  file      under which name the bad file beside it (``GROUP/NAME.*``) goes into a copy of ``base/``
  change    {file of base: [text, what it becomes]} where the mistake is smaller than a file
  make      a function of makers.py, for what cannot be stored
  exit      the exit code
  says      lines of the message, in order, each somewhere; ``{any}`` stands for anything
  again     the same command with the mistake mended, when it is not `command`; null: not tried
  worst     its place in the table of docs/bad-input.md

Run as a program, it writes that page; with --check it exits 1 when the page is stale.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "bad-input.md"
KEYS = {"mistake", "command", "file", "change", "make", "exit", "says", "again", "worst", "seconds"}


@dataclass(frozen=True)
class Case:
    """One bad input and what is to be said about it."""

    name: str
    mistake: str
    exit: int
    says: str
    command: str = "plan toy.yaml"
    file: str = ""
    change: dict[str, list[str]] = field(default_factory=dict)
    make: str = ""
    again: str | None = ""
    worst: int = 0
    seconds: float = 2.0

    @property
    def beside(self) -> Path | None:
        """The bad file, where there is one."""
        place = HERE / self.name
        found = [p for p in place.parent.iterdir() if p.name.startswith(f"{place.name}.") and p.suffix != ".expect"]
        return found[0] if found else None


def read_cases() -> list[Case]:
    """All cases, by group and name. Raises ValueError for a key that means nothing."""
    cases = []
    for path in sorted(HERE.glob("*/*.expect")):
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
        if unknown := set(value) - KEYS:
            raise ValueError(f"{path}: unknown {sorted(unknown)}")
        cases.append(Case(f"{path.parent.name}/{path.stem}", **value))
    return cases


def markdown() -> str:
    """The page: how many there are, and the worst of them with their messages."""
    cases = read_cases()
    groups = sorted({case.name.partition("/")[0] for case in cases})
    counts = ", ".join(f"{sum(c.name.startswith(f'{g}/') for c in cases)} {g}" for g in groups)
    lines = [
        "# Bad input",
        "",
        "Whatever is wrong with a file, osmotic says what, where and how to mend it: one message with a place, an exit code,",
        "and no stack trace. Nothing on the disk is changed by it, and the mended command goes on from there.",
        "",
        f"`tests/bad/` has {len(cases)} mistakes, each with the message that it must get ({counts}).",
        "These are the 20 worst. `...` stands for a part that depends on the machine.",
        "",
    ]
    worst = sorted((c for c in cases if c.worst), key=lambda c: c.worst)
    lines += ["| | mistake | exit code | what is said first |", "|---|---|---|---|"]
    for case in worst:
        first = next(line for line in case.says.splitlines() if not line.endswith(" problems:"))
        shown = _shown(first).replace("|", "\\|")
        lines.append(f"| {case.worst} | {case.mistake} | {case.exit} | `{shown}` |")
    lines += ["", "Each message as a whole:", ""]
    for case in worst:
        message = _shown(case.says.strip())
        lines += [f"## {case.worst}. {case.mistake}", "", f"`osmotic {case.command}` exits with {case.exit}:", ""]
        lines += ["```text", message, "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def _shown(text: str) -> str:
    return text.replace("{any}", "...").replace("{folder}", "...")


def is_stale() -> bool:
    """Whether docs/bad-input.md is not what the cases give."""
    return not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != markdown()


def main() -> int:
    """Write the page, or with --check say whether it is stale."""
    if "--check" in sys.argv[1:]:
        stale = is_stale()
        print(f"stale: docs/{PAGE.name}; mend: make generate" if stale else f"docs/{PAGE.name} is up to date")
        return int(stale)
    PAGE.write_text(markdown(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
