# SPDX-License-Identifier: Apache-2.0
"""References, schemas, tables and text: what fits is read, what does not is refused with the way to mend it."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from osmotic.plugins.contract import Space
from osmotic.plugins.spaces import decode, encode, indices, join, load_schema, resolve, space_of, table_files, tokenize
from osmotic.plugins.tables import words
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
    for name, array in (("colours", good), ("nan", nan), ("double", good.astype(np.float64)), ("flat", good[0])):
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY broken")
    np.save(tmp_path / "pickled.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
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
        (COLOURS, "colours.npy"),
    ):
        space = space_of("colour", spec, folder, table)
        assert space.vectors.shape == (3, 4) and space.vectors.dtype == np.float32
        assert isinstance(space.vectors, np.memmap) and np.array_equal(space.vectors, np.load(folder / "colours.npy"))


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
        ("smollm2:words", "for text fields(.|\n)*'colour' has a domain"),
        ("flat.npy", r"one vector a symbol(.|\n)*shape \[4\]"),
        ("double.npy", "must be float32(.|\n)*float64"),
        ("bad.npy", r"not a readable \.npy file"),
        ("pickled.npy", r"not a readable \.npy file"),
        ("nan.npy", "not finite(.|\n)*row 1"),
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
    np.save(folder / "n.npy", np.ones((2, 3), dtype=np.float32))
    (folder / "n.txt").write_bytes("caf\u00e9\r\n\u65e5\u672c\r\n".encode())
    assert space_of("note", TEXT, folder, "n.npy").symbols == ("caf\u00e9", "\u65e5\u672c")
    with pytest.raises(ConfigError, match=r"needs a token table(.|\n)*smollm2:words"):
        space_of("note", TEXT, folder)


def test_references_to_table_plugins_are_looked_up(folder: Path) -> None:
    for table, says in (
        ("minilmm:all", "did you mean 'minilm'"),
        ("minilm:piece", "did you mean 'minilm:pieces'"),
        ("smollm2:word", "did you mean 'smollm2:words'"),
        ("glove:60d", "glove:50d"),
        ("glove:50d-0", "N from 2 to 400000"),
        ("glove:50d-400001", "N from 2 to 400000"),
        ("transformers:", "not a model directory"),
        ("transformers:nowhere", "no tokenizer.json"),
        ("n.safetensor#x", "not a table"),
    ):
        with pytest.raises(ConfigError, match=says):
            space_of("note", TEXT, folder, table)


def test_table_files_are_all_that_a_table_is_made_from(folder: Path) -> None:
    named = TEXT.model_copy(update={"table": "w.safetensors#words"})
    assert table_files(named, folder) == [folder / "w.safetensors", folder / "w.txt"]
    assert table_files(COLOURS.model_copy(update={"table": "colours.npy"}), folder) == [folder / "colours.npy"]
    assert table_files(TEXT, folder) == []
    with pytest.raises(ConfigError, match="did you mean 'glove'"):
        table_files(TEXT.model_copy(update={"table": "glov:50d"}), folder)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"the\nblue\nthe\n.\n", r"w\.txt:3 the token 'the' stands twice(.|\n)*first on line 1"),
        (b"the\n\nblue\n.\n", r"w\.txt:2 an empty token"),
        (b"the\n blue\nhouse\n.\n", r"w\.txt:2 an empty token, or one with spaces"),
        (b"the\n\xff\n", "UTF-8"),
        (b"", r"w\.txt:1 the vocabulary is empty"),
        (b"\n \n", "the vocabulary is empty"),
        ("caf\u00e9\ncafe\u0301\na\nb\n".encode(), r"w\.txt:2 the token .* stands twice(.|\n)*first on line 1"),
        (b"one\n", "at least two symbols"),
        (b"one\ntwo\n", r"shape \[4, 2\]; 'note' has 2 symbols"),
    ],
)
def test_vocabularies_that_do_not_fit_are_refused(folder: Path, content: bytes, says: str) -> None:
    (folder / "w.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        space_of("note", TEXT, folder, "w.safetensors#words")


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
        ("\u4f60\u597d\uff0c\u4e16\u754c", ["\u4f60\u597d", "\uff0c", "\u4e16\u754c"]),  # Chinese: runs of letters
        ("\u0939\u093f\u0928", ["\u0939", "\u093f", "\u0928"]),  # Devanagari: a vowel sign is a mark
        ("x\u0301", ["x", "\u0301"]),  # no such letter as one character
        ("\u05e9\u05dc\u05d5\u05dd abc", ["\u05e9\u05dc\u05d5\u05dd", "abc"]),  # Hebrew: as stored
        ("\u200fa", ["\u200f", "a"]),
        ("\U0001f469\u200d\U0001f52c\U0001f3fd", ["\U0001f469", "\u200d", "\U0001f52c", "\U0001f3fd"]),
        ("\u039f\u0394\u039f\u03a3", ["\u03bf\u03b4\u03bf\u03c2"]),  # a sigma at the end of a word
        ("\ufb01ne", ["\ufb01ne"]),  # NFC keeps ligatures
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


NOTE = Space("note", ("the", "blue", "house", ".", "7"), None, True)


@given(st.lists(st.text(st.characters(exclude_categories=()), max_size=40), max_size=8))
def test_encode_is_the_rule_of_words_for_all_texts_at_once(texts: list[str]) -> None:
    flat, lengths = encode(NOTE, texts)
    expected = [indices(NOTE, tokenize(text)).tolist() for text in texts]
    assert flat.dtype == lengths.dtype == np.int64 and lengths.tolist() == [len(part) for part in expected]
    assert flat.tolist() == [i for part in expected for i in part]


@given(st.lists(st.lists(st.integers(0, 4), max_size=9), max_size=6))
def test_decode_is_the_inverse_of_encode(rows: list[list[int]]) -> None:
    flat, lengths = np.array([i for row in rows for i in row], np.int64), np.array([len(row) for row in rows], np.int64)
    texts = decode(NOTE, flat, lengths)
    assert texts == [join([NOTE.symbols[i] for i in row]) for row in rows]
    again = encode(NOTE, texts)
    assert np.array_equal(again[0], flat) and np.array_equal(again[1], lengths)


@pytest.mark.parametrize(("flat", "lengths"), [([5], [1]), ([-1], [1]), ([0, 1], [1]), ([], [1])])
def test_decode_refuses_what_does_not_fit(flat: list[int], lengths: list[int]) -> None:
    with pytest.raises(DataError, match="do not fit"):
        decode(NOTE, np.array(flat, np.int64), np.array(lengths, np.int64))


def test_a_domain_is_one_symbol_a_value() -> None:
    space = Space("colour", ("red", "light blue"))
    flat, lengths = encode(space, ["light blue", "red"])
    assert (flat.tolist(), lengths.tolist()) == ([1, 0], [1, 1]) and decode(space, flat, lengths) == ["light blue", "red"]
    with pytest.raises(DataError, match="outside the domain") as caught:
        encode(space, ["secret"])
    assert "secret" not in str(caught.value)


def test_long_texts_are_cut_in_slices_without_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["the blue house 7 . " * 40, "", "the\nblue\n" * 30, "7" * 100, " " * 70, "nothing"]
    whole = encode(NOTE, texts)
    for size in (7, 20, 64):
        monkeypatch.setattr(words, "SLICE", size)
        assert all(len(part) <= size for text in texts for part in words.slices(text))
        assert all("".join(words.slices(text)) == text for text in texts)
        for cut, uncut in zip(encode(NOTE, texts), whole, strict=True):
            assert np.array_equal(cut, uncut)
    monkeypatch.setattr(words, "LIMIT", 50)
    with pytest.raises(DataError, match=r"text 1 a text is too long(.|\n)*at most 50"):
        encode(NOTE, texts)


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
