# SPDX-License-Identifier: Apache-2.0
"""Folders that FATE hands from task to task (data_directory, model_directory), as they are read.

A folder that osmotic wrote has a ``manifest.json`` (see `runtime.fate.handing`), and its digest is checked. Any other folder
is somebody's own records: one file in a format that osmotic reads. A label in a manifest is said, not believed: what is read
counts as data of the binding that the site's policy gives it.
"""

import json
from pathlib import Path

from osmotic.runtime.storage.store import disk
from osmotic.schemas.artifacts import KINDS, Artifact, digest_of
from osmotic.schemas.errors import DataError, Problem

MANIFEST = "manifest.json"
READABLE = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")


def records_file(folder: Path, path: str) -> Path:
    """The one file of records in a folder. path: of the input, for messages. Raises DataError without one, or with several."""
    with disk(folder):
        here = sorted(folder.iterdir()) if folder.is_dir() else []
    _no_links(here, folder, path)
    files = [file for file in here if file.suffix.lower() in READABLE and file.name != MANIFEST and file.is_file()]
    if len(files) != 1:
        what = f"{len(files)} files of records in the folder" if files else "no file of records in the folder"
        fix = f"put one file into it: {', '.join(READABLE)}"
        raise DataError(Problem(what, str(folder), path, fix=fix))
    return files[0]


def _no_links(files: list[Path], folder: Path, path: str) -> None:
    """Raise DataError for a link: whoever wrote the folder would choose another file of this machine to be read."""
    if links := [file.name for file in files if file.is_symlink()]:
        what, why = f"{links[0]!r} is a link", "what it names may be a file that nobody handed over"
        raise DataError(Problem(what, str(folder), path, why=why, fix="copy the file into the folder"))


def artifact(folder: Path, path: str) -> Artifact | None:
    """What osmotic wrote into a folder, checked against its manifest; None for a folder that it did not write.

    Raises DataError for one that was altered, or that has nothing in it.
    """
    file = folder / MANIFEST
    if not file.is_file():
        return None
    try:
        said = json.loads(file.read_bytes())
        if "osmotic" not in said:
            return None
        if said["kind"] == "nothing":
            raise DataError(Problem("nothing was handed over in this folder", str(folder), path))
        kind, names = KINDS[said["kind"]], [str(name) for name in said["files"]]
        if any(Path(name).name != name for name in names):
            raise DataError(Problem(f"{MANIFEST} names files outside of the folder", str(folder), path))
        with disk(folder):
            _no_links([folder / name for name in names], folder, path)
            files = {name: (folder / name).read_bytes() for name in names}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(Problem(f"{MANIFEST} is damaged", str(folder), path, why=type(error).__name__)) from error
    if digest_of(kind.kind, files) != said.get("digest"):
        raise DataError(Problem("the folder is not what was written", str(folder), path, why="its digest is another"))
    return kind.from_files(files)
