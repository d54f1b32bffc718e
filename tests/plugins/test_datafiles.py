# SPDX-License-Identifier: Apache-2.0
"""Data files: every format gives the same records, and every kind of damage is told with its line."""

import json
from pathlib import Path

import pytest

from osmotic.plugins.datafiles import load_records, read_rows
from osmotic.schemas.errors import ConfigError, DataError
from osmotic.schemas.records import FieldSpec, RecordSchema

ROWS = [{"id": "r1", "text": "héllo, \u2028 world", "ward": "a"}, {"id": "r2", "text": "x", "ward": "b"}]
SCHEMA = RecordSchema(fields={"text": FieldSpec(text=True), "ward": FieldSpec(domain=("a", "b"))})
COMMONSENSE = Path(__file__).resolve().parents[3] / "shared/data/commonsense_qa/dev_rand_split.jsonl"


def write(folder: Path, suffix: str) -> Path:
    path = folder / f"data{suffix}"
    if suffix in (".parquet", ".arrow", ".stream.arrow"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist(ROWS)
        if suffix == ".parquet":
            pq.write_table(table, path)
        else:
            make = pa.ipc.new_file if suffix == ".arrow" else pa.ipc.new_stream
            with make(str(path), table.schema) as writer:
                writer.write_table(table)
    elif suffix == ".jsonl":
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode())
    elif suffix == ".json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    else:
        cut = "\t" if suffix == ".tsv" else ","
        lines = [cut.join(ROWS[0]), *(cut.join(f'"{value}"' for value in row.values()) for row in ROWS)]
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".stream.arrow"])
def test_every_format_gives_the_same_records(tmp_path, suffix):
    path = write(tmp_path, suffix)
    assert load_records(path, SCHEMA, {}, None).rows == ROWS
    assert [row["id"] for _, row in read_rows(path, {}, (1, 2))] == ["r2"]


def test_where_is_the_line_of_the_file(tmp_path):
    assert [where for where, _ in read_rows(write(tmp_path, ".jsonl"), {}, None)] == ["data.jsonl:1", "data.jsonl:3"]
    assert [where for where, _ in read_rows(write(tmp_path, ".csv"), {}, None)] == ["data.csv:2", "data.csv:3"]
    assert [where for where, _ in read_rows(write(tmp_path, ".parquet"), {}, None)] == [
        "data.parquet:row 1",
        "data.parquet:row 2",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "a"', "not valid JSON"),
        (b'{"id": "a", "id": "b"}', "'id' stands twice"),
        (b'{"id": "a", "x": {"y": 1, "y": 2}}', "'y' stands twice"),
        (b'{"id": NaN}', "NaN is not a JSON number"),
        (b'{"id": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"id": 1e999}', "too large"),
        (b"[1]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"id": "\xff"}', "not UTF-8"),
        (b'{"id": "\\ud800"}', "surrogate"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_damaged_lines_are_told(tmp_path, line, message):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"id": "ok"}\n' + line + b"\n")
    with pytest.raises(DataError, match=message) as caught:
        read_rows(path, {}, None)
    assert [problem.where for problem in caught.value.problems] == ["d.jsonl:2"]


def test_all_damaged_lines_are_told_at_once_up_to_twenty(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("".join("{\n" if i % 2 else '{"id": "a"}\n' for i in range(10)))
    with pytest.raises(DataError) as caught:
        read_rows(path, {}, None)
    assert [p.where for p in caught.value.problems] == [f"d.jsonl:{n}" for n in (2, 4, 6, 8, 10)]
    path.write_text("{\n" * 100)
    with pytest.raises(DataError) as caught:
        read_rows(path, {}, None)
    assert len(caught.value.problems) == 20


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", b"id,a,a\n", "'a' stands twice"),
        ("d.csv", b"", "first line must name every column"),
        ("d.csv", b"id,\n", "first line must name every column"),
        ("d.csv", b"id,a\n1,2,3\n4\n", r"d.csv:2 3 cells[\s\S]*d.csv:3 1 cells"),
        ("d.csv", b'id,a\n1,"2\n', "not valid"),
        ("d.csv", b"id,a\n1,\xff\n", "not UTF-8"),
        ("d.json", b'{"a": 1}', "must be a list of records"),
        ("d.json", b"[1]", "d.json:row 1"),
        ("d.parquet", b"junk", "not a Parquet file"),
        ("d.arrow", b"ARROW1junk", "not an Arrow file"),
        ("d.arrow", b"", "not an Arrow file"),
        ("d.xlsx", b"", "unknown kind of file"),
    ],
)
def test_damaged_files_are_told(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / name, {}, None)


def test_a_parquet_file_with_nan_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": ["a", "b"], "x": [1.0, float("nan")]}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"d.parquet:row 2 x: not a finite number"):
        read_rows(tmp_path / "d.parquet", {}, None)


def test_a_missing_file_is_told_with_the_nearest_name(tmp_path):
    write(tmp_path, ".jsonl")
    with pytest.raises(DataError, match=r"did you mean 'data.jsonl'"):
        read_rows(tmp_path / "dta.jsonl", {}, None)
    with pytest.raises(DataError, match="does not exist either"):
        read_rows(tmp_path / "nowhere" / "a.jsonl", {}, None)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match="not a file"):
        read_rows(tmp_path / "folder.jsonl", {}, None)


def test_a_map_turns_nested_values_into_text(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"n": 7, "question": {"stem": "Why?", "choices": [{"text": "a"}, {"text": "b"}]}}) + "\n")
    mapping = {
        "id": "q{{ n }}",
        "stem": "{{ question.stem }}",
        "all": "{% for c in question.choices %}{{ c.text }};{% endfor %}",
    }
    assert read_rows(path, mapping, None) == [("d.jsonl:1", {"n": 7, "id": "q7", "stem": "Why?", "all": "a;b;"})]
    with pytest.raises(DataError, match=r"d.jsonl:1 map.stem: .*no attribute 'stm'"):
        read_rows(path, {"stem": "{{ question.stm }}"}, None)
    with pytest.raises(ConfigError, match=r"map.stem: not a valid template"):
        read_rows(path, {"stem": "{{ question"}, None)


def test_integers_are_ids_and_other_values_are_not(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"id": 1, "text": "x", "ward": "a"}\n{"id": true, "text": "x", "ward": "a"}\n{"text": "x", "ward": "a"}\n')
    assert load_records(path, SCHEMA, {}, (0, 1)).rows[0]["id"] == "1"
    with pytest.raises(DataError, match=r"d.jsonl:2 the record has no 'id'[\s\S]*d.jsonl:3 the record has no 'id'"):
        load_records(path, SCHEMA, {}, None)


def test_the_schema_is_checked_and_other_keys_are_dropped(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"id": "1", "text": "x", "ward": "a", "name": "secret"}\n')
    assert load_records(path, SCHEMA, {}, None).columns == ["id", "text", "ward"]
    path.write_text('{"id": "1", "txt": "x", "ward": "z"}\n{"id": "1", "text": 4, "ward": "a"}\n')
    with pytest.raises(DataError) as caught:
        load_records(path, SCHEMA, {}, None)
    text = str(caught.value)
    assert "did you mean 'txt'? or map it in the site file: text: '{{ KEY }}'" in text and "outside the field's domain" in text
    assert "used before" in text and "text: '{{ text }}'" in text


def test_many_problems_are_counted(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "x", "ward": "z"}\n' * 50)
    with pytest.raises(DataError) as caught:
        load_records(path, SCHEMA, {}, None)
    assert len(caught.value.problems) == 21 and "100 problems in all" in str(caught.value)


def test_rows_outside_the_file_are_told(tmp_path):
    path = write(tmp_path, ".jsonl")
    assert len(read_rows(path, {}, (0, 99))) == 2
    for rows in ((2, 9), (-1, 2), (2, 1)):
        with pytest.raises(DataError, match="rows"):
            read_rows(path, {}, rows)


def test_no_records_keep_their_columns(tmp_path):
    (tmp_path / "d.jsonl").write_text("\n\n")
    records = load_records(tmp_path / "d.jsonl", SCHEMA, {}, None)
    assert type(records).from_files(records.to_files()).columns == ["id", "text", "ward"]


@pytest.mark.skipif(not COMMONSENSE.is_file(), reason="the CommonsenseQA files are not on this machine")
def test_commonsense_qa_reads_with_a_map():
    names = ("stem", "choices")
    schema = RecordSchema(fields={n: FieldSpec(text=True) for n in names} | {"gold": FieldSpec(domain=tuple("ABCDE"))})
    mapping = {
        "stem": "{{ question.stem }}",
        "choices": "{% for c in question.choices %}({{ c.label }}) {{ c.text }} {% endfor %}",
        "gold": "{{ answerKey }}",
    }
    records = load_records(COMMONSENSE, schema, mapping, None)
    assert len(records) == 1221 and records.rows[0]["gold"] == "A" and records.rows[0]["choices"].startswith("(A) bank (B)")
