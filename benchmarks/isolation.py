# SPDX-License-Identifier: Apache-2.0
"""Did anything of an adapter leave its party? Looks for its numbers in all that the others hold, byte by byte.

    python benchmarks/isolation.py RUN-FOLDER TASK [TASK ...]

For the folder of a finished run and the tasks that trained what must stay at home (the local adapter of FedPIT where only the
other one is shared): `violations` searches every file of every other party (stores, ledgers, journals), and every artifact that
the party itself sent, for `RUN` float32 numbers in a row of those tasks' tensors, at any offset. Not counted: numbers that the
party had been sent before (what training did not change), and rows with fewer than three different values. It also compares
the digests in the transcripts. What it does not see: numbers that were changed (averaged, rounded to another type, compressed),
so a mixture of two adapters passes; the plan's labels are what speaks of those. Two adapters that were trained for one single
step from the same beginning have the same A, and are told as one. Arms that share the local adapter must not be
in the same folder: the others' files would hold it rightly.
"""

import argparse
import json
import re
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load

RUN = 4  # float32 numbers in a row: 16 bytes
TENSORS = "weights.safetensors"
Found = dict[bytes, str]  # numbers in a row -> whose they are


def violations(home: Path, tasks: Sequence[str]) -> list[str]:
    """What of the tasks' weights stands outside the party that trained them; empty: nothing.

    tasks: names in the pipeline. Raises ValueError where a task left no weights at any party: then nothing would be shown.
    """
    folders = sorted(path.parent for path in (home / "parties").glob("*/run.sqlite"))
    lines, seen = [], set[str]()
    for folder in folders:
        mine = _weights_of(folder, tasks)
        seen |= {name for name, _, _ in mine}
        sent, received = _crossed(folder)
        lines += [f"{folder.name} sent the weights of {identity}" for _, identity, digest in mine if digest in sent]
        wanted = _wanted(folder, mine, received)
        places = [(folder.name, path) for digest in sorted(sent) for path in _files(_object(folder, digest))]
        places += [(other.name, path) for other in folders if other != folder for path in _files(other)]
        lines += [line for party, path in places for line in _search(wanted, party, path, home)]
    missing = sorted(set(tasks) - seen)
    if missing or not tasks:
        raise ValueError(f"no weights of {', '.join(missing) or 'any task'} in {home}")
    return lines


def _query(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{folder / 'run.sqlite'}?mode=ro", uri=True)) as base:
        return base.execute(sql).fetchall()


def _weights_of(folder: Path, tasks: Sequence[str]) -> list[tuple[str, str, str]]:
    """(task, instance, digest) of the weights that these tasks gave at a party."""
    found = []
    for identity, outputs in _query(folder, "SELECT i.id, t.outputs FROM instances i JOIN tasks t ON t.key = i.key"):
        name = re.split(r"[\[@]", identity)[0]
        refs = json.loads(outputs).values() if name in tasks else ()
        found += [(name, identity, ref["digest"]) for ref in refs if (_object(folder, ref["digest"]) / TENSORS).is_file()]
    return found


def _crossed(folder: Path) -> tuple[set[str], set[str]]:
    """Digests of what a party sent, and of what it was sent."""
    bodies = [json.loads(body) for (body,) in _query(folder, "SELECT body FROM crossings")]
    ways = ({body["digest"] for body in bodies if body.get("direction") == way} for way in ("out", "in"))
    sent, received = ways
    return sent, received


def _object(folder: Path, digest: str) -> Path:
    return folder / "store" / "objects" / digest[:2] / digest


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _wanted(folder: Path, mine: Sequence[tuple[str, str, str]], received: set[str]) -> Found:
    """The rows of numbers to look for."""
    wanted: Found = {}
    for _, identity, digest in mine:
        for name, tensor in load((_object(folder, digest) / TENSORS).read_bytes()).items():
            wanted.update(dict.fromkeys(_rows(tensor), f"{identity} {name}"))
    for digest in received:
        path = _object(folder, digest) / TENSORS
        for tensor in load(path.read_bytes()).values() if path.is_file() else ():
            for row in _rows(tensor):
                wanted.pop(row, None)
    return wanted


def _rows(tensor: np.ndarray) -> Iterator[bytes]:
    """Every `RUN` numbers in a row that have three values or more."""
    flat = np.ascontiguousarray(tensor, dtype="<f4").reshape(-1)
    if len(flat) < RUN:
        return
    windows = np.lib.stride_tricks.sliding_window_view(flat, RUN)
    ordered = np.sort(windows, axis=1)
    for i in np.flatnonzero((np.diff(ordered, axis=1) != 0).sum(axis=1) >= 2):
        yield windows[i].tobytes()


def _search(wanted: Found, party: str, path: Path, home: Path) -> list[str]:
    """A line for each tensor of which a file holds numbers."""
    data, counts = path.read_bytes(), dict[str, int]()
    heads = np.unique(np.array([int.from_bytes(row[:8], "little") for row in wanted], dtype=np.uint64))
    for offset in range(4):
        words = (
            np.frombuffer(data, "<u4", (len(data) - offset) // 4, offset)
            if len(data) >= offset + 4 * RUN
            else np.empty(0, "<u4")
        )
        pairs = words[:-1].astype(np.uint64) | (words[1:].astype(np.uint64) << np.uint64(32))
        for i in np.flatnonzero(np.isin(pairs, heads)):
            whose = wanted.get(data[offset + 4 * i : offset + 4 * (i + RUN)])
            if whose is not None:
                counts[whose] = counts.get(whose, 0) + 1
    where = path.relative_to(home)
    return [f"{party}: {where} holds {count} runs of {RUN} numbers of {whose}" for whose, count in sorted(counts.items())]


def main() -> int:
    """Print what left; 1 where something did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path, help="the folder of a finished run")
    parser.add_argument("tasks", nargs="+", help="whose weights must not leave")
    given = parser.parse_args()
    lines = violations(given.home, given.tasks)
    print("\n".join(lines) or "nothing of these weights stands outside the party that trained them")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
