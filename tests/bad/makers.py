# SPDX-License-Identifier: Apache-2.0
"""Bad inputs that cannot be stored as files: too large, not text, links, devices, damaged or newer databases.

Each maker gets the bench of tests/test_bad.py: a folder of good files, a way to patch, and a way to run osmotic.
"""

import contextlib
import errno
import fcntl
import gzip
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

from osmotic.plugins import host
from osmotic.runtime.storage import store

RECORD = b'{"id": "a", "colour": "red", "size": "s"}\n'


# ---- pipelines ----


def latin_1(bench: Any) -> None:
    _change(bench, "toy.yaml", b"what is", "caf\u00e9 is".encode("latin-1"))


def utf_16(bench: Any) -> None:
    path = bench.folder / "toy.yaml"
    path.write_bytes(path.read_text(encoding="utf-8").encode("utf-16"))


def fifty_megabytes(bench: Any) -> None:
    _grow(bench.folder / "toy.yaml", b"# a comment that never ends\n", 50 << 20)


def two_hundred_megabytes(bench: Any) -> None:
    with (bench.folder / "toy.yaml").open("wb") as file:
        file.truncate(200 << 20)


def nested_brackets(bench: Any) -> None:
    (bench.folder / "toy.yaml").write_text("osmotic: " + "[" * 100_000, encoding="utf-8")


def nested_blocks(bench: Any) -> None:
    (bench.folder / "toy.yaml").write_text("".join(" " * i + "a:\n" for i in range(500)), encoding="utf-8")


def nested_questions(bench: Any) -> None:
    (bench.folder / "toy.yaml").write_text("? " * 5_000 + "x\n", encoding="utf-8")


def nul_in_pipeline(bench: Any) -> None:
    _change(bench, "toy.yaml", b"name: toy", b"name: t\0y")


def long_number(bench: Any) -> None:
    _change(bench, "toy.yaml", b"times: 3", b"times: " + b"3" * 5_000)


def picture(bench: Any) -> None:
    (bench.folder / "picture.yaml").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4)


def list_of_settings(bench: Any) -> None:
    (bench.folder / "list.yaml").write_text("- tasks.safe.config.fields=[colour]\n", encoding="utf-8")


def latin_letter(bench: Any) -> None:
    (bench.folder / "letter.txt").write_bytes("dear caf\u00e9\n".encode("latin-1"))


def unknown_plugin(bench: Any) -> None:
    bench.monkeypatch.setattr(host, "entry_points", lambda group: ())  # whatever is installed here
    bench.monkeypatch.setenv("OSMOTIC_PLUGINS", "garden")


def no_sites(bench: Any) -> None:
    (bench.folder / "toy.sites.yaml").unlink()


# ---- data ----


def deep_json(bench: Any) -> None:
    _data(bench, RECORD + b'{"id": ' + b"[" * 100_000 + b"\n")


def nul_in_data(bench: Any) -> None:
    _data(bench, RECORD + b'{"id": "b", "colour": "bl\0ue", "size": "m"}\n')


def utf_16_data(bench: Any) -> None:
    _data(bench, RECORD.decode().encode("utf-16"))


def latin_1_data(bench: Any) -> None:
    _data(bench, RECORD + '{"id": "b", "colour": "bl\u00e9u", "size": "m"}\n'.encode("latin-1"))


def bom_inside(bench: Any) -> None:
    _data(bench, RECORD + b"\xef\xbb\xbf" + RECORD.replace(b'"a"', b'"b"'))


def long_line(bench: Any) -> None:
    _data(bench, RECORD + b'{"id": "b", "colour": "' + b"x" * (10 << 20) + b"\n")


def endless_line(bench: Any) -> None:
    _data(bench, b"")
    _grow(bench.folder / "numbers.jsonl", b"no line break in here ", 64 << 20)


def torn(bench: Any) -> None:
    _data(bench, RECORD + '{"id": "b", "colour": "\u00e9'.encode()[:-1])


def gzip_data(bench: Any) -> None:
    _data(bench, gzip.compress(RECORD * 50, mtime=0))


def empty_data(bench: Any) -> None:
    _data(bench, b"")


def missing_data(bench: Any) -> None:
    (bench.folder / "numbers.jsonl").rename(bench.folder / "number.jsonl")


def folder_data(bench: Any) -> None:
    (bench.folder / "numbers.jsonl").unlink()
    (bench.folder / "numbers.jsonl").mkdir()


def link_outside(bench: Any) -> None:
    outside = _outside(bench)
    (bench.folder / "numbers.jsonl").rename(outside / "secret.jsonl")
    (bench.folder / "numbers.jsonl").symlink_to(outside / "secret.jsonl")


def link_folder_outside(bench: Any) -> None:
    outside = _outside(bench)
    (bench.folder / "numbers.jsonl").rename(outside / "numbers.jsonl")
    (bench.folder / "folder").symlink_to(outside)
    _change(bench, "light.sites.yaml", b"path: numbers.jsonl", b"path: folder/numbers.jsonl")


def link_broken(bench: Any) -> None:
    (bench.folder / "numbers.jsonl").unlink()
    (bench.folder / "numbers.jsonl").symlink_to("gone.jsonl")


def link_loop(bench: Any) -> None:
    (bench.folder / "numbers.jsonl").unlink()
    (bench.folder / "numbers.jsonl").symlink_to("numbers.jsonl")


def device(bench: Any) -> None:
    _change(bench, "light.sites.yaml", b"path: numbers.jsonl", b"path: /dev/zero")


def pipe(bench: Any) -> None:
    (bench.folder / "numbers.jsonl").unlink()
    os.mkfifo(bench.folder / "numbers.jsonl")


def unreadable(bench: Any) -> None:
    """Refused by the system: tests may run as root, who may read all."""
    whole = Path.open

    def refuse(path: Path, *arguments: Any, **more: Any) -> Any:
        if path.name == "numbers.jsonl":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path, *arguments, **more)

    bench.undo(Path, "open", refuse)


def many_digits(bench: Any) -> None:
    _data(bench, RECORD + b'{"id": "b", "colour": 1' + b"0" * 9_999 + b', "size": "m"}\n')


def escape_in_key(bench: Any) -> None:
    _data(bench, b'{"id": "a", "colour\\u001b[2J": "red", "size": "s"}\n')


def pipe_of_settings(bench: Any) -> None:
    os.mkfifo(bench.folder / "settings.yaml")


def spreadsheet(bench: Any) -> None:
    (bench.folder / "numbers.xlsx").write_bytes(b"PK\x03\x04")
    _change(bench, "light.sites.yaml", b"numbers.jsonl", b"numbers.xlsx")


def many_mistakes(bench: Any) -> None:
    _data(bench, b"".join(b'{"id": "%d", "colour": "pink", "size": "xl"}\n' % i for i in range(1_000)))


def nul_in_csv(bench: Any) -> None:
    (bench.folder / "numbers.csv").write_bytes(b"id,colour,size\na,r\0d,s\n")


def wide_cell(bench: Any) -> None:
    (bench.folder / "numbers.csv").write_bytes(b"id,colour,size\na," + b"x" * (10 << 20) + b",s\n")


def other_parquet(bench: Any) -> None:
    _parquet(bench, {"key": ["a", "b"], "hue": ["red", "blue"]})


def typed_parquet(bench: Any) -> None:
    _parquet(bench, {"id": ["a", "b"], "colour": [1, 2], "size": ["s", "m"]})


def torn_parquet(bench: Any) -> None:
    path = _parquet(bench, {"id": ["a"], "colour": ["red"], "size": ["s"]})
    path.write_bytes(path.read_bytes()[:-20])


def torn_arrow(bench: Any) -> None:
    path = _arrow(bench, {"id": ["a"], "colour": ["red"], "size": ["s"]})
    path.write_bytes(path.read_bytes()[:200])


def nan_arrow(bench: Any) -> None:
    _arrow(bench, {"id": ["a"], "colour": ["red"], "size": ["s"], "price": [float("nan")]})


# ---- how they are made ----


def _change(bench: Any, name: str, old: bytes, new: bytes) -> None:
    path = bench.folder / name
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def _data(bench: Any, content: bytes) -> None:
    (bench.folder / "numbers.jsonl").write_bytes(content)


def _grow(path: Path, line: bytes, size: int) -> None:
    block = line * (1 + (1 << 20) // len(line))
    with path.open("ab") as file:
        while file.tell() < size:
            file.write(block)


def _outside(bench: Any) -> Path:
    """A folder that is not below the one of the site file."""
    folder: Path = bench.folder.parent / f"{bench.folder.name}-elsewhere"
    folder.mkdir()
    return folder


def _parquet(bench: Any, columns: dict[str, list[Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path: Path = bench.folder / "numbers.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def _arrow(bench: Any, columns: dict[str, list[Any]]) -> Path:
    import pyarrow as pa

    path: Path = bench.folder / "numbers.arrow"
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return path


# ---- tables and plugins ----


def short_table(bench: Any) -> None:
    _table(bench, [[1.0, 0.0], [0.0, 1.0]], ["a", "b", "c"])


def nan_table(bench: Any) -> None:
    _table(bench, [[1.0, 0.0], [0.0, float("nan")]], ["a", "b"])


def install(bench: Any) -> None:
    """The case's .plugin file as an installed plugin called garden."""
    name = f"bad_{bench.case.name.rpartition('/')[2].replace('-', '_')}"
    place: Path = bench.folder.parent / f"{bench.folder.name}-plugins"
    info = place / "garden-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: garden\nVersion: 1\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[osmotic]\ngarden = {name}\n", encoding="utf-8")
    (place / f"{name}.py").write_text(bench.case.beside.read_text(encoding="utf-8"), encoding="utf-8")
    bench.monkeypatch.syspath_prepend(str(place))
    bench.monkeypatch.setenv("OSMOTIC_PLUGINS", "garden")
    bench.monkeypatch.setattr(sys, "dont_write_bytecode", True)


# ---- stores ----

NORTH = "parties/north"


def newer_run(bench: Any) -> None:
    _sql(_ran(bench) / NORTH / "run.sqlite", "UPDATE meta SET value='99' WHERE name='version'")


def newer_ledger(bench: Any) -> None:
    _sql(_ledger(bench), "UPDATE meta SET value='99' WHERE name='version'")


def word_version(bench: Any) -> None:
    _sql(_ledger(bench), "UPDATE meta SET value='old' WHERE name='version'")


def read_only(bench: Any) -> None:
    """Refused by the system: tests may run as root, who may write everywhere."""
    whole = Path.mkdir

    def refuse(path: Path, *arguments: Any, **more: Any) -> None:
        if "home" in path.parts:
            raise PermissionError(errno.EROFS, "Read-only file system", str(path))
        whole(path, *arguments, **more)

    bench.undo(Path, "mkdir", refuse)


def full_disk(bench: Any) -> None:
    """No artifact can be written."""

    def refuse(path: str, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    bench.undo(store, "_write", refuse)


def damaged_run(bench: Any) -> None:
    _overwrite(_ran(bench) / NORTH / "run.sqlite")


def damaged_ledger(bench: Any) -> None:
    _overwrite(_ledger(bench))


def text_ledger(bench: Any) -> None:
    _ledger(bench).write_text("this was a ledger once\n" * 400, encoding="utf-8")


def no_key(bench: Any) -> None:
    (_ledger(bench).parent / "key").unlink()


def short_key(bench: Any) -> None:
    (_ledger(bench).parent / "key").write_bytes(b"short")


def no_ledger(bench: Any) -> None:
    _ledger(bench).unlink()


def folder_ledger(bench: Any) -> None:
    ledger = _ledger(bench)
    ledger.unlink()
    ledger.mkdir()


def locked_home(bench: Any) -> None:
    (bench.folder / "home").mkdir()
    bench.held = (bench.folder / "home" / "run.lock").open("w")
    fcntl.flock(bench.held, fcntl.LOCK_EX)


def damaged_summary(bench: Any) -> None:
    (_ran(bench) / "run.json").write_text("{", encoding="utf-8")


def no_summary(bench: Any) -> None:
    (_ran(bench) / "run.json").unlink()


def changed_charge(bench: Any) -> None:
    _sql(_ran(bench) / NORTH / "run.sqlite", "INSERT INTO crossings VALUES (1, '{}', 'x', 'y')")


def broken_home(bench: Any) -> None:
    (bench.folder / "home").symlink_to("nowhere/at/all")


# ---- how those are made ----


def _table(bench: Any, rows: list[list[float]], words: list[str]) -> None:
    import numpy as np

    np.save(bench.folder / "words.npy", np.asarray(rows, dtype=np.float32))
    (bench.folder / "words.txt").write_text("\n".join(words) + "\n", encoding="utf-8")


def _ran(bench: Any) -> Path:
    """The folder of a run that went well."""
    assert bench.osmotic("run light.yaml --quiet --home home") == (0, "")
    home: Path = bench.folder / "home"
    return home


def _ledger(bench: Any) -> Path:
    """North's ledger after a run that went well, in one file."""
    _ran(bench)
    path: Path = bench.folder / "light.sites.state" / "north" / "ledger.sqlite"
    _sql(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    return path


def _sql(path: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(statement)


def _overwrite(path: Path) -> None:
    """Rubbish in the middle and at the start of every page but the header's first bytes."""
    _sql(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    content[100:] = b"\x5a" * (len(content) - 100)
    path.write_bytes(bytes(content))


# ---- sites of a deployment ----


def site_with_unknown_key(bench: Any) -> None:
    _site(bench, '{"osmotic_site": 1, "party": "north", "server": "hub", "polic": "../toy.sites.yaml", "policy": "x"}')


def site_of_another_party(bench: Any) -> None:
    _site(bench, '{"osmotic_site": 1, "party": "east", "server": "hub", "policy": "../toy.sites.yaml"}')


def _site(bench: Any, text: str) -> None:
    folder = bench.folder / "osmotic-site" / "local"
    folder.mkdir(parents=True)
    (folder / "osmotic-site.json").write_text(text, encoding="utf-8")
