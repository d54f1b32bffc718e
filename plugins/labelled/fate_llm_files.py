# SPDX-License-Identifier: Apache-2.0
"""Which of FATE-LLM's files a path is; pickles are told by their first bytes and never opened."""

from pathlib import Path

from osmotic.schemas.errors import DataError, Problem

RESULT = "inference_result.pkl"
EXPORT = (
    "in FATE's environment, where you trust the file, write it as JSON Lines: python -c \"import json, sys, torch; "
    '[print(json.dumps(row)) for row in torch.load(sys.argv[1])]" {name} > results.jsonl'
)


def no_pickle(path: Path) -> None:
    """Raise DataError for a pickle (torch.save's, with or without its zip): reading one runs whatever it says."""
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise DataError(Problem(f"cannot be read: {error.strerror or type(error).__name__}", str(path))) from error
    named = path.suffix.lower() in (".pkl", ".pickle", ".pt", ".pth", ".bin")
    if named or head[:1] == b"\x80" or head == b"PK\x03\x04":
        why = "reading a pickle runs the program that is in it"
        raise DataError(Problem("a pickle is not read", str(path), why=why, fix=EXPORT.format(name=path.name)))
