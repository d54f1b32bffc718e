# SPDX-License-Identifier: Apache-2.0
"""Read a party's data files into records: JSONL, JSON, CSV, TSV, Parquet, Arrow; every problem is told with its line.

Strict where published loaders guess: duplicate keys, NaN, torn lines, rows of another width and text that is not UTF-8 are
errors, collected and shown together. Messages quote keys and lines; they stay at the party that has the data.
"""

import csv
import json
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

from osmotic.plugins.sandbox import Template, compile_template
from osmotic.schemas.artifacts import Records
from osmotic.schemas.errors import DataError, Problem
from osmotic.schemas.records import RecordSchema
from osmotic.schemas.source import did_you_mean

SHOWN = 20
Row = dict[str, Any]
Item = tuple[str, Row | Problem]


def read_rows(path: Path, mapping: dict[str, str], rows: tuple[int, int] | None) -> list[tuple[str, Row]]:
    """(where, row) pairs of a file; where is ``FILE:LINE``, or ``FILE:row N`` where a format has no lines.

    mapping: field -> Jinja2 template over the file's own keys; where it is given, nested values that no template turned into
    text are dropped. rows: [first, end) counted over the file's records. Raises DataError with the first 20 problems.
    """
    templates = {name: compile_template(text, f"map.{name}", branches=True) for name, text in mapping.items()}
    first, end = rows or (0, None)
    if first < 0 or (end is not None and end < first):
        raise DataError(Problem(f"rows must be [first, end) with 0 <= first <= end (got [{first}, {end}])", str(path), "rows"))
    found: list[tuple[str, Row]] = []
    problems: list[Problem] = []
    for where, item in islice(_open(path), first, end):
        mapped = item if isinstance(item, Problem) else _map(where, item, templates)
        if isinstance(mapped, Problem):
            problems.append(mapped)
        else:
            found.append((where, mapped))
        if len(problems) >= SHOWN:
            break
    if problems:
        raise DataError(*problems)
    if rows and not found:
        raise DataError(Problem(f"no records in rows [{first}, {end})", str(path), "rows", fix="the file has fewer records"))
    return found


def load_records(path: Path, schema: RecordSchema, mapping: dict[str, str], rows: tuple[int, int] | None) -> Records:
    """The records of a file, checked against the schema; only ``id`` and the schema's fields are kept, all strings.

    Raises DataError with the first 20 problems and the number of all of them.
    """
    pairs = read_rows(path, mapping, rows)
    keys = {where: row.keys() for where, row in pairs}
    problems: list[Problem] = []
    count = 0
    for problem in schema.check(pairs):
        count += 1
        if count <= SHOWN:
            problems.append(_helped(problem, keys[problem.where]))
    if count > SHOWN:
        problems.append(Problem(f"{count} problems in all; the first {SHOWN} are shown", str(path)))
    if problems:
        raise DataError(*problems)
    columns = ["id", *schema.fields]
    return Records([{name: row[name] for name in columns} for _, row in pairs], columns)


def _helped(problem: Problem, keys: Iterable[str]) -> Problem:
    """The schema's problem with a way to mend it that fits the row's own keys."""
    fix = problem.fix
    if problem.what == "the field is missing":
        fix = f"{did_you_mean(problem.path, keys)} or map it: {problem.path}: '{{{{ KEY }}}}'".removeprefix(" or ")
    elif problem.what.startswith("must be a string"):
        fix = f"turn it into text with a map: {problem.path}: '{{{{ {problem.path} }}}}'"
    return Problem(problem.what, problem.where, problem.path, problem.why, fix)


def _map(where: str, row: Row, templates: dict[str, Template]) -> Row | Problem:
    identity = row.get("id")
    if isinstance(identity, int) and not isinstance(identity, bool):
        row = {**row, "id": str(identity)}
    if not templates:
        return row
    flat = {key: value for key, value in row.items() if not isinstance(value, list | dict)}
    for name, template in templates.items():
        try:
            flat[name] = template.render(row)
        except DataError as error:
            problem = error.problems[0]
            return Problem(problem.what, where, problem.path, problem.why, problem.fix)
    return flat


def _open(path: Path) -> Iterator[Item]:
    readers = {
        ".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet, ".arrow": _arrow,
    }  # fmt: skip
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(Problem(f"unknown kind of file {path.suffix!r}", str(path), fix=f"known: {', '.join(readers)}"))
    if not path.is_file():
        raise DataError(Problem("no such file" if not path.exists() else "not a file", str(path), fix=_near(path)))
    try:
        yield from reader(path)
    except OSError as error:
        raise DataError(Problem(f"cannot be read: {error.strerror or error}", str(path))) from error
    except UnicodeDecodeError as error:
        raise DataError(Problem("the file is not UTF-8", str(path), fix="convert it, e.g. with iconv -t UTF-8")) from error


def _near(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {str(folder)!r} does not exist either"
    return did_you_mean(path.name, sorted(entry.name for entry in folder.iterdir() if entry.is_file()))


def _jsonl(path: Path) -> Iterator[Item]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            where = f"{path.name}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip(" \t\r\n")
            except UnicodeDecodeError:
                yield where, Problem("the line is not UTF-8", where, fix="convert the file, e.g. with iconv -t UTF-8")
                continue
            if line:
                yield where, _parsed(line, where)


def _json(path: Path) -> Iterator[Item]:
    value = _decode(path.read_text(encoding="utf-8-sig"), path.name)
    if isinstance(value, Problem):
        raise DataError(value)
    if not isinstance(value, list):
        raise DataError(
            Problem(f"must be a list of records (got {_kind(value)})", path.name, fix="or use .jsonl: a record a line")
        )
    for number, row in enumerate(value, 1):
        where = f"{path.name}:row {number}"
        yield where, row if isinstance(row, dict) else _not_a_record(row, where)


def _parsed(line: str, where: str) -> Row | Problem:
    value = _decode(line, where)
    return value if isinstance(value, dict | Problem) else _not_a_record(value, where)


def _not_a_record(value: Any, where: str) -> Problem:
    return Problem(f"a record must be a JSON object (got {_kind(value)})", where)


def _decode(text: str, where: str) -> Any:
    """The JSON value, or a Problem: wrong syntax, NaN, a key that stands twice, half a surrogate pair."""
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        return Problem(f"not valid JSON: {error.msg}", where, why=f"line {error.lineno}, character {error.colno} of the value")
    except UnicodeEncodeError:
        return Problem("half a surrogate pair (\\ud800 to \\udfff) is not text", where)
    except (ValueError, RecursionError) as error:
        return Problem(str(error) if isinstance(error, ValueError) else "the value is nested too deeply", where)
    return value


def _once(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for i, n in enumerate(names) if n in names[:i])!r} stands twice in one object")
    return row


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _csv(path: Path) -> Iterator[Item]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        header = _header(reader, path)
        yield from _csv_rows(reader, header, path)


def _header(reader: Any, path: Path) -> list[str]:
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise DataError(Problem(f"not valid: {error}", f"{path.name}:1")) from error
    twice = next((name for i, name in enumerate(header or []) if name in (header or [])[:i]), None)
    if not header or twice is not None or "" in header:
        what = f"the column {twice!r} stands twice" if twice is not None else "the first line must name every column"
        raise DataError(Problem(what, f"{path.name}:1"))
    return list(header)


def _csv_rows(reader: Any, header: list[str], path: Path) -> Iterator[Item]:
    while True:
        where = f"{path.name}:{reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield where, Problem(f"not valid: {error}", where)
            return
        if cells is None:
            return
        if cells and len(cells) != len(header):
            yield (
                where,
                Problem(f"{len(cells)} cells, but the header names {len(header)}", where, fix="quote cells with commas"),
            )
        elif cells:
            yield where, dict(zip(header, cells, strict=True))


def _parquet(path: Path) -> Iterator[Item]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield from _batches(file.iter_batches(), path)
    except pa.ArrowException as error:
        raise DataError(Problem("not a Parquet file, or a damaged one", str(path), why=_first_line(error))) from error


def _arrow(path: Path) -> Iterator[Item]:
    import pyarrow as pa

    try:
        with path.open("rb") as file:
            yield from _batches(_arrow_batches(file), path)
    except pa.ArrowException as error:
        raise DataError(Problem("not an Arrow file, or a damaged one", str(path), why=_first_line(error))) from error


def _arrow_batches(file: IO[bytes]) -> Iterator[Any]:
    """Batches of an Arrow file or, as `datasets` writes them, of an Arrow stream."""
    import pyarrow as pa

    is_file = file.read(6) == b"ARROW1"
    file.seek(0)
    if is_file:
        reader = pa.ipc.open_file(file)
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        yield from pa.ipc.open_stream(file)


def _batches(batches: Iterable[Any], path: Path) -> Iterator[Item]:
    number = 0
    for batch in batches:
        if len(set(batch.schema.names)) < len(batch.schema.names):
            raise DataError(Problem("a column name stands twice", str(path)))
        for row in batch.to_pylist():
            number += 1
            where = f"{path.name}:row {number}"
            bad = next((key for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)), None)
            yield where, row if bad is None else Problem("not a finite number", where, bad)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
