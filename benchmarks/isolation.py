# SPDX-License-Identifier: Apache-2.0
"""Did anything of an adapter leave its party? Looks for its numbers in all that the others hold, byte by byte.

    python benchmarks/isolation.py RUN-FOLDER TASK [TASK ...]

For the folder of a finished run and the tasks that trained what must stay at home (the local adapter of FedPIT where only the
other one is shared): `violations` searches every file of every other party (stores, ledgers, journals), and every artifact that
the party itself sent, for rows of numbers of those tasks' tensors: `RUN` float32 in a row, at any offset; and, cut into
pieces that may stand at any offset, what they are turned over (the transpose) or as float64, bfloat16 or float16, rounded to
nearest. Not counted: numbers that the party had been sent before (what training did not change), in any of these forms, and
rows with fewer than three different values. It also compares the digests in the transcripts. What it does not see: numbers
that were changed in another way (averaged with others', compressed, added to something), so a mixture of two adapters passes;
the plan's labels are what speaks of those. Two adapters that were trained for one single step from the same beginning have the
same A, and are told as one. Arms that share the local adapter must not be in the same folder: the others' files would hold it
rightly.
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

RUN = 4  # numbers in a row, and 16 bytes at least: 8 where a number has two
TENSORS = "weights.safetensors"
Found = dict[bytes, tuple[str, str]]  # a row of numbers -> (whose they are, in which form; "" as they are)


def violations(home: Path, tasks: Sequence[str]) -> list[str]:
    """What of the tasks' weights stands outside the party that trained them; empty: nothing.

    tasks: names in the pipeline, with that of the repeat around them or without. Raises ValueError where a task left no weights
    at any party: then nothing would be shown.
    """
    folders = sorted(path.parent for path in (home / "parties").glob("*/run.sqlite"))
    lines, seen = [], set[str]()
    for folder in folders:
        mine = _weights_of(folder, tasks)
        seen |= {name for name, _, _ in mine}
        sent, received = _crossed(folder)
        lines += [f"{folder.name} sent the weights of {identity}" for _, identity, digest in mine if digest in sent]
        wanted = _wanted(folder, mine, received)
        known = np.zeros(1 << 24, dtype=bool)
        known[_hashed(np.frombuffer(b"".join(row[:8] for row in wanted), "<u4"))[::2]] = True
        lost = sorted(digest for digest in sent if not _object(folder, digest).is_dir())
        lines += [f"{folder.name} sent {digest[:12]}, which is in its store no more: it cannot be searched" for digest in lost]
        places = [(folder.name, path) for digest in sorted(sent) for path in _files(_object(folder, digest))]
        places += [(other.name, path) for other in folders if other != folder for path in _files(other)]
        lines += [line for party, path in places for line in _search(wanted, known, party, path, home)]
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
        whole = re.split(r"[\[@]", identity)[0]
        name = next(
            (one for one in (whole, whole.rpartition(".")[2]) if one in tasks), ""
        )  # with its repeat's name, or without
        refs = json.loads(outputs).values() if name else ()
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
            for row, form in (*_pieces(tensor), *((row, "") for row in _rows(tensor))):
                wanted[row] = (f"{identity} {name}", form)
    for digest in received:
        path = _object(folder, digest) / TENSORS
        for tensor in load(path.read_bytes()).values() if path.is_file() else ():
            for row in (*_rows(tensor), *(row for row, _ in _pieces(tensor))):
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


def _pieces(tensor: np.ndarray) -> Iterator[tuple[bytes, str]]:
    """(piece, form) of what else the numbers could be written as; a piece has three values or more."""
    for turned, flat in (("", tensor.reshape(-1)), ("turned over, ", tensor.T.reshape(-1))):
        for name, values in _written(np.ascontiguousarray(flat, dtype="<f4")).items():
            if name == "float32" and (not turned or tensor.ndim < 2):
                continue  # `_rows` has it
            size = max(RUN, 16 // values.itemsize)
            pieces = values[: len(values) // size * size].reshape(-1, size)
            varied = (np.diff(np.sort(pieces, axis=1), axis=1) != 0).sum(axis=1) >= 2
            yield from ((piece.tobytes(), f"{turned}{name}") for piece in pieces[varied])


def _written(flat: np.ndarray) -> dict[str, np.ndarray]:
    """The numbers [n] as other types write them."""
    bits = flat.view("<u4").astype(np.uint64)
    with np.errstate(over="ignore"):
        halves = flat.astype("<f2")
    brain = ((bits + 0x7FFF + (bits >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)).astype("<u2")
    return {"float32": flat, "float64": flat.astype("<f8"), "bfloat16": brain, "float16": halves}


def _hashed(words: np.ndarray) -> np.ndarray:
    """24 bits of every two words in a row, [n - 1]."""
    return (words[:-1] * np.uint32(0x9E3779B1) ^ words[1:] * np.uint32(0x85EBCA6B)) >> np.uint32(8)


def _search(wanted: Found, known: np.ndarray, party: str, path: Path, home: Path) -> list[str]:
    """A line for each tensor, and form of it, of which a file holds numbers."""
    data, counts, sizes = path.read_bytes(), dict[tuple[str, str], int](), sorted({len(row) for row in wanted})
    for offset in range(4):
        words = (
            np.frombuffer(data, "<u4", (len(data) - offset) // 4, offset)
            if len(data) >= offset + 4 * RUN
            else np.empty(0, "<u4")
        )
        for i in np.flatnonzero(known[_hashed(words)]):
            start = offset + 4 * int(i)
            for whose in filter(None, (wanted.get(data[start : start + size]) for size in sizes)):
                counts[whose] = counts.get(whose, 0) + 1
    where = path.relative_to(home)
    return [
        f"{party}: {where} holds {count} " + (f"pieces of {whose}, {form}" if form else f"runs of {RUN} numbers of {whose}")
        for (whose, form), count in sorted(counts.items())
    ]


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
