# SPDX-License-Identifier: Apache-2.0
"""What is kept of public tables: digests and norms by identity, lists in files, pieces of words; each is what is made anew."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from osmotic.plugins.contract import Space
from osmotic.plugins.identity import space_digest
from osmotic.plugins.kept import same
from osmotic.plugins.mechanisms import kept_lists
from osmotic.plugins.mechanisms.neighbours import NeighbourLists
from osmotic.plugins.mechanisms.shared import vector_norms
from osmotic.plugins.tables.ascii_words import MOST, AsciiWords, ascii_words
from osmotic.plugins.tables.pieces import PieceTokenizer

SYMBOLS = tuple(f"s{i}" for i in range(kept_lists.LARGE))


def large(seed: int = 3) -> Space:
    vectors = np.random.default_rng(seed).standard_normal((len(SYMBOLS), 4)).astype(np.float32)
    return Space("large", SYMBOLS, vectors, unknown=True)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OSMOTIC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# ---- by identity -----------------------------------------------------------------------------------------------------


def test_a_mapped_table_is_hashed_once_and_known_again(tmp_path: Path) -> None:
    vectors = np.arange(1, 13, dtype=np.float32).reshape(4, 3)
    np.save(tmp_path / "v.npy", vectors)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    space = Space("a", ("p", "q", "r", "s"), mapped)
    assert same(space) == same(replace(space, name="b")) != same(replace(space, unknown=True))
    assert same(space) != same(replace(space, vectors=np.load(tmp_path / "v.npy", mmap_mode="r")))
    made = replace(space, vectors=vectors)
    assert same(made) is None
    assert space_digest(space) == space_digest(space) == space_digest(made) != space_digest(replace(space, unknown=True))
    assert vector_norms(space) is vector_norms(space) and np.array_equal(vector_norms(space), vector_norms(made))


def test_what_can_be_changed_is_hashed_each_time() -> None:
    vectors = np.ones((2, 3), dtype=np.float32)
    frozen = vectors.view()
    frozen.flags.writeable = False
    own = np.ones((2, 3), dtype=np.float32)
    own.flags.writeable = False
    assert same(Space("a", ("p", "q"), frozen)) is None and same(Space("a", ("p", "q"), own)) is None
    space = Space("a", ("p", "q"), frozen)
    before, norms = space_digest(space), vector_norms(space).copy()
    vectors[1, 1] = 5
    assert space_digest(space) != before and not np.array_equal(vector_norms(space), norms)


# ---- lists -----------------------------------------------------------------------------------------------------------


def test_all_lists_are_kept_and_read_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space, rows = large(), np.arange(len(SYMBOLS))
    first = NeighbourLists(space, 3, "nearest")
    first.of(rows[:100])
    assert not list(cache.glob("*")), "some lists would say which symbols occur"
    made = first.of(rows)
    assert [path.suffix for path in cache.glob("*")] == [".npy"]
    monkeypatch.setattr(NeighbourLists, "_nearest", lambda *_: pytest.fail("made again"))
    assert np.array_equal(NeighbourLists(replace(space, unknown=False), 3, "nearest").of(rows), made)
    with pytest.raises(pytest.fail.Exception):
        NeighbourLists(large(4), 3, "nearest").of(rows[:1])
    with pytest.raises(pytest.fail.Exception):
        NeighbourLists(space, 4, "nearest").of(rows[:1])


def test_damaged_and_forged_lists_are_made_again(cache: Path) -> None:
    space, rows = large(), np.arange(len(SYMBOLS))
    made = NeighbourLists(space, 3, "nearest").of(rows).astype(np.int32)
    (file,) = cache.glob("*.npy")
    for column, value in ((0, 7), (1, -1), (2, len(SYMBOLS)), (1, made[9, 2]), (2, 9)):
        forged = made.copy()
        forged[9, column] = value
        np.save(file, forged)
        assert kept_lists.read_lists(file.stem, len(SYMBOLS), 3) is None
    for content in (made.astype(np.int64), made[:, :2], made[:-1]):
        np.save(file, content)
        assert kept_lists.read_lists(file.stem, len(SYMBOLS), 3) is None
    file.write_bytes(b"\x93NUMPY")
    assert np.array_equal(NeighbourLists(space, 3, "nearest").of(rows[:5]), made[:5])
    (file.parent / "other.npy").mkdir()
    assert kept_lists.read_lists("other", len(SYMBOLS), 3) is None


def test_no_folder_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    rows = np.arange(len(SYMBOLS))
    for place in ("", str(tmp_path / "file")):
        monkeypatch.setenv("OSMOTIC_CACHE", place)
        lists = NeighbourLists(large(), 2, "nearest")
        lists.of(rows[:1])
        assert lists.complete() is None and lists.of(rows).shape == (len(SYMBOLS), 2)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_small_tables_and_rings_are_not_kept(cache: Path) -> None:
    small = Space("small", SYMBOLS[:50], np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32))
    for lists in (NeighbourLists(small, 3, "nearest"), NeighbourLists(large(), 3, "order")):
        lists.of(np.arange(50))
        assert lists.complete() is None
    assert not cache.exists()


def test_the_rest_is_made_in_the_background(cache: Path) -> None:
    lists = NeighbourLists(large(), 3, "nearest")
    assert lists.complete() is None, "nothing was needed yet"
    some = lists.of(np.arange(5))
    thread = lists.complete()
    assert thread is not None and thread.daemon and lists.known.sum() == 5
    thread.join(30)
    (file,) = cache.iterdir()
    assert np.array_equal(np.load(file)[:5], some) and NeighbourLists(large(), 3, "nearest").of(np.arange(9)).shape == (9, 3)
    assert lists.known.sum() == 5


def test_one_thread_a_key(cache: Path) -> None:
    go = threading.Event()

    def blocks() -> Iterator[None]:
        go.wait(10)
        yield

    first = kept_lists.in_background("k" * 64, blocks)
    assert first is not None and kept_lists.in_background("k" * 64, blocks) is None
    go.set()
    first.join(10)
    again = kept_lists.in_background("k" * 64, lambda: iter(()))
    assert again is not None
    again.join(10)


def test_the_end_of_a_process_waits_for_no_lists(tmp_path: Path) -> None:
    code = (
        "import itertools, time\n"
        "from osmotic.plugins.mechanisms.kept_lists import in_background\n"
        "in_background('k' * 64, lambda: (time.sleep(0.01) for _ in itertools.count()))\n"
    )
    environment = {"OSMOTIC_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], timeout=20, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "") and not list(tmp_path.iterdir())


def test_abandoned_parts_are_swept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir()
    (cache / "key.abc.part").touch()
    kept_lists.write_lists("key", np.zeros((2, 1)))
    assert sorted(path.name for path in cache.iterdir()) == ["key.abc.part", "key.npy"]
    monkeypatch.setattr(kept_lists, "STALE", -1.0)
    kept_lists.write_lists("key", np.zeros((2, 1)))
    assert [path.name for path in cache.iterdir()] == ["key.npy"]


# ---- words -----------------------------------------------------------------------------------------------------------

PIECES = [
    "[UNK]",
    "[MASK]",
    "the",
    "run",
    "##ning",
    "##n",
    "##s",
    "a",
    "b",
    "1",
    ".",
    "[",
    "]",
    "mask",
    "'",
    "##1",
    "caf",
    "##e",
]
TEXTS = st.lists(
    st.lists(
        st.sampled_from(["the", "Running", "RUNS", "a1", ".", "[MASK]",
                         "[mask]", "\t", "\n", " ", "\0", "\x7f", "\x0b", "caf\xe9"])
        | st.characters(max_codepoint=160),
        max_size=12,
    ).map("".join),
    max_size=8,
)  # fmt: skip


def pieces() -> PieceTokenizer:
    tokenizer = Tokenizer(WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    tokenizer.add_special_tokens(["[UNK]", "[MASK]"])
    return PieceTokenizer(tokenizer, tokenizer.to_str().encode(), tuple(PIECES), range(len(PIECES)))


@settings(max_examples=400)
@given(texts=TEXTS)
def test_words_are_cut_as_the_tokenizer_does(texts: list[str]) -> None:
    fast, slow = pieces(), pieces()
    slow._ascii = None
    assert fast._ascii is not None
    for some in (texts, texts[::-1]):
        for got, expected in zip(fast.encode(some), slow.encode(some), strict=True):
            assert np.array_equal(got, expected)


def test_long_words_and_forgetting(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, slow = pieces(), pieces()
    slow._ascii = None
    texts = ["a" * 100, "a" * 101, "the " * 500, "", " ", *(f"run{i}s" for i in range(50))]
    assert MOST > 1000
    monkeypatch.setattr("osmotic.plugins.tables.ascii_words.MOST", 20)
    for text in texts * 2:
        assert [part.tolist() for part in fast.encode([text])] == [part.tolist() for part in slow.encode([text])]
    assert isinstance(fast._ascii, AsciiWords) and len(fast._ascii._known) <= 20


def test_other_tokenizers_cut_by_themselves() -> None:
    import json

    said = json.loads(pieces()._tokenizer.to_str())
    assert ascii_words(None, said) is not None
    for name, value in (
        ("normalizer", {**said["normalizer"], "lowercase": False}), ("normalizer", None),
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("model", {**said["model"], "type": "BPE"}), ("added_tokens", [{**said["added_tokens"][0], "normalized": True}]),
    ):  # fmt: skip
        assert ascii_words(None, {**said, name: value}) is None
