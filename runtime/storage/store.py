# SPDX-License-Identifier: Apache-2.0
"""A party's content-addressed store: one folder an artifact, named by its digest, written atomically."""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from osmotic.schemas.artifacts import KINDS, Artifact, Files, Weights, description, digest_of, digest_of_hashes
from osmotic.schemas.errors import Problem, StoreError
from osmotic.schemas.lazy import LazyTensors

TENSORS, META = "weights.safetensors", "meta.json"


@contextlib.contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turn operating system errors about a folder into a StoreError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fix = "free some space and run the same command again: everything finished is kept"
            raise StoreError(Problem("the disk is full", str(path), fix=fix)) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise StoreError(Problem("the folder cannot be written", str(path), fix="choose another with --home")) from error
        if error.errno in (errno.EEXIST, errno.ENOTDIR):
            why = "there is a file of that name, or a part of the path is a file"
            raise StoreError(Problem("this is no folder", str(path), why=why, fix="choose another with --home")) from error
        raise StoreError(Problem(f"the store cannot be used: {error}", str(path))) from error


class Store:
    """Artifacts by digest under ``folder/objects``; scratch folders under ``folder/scratch``.

    passing: make nothing on disk. synced: each artifact is on the disk before it has its name (else see `sync`).
    """

    def __init__(self, folder: Path, passing: bool = False, synced: bool = False) -> None:
        self.synced = synced
        self.folder, self._objects, self._scratch = folder, str(folder / "objects"), str(folder / "scratch")
        if passing:
            return
        with disk(folder):
            (folder / "objects").mkdir(parents=True, exist_ok=True)
            (folder / "scratch").mkdir(exist_ok=True)

    def sync(self, digests: Iterable[str]) -> None:
        """Bring artifacts to the disk; else the operating system does so by and by, and a power cut takes what it had not."""
        for folder in map(self.path, digests):
            with disk(folder):
                for path in (*(folder.iterdir() if folder.is_dir() else ()), folder, folder.parent):
                    sync(path)

    def path(self, digest: str) -> Path:
        """Where an artifact lies."""
        return Path(self._path(digest))

    def _path(self, digest: str) -> str:
        return f"{self._objects}{os.sep}{digest[:2]}{os.sep}{digest}"

    def has(self, digest: str) -> bool:
        """Whether it is there (its content is checked when it is read)."""
        return os.path.isdir(self._path(digest))  # noqa: PTH112 - for every artifact of every task

    def put(self, artifact: Artifact) -> str:
        """Write an artifact; returns its digest."""
        return self.put_files(artifact.kind, artifact.to_files())

    def put_files(self, kind: str, files: Files) -> str:
        """Write the files of an artifact, all or nothing; returns the digest. What survives a power cut says `sync`."""
        digest = digest_of(kind, files)
        if self.has(digest) and self.intact(kind, digest):
            return digest
        target = self._path(digest)
        temporary = f"{target[: -len(digest)]}.new-{os.urandom(8).hex()}"
        with disk(self.folder):
            try:
                _make(temporary)
                for name, content in files.items():
                    _write(f"{temporary}{os.sep}{name}", content)
                    if self.synced:
                        sync(Path(temporary) / name)
                os.rename(temporary, target)  # noqa: PTH104 - as above
            except OSError:
                shutil.rmtree(temporary, ignore_errors=True)
                if not self.has(digest):  # another process may have written the same content
                    raise
        return digest

    def files(self, kind: str, digest: str) -> Files:
        """Read and check the files; raises StoreError naming the artifact when it is missing or damaged."""
        with disk(self.folder):
            files = _read(self._path(digest))
        if digest_of(kind, files) != digest:
            raise self._damaged(kind, digest)
        return files

    def _damaged(self, kind: str, digest: str) -> StoreError:
        """The artifact is set aside, and the error says so."""
        self.discard(digest)
        fix = "it was set aside; run again and it is made anew"
        return StoreError(
            Problem("a stored artifact is missing or damaged", str(self.path(digest)), why=f"kind {kind}", fix=fix)
        )

    def get(self, kind: str, digest: str) -> Artifact:
        """Read an artifact."""
        return KINDS[kind].from_files(self.files(kind, digest))

    def open(self, kind: str, digest: str) -> Artifact:
        """The same, verified as well; tensors of weights stay in their file, and each part is verified again when read."""
        folder = self.path(digest)
        names = sorted(p.name for p in folder.iterdir() if p.is_file()) if kind == Weights.kind and folder.is_dir() else []
        if names != [META, TENSORS]:
            return self.get(kind, digest)
        with disk(folder):
            meta, tensors = (folder / META).read_bytes(), LazyTensors(folder / TENSORS)
        hashes = {META: hashlib.sha256(meta).hexdigest(), TENSORS: tensors.sha256}
        if digest_of_hashes(kind, hashes) != digest:
            raise self._damaged(kind, digest)
        tensors.check()
        return Weights(tensors, description(meta))

    def intact(self, kind: str, digest: str) -> bool:
        """Whether the artifact can be read; a damaged one is set aside."""
        try:
            self.files(kind, digest)
        except StoreError:
            return False
        return True

    def discard(self, digest: str) -> None:
        """Set a damaged artifact aside, so that it is made anew."""
        folder = self.path(digest)
        aside = self.folder / "damaged"
        with disk(aside):
            if folder.is_dir():
                aside.mkdir(exist_ok=True)
                folder.rename(aside / f"{digest}-{len(list(aside.iterdir()))}")

    def scratch(self, key: str) -> Path:
        """A task's own folder for checkpoints."""
        folder = self.folder / "scratch" / key
        with disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def clear_scratch(self, key: str) -> None:
        """Remove a finished task's checkpoints."""
        folder = f"{self._scratch}{os.sep}{key}"
        if os.path.isdir(folder):  # noqa: PTH112 - as above
            shutil.rmtree(folder, ignore_errors=True)


def _make(folder: str) -> None:
    """A folder that its owner alone can enter, and the one above it where that is not there."""
    try:
        os.mkdir(folder, 0o700)  # noqa: PTH102 - as above
    except FileNotFoundError:
        Path(folder).parent.mkdir(parents=True, exist_ok=True)
        Path(folder).mkdir(0o700)


def _write(path: str, content: bytes) -> None:
    with open(path, "wb", buffering=0) as file:  # noqa: PTH123 - as above
        left = memoryview(content)
        while left:  # a raw write may take a part
            left = left[file.write(left) :]


def _read(folder: str) -> Files:
    """Content of each file; nothing where there is no such folder."""
    files: Files = {}
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.path) for entry in entries if entry.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return files
    for name, path in found:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - as above
            files[name] = file.readall()
    return files


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk; what is no longer there needs nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
