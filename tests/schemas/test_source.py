# SPDX-License-Identifier: Apache-2.0
"""YAML with positions: what is read, what is refused, and where the message points."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from osmotic.schemas.base import Config
from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.source import Source, did_you_mean, parse, problems_of, read, validate


class Inner(Config):
    epsilon: float = Field(1.0, gt=0, strict=False)
    mode: Literal["nearest", "order"] = "nearest"


class Outer(Config):
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(-[a-z0-9_]+)*$")]
    inner: Inner = Inner()
    many: dict[str, Inner] = {}
    rows: list[Inner] = []
    either: str | int | None = None
    nested: Inner | str | None = None


def refused(text: str) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "f.yaml")
    return caught.value.problems


def invalid(text: str) -> dict[str, str]:
    """path -> 'line:column what | fix'."""
    with pytest.raises(ConfigError) as caught:
        validate(Outer, parse(text, "f.yaml"))
    return {
        p.path: f"{p.where.removeprefix('f.yaml:')} {p.what}{f' | {p.fix}' if p.fix else ''}" for p in caught.value.problems
    }


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("Off", "Off"), ("y", "y"),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("2024-01-31", "2024-01-31"), ("2024-01-31T10:00:00Z", "2024-01-31T10:00:00Z"), ("12:30", "12:30"), ("1_000", "1_000"),
        ("12", 12), ("-3", -3), ("010", 10), ("0x1f", 31), ("0o17", 15), ("+5", 5),
        ("1e-3", 0.001), ("5.", 5.0), (".5", 0.5), ("-1.5E+2", -150.0), ("1.0", 1.0),
        ('"12"', "12"), ("'true'", "true"), ("!!str 12", "12"), ("!!int 12", 12),
        ("!!float 12", 12.0), ("=", "="), ("1.2.3", "1.2.3"),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(written: str, value: Any) -> None:
    found = parse(f"k: {written}\n", "f").value["k"]
    assert found == value and type(found) is type(value)


def test_every_key_and_item_has_its_place() -> None:
    source = parse("a:\n  b:\n    - x\n    - c: 1\n", "f.yaml")
    assert source.value == {"a": {"b": ["x", {"c": 1}]}}
    assert source.where(("a", "b")) == "f.yaml:2:3"
    assert source.where(("a", "b", 1, "c")) == "f.yaml:4:7"
    assert source.where(("a", "b", 1, "absent", "deeper")) == "f.yaml:4:7"
    assert source.where(("nothing",)) == "f.yaml:1:1"
    assert Source("f.yaml", None).where(("a",)) == "f.yaml"


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("", "f.yaml", "empty"),
        ("# only a comment\n", "f.yaml", "empty"),
        ("---\n", "f.yaml", "empty"),
        ("a: 1\n---\nb: 2\n", "f.yaml:3:1", "more than one document"),
        ("a:\n\t- 1\n", "f.yaml:2:1", "not valid YAML"),
        ("a: [1, 2\nb: 3\n", "f.yaml:2:2", "not valid YAML"),
        ("a: 'x\n", "f.yaml:2:1", "not valid YAML"),
        ("a: &x [1]\nb: *x\n", "f.yaml:2:4", "aliases"),
        ("a: &x 1\nb: *x\n", "f.yaml:2:4", "aliases"),
        ("a: *nowhere\n", "f.yaml:1:4", "aliases"),
        ("a: &x [*x]\n", "f.yaml:1:8", "aliases"),
        ("a: {<<: {b: 1}}\n", "f.yaml:1:5", "merge keys"),
        ("? [1, 2]\n: 3\n", "f.yaml:1:3", "a plain word"),
        ("a: !!python/object:os.system {}\n", "f.yaml:1:4", "not supported"),
        ("a: !!python/name:os.system x\n", "f.yaml:1:4", "not supported"),
        ("a: !!binary aGk=\n", "f.yaml:1:4", "not supported"),
        ("a: !!set {x, y}\n", "f.yaml:1:4", "not supported"),
        ("a: !!int three\n", "f.yaml:1:4", "not of the type"),
        ("a: .nan\n", "f.yaml:1:4", "finite"),
        ("a: -.inf\n", "f.yaml:1:4", "finite"),
        ("a: 1e999\n", "f.yaml:1:4", "finite"),
        (f"a: {'9' * 5000}\n", "f.yaml:1:4", "too long"),
        ("a: 1\nb: x\0y\n", "f.yaml:2:5", "#x0000"),
        ('a: "\\ud800"\n', "f.yaml:1:4", "surrogate"),
        ("a: " + "[" * 100 + "]" * 100, "f.yaml:1:67", "nested deeper than 64"),
        ("a: " + "[" * 200_000, "f.yaml:1:67", "nested deeper than 64"),
        ("\n".join(" " * i + "a:" for i in range(1000)), "f.yaml:64:64", "nested deeper than 64"),
        ("a: " + "x" * (5 << 20), "f.yaml", "too large"),
    ],
)  # fmt: skip
def test_refused_with_its_place(text: str, where: str, what: str) -> None:
    (problem,) = refused(text)
    assert what in problem.what and problem.where.startswith(where)


def test_all_duplicate_keys_are_told_at_once_with_the_first_place() -> None:
    first, second = refused("a: 1\nb: {c: 1, c: 2}\na: 3\n")
    assert (first.where, first.why) == ("f.yaml:2:11", "first at f.yaml:2:5")
    assert (second.where, second.why) == ("f.yaml:3:1", "first at f.yaml:1:1")


def test_all_errors_of_a_document_come_at_once_and_in_place() -> None:
    text = "name: Big\ninner:\n  epsilon: -1\n  mod: order\nmany:\n  x: {mode: nearst}\n  y: 3\n"
    text += "rows: [{epsilon: small}]\nextra: 1\n"
    assert invalid(text) == {
        "name": "1:1 must be a name: lower-case letters, digits, '_' and '-', a letter first (got 'Big')",
        "inner.epsilon": "3:3 must be greater than 0 (got -1)",
        "inner.mod": "4:3 unknown key | did you mean 'mode'?",
        "many.x.mode": "6:7 must be 'nearest' or 'order' (got 'nearst') | did you mean 'nearest'?",
        "many.y": "7:3 must be a mapping (got 3)",
        "rows.0.epsilon": "8:9 must be a number (got 'small')",
        "extra": "9:1 unknown key | known: either, inner, many, name, nested, rows",
    }


def test_a_missing_key_points_at_its_mapping() -> None:
    assert invalid("inner: {}\n") == {"name": "1:1 this key is required"}


@pytest.mark.parametrize(
    ("either", "message"),
    [
        ("[1]", "must be a string or an integer (got a list)"),
        ("1.5", "must be a string or an integer (got 1.5)"),
        ("true", "must be a string or an integer (got true)"),
    ],
)
def test_members_of_a_union_speak_with_one_voice(either: str, message: str) -> None:
    assert invalid(f"name: a\neither: {either}\n") == {"either": f"2:1 {message}"}


def test_only_the_member_of_a_union_that_fits_the_shape_speaks() -> None:
    assert invalid("name: a\nnested: {epsilom: 2}\n") == {"nested.epsilom": "2:10 unknown key | did you mean 'epsilon'?"}


def test_problems_below_a_path_and_below_one_that_is_not_in_the_file() -> None:
    source = parse("a:\n  config:\n    epsilon: 0\n", "f.yaml")
    with pytest.raises(ConfigError) as caught:
        validate(Inner, source, ("a", "config"))
    assert str(caught.value.problems[0]).startswith("f.yaml:3:5 a.config.epsilon: must be greater than 0 (got 0)")
    with pytest.raises(ValueError) as raw:
        Inner.model_validate({"epsilon": 0})
    (problem,) = problems_of(raw.value, Inner, source, ("b", "config"))
    assert (problem.path, problem.where) == ("b.config.epsilon", "f.yaml:1:1")


def test_the_root_must_be_a_mapping() -> None:
    assert invalid("- a\n") == {"": "1:1 must be a mapping (got a list)"}
    assert invalid("word\n") == {"": "1:1 must be a mapping (got 'word')"}


def test_did_you_mean() -> None:
    assert did_you_mean("epsilom", ["k", "epsilon"]) == "did you mean 'epsilon'?"
    assert did_you_mean("zzz", ["b", "a"]) == "known: a, b"
    assert did_you_mean("zzz", []) == ""
    assert did_you_mean("zzz", [f"n{i}" for i in range(30)]).endswith(", ...")


def test_files(tmp_path: Path) -> None:
    good = tmp_path / "good.yaml"
    good.write_bytes(b"\xef\xbb\xbfname: caf\xc3\xa9\r\n")
    assert read(good).value == {"name": "café"}
    assert read(good, "shown").name == "shown"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "pipeline.yaml").write_text("a: 1\n")
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: caf\xe9\n")
    (tmp_path / "wide.yaml").write_bytes("a: 1\n".encode("utf-16"))
    (tmp_path / "folder.yaml").mkdir()
    expected = {
        "pipelne.yaml": ("no such file", "did you mean"),
        "latin.yaml": ("the file is not UTF-8 text", "save it as UTF-8"),
        "wide.yaml": ("the file is UTF-16, not UTF-8 text", "save it as UTF-8"),
        "folder.yaml": ("this is a folder, not a file", "name the YAML file itself"),
        "none/x.yaml": ("no such file", "there is no folder"),
    }
    for name, (what, fix) in expected.items():
        with pytest.raises(ConfigError) as caught:
            read(tmp_path / name)
        (problem,) = caught.value.problems
        assert problem.what.startswith(what) and fix in problem.fix
    with pytest.raises(ConfigError, match=r"latin\.yaml:2 "):
        read(tmp_path / "latin.yaml")


@given(st.text(max_size=60))
def test_any_text_gives_a_document_or_a_config_error(text: str) -> None:
    try:
        source = parse(text, "f.yaml")
    except ConfigError as error:
        assert error.problems and all(p.where.startswith("f.yaml") for p in error.problems)
    else:
        assert source.value is not None


TEXT = st.text(st.characters(max_codepoint=0xD7FF))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=12,
)


@given(JSON)
def test_json_is_read_as_json(value: Any) -> None:
    assert parse(json.dumps({"k": value}), "f").value == {"k": value}
