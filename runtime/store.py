# SPDX-License-Identifier: Apache-2.0
"""A party's content-addressed store: one folder an artifact, named by its digest, written atomically."""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
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
        raise StoreError(Problem(f"the store cannot be used: {error}", str(path))) from error


class Store:
    """Artifacts by digest under ``folder/objects``; scratch folders under ``folder/scratch``."""

    def __init__(self, folder: Path, passing: bool = False) -> None:
        self.folder = folder
        if passing:
            return
        with disk(folder):
            (folder / "objects").mkdir(parents=True, exist_ok=True)
            (folder / "scratch").mkdir(exist_ok=True)

    def path(self, digest: str) -> Path:
        """Where an artifact lies."""
        return self.folder / "objects" / digest[:2] / digest

    def has(self, digest: str) -> bool:
        """Whether it is there (its content is checked when it is read)."""
        return self.path(digest).is_dir()

    def put(self, artifact: Artifact) -> str:
        """Write an artifact; returns its digest."""
        return self.put_files(artifact.kind, artifact.to_files())

    def put_files(self, kind: str, files: Files) -> str:
        """Write the files of an artifact, all or nothing; returns the digest."""
        digest = digest_of(kind, files)
        target = self.path(digest)
        if target.is_dir() and self.intact(kind, digest):
            return digest
        with disk(self.folder):
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
            try:
                for name, content in files.items():
                    _write_synced(temporary / name, content)
                temporary.rename(target)
            except OSError:
                shutil.rmtree(temporary, ignore_errors=True)
                if not target.is_dir():  # another process may have written the same content
                    raise
        return digest

    def files(self, kind: str, digest: str) -> Files:
        """Read and check the files; raises StoreError naming the artifact when it is missing or damaged."""
        folder = self.path(digest)
        with disk(folder):
            files = {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()} if folder.is_dir() else {}
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
        shutil.rmtree(self.folder / "scratch" / key, ignore_errors=True)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
