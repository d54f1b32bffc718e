# SPDX-License-Identifier: Apache-2.0
"""The store: all or nothing on disk, damage is named and mended, a full disk says so."""

import errno
from pathlib import Path

import pytest

from osmotic.runtime.storage import store as module
from osmotic.runtime.storage.store import Store
from osmotic.schemas.artifacts import Document, Records
from osmotic.schemas.errors import StoreError


def test_put_and_get_by_digest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    digest = store.put(Records([{"id": "a", "x": 1}]))
    assert store.put(Records([{"id": "a", "x": 1}])) == digest
    read = store.get("records", digest)
    assert isinstance(read, Records) and read.rows == [{"id": "a", "x": 1}]
    assert store.has(digest) and store.intact("records", digest)


@pytest.mark.parametrize("damage", ["change", "cut", "remove", "add"])
def test_a_damaged_artifact_is_named_set_aside_and_made_anew(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    digest = store.put(Document({"a": 1}))
    file = store.path(digest) / "document.json"
    if damage == "remove":
        file.unlink()
    elif damage == "add":
        (store.path(digest) / "more.json").write_bytes(b"{}")
    else:
        file.write_bytes(b'{"a":2}' if damage == "change" else b'{"a')
    with pytest.raises(StoreError, match=digest):
        store.get("document", digest)
    assert not store.has(digest) and not store.intact("document", digest)
    assert store.put(Document({"a": 1})) == digest
    assert store.intact("document", digest)


def test_writing_equal_content_over_a_damaged_copy_mends_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    digest = store.put(Document([1]))
    (store.path(digest) / "document.json").write_bytes(b"[2]")
    store.put(Document([1]))
    assert store.intact("document", digest)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    store = Store(tmp_path)

    def full(path: str, content: bytes) -> None:
        Path(path).write_bytes(content[:1])
        raise OSError(number, "full")

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(StoreError, match="disk is full"):
        store.put(Document("x" * 100))
    assert [p for p in (tmp_path / "objects").rglob("*") if p.is_file()] == []
    monkeypatch.undo()
    assert store.intact("document", store.put(Document("x" * 100)))


def test_a_kill_while_writing_leaves_no_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    monkeypatch.setattr(module, "_write", lambda path, content: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.put(Document(1))
    monkeypatch.undo()
    digest = store.put(Document(1))
    assert store.intact("document", digest)


def test_a_folder_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError):
        Store(tmp_path / "file" / "store")


def test_scratch_is_kept_until_cleared(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (store.scratch("k") / "step").write_text("3")
    assert (store.scratch("k") / "step").read_text() == "3"
    store.clear_scratch("k")
    assert list(store.scratch("k").iterdir()) == []
