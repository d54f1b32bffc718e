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
MAX_DIGITS = 4300  # of a whole number: longer ones take the square of their length to read
LONGEST = 8 << 20  # bytes of a line of JSON, characters of a cell
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
    what = problem.what
    if what == "the field is missing":
        hint = did_you_mean(problem.path, keys)
        either = f"{hint} or " if hint.endswith("?") else f"{hint}; or " if hint else ""
        fix = f"{either}map it in the site file: {problem.path}: '{{{{ KEY }}}}'"
    elif what.startswith("must be a string"):
        for name, plain in _NAMES.items():
            what = what.replace(f"(got {name})", f"(got {plain})")
        fix = f"turn it into text with a map in the site file: {problem.path}: '{{{{ {problem.path} }}}}'"
        if "null" in what:
            fix = "leave the record out, or write a text"
    return Problem(what, problem.where, problem.path, problem.why, fix)


_NAMES = {
    "dict": "an object", "list": "a list", "NoneType": "null", "bool": "true or false", "int": "a number", "float": "a number",
}  # fmt: skip


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
        for number, raw in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), 1):
            where = f"{path.name}:{number}"
            if len(raw) > LONGEST:
                what, why = f"the line has more than {LONGEST >> 20} MiB", "a line is one record, and no record is so long"
                yield where, Problem(what, where, why=why, fix="write a record a line, each with a line break behind it")
                return
            if number == 1 and (odd := _other_kind(raw)):
                yield where, Problem(f"the file is {odd[0]}, not lines of JSON in UTF-8", where, fix=odd[1])
                return
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip(" \t\r\n")
            except UnicodeDecodeError:
                yield where, Problem("the line is not UTF-8", where, fix="convert the file, e.g. with iconv -t UTF-8")
                continue
            if line:
                yield where, _parsed(line, where)


def _other_kind(start: bytes) -> tuple[str, str] | None:
    """(what a file is, how to mend it), where its first bytes say that it is no text in UTF-8."""
    kinds = {
        b"\xff\xfe": ("UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
        b"\xfe\xff": ("UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
        b"\x1f\x8b": ("compressed", "unpack it: gunzip"),
        b"PK\x03\x04": ("a zip archive or a spreadsheet", "unpack or export it"),
        b"PAR1": ("Parquet", "call it .parquet"),
    }
    return next((kind for mark, kind in kinds.items() if start.startswith(mark)), None)


def _json(path: Path) -> Iterator[Item]:
    value = _decode(path.read_text(encoding="utf-8-sig"), path.name)
    if isinstance(value, Problem):
        raise DataError(value)
    if not isinstance(value, list):
        raise DataError(
            Problem(
                f"must be a list of records (got {_kind(value)})", path.name,
                fix="put the records into one list, [...], or use .jsonl: a record a line",
            )
        )  # fmt: skip
    for number, row in enumerate(value, 1):
        where = f"{path.name}:row {number}"
        yield where, row if isinstance(row, dict) else _not_a_record(row, where)


def _parsed(line: str, where: str) -> Row | Problem:
    value = _decode(line, where)
    return value if isinstance(value, dict | Problem) else _not_a_record(value, where)


def _not_a_record(value: Any, where: str) -> Problem:
    fix = "a record a line; a file that is one list is called .json" if isinstance(value, list) else 'e.g. {"id": "1", ...}'
    return Problem(f"a record must be a JSON object (got {_kind(value)})", where, fix=fix)


def _decode(text: str, where: str) -> Any:
    """The JSON value, or a Problem: wrong syntax, NaN, a key that stands twice, half a surrogate pair."""
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite, parse_int=_short)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        why = f"line {error.lineno}, character {error.colno} of the value"
        return Problem(f"not valid JSON: {error.msg}", where, why=why, fix=_json_fix(error))
    except UnicodeEncodeError:
        return Problem("half a surrogate pair (\\ud800 to \\udfff) is not text", where, fix="write the character itself")
    except RecursionError:
        return Problem("the value is nested too deeply", where, fix="a record is a flat object; take the nested part out")
    except ValueError as error:
        fix = "write null or a text, or leave the key out" if "number" in str(error) else "keep one of them"
        return Problem(str(error), where, fix=fix)
    return value


def _json_fix(error: json.JSONDecodeError) -> str:
    """What is most often the mistake where the parser says this."""
    rest, before = error.doc[error.pos :].lstrip(), error.doc[: error.pos].rstrip()
    if rest[:1] == "'" or before[-1:] == "'":
        return "JSON has double quotes: \"id\", not 'id' (json.dumps writes them)"
    if rest[:1] in ("}", "]") and before[-1:] == ",":
        return "take the last comma away"
    if error.msg.startswith("Extra data"):
        return "one record a line in .jsonl, with a line break behind each; a list of records in .json"
    if error.msg.startswith("Invalid control"):
        return "control characters (NUL, tab) are written as \\u0000, \\t in a text"
    if "BOM" in error.msg:
        return "take the byte order mark (U+FEFF) out: files were put together"
    return "the line ends too soon: a record is one line" if not rest else "check quotes, commas and braces near here"


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


def _short(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} digits, more than {MAX_DIGITS}")
    return int(text)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _csv(path: Path) -> Iterator[Item]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(_text_lines(file, path), delimiter=_separator(path), strict=True)
        header = _header(reader, path)
        yield from _csv_rows(reader, header, path)


def _separator(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _text_lines(file: IO[str], path: Path) -> Iterator[str]:
    """The lines of a text file. Raises DataError at one that no table has."""
    for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), ""), 1):
        if len(line) > LONGEST:
            what = f"the line has more than {LONGEST >> 20} Mi characters"
            raise DataError(Problem(what, f"{path.name}:{number}", fix="look for a quote that is never closed"))
        if "\0" in line:
            raise DataError(Problem("a NUL byte is no text", f"{path.name}:{number}", fix="take it out: tr -d '\\000'"))
        yield line


def _header(reader: Any, path: Path) -> list[str]:
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise DataError(Problem(f"not valid: {error}", f"{path.name}:1", fix="close the quote")) from error
    name, used = (header or [""])[0], _separator(path)
    other = next((s for s in (";", "\t", "|", ",") if s != used and s in name), None) if header and len(header) == 1 else None
    if other is not None:
        what, why = f"the columns are separated by {other!r}, not by {used!r}", f"the first line is one column: {name[:60]!r}"
        fix = {"\t": "call it .tsv", ",": "call it .csv"}.get(other, f"write it anew with {used!r}")
        raise DataError(Problem(what, f"{path.name}:1", why=why, fix=fix))
    padded = next((name for name in header or [] if name != name.strip()), None)
    if padded is not None:
        what, fix = f"the column {padded!r} has a space around its name", "take the spaces beside the separators away"
        raise DataError(Problem(what, f"{path.name}:1", fix=fix))
    twice = next((name for i, name in enumerate(header or []) if name in (header or [])[:i]), None)
    if not header or twice is not None or "" in header:
        what = f"the column {twice!r} stands twice" if twice is not None else "the first line must name every column"
        fix = "give every column a name of its own in the first line: id,..."
        raise DataError(Problem(what, f"{path.name}:1", fix=fix))
    return list(header)


def _csv_rows(reader: Any, header: list[str], path: Path) -> Iterator[Item]:
    while True:
        where = f"{path.name}:{reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            large = "field limit" in str(error)
            fix = (
                "a cell has at most 131072 characters: use .jsonl" if large else "close the quote; inside a cell it is doubled"
            )
            yield where, Problem(f"not valid: {error}", where, fix=fix)
            return
        if cells is None:
            return
        if cells and len(cells) != len(header):
            yield (
                where,
                Problem(
                    f"{len(cells)} cells, but the header names {len(header)}",
                    where,
                    fix="put a cell with a separator in it in double quotes; write empty cells too",
                ),
            )
        elif cells:  # an empty line is none
            yield where, dict(zip(header, cells, strict=True))


_AGAIN = "copy or write the file again: it may have been cut off"


def _parquet(path: Path) -> Iterator[Item]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield from _batches(file.iter_batches(), path)
    except pa.ArrowException as error:
        raise DataError(
            Problem("not a Parquet file, or a damaged one", str(path), why=_first_line(error), fix=_AGAIN)
        ) from error


def _arrow(path: Path) -> Iterator[Item]:
    import pyarrow as pa

    try:
        with path.open("rb") as file:
            yield from _batches(_arrow_batches(file), path)
    except pa.ArrowException as error:
        raise DataError(
            Problem("not an Arrow file, or a damaged one", str(path), why=_first_line(error), fix=_AGAIN)
        ) from error


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
            yield where, row if bad is None else Problem("not a finite number", where, bad, fix="write null in its place")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
